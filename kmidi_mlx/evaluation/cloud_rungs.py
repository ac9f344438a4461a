"""What the rungs of the cloud ladder are made of: mean clouds, foreign inputs, network, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.cloud_shards import CloudPairs
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.spectocloud import Frame, advance, begin

__all__ = [
    "CloudData",
    "EmotionMeans",
    "network_ms",
    "other_songs",
    "spread_evenly",
    "teacher_ms",
]

Floats = NDArray[np.float32]
#: The emotion plane is cut into this many stripes of valence and as many of arousal.
CELLS_PER_AXIS = 5
#: Frames timed, and frames before them that are not.
TIMED_FRAMES, WARM_UP_FRAMES = 60, 10
_READ_AT_ONCE = 64


class CloudData(Protocol):
    """What of a `CloudReader` is needed."""

    song: NDArray[np.int32]

    def split(self, name: str) -> NDArray[np.int64]:
        """Indices of the pairs of a side."""

    def pairs(self, indices: NDArray[np.int64]) -> CloudPairs:
        """Read pairs."""


class EmotionMeans:
    """The mean cloud of each emotion: what can be drawn by who hears nothing.

    Points are averaged by index, over all clouds whose emotion lies in the same cell of a 5 x 5
    grid over valence and arousal.

    Args:
        reader: the clouds.
        indices: the pairs to learn from, at least one.
    """

    def __init__(self, reader: CloudData, indices: NDArray[np.int64]) -> None:
        shape = reader.pairs(indices[:1]).clouds.shape[2:]
        sums = np.zeros((CELLS_PER_AXIS**2, *shape))
        counts = np.zeros(CELLS_PER_AXIS**2)
        for start in range(0, len(indices), _READ_AT_ONCE):
            pairs = reader.pairs(indices[start : start + _READ_AT_ONCE])
            cells = _cells(pairs.emotion).ravel()
            clouds = pairs.clouds.reshape(-1, *shape)
            for cell in np.unique(cells):
                sums[cell] += clouds[cells == cell].sum(axis=0, dtype=np.float64)
            counts += np.bincount(cells, minlength=len(counts))
        known = np.flatnonzero(counts)
        self._means = (sums[known] / counts[known, None, None]).astype(np.float32)
        # a cell without clouds takes the mean of the nearest that has some
        places = np.stack(np.divmod(np.arange(len(counts)), CELLS_PER_AXIS), axis=1)
        gaps = np.square(places[:, None] - places[known]).sum(axis=2)
        self._mean_of_cell = gaps.argmin(axis=1)

    def clouds(self, emotions: Floats) -> Floats:
        """Return the mean clouds of emotions (..., 3): float32 (..., points, 10)."""
        means: Floats = self._means[self._mean_of_cell[_cells(emotions)]]
        return means


def _cells(emotions: Floats) -> NDArray[np.intp]:
    """Number of the grid's cell of emotions (..., 3) whose first two are in [-1, 1]."""
    place = ((emotions[..., :2] + 1.0) * (CELLS_PER_AXIS / 2)).astype(np.intp)
    place = np.clip(place, 0, CELLS_PER_AXIS - 1)
    cells: NDArray[np.intp] = place[..., 0] * CELLS_PER_AXIS + place[..., 1]
    return cells


def spread_evenly(indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the indices at even distances, or all where there are no more."""
    if len(indices) <= count:
        return indices
    chosen: NDArray[np.int64] = indices[np.arange(count) * len(indices) // count]
    return chosen


def other_songs(song: NDArray[np.integer], seed: int) -> NDArray[np.intp]:
    """Draw for each pair one of another song.

    Args:
        song: (pairs,) number of the song of each pair.
        seed: of the draw.

    Returns:
        int (pairs,), places in `song`.

    Raises:
        KmidiError: if there is one song only.
    """
    order = np.argsort(song, kind="stable")
    _, first, which, counts = np.unique(
        song[order], return_index=True, return_inverse=True, return_counts=True
    )
    if len(counts) < 2:
        raise KmidiError(
            "the pairs to measure are all of one song, and a ladder compares songs; measure a "
            "side with more songs (--split train), or prepare more music or a larger --val-share."
        )
    # sorted by song, the pairs of the others lie behind one's own, going round
    own = counts[which]
    steps = np.random.default_rng(seed).integers(0, len(song) - own)
    drawn = np.empty(len(song), np.intp)
    drawn[order] = order[(first[which] + own + steps) % len(song)]
    return drawn


def network_ms(network: Network, pairs: CloudPairs) -> float:
    """Median time of one frame at batch 1, inputs as arrays, until its cloud is an array."""
    windows, features, emotions = (
        array.reshape(-1, 1, *array.shape[2:])
        for array in (pairs.windows, pairs.features, pairs.emotion)
    )

    def draw(frame: int) -> None:
        index = frame % len(windows)
        network.clouds(windows[index], features[index], emotions[index])

    return _median_ms(draw)


def teacher_ms(pairs: CloudPairs, points: int) -> float:
    """Median time that the engine needs for one frame's cloud of `points` points."""
    frames = [
        Frame(window, features, tuple(emotions.tolist()), 0.5)
        for window, features, emotions in zip(
            pairs.windows.reshape(-1, *pairs.windows.shape[2:]),
            pairs.features.reshape(-1, pairs.features.shape[-1]),
            pairs.emotion.reshape(-1, 3),
            strict=True,
        )
    ]
    state = begin(frames[0], points)
    return _median_ms(lambda frame: advance(state, frames[frame % len(frames)]))


def _median_ms(work: Callable[[int], object]) -> float:
    times = list(_timed(work, range(WARM_UP_FRAMES + TIMED_FRAMES)))
    return 1e3 * float(np.median(times[WARM_UP_FRAMES:]))


def _timed(work: Callable[[int], object], frames: Iterable[int]) -> Iterable[float]:
    for frame in frames:
        started = time.perf_counter()
        work(frame)
        yield time.perf_counter() - started
