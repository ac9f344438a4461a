"""What a prepared folder holds: shards that were committed, and the data set made of them."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.columns import MOOD_SOURCES, Content, PieceIndex
from kmidi_mlx.data.grouping import assign_splits, connect
from kmidi_mlx.data.manifest import SPLITS, read_manifest, write_manifest
from kmidi_mlx.data.shards import (
    FORMAT,
    read_shard,
    rewrite_notes,
    shard_path,
    tokens_path,
    write_dataset,
    write_shard,
)
from kmidi_mlx.data.sources import Source
from kmidi_mlx.data.tokenise import (
    MOOD_HOP_STEPS,
    MOOD_WINDOW_STEPS,
    TOKENISER_VERSION,
    Tokenised,
    content_digest,
)
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import STEPS_PER_SECOND
from kmidi_mlx.music.mood import COEFFICIENTS_PATH

__all__ = ["Catalogue", "Side", "Summary"]

_LABELS_TEXT = (
    "Valence and arousal are on the steering scale of kmidi_mlx.music.mood. 'estimated': by that "
    "label model from the notes, 20 s windows every 2 s. 'rated': the manifest's ratings of the "
    "whole piece, mapped to that scale. 'given': by the manifest, as a label or on that scale."
)


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
class _Place:
    shard: int
    row: int  # -1: rejected
    note: dict[str, Any]


class Catalogue:
    """The committed shards of a folder; only one process may have it at a time.

    Shards that cannot be used (damaged, or made by another version or label model) are forgotten,
    and removed once a data set without them has been written.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._contents: dict[int, Content] = {}
        self._notes: dict[int, dict[str, Any]] = {}
        self._places: dict[str, _Place] = {}
        self._touched: set[int] = set()
        self._committed: set[int] = set()
        self._recipe = {
            "format": FORMAT,
            "tokeniser": TOKENISER_VERSION,
            "mood": [MOOD_HOP_STEPS, MOOD_WINDOW_STEPS],
            "label_model": hashlib.blake2b(COEFFICIENTS_PATH.read_bytes()).hexdigest()[:16],
        }
        self._next = 0
        for number in self._numbers_on_disk():
            self._next = number + 1
            with contextlib.suppress(KmidiError, OSError):
                content, notes = read_shard(folder, number)
                size = tokens_path(folder, number).stat().st_size
                if notes["recipe"] == self._recipe and size == 2 * int(content.length.sum()):
                    self._add(number, content, notes)

    def has(self, source: Source) -> bool:
        """Return whether a source was read before and neither file nor labels changed since."""
        place = self._places.get(source.path)
        if place is None or place.note["conditions"] != source.conditions:
            return False
        note = place.note
        try:
            path = Path(source.path)
            status = path.stat()
            if status.st_size != note.get("size"):
                return False
            if status.st_mtime_ns != note["mtime_ns"]:
                if content_digest(path.read_bytes()) != note.get("content"):
                    return False
                note["mtime_ns"] = status.st_mtime_ns
                self._touched.add(place.shard)
        except OSError:
            return False
        return True

    def save_touched(self) -> None:
        """Remember new times of files whose content did not change."""
        for number in sorted(self._touched):
            rewrite_notes(self._folder, number, self._contents[number], self._notes[number])
        self._touched.clear()

    def commit(self, part: Tokenised) -> None:
        """Write pieces and rejections as a new shard; after that they survive a crash."""
        notes = {"recipe": self._recipe, "pieces": part.pieces, "rejected": part.rejected}
        write_shard(self._folder, self._next, part.tokens, part.content, notes)
        self._add(self._next, part.content, notes)
        self._committed.add(self._next)
        self._next += 1

    def left_behind(self, sources: Sequence[Source]) -> int:
        """Count the pieces of the last data set that are still there but no longer named.

        Args:
            sources: what the next data set is made of.
        """
        named = {source.path for source in sources}
        try:
            rows = read_manifest(self._folder / "manifest.jsonl")
        except KmidiError:
            return 0  # there is none, or it is damaged and about to be replaced
        paths = {str(row.file("path")) for row in rows} - named
        return sum(Path(path).exists() for path in paths)

    def finish(
        self,
        sources: Sequence[Source],
        lost: Sequence[dict[str, Any]],
        *,
        seed: int,
        val_share: float,
        licence: str | None,
    ) -> Summary:
        """Write the data set of exactly these sources and remove shards that it does not need.

        Args:
            sources: what the data set is made of; all of them are in the catalogue or lost.
            lost: path and reason of sources that have no place.
            seed: of the draw for `val`.
            val_share: share of the draw.
            licence: licence beside those that manifests name, or None.

        Raises:
            KmidiError: if there is no usable piece, or the disk refuses.
        """
        gone = {note["path"] for note in lost}
        placed = [(s, self._places[s.path]) for s in sources if s.path not in gone]
        usable = [(source, place) for source, place in placed if place.row >= 0]
        rejected = [
            {"path": place.note["path"], "reason": place.note["reason"]}
            for _, place in placed
            if place.row < 0
        ] + list(lost)
        if not usable and len(rejected) == 1:
            # What is worth keeping of a single bad file is in the message.
            self._remove(self._committed)
            raise KmidiError(f"nothing can be prepared: {_told(rejected[0])}.")
        write_manifest(self._folder / "rejected.jsonl", rejected)
        if not usable:
            raise KmidiError(
                f"none of {len(rejected)} files can be used; the first, {_told(rejected[0])}; "
                f"all reasons are in {self._folder / 'rejected.jsonl'}."
            )
        index, moved = self._index(usable, seed, val_share)
        write_manifest(self._folder / "manifest.jsonl", _rows(usable, index))
        summary = _summary(usable, index, len(rejected), moved, licence)
        description = {
            **asdict(summary),
            "labels_text": _LABELS_TEXT,
            "mood_hop_steps": MOOD_HOP_STEPS,
            "mood_window_steps": MOOD_WINDOW_STEPS,
            "seed": seed,
            "val_share": val_share,
            "recipe": self._recipe,
        }
        write_dataset(self._folder, index, description)
        self._remove(set(self._numbers_on_disk()) - {place.shard for _, place in placed})
        return summary

    def _numbers_on_disk(self) -> list[int]:
        for stray in self._folder.glob(".tmp-*"):
            stray.unlink(missing_ok=True)
        files = [*self._folder.glob("shard-*.npz"), *self._folder.glob("tokens-*.bin")]
        stems = {file.stem.rpartition("-")[2] for file in files}
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def _add(self, number: int, content: Content, notes: dict[str, Any]) -> None:
        self._contents[number] = content
        self._notes[number] = notes
        for row, note in enumerate(notes["pieces"]):
            self._places[note["path"]] = _Place(number, row, note)
        for note in notes["rejected"]:
            self._places[note["path"]] = _Place(number, -1, note)

    def _remove(self, shards: set[int]) -> None:
        for number in sorted(shards):
            # Columns first: tokens without columns are nothing, and are removed next time.
            shard_path(self._folder, number).unlink(missing_ok=True)
            tokens_path(self._folder, number).unlink(missing_ok=True)

    def _index(
        self, usable: list[tuple[Source, _Place]], seed: int, val_share: float
    ) -> tuple[PieceIndex, int]:
        numbers = sorted(self._contents)
        contents = [self._contents[number] for number in numbers]
        first = dict(zip(numbers, _starts([len(c.length) for c in contents]), strict=True))
        order = np.array([first[p.shard] + p.row for _, p in usable], np.int64)
        token_starts = np.concatenate([_starts(content.length) for content in contents])
        content = Content.join(contents).pick(order)
        songs = [source.song for source, _ in usable]
        digests = [place.note["digest"] for _, place in usable]
        groups = connect([songs, [source.group for source, _ in usable], digests])
        declared = [source.split for source, _ in usable]
        split = assign_splits(groups, declared, songs, seed=seed, val_share=val_share)
        moved = sum(
            asked is not None and SPLITS.index(asked) != got
            for asked, got in zip(declared, split.tolist(), strict=True)
        )
        index = PieceIndex(
            **content.arrays(),
            shard=np.array([place.shard for _, place in usable], np.int32),
            start=token_starts[order],
            split=split,
            song=connect([songs]),
            group=groups,
            duplicate=_duplicates(digests, content),
        )
        return index, moved


def _told(rejected: dict[str, Any]) -> str:
    return f"{rejected['path']}: {rejected['reason'].removesuffix('.')}"


def _starts(lengths: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]])[: len(lengths)]


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


def _rows(usable: list[tuple[Source, _Place]], index: PieceIndex) -> list[dict[str, Any]]:
    frames = np.diff(index.mood_offset)
    mood = [
        np.add.reduceat(column.astype(np.float64), index.mood_offset[:-1]) / frames
        for column in (index.valence, index.arousal)
    ]
    return [
        {
            **source.values,
            "path": source.path,
            "split": SPLITS[index.split[i]],
            "song": source.song,
            "tokens": int(index.length[i]),
            "seconds": int(index.duration_steps[i]) / STEPS_PER_SECOND,
            "shard": place.shard,
            "start": int(index.start[i]),
            "group_number": int(index.group[i]),
            "duplicate": bool(index.duplicate[i]),
            "label_source": MOOD_SOURCES[index.mood_source[i]],
            "mood_valence": round(float(mood[0][i]), 4),
            "mood_arousal": round(float(mood[1][i]), 4),
            "digest": place.note["digest"],
        }
        for i, (source, place) in enumerate(usable)
    ]


def _summary(
    usable: list[tuple[Source, _Place]],
    index: PieceIndex,
    rejected: int,
    moved: int,
    licence: str | None,
) -> Summary:
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
    licences = {str(source.values["licence"]) for source, _ in usable if "licence" in source.values}
    synthetic = sum(bool(source.values.get("synthetic")) for source, _ in usable)
    labels = Counter(MOOD_SOURCES[kind] for kind in index.mood_source.tolist())
    return Summary(
        splits=splits,
        rejected=rejected,
        duplicates=int(index.duplicate.sum()),
        moved=moved,
        synthetic=synthetic > 0,
        synthetic_pieces=synthetic,
        licences=sorted(licences | ({licence} if licence else set())),
        labels=dict(sorted(labels.items())),
        with_chords=int((np.diff(index.chord_offset) > 0).sum()),
        with_key=int((np.diff(index.key_offset) > 0).sum()),
        largest_group=int(np.bincount(index.group).max()),
    )
