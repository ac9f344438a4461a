"""The index of a data set of MIDI music: sides, songs and duplicates among all pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.columns import MOOD_SOURCES, Content, PieceIndex
from kmidi_mlx.data.grouping import assign_splits, connect
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.data.sources import Source
from kmidi_mlx.music.events import STEPS_PER_SECOND

__all__ = ["Piece", "Side", "Summary", "describe_pieces", "index_pieces", "summarise"]


@dataclass(frozen=True)
class Side:
    """Size of one side of a data set; exact duplicates count."""

    pieces: int
    songs: int
    tokens: int
    hours: float


@dataclass(frozen=True)
class Summary:
    """What a data set is; `dataset.json` says the same.

    Attributes:
        splits: size of each side that has pieces.
        rejected: sources that could not be used.
        duplicates: pieces whose tokens equal another piece's; batches leave them out.
        moved: pieces that are not on the side their manifest asked for, because a duplicate or
            another version is on a more protected side.
        synthetic: whether there is any synthetic piece.
        synthetic_pieces: how many.
        licences: what manifests and the caller said of licences, sorted.
        labels: pieces by where valence and arousal come from.
        with_chords: pieces with chords.
        with_key: pieces with a key.
        largest_group: most pieces that have to stay together.
    """

    splits: dict[str, Side]
    rejected: int
    duplicates: int
    moved: int
    synthetic: bool
    synthetic_pieces: int
    licences: list[str]
    labels: dict[str, int]
    with_chords: int
    with_key: int
    largest_group: int


@dataclass(frozen=True)
class Piece:
    """A piece of a data set: its source, what reading noted of it, and where its tokens are."""

    source: Source
    note: dict[str, Any]
    shard: int
    start: int


def index_pieces(
    pieces: Sequence[Piece], content: Content, *, seed: int, val_share: float
) -> PieceIndex:
    """Give every piece its song, group and side.

    Args:
        pieces: all pieces of the data set, in its order.
        content: their columns.
        seed: of the draw for `val`.
        val_share: share of the draw.
    """
    songs = [piece.source.song for piece in pieces]
    digests = [piece.note["digest"] for piece in pieces]
    groups = connect([songs, [piece.source.group for piece in pieces], digests])
    declared = [piece.source.split for piece in pieces]
    return PieceIndex(
        **content.arrays(),
        shard=np.array([piece.shard for piece in pieces], np.int32),
        start=np.array([piece.start for piece in pieces], np.int64),
        split=assign_splits(groups, declared, songs, seed=seed, val_share=val_share),
        song=connect([songs]),
        group=groups,
        duplicate=_duplicates(digests, content),
    )


def _duplicates(digests: list[str], content: Content) -> NDArray[np.bool_]:
    """Mark all pieces of equal tokens but the one that is known best, or else comes first."""
    chords, keys = np.diff(content.chord_offset) > 0, np.diff(content.key_offset) > 0
    known = 4 * (content.mood_source > 0) + 2 * chords + keys
    best: dict[str, int] = {}
    for piece, digest in enumerate(digests):
        if known[piece] > known[best.setdefault(digest, piece)]:
            best[digest] = piece
    duplicate = np.ones(len(digests), np.bool_)
    duplicate[list(best.values())] = False
    return duplicate


def describe_pieces(pieces: Sequence[Piece], index: PieceIndex) -> Iterator[dict[str, Any]]:
    """Yield the lines of the manifest of a data set."""
    frames = np.diff(index.mood_offset)
    mood = [
        np.add.reduceat(column.astype(np.float64), index.mood_offset[:-1]) / frames
        for column in (index.valence, index.arousal)
    ]
    for i, piece in enumerate(pieces):
        yield {
            **piece.source.values,
            "path": piece.source.path,
            "split": SPLITS[index.split[i]],
            "song": piece.source.song,
            "tokens": int(index.length[i]),
            "seconds": int(index.duration_steps[i]) / STEPS_PER_SECOND,
            "shard": piece.shard,
            "start": piece.start,
            "group_number": int(index.group[i]),
            "duplicate": bool(index.duplicate[i]),
            "label_source": MOOD_SOURCES[index.mood_source[i]],
            "mood_valence": round(float(mood[0][i]), 4),
            "mood_arousal": round(float(mood[1][i]), 4),
            "digest": piece.note["digest"],
        }


def summarise(
    pieces: Sequence[Piece], index: PieceIndex, *, rejected: int, licence: str | None
) -> Summary:
    """Count what a data set holds.

    Args:
        pieces: all of them.
        index: of them.
        rejected: sources that could not be used.
        licence: licence beside those that manifests name, or None.
    """
    splits = {}
    for number, name in enumerate(SPLITS):
        here = index.split == number
        if here.any():
            splits[name] = Side(
                pieces=int(here.sum()),
                songs=len(np.unique(index.song[here])),
                tokens=int(index.length[here].sum()),
                hours=round(float(index.duration_steps[here].sum()) / STEPS_PER_SECOND / 3600, 4),
            )
    values = [piece.source.values for piece in pieces]
    licences = {str(line["licence"]) for line in values if "licence" in line}
    synthetic = sum(bool(line.get("synthetic")) for line in values)
    labels = Counter(MOOD_SOURCES[kind] for kind in index.mood_source.tolist())
    return Summary(
        splits=splits,
        rejected=rejected,
        duplicates=int(index.duplicate.sum()),
        moved=sum(
            piece.source.split is not None and SPLITS.index(piece.source.split) != got
            for piece, got in zip(pieces, index.split.tolist(), strict=True)
        ),
        synthetic=synthetic > 0,
        synthetic_pieces=synthetic,
        licences=sorted(licences | ({licence} if licence else set())),
        labels=dict(sorted(labels.items())),
        with_chords=int((np.diff(index.chord_offset) > 0).sum()),
        with_key=int((np.diff(index.key_offset) > 0).sum()),
        largest_group=int(np.bincount(index.group).max()),
    )
