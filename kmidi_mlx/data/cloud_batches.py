"""Batches of clouds as a pure function of seed and step: the cursor of training is the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.batches import ADVICE
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.emotion import encode_many
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud import DEFAULT_POINTS

__all__ = ["CloudBatch", "CloudBatches"]

# First words of the seeds of independent streams.
_ORDER, _POINTS = 11, 12
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class CloudBatch:
    """B samples; rows 2j and 2j + 1 are neighbouring video frames of one song.

    Attributes:
        windows: float32 (B, 128, 64), compressed mel spectrograms in [0, 1].
        features: float32 (B, 32), MIDI features in [-1, 1].
        emotion: float32 (B, 64), emotion vectors (`kmidi_mlx.emotion.encode`).
        clouds: float32 (B, points, 10), columns as in `spectocloud.CHANNELS`.
        point_indices: int32 (points,), which of the 1200 points these are, rising.
        weights: float32 (B,), 1; 0 for rows that only fill the last batch of a fixed side.
    """

    windows: NDArray[np.float32]
    features: NDArray[np.float32]
    emotion: NDArray[np.float32]
    clouds: NDArray[np.float32]
    point_indices: NDArray[np.int32]
    weights: NDArray[np.float32]


class CloudBatches:
    """Batches of one side of a data set.

    On `train` every epoch has its own random order and goes through all pairs; with fewer points
    than there are, each batch has a random choice of them. On `val` and `test` order and points are
    fixed, and any first k batches are spread evenly over all songs.

    Args:
        reader: the data set.
        split: `train`, `val` or `test`.
        batch_size: B, samples in a batch, even.
        seed: of order and points.
        points: points of each cloud, 1 to 1200.

    Raises:
        KmidiError: if the side has no samples, or a number is out of range.
    """

    def __init__(
        self, reader: CloudReader, split: str, batch_size: int, seed: int, points: int
    ) -> None:
        self._pairs = reader.split(split)
        if not len(self._pairs):
            raise KmidiError(f"{reader.folder} has no samples in {split!r}; {ADVICE[split]}.")
        if batch_size < 2 or batch_size % 2:
            raise KmidiError(
                f"batch_size is {batch_size}; samples come in pairs, so it has to be even and at "
                "least 2."
            )
        if not 1 <= points <= DEFAULT_POINTS:
            raise KmidiError(f"{points} points are wanted; a cloud has 1 to {DEFAULT_POINTS}.")
        self.batch_size = batch_size
        self._reader = reader
        self._seed = seed
        self._points = points
        self._fixed = split != "train"
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def samples_per_epoch(self) -> int:
        """Samples that are seen once in an epoch."""
        return 2 * len(self._pairs)

    def steps_per_epoch(self, grad_accum_steps: int = 1) -> int:
        """Return the optimiser steps that see an epoch's samples, rounded up.

        Args:
            grad_accum_steps: batches per optimiser step.
        """
        return -(-self.samples_per_epoch // (self.batch_size * grad_accum_steps))

    def batch(self, step: int) -> CloudBatch:
        """Return batch `step`, the same one whenever it is asked for.

        Training batches go on without end, one epoch's order after the other. Fixed sides start
        over after `steps_per_epoch` batches; rows that fill up the last one have weight 0.

        Args:
            step: number of the batch, from 0.
        """
        rows, total = self.batch_size // 2, len(self._pairs)
        first = (step % self.steps_per_epoch() if self._fixed else step) * rows
        places = np.arange(first, first + rows)
        weights = np.ones(self.batch_size, np.float32)
        if self._fixed:
            weights[:] = np.repeat(places < total, 2)
        epochs = places // total
        chosen = np.concatenate(
            [
                self._order(0 if self._fixed else epoch)[places[epochs == epoch] % total]
                for epoch in np.unique(epochs).tolist()
            ]
        )
        found = self._reader.pairs(chosen)
        points = self._point_indices(step)
        valence, arousal, intensity = found.emotion.reshape(-1, 3).T
        return CloudBatch(
            windows=_flat(found.windows),
            features=_flat(found.features),
            emotion=encode_many(valence, arousal, intensity),
            clouds=_flat(
                found.clouds if len(points) == DEFAULT_POINTS else found.clouds[:, :, points]
            ),
            point_indices=points,
            weights=weights,
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = self._orders.get(epoch)
        if order is None:
            total = len(self._pairs)
            if self._fixed:
                # Multiples of the golden ratio: any beginning of this order is spread evenly.
                places = np.argsort(np.arange(total) * _GOLDEN % 1.0, kind="stable")
            else:
                places = np.random.default_rng((_ORDER, self._seed, epoch)).permutation(total)
            # A batch may reach into the next epoch; older orders are not needed again.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            order = self._orders[epoch] = self._pairs[places]
        return order

    def _point_indices(self, step: int) -> NDArray[np.int32]:
        if self._fixed or self._points == DEFAULT_POINTS:
            return np.arange(self._points, dtype=np.int32)
        rng = np.random.default_rng((_POINTS, self._seed, step))
        chosen = rng.choice(DEFAULT_POINTS, self._points, replace=False)
        return np.sort(chosen).astype(np.int32)


def _flat(pairs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Join the first two axes: pairs and their frames become rows."""
    return np.ascontiguousarray(pairs.reshape(-1, *pairs.shape[2:]))
