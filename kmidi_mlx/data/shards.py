"""Prepared pieces on disk: token files that are memory-mapped, and a light index of columns.

A folder made by `prepare midi` holds

    tokens-00000.bin …   little-endian uint16, the events of many pieces one after another
    shard-00000.npz …    what is known of the pieces of one token file; its arrival is the commit
    index.npz            the columns of all pieces of the data set (`columns.PieceIndex`)
    manifest.jsonl       the same pieces for people, one line each, in the order of the index
    rejected.jsonl       what could not be used, and why
    dataset.json         counts, licences, how labels came about; written last

and, while it is being prepared, shards of what was read so far in `.parts`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write, write_bytes_atomically
from kmidi_mlx.data.columns import Columns, Content, PieceIndex
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.data.share import has_shares
from kmidi_mlx.errors import KmidiError

__all__ = [
    "FORMAT",
    "PARTS",
    "ShardReader",
    "read_shard",
    "read_tokens",
    "rewrite_notes",
    "shard_path",
    "tokens_path",
    "write_dataset",
    "write_shard",
]

#: Version of the layout; a reader refuses any other.
FORMAT = 1
#: Folder of what was read but is not yet among the shards.
PARTS = ".parts"

_TOKEN = np.dtype("<u2")
_C = TypeVar("_C", bound=Columns)


def tokens_path(folder: Path, shard: int) -> Path:
    """Return the path of a token file."""
    return folder / f"tokens-{shard:05d}.bin"


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of the columns that belong to a token file."""
    return folder / f"shard-{shard:05d}.npz"


def write_shard(
    folder: Path,
    shard: int,
    tokens: NDArray[np.uint16],
    content: Content,
    notes: Mapping[str, Any],
) -> None:
    """Commit pieces: tokens first, then columns and notes, each atomically.

    Args:
        folder: an existing folder.
        shard: its number; an existing shard of that number is replaced.
        tokens: uint16 (sum of lengths,), the pieces' events one after another.
        content: the pieces' columns.
        notes: a JSON object that is kept with the shard (whose pieces these are).
    """
    write_bytes_atomically(tokens_path(folder, shard), tokens.astype(_TOKEN).tobytes())
    _write_arrays(shard_path(folder, shard), content, notes)


def rewrite_notes(folder: Path, shard: int, content: Content, notes: Mapping[str, Any]) -> None:
    """Replace the notes of a committed shard, atomically; the tokens stay."""
    _write_arrays(shard_path(folder, shard), content, notes)


def read_shard(folder: Path, shard: int) -> tuple[Content, dict[str, Any]]:
    """Read the columns and notes that `write_shard` committed.

    Raises:
        KmidiError: if the file is damaged or has another format.
    """
    return _read_arrays(shard_path(folder, shard), Content)


def read_tokens(
    places: Sequence[tuple[Path, int]], starts: NDArray[np.int64], lengths: NDArray[np.int32]
) -> NDArray[np.uint16]:
    """Read pieces from committed shards.

    Args:
        places: folder and shard of each piece.
        starts: int64 (pieces,), their first tokens in those files.
        lengths: int32 (pieces,), their tokens.

    Returns:
        uint16 (sum of lengths,), the pieces' events one after another.

    Raises:
        KmidiError: if a file cannot be read.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    tokens = np.empty(int(ends[-1]) if len(ends) else 0, _TOKEN)
    pieces_of: dict[tuple[Path, int], list[int]] = {}
    for piece, place in enumerate(places):
        pieces_of.setdefault(place, []).append(piece)
    for place, pieces in pieces_of.items():
        path = tokens_path(*place)
        try:
            with path.open("rb") as file:
                for piece in pieces:
                    file.seek(int(starts[piece]) * _TOKEN.itemsize)
                    count = int(lengths[piece])
                    tokens[ends[piece] - count : ends[piece]] = np.fromfile(file, _TOKEN, count)
        except (OSError, ValueError) as error:
            raise KmidiError(f"cannot read {path}: {error}; prepare it again.") from error
    return tokens


def write_dataset(folder: Path, index: PieceIndex, description: Mapping[str, Any]) -> None:
    """Write the index, then `dataset.json`, which makes the folder complete.

    Args:
        folder: the folder that has the shards that the index names.
        index: all pieces.
        description: what `dataset.json` says beside format and sizes.
    """
    sizes = {"format": FORMAT, "pieces": len(index), "tokens": int(index.length.sum())}
    _write_arrays(folder / "index.npz", index, sizes)
    text = json.dumps({**sizes, **description}, ensure_ascii=False, indent=2)
    write_bytes_atomically(folder / "dataset.json", f"{text}\n".encode())


class ShardReader:
    """A prepared data set, open for reading; tokens stay on disk until they are looked at.

    Attributes:
        folder: the folder made by `prepare midi`.
        dataset: the object in `dataset.json`.
        pieces: the columns of all pieces.
        mood_hop_steps: time from one row of a mood curve to the next, in steps of 10 ms.
        mood_window_steps: time that a row describes, in steps of 10 ms.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open a folder.

        Raises:
            KmidiError: if it is not a prepared folder, is not complete, has another format, or a
                token file is missing or shorter than the index says.
        """
        self.folder = Path(folder)
        self.dataset = _read_description(self.folder)
        self.pieces, sizes = _read_arrays(self.folder / "index.npz", PieceIndex)
        if any(self.dataset.get(key) != sizes[key] for key in sizes):
            raise KmidiError(
                f"{self.folder}: dataset.json and index.npz do not belong together; "
                "run the same prepare command again to finish it."
            )
        self.mood_hop_steps = int(self.dataset["mood_hop_steps"])
        self.mood_window_steps = int(self.dataset["mood_window_steps"])
        self._maps = self._map_tokens()

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.pieces)

    def tokens(self, piece: int) -> NDArray[np.uint16]:
        """Return the events of a piece, uint16 (length,), as a read-only view of the file."""
        start = int(self.pieces.start[piece])
        stop = start + int(self.pieces.length[piece])
        return self._maps[int(self.pieces.shard[piece])][start:stop]

    def split(self, name: str) -> NDArray[np.int64]:
        """Return the pieces of a side (`train`, `val`, `test`), int64 (m,), rising.

        Raises:
            KmidiError: for another name.
        """
        if name not in SPLITS:
            raise KmidiError(f"split {name!r} is unknown; use one of {', '.join(SPLITS)}.")
        return np.flatnonzero(self.pieces.split == SPLITS.index(name))

    def _map_tokens(self) -> dict[int, NDArray[np.uint16]]:
        pieces, maps = self.pieces, {}
        ends = pieces.start + pieces.length
        for shard in np.unique(pieces.shard).tolist():
            path = tokens_path(self.folder, shard)
            needed = int(ends[pieces.shard == shard].max()) * _TOKEN.itemsize
            try:
                size = path.stat().st_size
            except OSError as error:
                raise KmidiError(
                    f"cannot read {path}: {error.strerror}; prepare the data set again."
                ) from error
            if size < needed:
                raise KmidiError(
                    f"{path} is cut off: it has {size} bytes and the index needs {needed}; "
                    "remove the file and run the same prepare command again."
                )
            # As a plain array: slices of a memmap object are ten times slower to make.
            maps[shard] = np.asarray(np.memmap(path, _TOKEN, mode="r"))
        return maps


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.exists():
        what = "make it with `kmidi prepare midi FOLDER --out DIR`"
        if any(folder.glob("shard-*.npz")) or (folder / PARTS).is_dir():
            what = "preparing it was interrupted; run the same prepare command again to finish it"
        elif has_shares(folder):
            what = f"its shards are merged by: kmidi prepare merge {folder}"
        raise KmidiError(f"{folder} is not a prepared data set: it has no dataset.json; {what}.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KmidiError(f"cannot read {path}: {error}; prepare the data set again.") from error
    if isinstance(description, dict) and description.get("kind") is not None:
        raise KmidiError(
            f"{folder} holds data of another model ({str(description['kind'])[:40]}), not music "
            "for the MIDI generator; make that with: kmidi prepare midi SRC --out DIR."
        )
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise KmidiError(
            f"{path}: format {found!r} cannot be read, this version reads format {FORMAT}; "
            "prepare the data set again."
        )
    return description


def _write_arrays(path: Path, columns: Columns, notes: Mapping[str, Any]) -> None:
    arrays: dict[str, Any] = columns.arrays()
    arrays["notes"] = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def _read_arrays(path: Path, kind: type[_C]) -> tuple[_C, dict[str, Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            columns = kind(**{item.name: arrays[item.name] for item in fields(kind)})
            notes = json.loads(arrays["notes"].tobytes())
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise KmidiError(f"{path} is damaged ({error}); prepare the data set again.") from error
    return columns, notes
