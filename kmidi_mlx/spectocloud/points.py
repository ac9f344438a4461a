"""Which point of a cloud does what: fixed low-discrepancy numbers for every point.

Nothing here depends on how many points there are in all, so that the first 200 points of a cloud
of 3000 are the cloud of 200.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "DEFAULT_POINTS",
    "LEVELS_OF_DETAIL",
    "PointSet",
    "low_discrepancy",
    "point_set",
]

#: Numbers of points that the product offers; any number from 1 to the last works.
LEVELS_OF_DETAIL = (200, 600, 1200, 2000, 3000)
DEFAULT_POINTS = 1200

_Floats = NDArray[np.float64]
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_ANCHOR_SHARE, _LIFELINE_SHARE = 0.145, 0.145


@dataclass(frozen=True, eq=False)
class PointSet:
    """The fixed part of a cloud's points: their roles and seeds.

    Attributes:
        count: points in all.
        body: (b,) indices of the points that are spread over the sound's energy.
        lifeline: (l,) indices of the points of the lifeline.
        anchor: (a,) indices of the points around anchors.
        body_seeds: float64 (3, b), three numbers in (0, 1) a point.
    """

    count: int
    body: NDArray[np.intp]
    lifeline: NDArray[np.intp]
    anchor: NDArray[np.intp]
    body_seeds: _Floats


def low_discrepancy(count: int) -> _Floats:
    """Return the first points of a sequence that fills the unit cube evenly.

    The digits of the index mirrored behind the point in bases 2, 3 and 5 (Halton, "On the
    efficiency of certain quasi-random sequences of points", Numerische Mathematik 2, 1960).

    Args:
        count: how many points.

    Returns:
        float64 (3, count) in (0, 1).
    """
    sequence = np.zeros((3, count))
    for row, base in zip(sequence, (2, 3, 5), strict=True):
        digits, place = np.arange(1, count + 1), 1.0
        while digits.any():
            place /= base
            row += place * (digits % base)
            digits //= base
    return sequence


@lru_cache(maxsize=8)
def point_set(count: int = DEFAULT_POINTS) -> PointSet:
    """Return the fixed numbers of a cloud of `count` points (made once, arrays read-only).

    Raises:
        KmidiError: if count is not from 1 to 3000.
    """
    if not 1 <= count <= LEVELS_OF_DETAIL[-1]:
        raise KmidiError(
            f"a cloud of {count} points cannot be made; give 1 to {LEVELS_OF_DETAIL[-1]}, "
            f"best one of {', '.join(map(str, LEVELS_OF_DETAIL))}."
        )
    # The golden ratio deals the roles out evenly in every stretch of indices.
    turn = (_GOLDEN * np.arange(1, count + 1)) % 1.0
    is_anchor = turn < _ANCHOR_SHARE
    is_lifeline = ~is_anchor & (turn < _ANCHOR_SHARE + _LIFELINE_SHARE)
    roles = ~(is_anchor | is_lifeline), is_lifeline, is_anchor
    body, lifeline, anchor = (np.flatnonzero(role) for role in roles)
    seeds = low_discrepancy(len(body))
    for array in (body, lifeline, anchor, seeds):
        array.flags.writeable = False
    return PointSet(count, body, lifeline, anchor, seeds)
