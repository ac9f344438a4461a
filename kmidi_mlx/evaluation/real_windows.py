"""Beginnings of held-out pieces: what music of the same length, asked for alike, is held against.

A generator starts at the start of a piece, so what it writes is compared with how pieces start,
and not with their middles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.windows import WindowCutter
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.spans import held_out_pieces
from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.music.events import STEPS_PER_SECOND, decode, event_steps
from kmidi_mlx.music.notes import Notes

__all__ = ["RealWindow", "pieces_cut", "real_windows"]


@dataclass(frozen=True, eq=False)
class RealWindow:
    """The beginning of a real piece.

    Attributes:
        piece: its number in the data set.
        group: number that it shares with other versions and near-duplicates of its song.
        notes: the music.
        emotion: the label of that stretch, as training would give it.
    """

    piece: int
    group: int
    notes: Notes
    emotion: Emotion


def real_windows(
    reader: ShardReader, split: str, count: int, seconds: float, seed: int
) -> list[RealWindow]:
    """Take the beginnings of held-out pieces, first one of each song, then further versions.

    Args:
        reader: the data set.
        split: its side.
        count: how many; with more, the first ones stay the same.
        seconds: length of each; pieces that are shorter are left out.
        seed: of the order and of the choice among versions.

    Raises:
        KmidiError: if the side has fewer pieces of that length.
    """
    pieces = held_out_pieces(reader, split)
    pieces = pieces[reader.pieces.duration_steps[pieces] >= round(seconds * STEPS_PER_SECOND)]
    if len(pieces) < count:
        raise KmidiError(
            f"{reader.folder} has {len(pieces)} pieces of {seconds:g} s or more in {split!r}, "
            f"{count} are needed; ask for fewer or shorter ones."
        )
    pieces = np.random.default_rng(seed).permutation(pieces)
    # the how-manieth version of its song each one is
    _, song = np.unique(reader.pieces.song[pieces], return_inverse=True)
    turn = np.array([int((song[:k] == own).sum()) for k, own in enumerate(song)])
    chosen = pieces[np.argsort(turn, kind="stable")][:count]
    return [_window(reader, piece, seconds) for piece in chosen.tolist()]


def pieces_cut(pieces: list[Notes], seconds: float, most: int) -> list[Notes]:
    """Cut pieces into stretches one after the other, spread over all pieces if there are too many.

    Args:
        pieces: the pieces.
        seconds: length of a stretch; what is left over at the end of a piece is dropped. A note
            belongs to the stretch in which it begins.
        most: largest number of stretches.
    """
    places = [
        (piece, k * seconds)
        for piece in pieces
        for k in range(int(piece.duration_seconds / seconds + 1e-9))
    ]
    if len(places) > most:
        places = [places[int(k)] for k in np.linspace(0, len(places) - 1, most)]
    return [_beginning_in(piece, start, start + seconds) for piece, start in places]


def _beginning_in(notes: Notes, start: float, end: float) -> Notes:
    # a note that sounds on from before would become one that begins with the stretch
    first, stop = np.searchsorted(notes.onset_seconds, (start - 1e-9, end - 1e-9)).tolist()
    own = slice(first, stop)
    return Notes(
        notes.pitch[own],
        notes.velocity[own],
        np.maximum(notes.onset_seconds[own] - start, 0.0),
        np.minimum(notes.offset_seconds[own], end) - start,
    )


def _window(reader: ShardReader, piece: int, seconds: float) -> RealWindow:
    tokens = reader.tokens(piece)
    length = int(np.searchsorted(event_steps(tokens), round(seconds * STEPS_PER_SECOND)))
    label = WindowCutter(reader, max(1, length)).cut(piece, 0)
    intensity = None if math.isnan(label.intensity) else label.intensity
    return RealWindow(
        piece=piece,
        group=int(reader.pieces.group[piece]),
        notes=slice_notes(decode(tokens), 0.0, seconds),
        emotion=Emotion.of(label.valence, label.arousal, intensity),
    )
