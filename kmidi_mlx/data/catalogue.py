"""What a prepared folder holds: shards that were committed, and the data set made of them.

While files are read, what they became is committed in `.parts`, in any order. At the end the data
set is composed of that and of what an earlier run left, in the order of the sources: so the folder
does not tell which run, how many processes, or which machines have read what.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.columns import Content
from kmidi_mlx.data.manifest import read_manifest, write_manifest
from kmidi_mlx.data.piece_index import Piece, Summary, describe_pieces, index_pieces, summarise
from kmidi_mlx.data.shards import (
    FORMAT,
    PARTS,
    read_shard,
    read_tokens,
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
from kmidi_mlx.music.mood import COEFFICIENTS_PATH

__all__ = ["Catalogue", "recipe"]

_SHARD_TOKENS = 8 << 20
_NEW = ".new"

_LABELS_TEXT = (
    "Valence and arousal are on the steering scale of kmidi_mlx.music.mood. 'estimated': by that "
    "label model from the notes, 20 s windows every 2 s. 'rated': the manifest's ratings of the "
    "whole piece, mapped to that scale. 'given': by the manifest, as a label or on that scale."
)


def recipe() -> dict[str, Any]:
    """Return the versions that decide what a file becomes."""
    return {
        "format": FORMAT,
        "tokeniser": TOKENISER_VERSION,
        "mood": [MOOD_HOP_STEPS, MOOD_WINDOW_STEPS],
        "label_model": hashlib.blake2b(COEFFICIENTS_PATH.read_bytes()).hexdigest()[:16],
    }


_Key = tuple[Path, int]  # a shard: its folder and number


@dataclass(frozen=True)
class _Place:
    shard: _Key
    row: int  # of a piece, from 0; of a rejected file -1, -2, …
    note: dict[str, Any]


class Catalogue:
    """The committed shards of a folder; only one process may have it at a time.

    Shards that cannot be used (damaged, or made by another version or label model) are forgotten,
    and removed once a data set without them has been written.

    Args:
        folder: an existing folder.
        others: folders whose shards may be used too; nothing is changed there.
        shard_tokens: most tokens in a shard of more than one piece.
    """

    def __init__(
        self, folder: Path, others: Sequence[Path] = (), shard_tokens: int = _SHARD_TOKENS
    ) -> None:
        self._folder = folder
        self._parts = folder / PARTS
        self._shard_tokens = shard_tokens
        self._contents: dict[_Key, Content] = {}
        self._notes: dict[_Key, dict[str, Any]] = {}
        self._places: dict[str, _Place] = {}
        self._touched: set[_Key] = set()
        self._committed: set[_Key] = set()
        self._recipe = recipe()
        shutil.rmtree(folder / _NEW, ignore_errors=True)
        for place in (folder, self._parts):
            for stray in place.glob(".tmp-*"):
                stray.unlink(missing_ok=True)
        for place in (folder, self._parts, *others):
            for number in _numbers_on_disk(place):
                with contextlib.suppress(KmidiError, OSError):
                    content, notes = read_shard(place, number)
                    size = tokens_path(place, number).stat().st_size
                    if notes["recipe"] == self._recipe and size == 2 * int(content.length.sum()):
                        self._add((place, number), content, notes)
        self._next = max(_numbers_on_disk(self._parts), default=-1) + 1

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

    def holds(self, source: Source, folder: Path) -> bool:
        """Return whether what a source became is in a shard of this folder."""
        place = self._places.get(source.path)
        return place is not None and place.shard[0] == folder

    def save_touched(self) -> None:
        """Remember new times of files whose content did not change."""
        for key in sorted(self._touched):
            rewrite_notes(*key, self._contents[key], self._notes[key])
        self._touched.clear()

    def commit(self, part: Tokenised) -> None:
        """Write pieces and rejections as a new part; after that they survive a crash."""
        notes = {"recipe": self._recipe, "pieces": part.pieces, "rejected": part.rejected}
        key = (self._parts, self._next)
        self._parts.mkdir(exist_ok=True)
        write_shard(*key, part.tokens, part.content, notes)
        self._add(key, part.content, notes)
        self._committed.add(key)
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

    def settle(self, sources: Sequence[Source], lost: Sequence[dict[str, Any]]) -> None:
        """Keep exactly what these sources became, in their order, but make no data set of it.

        Args:
            sources: all of them are in the catalogue or lost.
            lost: path and reason of sources that have no place.

        Raises:
            KmidiError: if the disk refuses.
        """
        gone = {note["path"] for note in lost}
        batches, _ = self._compose([self._places[s.path] for s in sources if s.path not in gone])
        self._tidy(len(batches))

    def finish(
        self,
        sources: Sequence[Source],
        lost: Sequence[dict[str, Any]],
        *,
        seed: int,
        val_share: float,
        licence: str | None,
    ) -> Summary:
        """Write the data set of exactly these sources and remove what it does not need.

        Args:
            sources: what the data set is made of; all of them are in the catalogue or lost.
            lost: path and reason of sources that have no place.
            seed: of the draw for `val`.
            val_share: share of the draw.
            licence: licence beside those that manifests name, or None.

        Raises:
            KmidiError: if there is no usable piece, or the disk refuses.
        """
        reasons = {note["path"]: note["reason"] for note in lost}
        placed = [(s, self._places[s.path]) for s in sources if s.path not in reasons]
        reasons |= {s.path: place.note["reason"] for s, place in placed if place.row < 0}
        usable = [source for source, place in placed if place.row >= 0]
        rejected = [
            {"path": source.path, "reason": reasons[source.path]}
            for source in sources
            if source.path in reasons
        ]
        if not usable and len(rejected) == 1:
            # What is worth keeping of a single bad file is in the message.
            self._forget_committed()
            raise KmidiError(f"nothing can be prepared: {_told(rejected[0])}.")
        write_manifest(self._folder / "rejected.jsonl", rejected)
        if not usable:
            raise KmidiError(
                f"none of {len(rejected)} files can be used; the first, {_told(rejected[0])}; "
                f"all reasons are in {self._folder / 'rejected.jsonl'}."
            )
        batches, content = self._compose([place for _, place in placed])
        pieces = _pieces(usable, batches, content.length)
        index = index_pieces(pieces, content, seed=seed, val_share=val_share)
        write_manifest(self._folder / "manifest.jsonl", describe_pieces(pieces, index))
        summary = summarise(pieces, index, rejected=len(rejected), licence=licence)
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
        self._tidy(len(batches))
        return summary

    def _add(self, key: _Key, content: Content, notes: dict[str, Any]) -> None:
        self._contents[key] = content
        self._notes[key] = notes
        for row, note in enumerate(notes["pieces"]):
            self._places[note["path"]] = _Place(key, row, note)
        for row, note in enumerate(notes["rejected"]):
            self._places[note["path"]] = _Place(key, -1 - row, note)

    def _compose(self, places: Sequence[_Place]) -> tuple[list[list[_Place]], Content]:
        """Bring places into shards 0, 1, …; return the places of each, and all pieces' columns."""
        keys = list(self._contents)
        sizes = [len(self._contents[key].length) for key in keys]
        first = dict(zip(keys, _starts(np.array(sizes, np.int64)).tolist(), strict=True))
        joined = Content.join([self._contents[key] for key in keys])
        starts = np.concatenate(
            [np.zeros(0, np.int64), *(_starts(self._contents[key].length) for key in keys)]
        )

        def rows(batch: Sequence[_Place]) -> NDArray[np.int64]:
            found = [first[place.shard] + place.row for place in batch if place.row >= 0]
            return np.array(found, np.int64)

        batches = self._divide(places, joined.length, first)
        new = self._folder / _NEW
        written = []
        for number, batch in enumerate(batches):
            if not self._is_there(number, batch):
                new.mkdir(exist_ok=True)
                content = joined.pick(rows(batch))
                notes = {
                    "recipe": self._recipe,
                    "pieces": [place.note for place in batch if place.row >= 0],
                    "rejected": [place.note for place in batch if place.row < 0],
                }
                used = [place.shard for place in batch if place.row >= 0]
                tokens = read_tokens(used, starts[rows(batch)], content.length)
                write_shard(new, number, tokens, content, notes)
                written.append(number)
        if written:
            # From here until the new one is there, there is no data set.
            (self._folder / "dataset.json").unlink(missing_ok=True)
        for number in written:
            shard_path(self._folder, number).unlink(missing_ok=True)
            for path in (tokens_path, shard_path):
                path(new, number).replace(path(self._folder, number))
        return batches, joined.pick(rows(places))

    def _divide(
        self, places: Sequence[_Place], lengths: NDArray[np.int32], first: dict[_Key, int]
    ) -> list[list[_Place]]:
        batches: list[list[_Place]] = []
        filled = 0
        for place in places:
            length = int(lengths[first[place.shard] + place.row]) if place.row >= 0 else 0
            if not batches or (filled and filled + length > self._shard_tokens):
                batches.append([])
                filled = 0
            batches[-1].append(place)
            filled += length
        return batches

    def _is_there(self, number: int, batch: Sequence[_Place]) -> bool:
        """Say whether a shard of the folder already holds just this."""
        key = (self._folder, number)
        if any(place.shard != key for place in batch):
            return False
        pieces = [place.row for place in batch if place.row >= 0]
        rejected = [-1 - place.row for place in batch if place.row < 0]
        notes = self._notes[key]
        return pieces == list(range(len(notes["pieces"]))) and (
            rejected == list(range(len(notes["rejected"])))
        )

    def _tidy(self, shards: int) -> None:
        """Remove what is not among the first shards of the folder."""
        for number in _numbers_on_disk(self._folder):
            if number >= shards:
                _remove((self._folder, number))
        for place in (self._parts, self._folder / _NEW):
            shutil.rmtree(place, ignore_errors=True)

    def _forget_committed(self) -> None:
        for key in sorted(self._committed):
            _remove(key)
        with contextlib.suppress(OSError):
            self._parts.rmdir()


def _pieces(
    usable: Sequence[Source], batches: Sequence[Sequence[_Place]], lengths: NDArray[np.int32]
) -> list[Piece]:
    pieces: list[Piece] = []
    for number, batch in enumerate(batches):
        start = 0
        for place in batch:
            if place.row >= 0:
                at = len(pieces)
                pieces.append(Piece(usable[at], place.note, number, start))
                start += int(lengths[at])
    return pieces


def _numbers_on_disk(folder: Path) -> list[int]:
    files = [*folder.glob("shard-*.npz"), *folder.glob("tokens-*.bin")]
    stems = {file.stem.rpartition("-")[2] for file in files}
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _remove(key: _Key) -> None:
    # Columns first: tokens without columns are nothing, and are removed next time.
    shard_path(*key).unlink(missing_ok=True)
    tokens_path(*key).unlink(missing_ok=True)


def _told(rejected: dict[str, Any]) -> str:
    return f"{rejected['path']}: {rejected['reason'].removesuffix('.')}"


def _starts(lengths: NDArray[Any]) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts
