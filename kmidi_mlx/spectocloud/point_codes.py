"""What a point of a cloud is, as numbers for a network: its role and its fixed place in that role.

A network that makes its queries from these numbers, and not from a table of its own, draws any
number of points with one set of weights: the engine's points are the same at every level of detail.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT, ANCHOR_POSITIONS
from kmidi_mlx.spectocloud.cloud import anchor_offsets
from kmidi_mlx.spectocloud.lifeline import lifeline_places
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS, point_set

__all__ = ["CODE_DIM", "point_codes", "seed_columns"]

_Floats = NDArray[np.float32]

# Waves of 1, 2, 4 ... half periods over a seed's range tell neighbouring points apart
# (Fourier features: Tancik et al. 2020, arXiv 2006.10739).
_OCTAVES = 7
_WAVES = 1 + 2 * _OCTAVES
#: Numbers that describe a point: 3 roles, 3 seeds of a body point, place and strand of a lifeline
#: point, anchor, position and offset of an anchor point.
CODE_DIM = 3 + 3 * _WAVES + _WAVES + 1 + ANCHOR_COUNT + 3 + 3


@lru_cache(maxsize=8)
def point_codes(count: int = DEFAULT_POINTS) -> _Floats:
    """Describe the points of a cloud (made once, read-only).

    Args:
        count: points in all, 1 to 3000.

    Returns:
        float32 (count, `CODE_DIM`) in [-1, 1]; entries of other roles are 0.

    Raises:
        KmidiError: if count is not from 1 to 3000.
    """
    points = point_set(count)
    codes = np.zeros((count, CODE_DIM), np.float32)
    for role, indices in enumerate((points.body, points.lifeline, points.anchor)):
        codes[indices, role] = 1.0
    start = 3
    for seed in points.body_seeds:
        codes[points.body, start : start + _WAVES] = _waves(2.0 * seed - 1.0)
        start += _WAVES
    x, strand = lifeline_places(len(points.lifeline))
    codes[points.lifeline, start : start + _WAVES] = _waves(x)
    codes[points.lifeline, start + _WAVES] = strand
    start += _WAVES + 1
    anchor, offset = anchor_offsets(len(points.anchor))
    codes[points.anchor, start + anchor] = 1.0
    start += ANCHOR_COUNT
    codes[points.anchor, start : start + 3] = ANCHOR_POSITIONS[anchor]
    codes[points.anchor, start + 3 :] = offset.T
    codes.flags.writeable = False
    return codes


def seed_columns(numbers: int) -> NDArray[np.intp]:
    """Return where a body point's code tells its seeds of time and pitch, half of it each.

    Args:
        numbers: of each seed, odd: itself, then the sines and the cosines of its longest waves.
    """
    octaves = np.arange(numbers // 2)
    one = np.concatenate([[0], 1 + octaves, 1 + _OCTAVES + octaves])
    return np.concatenate([3 + one, 3 + _WAVES + one])


def _waves(place: NDArray[np.floating]) -> _Floats:
    """Return a place in [-1, 1] and waves of it: (n,) to (n, 15)."""
    phase = np.pi * 0.5 * place[:, None] * 2.0 ** np.arange(_OCTAVES)
    waves: _Floats = np.column_stack([place, np.sin(phase), np.cos(phase)]).astype(np.float32)
    return waves
