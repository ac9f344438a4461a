"""Anchors: fixed stars around the cloud that glow as the music comes near them.

Five families frame the cloud like the scales of an instrument. Harmony is a clock of the twelve
pitch classes in the order of fifths behind the cloud; rhythm (few to many onsets) stands below it
from left to right, timbre (dark to bright) above it, texture (thin to dense) on the left and
dynamics (soft to loud) on the right, where "now" is, from bottom to top.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.features import FEATURE_NAMES
from kmidi_mlx.spectocloud.energy import Energy

__all__ = ["ANCHOR_COUNT", "ANCHOR_POSITIONS", "FAMILIES", "activations", "family_peak"]

#: Families and how many anchors each has, in the order of the arrays below.
FAMILIES = {"harmony": 12, "rhythm": 4, "dynamics": 4, "timbre": 4, "texture": 4}
ANCHOR_COUNT = sum(FAMILIES.values())

_Floats = NDArray[np.float32]
_STARTS = np.cumsum([0, *FAMILIES.values()])[:-1]
_DENSITY = FEATURE_NAMES.index("density")
_POLYPHONY = FEATURE_NAMES.index("polyphony")
#: The saturating features that count as the end of the scale: about 14 onsets a second, 10 notes.
_FULL_DENSITY, _FULL_POLYPHONY = 0.64, 0.71
#: Loudness of a column (0-1) at which music counts as fully there.
_FULL_PRESENCE = 0.32
_LOUDEST = 0.56
_CHROMA_WIDTH, _SCALE_WIDTH = 0.35, 0.17
_SCALE_PLACES = np.array([0.125, 0.375, 0.625, 0.875])


def _positions() -> Iterator[tuple[float, float, float]]:
    for pitch_class in range(12):
        angle = np.pi / 2.0 - 2.0 * np.pi * (7 * pitch_class % 12) / 12.0
        yield 0.86 * np.cos(angle), 0.8 * np.sin(angle), -0.72
    along = (-0.6, -0.2, 0.2, 0.6)
    yield from ((place, -0.93, 0.25) for place in along)
    yield from ((0.94, place, 0.2) for place in along)
    yield from ((place, 0.93, 0.15) for place in along)
    yield from ((-0.94, place, 0.2) for place in along)


#: float32 (28, 3): x, y, z of the anchors.
ANCHOR_POSITIONS: _Floats = np.array(list(_positions()), np.float32)
ANCHOR_POSITIONS.flags.writeable = False


def activations(energy: Energy, features: _Floats) -> _Floats:
    """Say how near the music is to each anchor: 1 there, 0 far away or silent.

    Nearness is a Gaussian of the distance on the family's scale: to a pitch class, how much less
    than the strongest one it sounds; on the four-step scales, the distance of the onset density,
    the loudness, the spectral centroid or the polyphony from the anchor's place. All of it times
    how much music is there.

    Args:
        energy: of the window.
        features: float32 (32,), as of `kmidi_mlx.music.features`.

    Returns:
        float32 (28,) in [0, 1], families in the order of `FAMILIES`.
    """
    presence = min(1.0, energy.loudness_now / _FULL_PRESENCE)
    out = np.empty(ANCHOR_COUNT)
    chroma = features[:12].astype(np.float64)
    strongest = float(chroma.max())
    missing = 1.0 - chroma / strongest if strongest > 0.0 else np.full(12, 3.0)
    out[:12] = missing / _CHROMA_WIDTH
    scales = (
        float(features[_DENSITY]) / _FULL_DENSITY,
        energy.loudness_now / _LOUDEST,
        2.5 * energy.brightness,
        float(features[_POLYPHONY]) / _FULL_POLYPHONY,
    )
    for start, value in zip(_STARTS[1:], scales, strict=True):
        out[start : start + 4] = (min(1.0, value) - _SCALE_PLACES) / _SCALE_WIDTH
    result: _Floats = (presence * np.exp(-0.5 * out * out)).astype(np.float32)
    return result


def family_peak(glow: _Floats) -> float:
    """Return the mean over families of the strongest anchor's activation, in [0, 1]."""
    return float(np.maximum.reduceat(glow, _STARTS).mean())
