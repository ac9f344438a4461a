"""Lifeline: a luminous ribbon along time that follows the sound and widens over a song."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud.energy import Energy, sample_columns

__all__ = [
    "STRANDS",
    "WIDTH_AT_END",
    "WIDTH_AT_START",
    "lifeline_places",
    "lifeline_points",
    "lifeline_width",
]

WIDTH_AT_START = 0.16
WIDTH_AT_END = 0.55
#: Threads that the ribbon is made of: its two edges.
STRANDS = 2

_Floats = NDArray[np.float32]
_TWIST = 0.9
_GOLDEN = 0.6180339887


def lifeline_width(progress: float) -> float:
    """Return the ribbon's width from edge to edge at a place in the song (0 start, 1 end)."""
    return WIDTH_AT_START + (WIDTH_AT_END - WIDTH_AT_START) * progress


def lifeline_places(count: int) -> tuple[_Floats, _Floats]:
    """Return where along time the points of the ribbon are, and on which strand.

    Args:
        count: how many points, n.

    Returns:
        float32 x (n,) in [-1, 1], and strand (n,), -1 or 1.
    """
    index = np.arange(count)
    # Golden steps leave no gap on a strand, however many points it has.
    x = 2.0 * ((_GOLDEN * (1 + index // STRANDS)) % 1.0) - 1.0
    strand = (index % STRANDS) * (2.0 / (STRANDS - 1)) - 1.0
    return x.astype(np.float32), strand.astype(np.float32)


def lifeline_points(
    energy: Energy, count: int, progress: float
) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Lay points on the ribbon.

    The ribbon's middle runs through the mean height of the sound's energy in each column, and the
    ribbon turns about it as it goes.

    Args:
        energy: of the window.
        count: how many points, n.
        progress: place in the song, in [0, 1].

    Returns:
        float32 x, y, z (n,) and the loudness (n,) of the columns they are at.
    """
    x, strand = lifeline_places(count)
    half = 0.5 * lifeline_width(progress) * strand
    angle = np.pi * _TWIST * x
    loudness = sample_columns(x, energy.loudness)
    y = sample_columns(x, energy.line) + half * np.cos(angle)
    z = 0.3 * loudness + half * np.sin(angle)
    return x, y.astype(np.float32), z.astype(np.float32), loudness
