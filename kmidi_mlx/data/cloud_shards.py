"""Prepared clouds on disk: memory-mapped pairs of samples, and a light index of songs.

A folder made by `prepare spectocloud` holds

    clouds-00000.npy …      float16 (pairs, 2, 1200, 10), what the engine drew in two frames
    mel-00000.npy …         uint8 (pairs, 128, 66), the sound under both: 255 x the compressed mel
                            spectrogram, so one step is 0.39 dB
    conditions-00000.npz …  features, emotion, shift, seconds of the pairs, and which songs they are
                            of; its arrival is the commit
    index.npz               one row a song: shard, row, pairs, split, song, group
    manifest.jsonl          the same songs for people, one line each
    rejected.jsonl          what could not be used, and why
    dataset.json            counts, licences, how it was made; written last
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write, write_bytes_atomically
from kmidi_mlx.data.cloud_sampling import MEL_COLUMNS, Pairs, stretch_windows
from kmidi_mlx.data.destination import Layout
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.data.share import has_shares
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud import CHANNELS, DEFAULT_POINTS, MEL_BANDS

__all__ = [
    "FORMAT",
    "KIND",
    "LAYOUT",
    "CloudPairs",
    "CloudReader",
    "Shard",
    "open_shard",
    "remove_shard",
    "shard_numbers",
    "write_dataset",
    "write_shard",
]

#: Version of the layout; a reader refuses any other.
FORMAT = 1
#: What `dataset.json` calls such a folder.
KIND = "spectocloud"
LAYOUT = Layout(
    kind=KIND,
    shards=re.compile(r"conditions-\d+\.npz"),
    columns=frozenset({"ids", "shift"}),
    contents=re.compile(r"(clouds|mel)-\d+\.npy"),
)

_COLUMNS = ("shard", "row", "pairs", "split", "song", "group")
_SMALL = ("features", "emotion", "shift", "seconds")
_SHAPES: dict[str, tuple[int, ...]] = {
    "clouds": (2, DEFAULT_POINTS, len(CHANNELS)),
    "mel": (MEL_BANDS, MEL_COLUMNS),
}
_TYPES = {"clouds": np.dtype("<f2"), "mel": np.dtype("u1")}


@dataclass(frozen=True, eq=False)
class Shard:
    """One shard, memory-mapped.

    Attributes:
        pairs: its rows; the large arrays are views of the files.
        ids: the songs whose rows these are, one behind the other.
        counts: int64 (songs,), rows of each.
    """

    pairs: Pairs
    ids: list[str]
    counts: NDArray[np.int64]


def shard_numbers(folder: Path) -> list[int]:
    """Return the numbers of all shards of which there is any file, rising."""
    names = [path.name for path in folder.iterdir()]
    ours = [n for n in names if LAYOUT.shards.fullmatch(n) or LAYOUT.contents.fullmatch(n)]
    return sorted({int(re.findall(r"\d+", name)[0]) for name in ours})


def remove_shard(folder: Path, number: int) -> None:
    """Remove a shard; its commit goes first, without which the rest is nothing."""
    for path in (_conditions(folder, number), *(_large(folder, n, number) for n in _SHAPES)):
        path.unlink(missing_ok=True)


def write_shard(
    folder: Path, number: int, songs: Sequence[tuple[str, int]], parts: Iterable[Pairs]
) -> None:
    """Write a shard in place of any of that number; it is there as a whole or not at all.

    Args:
        folder: an existing folder.
        number: of the shard.
        songs: id and number of rows of each song.
        parts: their rows, song by song; at most one song is held in memory at a time.
    """
    total = sum(count for _, count in songs)
    small: dict[str, list[NDArray[Any]]] = {name: [] for name in _SMALL}
    clouds, mel = (_large(folder, name, number) for name in ("clouds", "mel"))
    with atomic_write(clouds) as new_clouds, atomic_write(mel) as new_mel:
        maps = {
            name: np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                path, mode="w+", dtype=_TYPES[name], shape=(total, *_SHAPES[name])
            )
            for name, path in (("clouds", new_clouds), ("mel", new_mel))
        }
        row = 0
        for pairs in parts:
            for name, array in maps.items():
                array[row : row + len(pairs)] = getattr(pairs, name)
            for name, rows in small.items():
                rows.append(np.array(getattr(pairs, name)))
            row += len(pairs)
        for array in maps.values():
            array.flush()
        # From here until the new ones are there the shard does not count.
        _conditions(folder, number).unlink(missing_ok=True)
    arrays: dict[str, Any] = {name: np.concatenate(rows) for name, rows in small.items()}
    arrays["ids"] = np.array([name for name, _ in songs])
    arrays["counts"] = np.array([count for _, count in songs], np.int64)
    _write_arrays(_conditions(folder, number), arrays)


def open_shard(folder: Path, number: int) -> Shard:
    """Open a shard.

    Raises:
        KmidiError: if a file is missing or damaged, or they do not belong together.
    """
    small = _read_arrays(_conditions(folder, number), (*_SMALL, "ids", "counts"))
    count = len(small["shift"])
    large = {name: _map(_large(folder, name, number), name, count) for name in _SHAPES}
    ids, counts = small.pop("ids"), small.pop("counts")
    if len(ids) != len(counts) or counts.sum() != count:
        raise KmidiError(f"{_conditions(folder, number)} is damaged; prepare {folder} again.")
    return Shard(Pairs(**large, **small), ids.tolist(), counts)


def write_dataset(
    folder: Path, columns: Mapping[str, NDArray[Any]], description: Mapping[str, Any]
) -> None:
    """Write the index, then `dataset.json`, which makes the folder complete.

    Args:
        folder: the folder that has the shards that the index names.
        columns: arrays (songs,) `shard`, `row`, `pairs`, `split`, `song`, `group`.
        description: what `dataset.json` says beside format and sizes.
    """
    _write_arrays(folder / "index.npz", columns)
    sizes = {"kind": KIND, "format": FORMAT, "songs": len(columns["pairs"]),
             "pairs": int(columns["pairs"].sum())}  # fmt: skip
    text = json.dumps({**sizes, **description}, ensure_ascii=False, indent=2)
    write_bytes_atomically(folder / "dataset.json", f"{text}\n".encode())


@dataclass(frozen=True, eq=False)
class CloudPairs:
    """Pairs of samples as numbers to compute with.

    Attributes:
        windows: float32 (n, 2, 128, 64), compressed mel spectrograms in [0, 1].
        features: float32 (n, 2, 32), MIDI features in [-1, 1].
        emotion: float32 (n, 2, 3), valence, arousal and intensity as the cloud feels them.
        clouds: float32 (n, 2, 1200, 10), columns as in `spectocloud.CHANNELS`.
    """

    windows: NDArray[np.float32]
    features: NDArray[np.float32]
    emotion: NDArray[np.float32]
    clouds: NDArray[np.float32]


class CloudReader:
    """A prepared data set, open for reading; samples stay on disk until they are asked for.

    Attributes:
        folder: the folder made by `prepare spectocloud`.
        dataset: the object in `dataset.json`.
        song: int32 (pairs,), number of the song that a pair is of; its versions share it.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a folder.

        Raises:
            KmidiError: if it is not such a folder, is not complete, is damaged or has another
                format.
        """
        self.folder = Path(folder)
        self.dataset = _read_description(self.folder)
        index = _read_arrays(self.folder / "index.npz", _COLUMNS)
        numbers = range(int(index["shard"].max(initial=-1)) + 1)
        self._shards = [open_shard(self.folder, number) for number in numbers]
        sizes = [len(shard.pairs) for shard in self._shards]
        self._ends = np.cumsum(sizes)
        per_song = index["pairs"]
        starts = np.cumsum([0, *sizes])[index["shard"]] + index["row"]
        together = (
            len(per_song) == self.dataset.get("songs")
            and per_song.sum() == sum(sizes) == self.dataset.get("pairs")
            and np.array_equal(starts, np.cumsum(per_song) - per_song)
        )
        if not together:
            raise KmidiError(
                f"{self.folder}: dataset.json, index.npz and the shards do not belong together; "
                "run the same prepare command again to finish it."
            )
        self.song: NDArray[np.int32] = np.repeat(index["song"], per_song).astype(np.int32)
        self._split = np.repeat(index["split"], per_song)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.song)

    def split(self, name: str) -> NDArray[np.int64]:
        """Return the pairs of a side (`train`, `val`, `test`), int64 (m,), rising.

        Raises:
            KmidiError: for another name.
        """
        if name not in SPLITS:
            raise KmidiError(f"there is no split {name!r}; use one of {', '.join(SPLITS)}.")
        return np.flatnonzero(self._split == SPLITS.index(name))

    def pairs(self, indices: Sequence[int] | NDArray[np.int64]) -> CloudPairs:
        """Read pairs.

        Args:
            indices: (n,) of pairs, in any order, also repeated.

        Raises:
            IndexError: for an index out of range.
        """
        wanted = np.asarray(indices, np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"pairs are numbered 0 to {len(self) - 1}")
        found = Pairs.empty(len(wanted)).arrays()
        shards = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(shards).tolist():
            here, pairs = shards == number, self._shards[number].pairs
            rows = wanted[here] - (int(self._ends[number]) - len(pairs))
            for name, array in found.items():
                array[here] = getattr(pairs, name)[rows]
        return CloudPairs(
            windows=stretch_windows(found["mel"], found["shift"]),
            features=found["features"],
            emotion=found["emotion"],
            clouds=found["clouds"].astype(np.float32),
        )


def _conditions(folder: Path, number: int) -> Path:
    return folder / f"conditions-{number:05d}.npz"


def _large(folder: Path, name: str, number: int) -> Path:
    return folder / f"{name}-{number:05d}.npy"


def _map(path: Path, name: str, count: int) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise KmidiError(f"{path} is missing; prepare {path.parent} again.") from error
    except (OSError, ValueError, EOFError) as error:
        raise KmidiError(f"{path} is damaged or cut off; prepare {path.parent} again.") from error
    if array.shape != (count, *_SHAPES[name]) or array.dtype != _TYPES[name]:
        raise KmidiError(
            f"{path} has {array.dtype} of shape {array.shape}, not what belongs there; prepare "
            f"{path.parent} again."
        )
    return array


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise KmidiError(f"{path} is missing; prepare {path.parent} again.") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise KmidiError(f"{path} is damaged; prepare {path.parent} again.") from error


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    how = "make it with: kmidi prepare spectocloud SRC --out DIR"
    if not folder.is_dir():
        raise KmidiError(f"there is no folder {folder}; {how}.")
    try:
        description = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if has_shares(folder):
            how = f"its shards are merged by: kmidi prepare merge {folder}"
        raise KmidiError(f"{folder} has no dataset.json, so no complete data set; {how}.") from (
            error
        )
    except (OSError, ValueError) as error:
        raise KmidiError(f"{path} is damaged; prepare {folder} again.") from error
    if not isinstance(description, dict) or description.get("kind") != KIND:
        raise KmidiError(f"{folder} is not a data set of clouds; {how}.")
    if description.get("format") != FORMAT:
        raise KmidiError(
            f"{folder} has format {description.get('format')!r}, this version reads {FORMAT}; "
            "prepare it again."
        )
    return description
