"""Storm: excitement charges the cloud like a leaky capacitor until lightning strikes.

Each video frame the charge loses 6 % and gains 1.2 times the energy, which is the anchors'
activation times arousal (0 calm to 1). Above 14 it discharges: 45 % stays, and a flash is left that
fades within half a second. Energy of less than 0.7 never gets there, full energy strikes about
four times a second. (The leaky integrate-and-fire neuron: Lapicque, "Recherches quantitatives sur
l'excitation électrique des nerfs", 1907.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud.anchors import ANCHOR_POSITIONS

__all__ = ["GAIN", "KEPT", "LEAK", "THRESHOLD", "Storm", "bolt", "charged"]

LEAK = 0.06
GAIN = 1.2
THRESHOLD = 14.0
#: Share of the charge that a discharge leaves.
KEPT = 0.45
_FADING = 0.86
_BOLT_KNOTS = 7

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Storm:
    """The state of the storm.

    Attributes:
        charge: 0 to about 14.
        flash: brightness of the last lightning, 1 when it strikes, fading to 0.
        strikes: how often it has struck.
        anchor: index of the anchor that the last lightning comes from.
    """

    charge: float = 0.0
    flash: float = 0.0
    strikes: int = 0
    anchor: int = 0

    @property
    def tension(self) -> float:
        """Charge as a share of the threshold, in [0, 1]."""
        return min(1.0, self.charge / THRESHOLD)


def charged(storm: Storm, energy: float, strongest_anchor: int) -> Storm:
    """Return the storm one video frame later.

    Args:
        storm: before.
        energy: anchor activation x arousal, in [0, 1].
        strongest_anchor: index of the anchor that a lightning would come from.
    """
    charge = (1.0 - LEAK) * storm.charge + GAIN * energy
    if charge > THRESHOLD:
        return Storm(KEPT * charge, 1.0, storm.strikes + 1, strongest_anchor)
    flash = storm.flash * _FADING
    return Storm(charge, flash if flash > 1e-3 else 0.0, storm.strikes, storm.anchor)


def bolt(storm: Storm, target: tuple[float, float, float]) -> _Floats:
    """Return the way of the last lightning from its anchor to `target`: (7, 3) corners.

    The zigzag is another one for each strike, and the same for the same strike.
    """
    start, end = ANCHOR_POSITIONS[storm.anchor], np.array(target, np.float32)
    share = np.linspace(0.0, 1.0, _BOLT_KNOTS)[:, None]
    turn = 2.0 * np.pi * 0.618034 * (storm.strikes + np.arange(3)) + np.array([0.0, 1.3, 2.9])
    zigzag = np.sin(turn + np.arange(_BOLT_KNOTS)[:, None] * np.array([2.4, 2.9, 3.4]))
    width = 0.16 * np.sin(np.pi * share)
    way: _Floats = (start + share * (end - start) + width * zigzag).astype(np.float32)
    return way
