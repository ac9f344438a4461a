"""Types and constants of ML Programs, as Core ML's protobuf files hold them.

The format is Apple's `MIL.proto`. Floating-point numbers are computed in fp32 whatever their type
says, so fp16 constants become fp32 when they are read; integers and booleans keep their type.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = ["Array", "Type", "Value", "read_type", "read_value", "unpack"]

Array = NDArray[Any]
#: What an operation takes: a tensor, a string, or several of them.
Value = Any

# `DataType` of MIL.proto
_DTYPES = {
    1: "bool",
    2: "string",
    10: "fp16",
    11: "fp32",
    21: "int8",
    22: "int16",
    23: "int32",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
}
_STORED: dict[str, Any] = {
    "bool": np.bool_,
    "fp16": np.float16,
    "fp32": np.float32,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
}
#: Bits of the types that are smaller than a byte.
_PACKED_BITS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6, "int4": 4}


@dataclass(frozen=True)
class Type:
    """Type of a tensor.

    Attributes:
        dtype: MIL's name of it, such as `fp16`.
        shape: sizes.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored(self) -> np.dtype[Any]:
        """How numpy stores it in a file or at the border of the program."""
        if self.dtype in _PACKED_BITS:
            return np.dtype(np.int8 if self.dtype == "int4" else np.uint8)
        return np.dtype(_STORED[self.dtype])

    @property
    def computed(self) -> np.dtype[Any]:
        """How numpy computes with it: fp16 as fp32."""
        return np.dtype(np.float32) if self.dtype == "fp16" else self.stored

    @property
    def byte_count(self) -> int:
        """Bytes that its elements fill, packed where they are smaller than a byte."""
        if self.dtype in _PACKED_BITS:
            return -(-self.size * _PACKED_BITS[self.dtype] // 8)
        return self.size * self.stored.itemsize

    @property
    def padding_bits(self) -> int:
        """Bits of the last byte that belong to no element."""
        if self.dtype not in _PACKED_BITS:
            return 0
        return 8 * self.byte_count - self.size * _PACKED_BITS[self.dtype]

    def decode(self, data: bytes | memoryview) -> Array:
        """Read elements from `byte_count` bytes; the result may be a read-only view of them."""
        if self.dtype in _PACKED_BITS:
            numbers = unpack(np.frombuffer(data, np.uint8), _PACKED_BITS[self.dtype], self.size)
            if self.dtype == "int4":
                numbers = ((numbers.astype(np.int8) ^ 8) - 8).astype(np.int8)
        else:
            numbers = np.frombuffer(data, self.stored)
        return numbers.reshape(self.shape).astype(self.computed, copy=False)


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Read `count` unsigned numbers of so many bits each, lowest bits first."""
    single = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return np.packbits(single, axis=1, bitorder="little").reshape(count)


def read_type(message: Any, where: str) -> Type:
    """Read a `ValueType`.

    Args:
        message: of protobuf.
        where: what has this type, for errors.

    Raises:
        KmidiError: if it is no tensor, or of an unknown or flexible type.
    """
    if message.WhichOneof("type") != "tensorType":
        raise KmidiError(
            f"{where} is a {message.WhichOneof('type')}, not a tensor; only tensors are evaluated."
        )
    tensor = message.tensorType
    if tensor.dataType not in _DTYPES:
        raise KmidiError(f"{where} has data type {tensor.dataType}, which is not evaluated.")
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        raise KmidiError(f"{where} has a flexible shape; export it with fixed sizes.")
    shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
    if tensor.rank != len(shape):
        raise KmidiError(f"{where} says rank {tensor.rank} but has {len(shape)} sizes.")
    return Type(_DTYPES[tensor.dataType], shape)


def read_value(message: Any, where: str, read_blob: Callable[[Any, Type], Array]) -> Value:
    """Read a `Value`: a tensor (read only) or a string.

    Args:
        message: of protobuf.
        where: what has this value, for errors.
        read_blob: reads what a `BlobFileValue` points to.

    Raises:
        KmidiError: if value and type do not fit each other.
    """
    kind = read_type(message.type, where)
    if message.WhichOneof("value") == "blobFileValue":
        value = read_blob(message.blobFileValue, kind)
    else:
        value = _immediate(message.immediateValue.tensor, kind, where)
    if isinstance(value, np.ndarray):
        value.flags.writeable = False
    return value


def _immediate(tensor: Any, kind: Type, where: str) -> Value:
    field = tensor.WhichOneof("value")
    if field == "bytes":
        data = tensor.bytes.values
        if len(data) != kind.byte_count:
            raise KmidiError(f"{where} is {kind} but holds {len(data)} bytes.")
        return kind.decode(data)
    values = getattr(tensor, field).values if field else []
    if len(values) != kind.size:
        raise KmidiError(f"{where} is {kind} but holds {len(values)} numbers.")
    if kind.dtype == "string":
        return values[0] if kind.shape == () else tuple(values)
    return np.array(values, kind.computed).reshape(kind.shape)
