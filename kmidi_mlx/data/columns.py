"""Pieces as columns: what is known of n pieces in a few flat arrays instead of n objects.

A column has one value a piece, or many: then the values of all pieces stand one after another and
an offset column says where each piece's begin. So 170,000 pieces are a dozen arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOOD_SOURCES", "Columns", "Content", "PieceIndex"]

#: Where a piece's valence and arousal come from, by id: the label model read the notes, listeners
#: rated the piece, or the manifest gives a point of the steering scale or a label such as "happy".
MOOD_SOURCES = ("estimated", "rated", "given")

# Offset column -> the columns it divides.
_RAGGED = {
    "mood_offset": ("valence", "arousal"),
    "chord_offset": ("chord_step", "chord"),
    "key_offset": ("key_step", "key"),
}
_RAGGED_VALUES = {name for names in _RAGGED.values() for name in names}


@dataclass(frozen=True, eq=False)
class Columns:
    """Base of column sets: what is common to saving, joining and picking them."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all columns by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True, eq=False)
class Content(Columns):
    """What n pieces hold: sizes and conditions; times in steps of 10 ms from the piece's start.

    Attributes:
        length: int32 (n,), tokens.
        duration_steps: int32 (n,), time of the last event.
        mood_source: uint8 (n,), index into `MOOD_SOURCES`.
        intensity: float16 (n,), intensity of the emotion in [0, 1]; NaN where none was given.
        mood_offset: int64 (n + 1,); piece i owns rows offset[i]:offset[i + 1] of the next two, at
            least one; row k is the mood of the window that begins at k hops (see dataset.json).
        valence: float16 (rows,) in [-1, 1].
        arousal: float16 (rows,) in [-1, 1].
        chord_offset: int64 (n + 1,).
        chord_step: int32 (changes,), when a chord comes into force, rising within a piece.
        chord: uint8 (changes,), ids of `kmidi_mlx.music.chords`; 0 ends what is known.
        key_offset: int64 (n + 1,).
        key_step: int32 (key changes,).
        key: uint8 (key changes,), ids of `kmidi_mlx.music.chords`.
    """

    length: NDArray[np.int32]
    duration_steps: NDArray[np.int32]
    mood_source: NDArray[np.uint8]
    intensity: NDArray[np.float16]
    mood_offset: NDArray[np.int64]
    valence: NDArray[np.float16]
    arousal: NDArray[np.float16]
    chord_offset: NDArray[np.int64]
    chord_step: NDArray[np.int32]
    chord: NDArray[np.uint8]
    key_offset: NDArray[np.int64]
    key_step: NDArray[np.int32]
    key: NDArray[np.uint8]

    @classmethod
    def empty(cls) -> Self:
        """Return the columns of no pieces."""
        dtypes = {item.name: _dtype(str(item.type)) for item in fields(cls)}
        return cls(**{n: np.zeros(1 if n in _RAGGED else 0, d) for n, d in dtypes.items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Put the pieces of several column sets one after another."""
        if not parts:
            return cls.empty()
        joined: dict[str, NDArray[Any]] = {}
        for item in fields(cls):
            columns = [getattr(part, item.name) for part in parts]
            if item.name in _RAGGED:
                joined[item.name] = _offsets(np.concatenate([np.diff(c) for c in columns]))
            else:
                joined[item.name] = np.concatenate(columns)
        return cls(**joined)

    def pick(self, order: NDArray[np.int64]) -> Self:
        """Return the pieces `order` (m,) of these, in that order."""
        picked: dict[str, NDArray[Any]] = {}
        for item in fields(self):
            if item.name not in _RAGGED and item.name not in _RAGGED_VALUES:
                picked[item.name] = getattr(self, item.name)[order]
        for name, values in _RAGGED.items():
            old = getattr(self, name)
            counts = np.diff(old)[order]
            new = _offsets(counts)
            taken = np.repeat(old[order] - new[:-1], counts) + np.arange(new[-1])
            picked[name] = new
            picked.update({value: getattr(self, value)[taken] for value in values})
        return type(self)(**picked)


@dataclass(frozen=True, eq=False)
class PieceIndex(Content):
    """`Content` of all n pieces of a data set, and where each one is and belongs.

    Attributes:
        shard: int32 (n,), number of the file `tokens-<shard>.bin`.
        start: int64 (n,), first token in that file.
        split: uint8 (n,), index into `manifest.SPLITS`.
        song: int32 (n,), pieces of one song (its versions) have one number.
        group: int32 (n,), songs and exact duplicates that must stay on one side have one number.
        duplicate: bool (n,), an equal piece is already in the data set; not drawn from.
    """

    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    split: NDArray[np.uint8]
    song: NDArray[np.int32]
    group: NDArray[np.int32]
    duplicate: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.length)


def _offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _dtype(annotation: str) -> np.dtype[Any]:
    return np.dtype(annotation.removeprefix("NDArray[np.").removesuffix("]"))
