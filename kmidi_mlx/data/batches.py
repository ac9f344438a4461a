"""Batches of windows as a pure function of seed and step: the cursor of training is the step.

Songs, not files, are drawn: an epoch has as many windows of a song as its longest version fills,
and each window comes from a version drawn at random, so ten versions weigh no more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import MidiDataConfig
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.windows import Augmentation, Window, WindowCutter
from kmidi_mlx.emotion import EMOTION_DIM, encode_many
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import PAD_TOKEN, START_TOKEN

__all__ = ["ADVICE", "Batch", "MidiBatches", "collate"]

# First words of the seeds of independent streams.
_ORDER, _DRAWS = 1, 2
_GOLDEN = (5**0.5 - 1) / 2
ADVICE = {
    "train": "prepare a second song, or with a smaller --val-share",
    "val": "prepare at least two songs with a --val-share above 0, or name val in the manifest",
    "test": "a manifest has to name the pieces that are to be tested on",
}


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows of T events.

    Attributes:
        inputs: int32 (B, T), what the model reads: event ids, `START_TOKEN`, `PAD_TOKEN`.
        targets: int32 (B, T), the events that follow; 0 on padding.
        weights: float32 (B, T), 1 where there is a target, 0 on padding.
        emotion: float32 (B, 64), emotion vectors; zeros where the condition was dropped.
        chords: int32 (B, C), the chords of each window, each one once; slot 0 is always id 0,
            unknown, and so are unused slots.
        keys: int32 (B,), key ids; 0 unknown.
        chord_index: int32 (B, T), the slot of the chord in force when a target is about to happen.
    """

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    weights: NDArray[np.float32]
    emotion: NDArray[np.float32]
    chords: NDArray[np.int32]
    keys: NDArray[np.int32]
    chord_index: NDArray[np.int32]


@dataclass(frozen=True)
class _Draw:
    """Which window goes into a row, and what is done to it."""

    piece: int
    position: int
    change: Augmentation | None
    keep_emotion: bool
    keep_harmony: bool


class MidiBatches:
    """Batches of one side of a data set.

    On `train` windows are drawn at random, conditions are dropped as the configuration says, and
    music is augmented if asked. On `val` and `test` windows are fixed: they cover every piece once
    from start to end, nothing is dropped, and any first k batches are spread evenly over all music.
    Exact duplicates of a piece are left out everywhere.

    Args:
        reader: the data set.
        split: `train`, `val` or `test`.
        config: window length, augmentation, dropouts.
        batch_size: B, windows in a batch.
        seed: of order, draws and augmentation.
        augment: whether to transpose, stretch and scale; only on `train`.

    Raises:
        KmidiError: if the side has no music, or a fixed side is to be augmented.
    """

    def __init__(
        self,
        reader: ShardReader,
        split: str,
        config: MidiDataConfig,
        batch_size: int,
        seed: int,
        augment: bool,
    ) -> None:
        pieces = reader.split(split)
        pieces = pieces[~reader.pieces.duplicate[pieces]]
        if not len(pieces):
            raise KmidiError(f"{reader.folder} has no pieces in {split!r}; {ADVICE[split]}.")
        if augment and split != "train":
            raise KmidiError(f"only 'train' can be augmented, not {split!r}.")
        if batch_size < 1:
            raise KmidiError(f"batch_size is {batch_size}; it has to be at least 1.")
        self.batch_size = batch_size
        self._config = config
        self._seed = seed
        self._augment = augment
        self._fixed = split != "train"
        self._lengths = reader.pieces.length
        self._cutter = WindowCutter(reader, config.sequence_length)
        self._orders: dict[int, NDArray[np.int64]] = {}
        if self._fixed:
            windows = _windows(self._lengths[pieces], config.sequence_length)
            self._pieces = pieces
        else:
            songs = reader.pieces.song[pieces]
            self._pieces = pieces[np.argsort(songs, kind="stable")]
            first = np.flatnonzero(np.diff(np.sort(songs), prepend=-1))
            self._versions = np.append(first, len(pieces))
            longest = np.maximum.reduceat(self._lengths[self._pieces], first)
            windows = _windows(longest, config.sequence_length)
        # Window w belongs to the piece or song i with ends[i - 1] <= w < ends[i].
        self._ends = np.cumsum(windows)

    @property
    def windows_per_epoch(self) -> int:
        """Windows that are seen once in an epoch."""
        return int(self._ends[-1])

    def steps_per_epoch(self, grad_accum_steps: int = 1) -> int:
        """Return the optimiser steps that see an epoch's windows, rounded up.

        Args:
            grad_accum_steps: batches per optimiser step.
        """
        return -(-self.windows_per_epoch // (self.batch_size * grad_accum_steps))

    def batch(self, step: int) -> Batch:
        """Return batch `step`, the same one whenever it is asked for.

        Training batches go on without end, one epoch's order after the other. Fixed sides start
        over after `steps_per_epoch` batches, the last of which is filled up with padding.

        Args:
            step: number of the batch, from 0.
        """
        draws = self._fixed_draws(step) if self._fixed else self._random_draws(step)
        windows = [self._cutter.cut(d.piece, d.position, d.change) for d in draws]
        return collate(
            windows,
            (self.batch_size, self._config.sequence_length, self._config.max_chords),
            [draw.keep_emotion for draw in draws],
            [draw.keep_harmony for draw in draws],
        )

    def _fixed_draws(self, step: int) -> list[_Draw]:
        order = self._orders.get(0)
        if order is None:
            # Multiples of the golden ratio: any beginning of this order is spread evenly.
            order = np.argsort(np.arange(self.windows_per_epoch) * _GOLDEN % 1.0, kind="stable")
            self._orders[0] = order
        first = step % self.steps_per_epoch() * self.batch_size
        draws = []
        for window in order[first : first + self.batch_size].tolist():
            owner, number = self._owner(window)
            position = number * self._config.sequence_length
            draws.append(_Draw(int(self._pieces[owner]), position, None, True, True))
        return draws

    def _random_draws(self, step: int) -> list[_Draw]:
        config, count = self._config, self.batch_size
        rng = np.random.default_rng((_DRAWS, self._seed, step))
        uniform = rng.random((7, count))
        semitones = rng.integers(
            -config.transpose_semitones, config.transpose_semitones, count, endpoint=True
        )
        draws = []
        for row in range(count):
            version, within, start, stretch, velocity, emotion, harmony = uniform[:, row].tolist()
            owner, number = self._owner(self._window(step * count + row))
            low, high = int(self._versions[owner]), int(self._versions[owner + 1])
            piece = int(self._pieces[low + int(version * (high - low))])
            change = None
            if self._augment:
                change = Augmentation(
                    int(semitones[row]),
                    1.0 + config.stretch * (2.0 * stretch - 1.0),
                    1.0 + config.velocity_scale * (2.0 * velocity - 1.0),
                )
            position = 0
            if start >= config.start_probability:
                windows = int(self._ends[owner]) - (int(self._ends[owner - 1]) if owner else 0)
                latest = max(0, int(self._lengths[piece]) - config.sequence_length)
                position = int((number + within) / windows * (latest + 1))
            keep_emotion = emotion >= config.emotion_dropout
            keep_harmony = keep_emotion and harmony >= config.harmony_dropout
            draws.append(_Draw(piece, position, change, keep_emotion, keep_harmony))
        return draws

    def _window(self, number: int) -> int:
        """Return the window that stands at place `number` of the endless order."""
        epoch, place = divmod(number, self.windows_per_epoch)
        order = self._orders.get(epoch)
        if order is None:
            # A batch may reach into the next epoch; older orders are not needed again.
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            rng = np.random.default_rng((_ORDER, self._seed, epoch))
            order = self._orders[epoch] = rng.permutation(self.windows_per_epoch)
        return int(order[place])

    def _owner(self, window: int) -> tuple[int, int]:
        """Return the piece or song that a window belongs to, and its number within it."""
        owner = int(np.searchsorted(self._ends, window, side="right"))
        return owner, window - (int(self._ends[owner - 1]) if owner else 0)


def collate(
    windows: Sequence[Window],
    shape: tuple[int, int, int],
    keep_emotion: Sequence[bool],
    keep_harmony: Sequence[bool],
) -> Batch:
    """Lay windows into the arrays of a batch; rows without a window are padding.

    Args:
        windows: at most B windows of at most T targets.
        shape: (B, T, C), rows, targets in a row, chord slots.
        keep_emotion: per window, whether its emotion is given.
        keep_harmony: per window, whether its chords and key are given.
    """
    rows, length, slots = shape
    inputs = np.full((rows, length), PAD_TOKEN, np.int32)
    targets = np.zeros((rows, length), np.int32)
    weights = np.zeros((rows, length), np.float32)
    chords = np.zeros((rows, slots), np.int32)
    keys = np.zeros(rows, np.int32)
    chord_index = np.zeros((rows, length), np.int32)
    for row, window in enumerate(windows):
        events, before = window.events, window.chords
        if window.at_start:
            inputs[row, 0] = START_TOKEN
            inputs[row, 1 : len(events)] = events[:-1]
        else:
            inputs[row, : len(events) - 1] = events[:-1]
            events, before = events[1:], before[1:]
        targets[row, : len(events)] = events
        weights[row, : len(events)] = 1.0
        if keep_harmony[row]:
            keys[row] = window.key
            ids, index = _slots(before, slots)
            chords[row, : len(ids)] = ids
            chord_index[row, : len(index)] = index
    emotion = np.zeros((rows, EMOTION_DIM), np.float32)
    kept = [row for row in range(len(windows)) if keep_emotion[row]]
    if kept:
        emotion[kept] = _emotion_vectors([windows[row] for row in kept])
    return Batch(inputs, targets, weights, emotion, chords, keys, chord_index)


def _windows(lengths: NDArray[np.int32], sequence_length: int) -> NDArray[np.int64]:
    return -(-lengths.astype(np.int64) // sequence_length)


def _slots(chords: NDArray[np.uint8], slots: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the ids of the slots in use (slot 0 unknown, then rising) and the slot of each."""
    present = np.bincount(chords)
    present[0] = 0
    ids = np.flatnonzero(present)
    if len(ids) >= slots:
        # Too many: the rarest become unknown.
        ids = np.sort(ids[np.argsort(-present[ids], kind="stable")][: slots - 1])
    slot_of = np.zeros(len(present), np.int64)
    slot_of[ids] = np.arange(1, len(ids) + 1)
    return np.concatenate(([0], ids)).astype(np.uint8), slot_of[chords]


def _emotion_vectors(windows: list[Window]) -> NDArray[np.float32]:
    valence = np.array([window.valence for window in windows])
    arousal = np.array([window.arousal for window in windows])
    intensity = np.array([window.intensity for window in windows])
    distance = np.minimum(1.0, np.hypot(valence, arousal))
    return encode_many(valence, arousal, np.where(np.isnan(intensity), distance, intensity))
