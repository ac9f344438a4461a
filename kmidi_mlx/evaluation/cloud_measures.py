"""How far clouds are from the teacher's: pair by pair, then over all songs."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["CloudErrors", "CloudScore", "Estimate", "compare_pairs", "estimate"]

Floats = NDArray[np.floating]
_POSITION, _COLOR, _PROPERTIES = slice(0, 3), slice(3, 7), slice(7, 10)


@dataclass(frozen=True)
class Estimate:
    """A mean over pairs.

    Attributes:
        mean: of all pairs.
        standard_error: of the mean, over songs; None for a single song.
    """

    mean: float
    standard_error: float | None


@dataclass(frozen=True, eq=False)
class CloudErrors:
    """What was measured of each pair of neighbouring frames, float64 (pairs,).

    Attributes:
        chamfer: mean squared distance of the predicted points from the nearest of the teacher's,
            plus that of the teacher's points from the nearest predicted; mean of both frames.
        color: squared error of r, g, b, a between points so matched; mean of both directions.
        properties: absolute error of size, glow, depth between points so matched, likewise.
        movement: mean square of how far a predicted point moves between the frames.
        teacher_movement: the same of the teacher's points with the same indices.
        movement_error: mean square of the difference of the two movements of a point.
    """

    chamfer: NDArray[np.float64]
    color: NDArray[np.float64]
    properties: NDArray[np.float64]
    movement: NDArray[np.float64]
    teacher_movement: NDArray[np.float64]
    movement_error: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: list[CloudErrors]) -> CloudErrors:
        """Put the pairs of several batches one behind the other."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def score(self, song: NDArray[np.integer]) -> CloudScore:
        """Sum up.

        Args:
            song: (pairs,) number of the song of each pair.
        """
        moved, teacher, error = (
            math.sqrt(float(mean.mean()))
            for mean in (self.movement, self.teacher_movement, self.movement_error)
        )
        still = math.isnan(moved)
        return CloudScore(
            chamfer=estimate(self.chamfer, song),
            color_mse=float(self.color.mean()),
            property_error=float(self.properties.mean()),
            movement=None if still or teacher == 0 else moved / teacher,
            jitter=None if still else error,
        )


@dataclass(frozen=True)
class CloudScore:
    """Errors of all pairs together.

    Attributes:
        chamfer: as in `CloudErrors`, with its standard error.
        color_mse: mean squared error of r, g, b, a.
        property_error: mean absolute error of size, glow, depth.
        movement: root mean square movement of a point from frame to frame over that of the
            teacher's: 1 is as lively as the teacher, 0 stands still. None: not a sequence, or the
            teacher stands still.
        jitter: root mean square of the movement that the teacher's point does not make, where a
            cloud is 2 wide. None: not a sequence.
    """

    chamfer: Estimate
    color_mse: float
    property_error: float
    movement: float | None
    jitter: float | None


def compare_pairs(predicted: Floats, target: Floats, sequence: bool = True) -> CloudErrors:
    """Compare predicted pairs of clouds with the teacher's.

    Args:
        predicted: (pairs, 2, n, 10), columns as in `spectocloud.CHANNELS`; point i is to be the
            teacher's point i.
        target: (pairs, 2, m, 10), n <= m.
        sequence: whether the two clouds of a predicted pair follow each other; False leaves
            movement unknown (NaN).
    """
    frames = [
        np.mean([_matched(*clouds) for clouds in zip(*pair, strict=True)], axis=0)
        for pair in zip(predicted, target, strict=True)
    ]
    moved = predicted[:, 1, :, _POSITION] - predicted[:, 0, :, _POSITION]
    same = slice(0, predicted.shape[2])
    wanted = target[:, 1, same, _POSITION] - target[:, 0, same, _POSITION]
    movement = [
        np.square(way, dtype=np.float64).sum(2).mean(1) for way in (moved, wanted, moved - wanted)
    ]
    if not sequence:
        movement = [np.full(len(predicted), np.nan)] * 3
    return CloudErrors(*np.array(frames, np.float64).reshape(-1, 3).T, *movement)


def estimate(values: Floats, song: NDArray[np.integer]) -> Estimate:
    """Mean of values, with the standard error that it has when songs are what was drawn.

    Ratio estimator, Cochran, "Sampling Techniques" (3rd edition, 1977), section 6.4.

    Args:
        values: (n,).
        song: (n,) number of the song of each value.
    """
    mean = float(values.mean())
    _, which = np.unique(song, return_inverse=True)
    sums = np.bincount(which, values - mean)
    if len(sums) < 2:
        return Estimate(mean, None)
    spread = float(np.square(sums).sum()) * len(sums) / (len(sums) - 1)
    return Estimate(mean, math.sqrt(spread) / len(values))


def _matched(one: Floats, other: Floats) -> tuple[float, float, float]:
    """Chamfer distance, colour error and property error of two clouds (n, 10) and (m, 10)."""
    chamfer = color = properties = 0.0
    for points, among in ((one, other), (other, one)):
        # a plain tree: the clouds are small, and balancing stumbles over equal points
        tree = cKDTree(among[:, _POSITION], balanced_tree=False, compact_nodes=False)
        distance, index = tree.query(points[:, _POSITION])
        error = points - among[index]
        chamfer += float(np.square(distance).mean())
        color += 0.5 * float(np.square(error[:, _COLOR]).mean())
        properties += 0.5 * float(np.abs(error[:, _PROPERTIES]).mean())
    return chamfer, color, properties
