"""PyTorch's weight files (`torch.save`) without PyTorch: numpy arrays in and out, nothing run.

A file is a zip archive of uncompressed records: `NAME/data.pkl` describes the tensors,
`NAME/data/0`, `NAME/data/1`, … are their numbers, each aligned to 64 bytes. kmidi's own files hold
a dict with the tensors under `state_dict` and what is known of them under `metadata`, and
`torch.load(path, weights_only=True)` reads them.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_pickler import BFLOAT16, DEEPEST, DTYPES, to_pickle
from kmidi_mlx.torch_unpickler import LARGEST_PICKLE, StoredTensor, from_pickle

__all__ = ["SUFFIXES", "Arrays", "StoredArrays", "read_torch_file", "widened", "write_torch_file"]

SUFFIXES = (".pt", ".pth")
_ADVICE = "save one: torch.save(model.state_dict(), …)"
_STATE_DICT, _METADATA = "state_dict", "metadata"

_OLD_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of PyTorch before 1.6
# zipfile lets errors of what it is built from through where a field makes no sense
_BAD_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError)
_ALIGNMENT = 64
_LOCAL_HEADER = 30
_ZIP64_EXTRA = 20
_SMALL_RECORD = 1024  # bytes, of a record that says one word
_MOST_VALUES = 100_000  # of metadata; those of a run are a few hundred
# a tied weight is listed twice and bfloat16 doubles; what claims far more than it holds is a trap
_LARGEST_GROWTH, _ALLOWANCE = 8, 16 << 20

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredArrays:
    """What a weight file holds.

    Attributes:
        arrays: the tensors by name, C-contiguous.
        metadata: plain values; empty for a bare `state_dict`.
        widened: names of the tensors that were bfloat16 and are float32 now, exactly.
    """

    arrays: Arrays
    metadata: dict[str, Any]
    widened: tuple[str, ...]


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 numbers of bfloat16 bit patterns of any shape, exactly."""
    flat = bits.reshape(-1).astype(np.uint32)
    flat <<= 16
    return flat.view(np.float32).reshape(bits.shape)


def read_torch_file(path: Path) -> StoredArrays:
    """Read a file made by `torch.save`: a `state_dict`, or a dict with one under that name.

    Args:
        path: file of the zip format, PyTorch 1.6 or newer.

    Raises:
        KmidiError: when it is missing, truncated, damaged, of the old format, holds code, or claims
            more than it can hold.
    """
    with _Archive(path) as archive:
        tree = from_pickle(archive.record("data.pkl", LARGEST_PICKLE), path)
        order = archive.record("byteorder", _SMALL_RECORD) if "byteorder" in archive else b"little"
        if order.strip() != b"little":
            raise KmidiError(
                f"{path} was written on a big-endian machine; save it again on a little-endian one."
            )
        tensors, metadata = _find_tensors(tree, path)
        arrays = archive.arrays(tensors)
    names = tuple(name for name, tensor in tensors.items() if tensor.dtype == BFLOAT16)
    return StoredArrays(arrays, metadata, names)


def _find_tensors(tree: Any, path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    if type(tree) is not dict:
        raise KmidiError(f"{path} holds no state_dict; {_ADVICE}.")
    metadata: Any = {}
    if type(tree.get(_STATE_DICT)) is dict:
        metadata = _Plain(path).copy(tree.get(_METADATA, {}))
        tree = tree[_STATE_DICT]
    if type(metadata) is not dict:
        raise KmidiError(f"{path} is damaged: its metadata are no dict.")
    strange = [name for name, value in tree.items() if type(value) is not StoredTensor]
    if strange or not all(type(name) is str for name in tree):
        found = ", ".join(str(name)[:40] for name in strange[:4])
        raise KmidiError(f"{path} holds no state_dict (found {found}); {_ADVICE}.")
    return tree, metadata


class _Plain:
    """Copies values that came out of a pickle, which may hold themselves, within limits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._left = _MOST_VALUES

    def copy(self, value: Any, depth: int = 0) -> Any:
        self._left -= 1
        if depth > DEEPEST or self._left < 0:
            raise KmidiError(f"{self._path} is no file of weights: its metadata are endless.")
        if type(value) is dict:
            if not all(type(key) is str for key in value):
                raise KmidiError(f"{self._path} is damaged: its metadata have a name that is none.")
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if type(value) in (list, tuple):
            return [self.copy(item, depth + 1) for item in value]
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise KmidiError(f"{self._path} is damaged: its metadata hold more than plain values.")


class _Archive:
    """The records of an open zip file, all uncompressed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise KmidiError(f"no such checkpoint: {path}.") from None
        except OSError as error:
            raise KmidiError(f"cannot read {path}: {error.strerror}.") from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._records = self._list()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def _list(self) -> dict[str, zipfile.ZipInfo]:
        start = self._file.read(len(_OLD_FORMAT))
        if start == _OLD_FORMAT:
            raise KmidiError(
                f"{self._path} is of PyTorch's format before 1.6; read it with torch.load(path, "
                "weights_only=True) and write it again with torch.save."
            )
        try:
            with zipfile.ZipFile(self._file) as archive:
                entries = archive.infolist()
        except _BAD_ZIP as error:
            reason = "is truncated" if start.startswith(b"PK\x03\x04") else "is not a PyTorch file"
            raise KmidiError(f"{self._path} {reason}, or damaged: {error}.") from error
        top = entries[0].filename.partition("/")[0] if entries else ""
        records = {entry.filename.removeprefix(f"{top}/"): entry for entry in entries}
        if len(records) != len(entries):
            raise self._damaged("two records have the same name")
        for name, entry in records.items():
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise self._damaged(f"record {name[:60]} is compressed, which PyTorch never does")
            if entry.file_size != entry.compress_size:
                raise self._damaged(f"record {name[:60]} has two sizes")
        if sum(entry.file_size for entry in entries) > self._size:
            raise self._damaged("its records claim more bytes than it has")
        if "data.pkl" not in records:
            raise KmidiError(f"{self._path} is a zip file but not one that torch.save wrote.")
        return records

    def _damaged(self, what: str) -> KmidiError:
        return KmidiError(f"{self._path} is damaged: {what}.")

    def record(self, name: str, largest: int) -> bytes:
        """Read a short record of at most `largest` bytes whole."""
        if self._records[name].file_size > largest:
            raise self._damaged(f"record {name} is absurdly long")
        return self._bytes(name).tobytes()

    def _bytes(self, name: str) -> NDArray[np.uint8]:
        entry = self._records[name]
        try:
            self._file.seek(entry.header_offset)
            header = self._file.read(_LOCAL_HEADER)
            if len(header) != _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise self._damaged(f"record {name[:60]} is not where it should be")
            self._file.seek(sum(struct.unpack("<HH", header[26:30])), os.SEEK_CUR)
            data = np.fromfile(self._file, np.uint8, entry.file_size)
        except ValueError as error:
            raise self._damaged(f"record {name[:60]} is not where it should be") from error
        except OSError as error:
            raise KmidiError(f"cannot read {self._path}: {error.strerror}.") from error
        if len(data) != entry.file_size:
            raise self._damaged(f"record {name[:60]} is cut off")
        # torch.serialization.set_crc32_options(False) writes 0
        if entry.CRC not in (0, zlib.crc32(data.data)):
            raise self._damaged(f"the checksum of record {name[:60]} does not fit")
        return data

    def arrays(self, tensors: Mapping[str, StoredTensor]) -> Arrays:
        """Read tensors; each storage is read once and not copied where it need not be."""
        total = 0
        for name, tensor in tensors.items():
            self._check(name, tensor)
            wide = 2 if tensor.dtype == BFLOAT16 else 1
            total += math.prod(tensor.shape) * np.dtype(DTYPES[tensor.dtype]).itemsize * wide
        if total > _LARGEST_GROWTH * self._size + _ALLOWANCE:
            raise KmidiError(
                f"{self._path} claims {total / 1e9:.1f} GB of tensors but holds "
                f"{self._size / 1e6:.1f} MB; it is not opened."
            )
        storages: dict[str, NDArray[np.uint8]] = {}
        arrays: Arrays = {}
        for name, tensor in tensors.items():
            key = f"data/{tensor.storage.key}"
            if key not in storages:
                storages[key] = self._bytes(key)
            arrays[name] = _view(storages[key], tensor)
        return arrays

    def _check(self, name: str, tensor: StoredTensor) -> None:
        storage, key = tensor.storage, f"data/{tensor.storage.key}"
        if key not in self._records:
            raise self._damaged(f"record {key[:60]} of {name[:60]} is missing")
        size = np.dtype(DTYPES[tensor.dtype]).itemsize
        stored = storage.count * (1 if storage.dtype is None else size)
        last = tensor.offset + sum(
            (length - 1) * stride
            for length, stride in zip(tensor.shape, tensor.strides, strict=True)
        )
        reaches = (last + 1) * size if math.prod(tensor.shape) else 0
        if max(stored, reaches) > self._records[key].file_size or reaches > stored:
            raise self._damaged(f"{name[:60]} reaches beyond its numbers")


def _view(data: NDArray[np.uint8], tensor: StoredTensor) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[tensor.dtype])
    if not math.prod(tensor.shape):
        bits: NDArray[Any] = np.empty(tensor.shape, dtype)
    else:
        whole = data[: len(data) // dtype.itemsize * dtype.itemsize]
        # a byte that is neither 0 nor 1 would be no bool for numpy
        flat = whole != 0 if dtype == np.bool_ else whole.view(dtype)
        steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
        bits = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, steps)
        bits = np.asarray(bits, order="C")
    return widened(bits) if tensor.dtype == BFLOAT16 else bits


def write_torch_file(
    path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]
) -> None:
    """Write `{"state_dict": arrays, "metadata": metadata}` as `torch.save` does, atomically.

    The same input gives the same bytes.

    Args:
        path: file to make or replace; its folder has to exist.
        arrays: named arrays of a kind in `torch_pickler.DTYPES`, which has no bfloat16 of numpy.
        metadata: plain values: dict, list, text, number, bool, None.

    Raises:
        KmidiError: when something cannot be kept, or the system refuses; the old file stays.
    """
    ordered = {
        name: np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        for name, array in arrays.items()
    }
    description, tensors = to_pickle({_STATE_DICT: ordered, _METADATA: metadata})
    records = [
        ("data.pkl", np.frombuffer(description, np.uint8)),
        (".storage_alignment", np.frombuffer(str(_ALIGNMENT).encode(), np.uint8)),
        ("byteorder", np.frombuffer(b"little", np.uint8)),
        *((f"data/{number}", tensor) for number, tensor in enumerate(tensors)),
        ("version", np.frombuffer(b"3\n", np.uint8)),
    ]
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as file,
        zipfile.ZipFile(file, "w") as archive,
    ):
        for name, array in records:
            entry = zipfile.ZipInfo(f"{path.stem}/{name}")
            entry.file_size = array.nbytes
            large = array.nbytes > zipfile.ZIP64_LIMIT
            start = file.tell() + _LOCAL_HEADER + len(entry.filename.encode()) + 4
            padding = -(start + (_ZIP64_EXTRA if large else 0)) % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(entry, "w", force_zip64=large) as record:
                record.write(array.reshape(-1).view(np.uint8).data)
