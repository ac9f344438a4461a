"""The file `weights/weight.bin` of a Core ML package.

A header of 64 bytes (number of blobs, version 2), then for every blob a record of 64 bytes (a
magic number, data type, bytes, offset of the data, bits that pad the last byte) and, from the
next multiple of 64 bytes on, its data. The format is that of Apple's MIL blob storage.
"""

from __future__ import annotations

import struct
from pathlib import Path

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil.values import Array, Type

__all__ = ["WeightFile"]

_ALIGNMENT = 64
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_VERSION = 2
_MAGIC = 0xDEADBEEF
_CODES = {
    "fp16": 1,
    "fp32": 2,
    "uint8": 3,
    "int8": 4,
    "int16": 6,
    "uint16": 7,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
    "uint32": 15,
}


class WeightFile:
    """The constants of a package that are too large for its program.

    Args:
        path: the file.

    Raises:
        KmidiError: if it is missing or no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # read, not mapped: the package may be replaced while its program is still in use
            self._data = memoryview(path.read_bytes())
        except OSError as error:
            raise KmidiError(f"cannot read the weights {path}: {error.strerror}.") from error
        if len(self._data) < _HEADER.size:
            raise KmidiError(f"the weights {path} are cut off: write the package again.")
        self._count, version = _HEADER.unpack_from(self._data)
        if version != _VERSION:
            raise KmidiError(f"the weights {path} have version {version}, not {_VERSION}.")
        self._offsets: set[int] = set()

    def read(self, offset: int, kind: Type) -> Array:
        """Read a blob.

        Args:
            offset: of its record.
            kind: what it is declared to be.

        Raises:
            KmidiError: if what is there is another thing.
        """
        what = f"the blob at byte {offset} of {self._path}"
        if offset % _ALIGNMENT or not _HEADER.size <= offset <= len(self._data) - _RECORD.size:
            raise KmidiError(f"{what} is no place where one can be.")
        magic, code, count, start, padding = _RECORD.unpack_from(self._data, offset)
        if magic != _MAGIC:
            raise KmidiError(f"{what} has no record of one.")
        if code != _CODES.get(kind.dtype):
            raise KmidiError(f"{what} has data type {code}, which is not the declared {kind}.")
        if count != kind.byte_count or padding != kind.padding_bits:
            raise KmidiError(
                f"{what} has {count} bytes and {padding} bits too many; {kind} has "
                f"{kind.byte_count} and {kind.padding_bits}."
            )
        if start % _ALIGNMENT or start < offset + _RECORD.size or start + count > len(self._data):
            raise KmidiError(f"{what} places its data at byte {start}, out of reach.")
        self._offsets.add(offset)
        if len(self._offsets) > self._count:
            raise KmidiError(f"the weights {self._path} say that they hold {self._count} blobs.")
        return kind.decode(self._data[start : start + count])
