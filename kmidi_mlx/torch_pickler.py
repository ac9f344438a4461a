"""Plain values and arrays as the pickle that PyTorch reads.

The names that a file of weights uses are here too, for `kmidi_mlx.torch_unpickler`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "BFLOAT16",
    "DEEPEST",
    "DTYPES",
    "LARGEST_INTEGER",
    "ORDERED_DICT",
    "STORAGES",
    "TENSOR",
    "TENSOR_3",
    "UNTYPED",
    "to_pickle",
]

#: Values inside values that are read or written.
DEEPEST = 64

BFLOAT16 = "bfloat16"
#: numpy's number type of every kind of tensor that is read; bfloat16 as its bit pattern.
DTYPES = {
    "float32": "<f4",
    "float16": "<f2",
    BFLOAT16: "<u2",
    "float64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "|i1",
    "uint8": "|u1",
    "bool": "|b1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
}
STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": BFLOAT16,
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage")
ORDERED_DICT = "collections.OrderedDict"
TENSOR, TENSOR_3 = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"
#: Bytes of a whole number; more digits than any count of a training run.
LARGEST_INTEGER = 16


def to_pickle(value: Any) -> tuple[bytes, list[NDArray[Any]]]:
    """Write plain values and arrays as the pickle that `torch.load` reads.

    Args:
        value: dict, list, tuple, text, number, bool, None, and numpy arrays of `DTYPES`.

    Returns:
        The pickle (protocol 2, as `torch.save` uses), and the arrays in the order of their keys
        "0", "1", ….

    Raises:
        KmidiError: when it holds anything else, or itself.
    """
    arrays: list[NDArray[Any]] = []
    parts = [pickle.PROTO + b"\x02"]
    _write(value, parts, arrays, 0)
    return b"".join((*parts, pickle.STOP)), arrays


def _write(value: Any, parts: list[bytes], arrays: list[NDArray[Any]], depth: int) -> None:
    if depth > DEEPEST:
        raise KmidiError("a torch file cannot keep values nested so deeply.")
    if value is None or isinstance(value, bool):
        parts.append({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
    elif isinstance(value, int):
        parts.append(_integer(value))
    elif isinstance(value, float):
        parts.append(pickle.BINFLOAT + struct.pack(">d", value))
    elif isinstance(value, str):
        try:
            encoded = value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise KmidiError(f"a torch file cannot keep {value!r:.60}: half a sign.") from error
        parts.append(pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded)
    elif isinstance(value, np.ndarray):
        _write_tensor(value, parts, arrays)
    elif isinstance(value, Mapping):
        parts.append(pickle.EMPTY_DICT + pickle.MARK)
        for item in [part for pair in value.items() for part in pair]:
            _write(item, parts, arrays, depth + 1)
        parts.append(pickle.SETITEMS)
    elif isinstance(value, (list, tuple)):
        is_list = isinstance(value, list)
        parts.append(pickle.EMPTY_LIST + pickle.MARK if is_list else pickle.MARK)
        for item in value:
            _write(item, parts, arrays, depth + 1)
        parts.append(pickle.APPENDS if is_list else pickle.TUPLE)
    else:
        raise KmidiError(f"a torch file cannot keep {value!r:.60}; only plain values and arrays.")


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if len(data) > LARGEST_INTEGER:
        raise KmidiError(f"a torch file cannot keep a number as large as {str(value)[:20]}….")
    return pickle.LONG1 + struct.pack("<B", len(data)) + data


def _write_tensor(array: NDArray[Any], parts: list[bytes], arrays: list[NDArray[Any]]) -> None:
    dtype = array.dtype.name
    if dtype not in DTYPES:
        raise KmidiError(f"a torch file cannot keep numbers of the kind {dtype}.")
    typed = _STORAGE_OF.get(dtype)
    storage = f"torch.{typed}" if typed else UNTYPED[0]
    key, count = str(len(arrays)), array.size if typed else array.nbytes
    arrays.append(array)
    strides = [1] * array.ndim
    for axis in range(array.ndim - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(array.shape[axis + 1], 1)
    parts += [_named(TENSOR if typed else TENSOR_3), pickle.MARK, pickle.MARK]
    _write("storage", parts, arrays, 0)
    parts.append(_named(storage))
    for part in (key, "cpu", count):
        _write(part, parts, arrays, 0)
    parts.append(pickle.TUPLE + pickle.BINPERSID)
    for view in (0, array.shape, tuple(strides), False):
        _write(view, parts, arrays, 0)
    parts.append(_named(ORDERED_DICT) + pickle.EMPTY_TUPLE + pickle.REDUCE)
    if not typed:
        parts.append(_named(f"torch.{dtype}"))
    parts.append(pickle.TUPLE + pickle.REDUCE)


def _named(full: str) -> bytes:
    module, _, name = full.rpartition(".")
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
