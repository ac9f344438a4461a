"""What a folder of clouds holds: songs that were sampled, and the data set made of them.

A song's samples are named by everything that they depend on, so whatever has the wanted name can be
used: songs that a stopped run left in `.songs`, and songs in the shards of an earlier data set. The
data set is composed of them at the end, in the order of the sources, so it does not matter which
run, or how many processes, sampled what.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write, remove_leftovers
from kmidi_mlx.data.cloud_sampling import Pairs, Sampled, Task, describe_file, song_id, source_files
from kmidi_mlx.data.cloud_shards import (
    Shard,
    open_shard,
    remove_shard,
    shard_numbers,
    write_dataset,
    write_shard,
)
from kmidi_mlx.data.grouping import assign_splits, connect
from kmidi_mlx.data.manifest import SPLITS, read_manifest, write_manifest
from kmidi_mlx.errors import KmidiError

__all__ = ["CloudSide", "CloudStore", "CloudSummary"]

_SHARD_PAIRS = 2048  # about 120 MB
_SONGS = ".songs"
# What reading a file of arrays may raise that is not one.
_DAMAGE = (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class CloudSide:
    """Size of one side of a data set."""

    files: int
    songs: int
    samples: int
    hours: float


@dataclass(frozen=True)
class CloudSummary:
    """What a data set is; `dataset.json` says the same.

    Attributes:
        splits: size of each side that has samples.
        rejected: sources that could not be used.
        moved: files that are not on the side their manifest asked for, because an equal file or
            another version is on a more protected side.
        synthetic: whether there is any synthetic piece.
        synthetic_pieces: how many.
        licences: what manifests and the caller said of licences, sorted.
        emotions: files by where their own emotion comes from.
        largest_group: most files that have to stay together.
    """

    splits: dict[str, CloudSide]
    rejected: int
    moved: int
    synthetic: bool
    synthetic_pieces: int
    licences: list[str]
    emotions: dict[str, int]
    largest_group: int


class CloudStore:
    """The songs of a folder; only one process may have it at a time.

    Args:
        folder: an existing folder.
        shard_pairs: most pairs in a shard of more than one song.
    """

    def __init__(self, folder: Path, shard_pairs: int = _SHARD_PAIRS) -> None:
        self._folder = folder
        self._songs = folder / _SONGS
        self._shard_pairs = shard_pairs
        for place in (folder, self._songs):
            remove_leftovers(place)
        self._notes: dict[str, dict[str, Any]] = {}  # by path
        self._shards: dict[int, Shard] = {}
        # Where a song's rows are: shard and first row.
        self._rows: dict[str, tuple[int, int]] = {}
        for number in shard_numbers(folder):
            with contextlib.suppress(KmidiError):
                self._add_shard(number, open_shard(folder, number))
        with contextlib.suppress(KmidiError):
            for row in read_manifest(folder / "manifest.jsonl", required=("path", "id", "files")):
                self._notes[row.values["path"]] = dict(row.values)
        # Files of songs that are not in a shard yet.
        self._waiting: dict[str, Path] = {}
        for path in self._songs.glob("*.npz"):
            with contextlib.suppress(*_DAMAGE):
                note = json.loads(_read_array(path, "note").tobytes())
                self._notes[note["path"]] = note
                self._waiting[note["id"]] = path

    def find(self, task: Task) -> dict[str, Any] | None:
        """Return the note of a source's samples if they are here and its files are as before."""
        note = self._notes.get(task.source.path)
        if note is None:
            return None
        paths = [Path(path) for path in source_files(task.source)]
        if len(paths) != len(note["files"]):
            return None
        files = []
        for path, known in zip(paths, note["files"], strict=True):
            try:
                status = path.stat()
                if status.st_size != known["size"]:
                    return None
                same_time = status.st_mtime_ns == known["mtime_ns"]
                files.append(known if same_time else describe_file(path))
            except (OSError, KmidiError):
                return None
        name = song_id(task, [file["content"] for file in files])
        if name not in self._rows and name not in self._waiting:
            return None
        return {**note, "id": name, "files": files}

    def keep(self, sampled: Sampled) -> None:
        """Put a song's samples on the disk; after that they survive a crash."""
        if sampled.pairs is None:
            return
        self._songs.mkdir(exist_ok=True)
        note = np.frombuffer(json.dumps(sampled.note).encode(), np.uint8)
        arrays: dict[str, Any] = sampled.pairs.arrays()
        path = self._songs / f"{sampled.note['id']}.npz"
        with atomic_write(path) as temporary:
            np.savez(temporary, note=note, **arrays)
        self._waiting[sampled.note["id"]] = path

    def keep_only(self, names: Collection[str]) -> None:
        """Forget all songs that are not in a shard but these."""
        for name in self._waiting.keys() - set(names):
            self._waiting.pop(name).unlink(missing_ok=True)

    def borrow(self, name: str, folder: Path) -> bool:
        """Use a song that is kept in another folder; return whether it is there.

        Args:
            name: the song's id.
            folder: where another store has kept it.
        """
        self._waiting[name] = folder / _SONGS / f"{name}.npz"
        return self._waiting[name].is_file()

    def left_behind(self, tasks: Sequence[Task]) -> int:
        """Count the files of the last data set that are still there but no longer named."""
        try:
            rows = read_manifest(self._folder / "manifest.jsonl", required=("path",))
        except KmidiError:
            return 0  # there is none, or it is damaged and about to be replaced
        paths = {str(row.file("path")) for row in rows} - {task.source.path for task in tasks}
        return sum(Path(path).exists() for path in paths)

    def finish(
        self,
        usable: Sequence[tuple[Task, dict[str, Any]]],
        rejected: Sequence[dict[str, Any]],
        *,
        seed: int,
        val_share: float,
        licence: str | None,
        recipe: dict[str, Any],
        on_song: Callable[[], None] = lambda: None,
    ) -> CloudSummary:
        """Write the data set of exactly these songs and remove what it does not need.

        Args:
            usable: sources and notes of their samples, all of which are here.
            rejected: path and reason of all others.
            seed: of the draw for `val`.
            val_share: share of the draw.
            licence: licence beside those that manifests name, or None.
            recipe: how the samples were made, for `dataset.json`.
            on_song: called for every song that is put into a shard.

        Raises:
            KmidiError: if there is no usable song, or the disk refuses.
        """
        told = [{"path": note["path"], "reason": note["reason"]} for note in rejected]
        if not usable and len(told) == 1:
            raise KmidiError(f"nothing can be prepared: {_told(told[0])}.")
        write_manifest(self._folder / "rejected.jsonl", told)
        if not usable:
            raise KmidiError(
                f"none of {len(told)} files can be used; the first, {_told(told[0])}; "
                f"all reasons are in {self._folder / 'rejected.jsonl'}."
            )
        columns = self._compose([note["id"] for _, note in usable], on_song)
        sources = [task.source for task, _ in usable]
        songs = [source.song for source in sources]
        groups = connect(
            [songs, [source.group for source in sources], [note["digest"] for _, note in usable]]
        )
        declared = [source.split for source in sources]
        split = assign_splits(groups, declared, songs, seed=seed, val_share=val_share)
        columns |= {"split": split, "song": connect([songs]), "group": groups}
        write_manifest(self._folder / "manifest.jsonl", _rows(usable, columns))
        summary = _summary(usable, columns, len(told), licence)
        settings = {"seed": seed, "val_share": val_share, "recipe": recipe}
        write_dataset(self._folder, columns, {**asdict(summary), **settings})
        if self._songs.is_dir():
            for path in self._songs.iterdir():
                path.unlink()
            self._songs.rmdir()
        return summary

    def _compose(self, names: list[str], on_song: Callable[[], None]) -> dict[str, NDArray[Any]]:
        """Bring the shards into the order of the songs; return shard, row and pairs of each."""
        counts = [self._count(name) for name in names]
        shard: list[int] = []
        row: list[int] = []
        filled = 0
        for count in counts:
            number = shard[-1] if shard else 0
            if filled and filled + count > self._shard_pairs:
                number, filled = number + 1, 0
            shard.append(number)
            row.append(filled)
            filled += count
        for number in range(shard[-1] + 1):
            songs = [
                (name, count)
                for name, count, here in zip(names, counts, shard, strict=True)
                if here == number
            ]
            old = self._shards.get(number)
            if old is None or list(zip(old.ids, old.counts.tolist(), strict=True)) != songs:
                write_shard(self._folder, number, songs, self._parts(songs, on_song))
        for number in shard_numbers(self._folder):
            if number > shard[-1]:
                remove_shard(self._folder, number)
        return {
            "shard": np.array(shard, np.int32),
            "row": np.array(row, np.int32),
            "pairs": np.array(counts, np.int32),
        }

    def _parts(
        self, songs: Sequence[tuple[str, int]], on_song: Callable[[], None]
    ) -> Iterator[Pairs]:
        for name, count in songs:
            on_song()
            if name in self._waiting:
                yield _read_song(self._waiting[name])
                continue
            # An old shard stays readable when its file is replaced, for it is mapped.
            number, first = self._rows[name]
            arrays = self._shards[number].pairs.arrays()
            yield Pairs(**{key: array[first : first + count] for key, array in arrays.items()})

    def _count(self, name: str) -> int:
        if name in self._waiting:
            return len(_read_array(self._waiting[name], "shift"))
        shard = self._shards[self._rows[name][0]]
        return int(shard.counts[shard.ids.index(name)])

    def _add_shard(self, number: int, shard: Shard) -> None:
        self._shards[number] = shard
        starts = (np.cumsum(shard.counts) - shard.counts).tolist()
        self._rows |= {name: (number, s) for name, s in zip(shard.ids, starts, strict=True)}


def _read_song(path: Path) -> Pairs:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return Pairs(**{name: archive[name] for name in archive.files if name != "note"})
    except _DAMAGE as error:
        raise KmidiError(f"{path} is damaged; remove it and run the command again.") from error


def _read_array(path: Path, name: str) -> NDArray[Any]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        array: NDArray[Any] = archive[name]
    return array


def _told(rejected: dict[str, Any]) -> str:
    return f"{rejected['path']}: {rejected['reason'].removesuffix('.')}"


def _rows(
    usable: Sequence[tuple[Task, dict[str, Any]]], columns: dict[str, NDArray[Any]]
) -> list[dict[str, Any]]:
    return [
        {
            **task.source.values,
            "path": task.source.path,
            "split": SPLITS[columns["split"][i]],
            "song": task.source.song,
            "seconds": note["seconds"],
            "samples": 2 * int(columns["pairs"][i]),
            "shard": int(columns["shard"][i]),
            "row": int(columns["row"][i]),
            "group_number": int(columns["group"][i]),
            "emotion_source": note["emotion_source"],
            "digest": note["digest"],
            "id": note["id"],
            "files": note["files"],
        }
        for i, (task, note) in enumerate(usable)
    ]


def _summary(
    usable: Sequence[tuple[Task, dict[str, Any]]],
    columns: dict[str, NDArray[Any]],
    rejected: int,
    licence: str | None,
) -> CloudSummary:
    split, pairs = columns["split"], columns["pairs"]
    seconds = np.array([note["seconds"] for _, note in usable])
    splits = {}
    for number, name in enumerate(SPLITS):
        here = split == number
        if here.any():
            splits[name] = CloudSide(
                files=int(here.sum()),
                songs=len(np.unique(columns["song"][here])),
                samples=2 * int(pairs[here].sum()),
                hours=round(float(seconds[here].sum()) / 3600.0, 4),
            )
    sources = [task.source for task, _ in usable]
    licences = {str(source.values["licence"]) for source in sources if "licence" in source.values}
    synthetic = sum(bool(source.values.get("synthetic")) for source in sources)
    emotions = sorted(note["emotion_source"] for _, note in usable)
    return CloudSummary(
        splits=splits,
        rejected=rejected,
        moved=sum(
            source.split is not None and SPLITS.index(source.split) != got
            for source, got in zip(sources, split.tolist(), strict=True)
        ),
        synthetic=synthetic > 0,
        synthetic_pieces=synthetic,
        licences=sorted(licences | ({licence} if licence else set())),
        emotions={name: emotions.count(name) for name in dict.fromkeys(emotions)},
        largest_group=int(np.bincount(columns["group"]).max()),
    )
