"""The pickle of a file of weights, read without running anything.

A pickle is a program. This reader knows the instructions that build plain values, and instead of
importing what a pickle names it compares the name with a short list; nothing on that list is
Python code of anybody, so there is nothing that a hostile file could call.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_pickler import (
    DTYPES,
    LARGEST_INTEGER,
    ORDERED_DICT,
    STORAGES,
    TENSOR,
    TENSOR_3,
    UNTYPED,
)

__all__ = ["LARGEST_PICKLE", "Storage", "StoredTensor", "from_pickle"]

#: Bytes; a training state of 128 layers is described in a third of this.
LARGEST_PICKLE = 4 << 20
_PARAMETER, _SIZE, _DEVICE = "torch._utils._rebuild_parameter", "torch.Size", "torch.device"
_KNOWN = frozenset(
    (
        *(f"torch.{name}" for name in (*STORAGES, *DTYPES)),
        *UNTYPED,
        *(ORDERED_DICT, TENSOR, TENSOR_3, _PARAMETER, _SIZE, _DEVICE),
    )
)
_MOST_DIMENSIONS = 16


@dataclass(frozen=True)
class Storage:
    """A flat buffer in the archive.

    Attributes:
        key: name of its record.
        dtype: key of `DTYPES`; None: bytes, whose kind the tensor tells.
        count: number of elements, or of bytes where there is no dtype.
    """

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; `offset` and `strides` count elements of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The name of something that a pickle wants imported; a mere text."""

    name: str


def from_pickle(data: bytes, path: Path) -> Any:
    """Read a pickle of plain values and tensors without running anything.

    Args:
        data: the pickle, protocols 2 to 5.
        path: what to name in an error.

    Returns:
        dict, list, tuple, text, number, bool, None and `StoredTensor`. It may hold itself and be
        nested without end, so it is to be walked with a limit.

    Raises:
        KmidiError: when it is damaged or needs anything but that, above all code.
    """
    if len(data) > LARGEST_PICKLE:
        raise KmidiError(
            f"{path} describes its tensors in {len(data) / 1e6:.0f} MB, which no file of weights "
            "needs; it is not opened."
        )
    try:
        return _Reader(data, path).run()
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise KmidiError(f"{path} is damaged: its description of tensors breaks off.") from error


class _Reader:
    """A stack machine for the instructions in `_INSTRUCTIONS`."""

    def __init__(self, data: bytes, path: Path) -> None:
        self._data = data
        self._at = 0
        self._path = path
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            instruction = self._take(1)
            if instruction == pickle.STOP:
                return self._stack.pop()
            action = _INSTRUCTIONS.get(instruction)
            if action is None:
                raise KmidiError(
                    f"{self._path} holds code (pickle instruction {instruction!r}) and is not "
                    "opened."
                )
            action(self)

    def _take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise IndexError("end of pickle")
        self._at += count
        return part

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> str:
        end = self._data.index(b"\n", self._at)
        return self._take(end - self._at + 1)[:-1].decode("utf-8")

    def _items(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _refuse(self, what: str) -> KmidiError:
        return KmidiError(f"{self._path} is damaged or no file of weights: {what}.")

    # --- plain values ---

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def protocol(self) -> None:
        if self._number("<B") > pickle.HIGHEST_PROTOCOL:
            raise self._refuse("it is of an unknown pickle protocol")

    def frame(self) -> None:
        self._take(8)

    def mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def integer(self, layout: str) -> None:
        self.push(self._number(layout))

    def long_integer(self, layout: str) -> None:
        length = self._number(layout)
        if not 0 <= length <= LARGEST_INTEGER:
            raise self._refuse("it holds an absurdly large number")
        self.push(int.from_bytes(self._take(length), "little", signed=True))

    def text(self, layout: str) -> None:
        self.push(self._take(self._number(layout)).decode("utf-8"))

    def pack(self, count: int) -> None:
        items = [self._stack.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def pack_marked(self) -> None:
        items = self._items()
        self.push(tuple(items))

    def append(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise self._refuse("it appends to what is no list")
        self._stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise self._refuse("it fills what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # nothing else may be a key: hashing a deeply nested tuple overflows the stack
            if type(key) not in (str, int):
                raise self._refuse("a dict has a key that is neither text nor a number")
            target[key] = value

    def remember(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def recall(self, layout: str) -> None:
        self.push(self._memo[self._number(layout)])

    # --- what would be code elsewhere ---

    def find(self, module: Any, name: Any) -> None:
        # not even shown: nested values can be endless
        if type(module) is not str or type(name) is not str:
            raise self._refuse("it names what has no name")
        full = f"{module}.{name}"
        if full not in _KNOWN:
            if module in ("torch", "torch._utils", "torch.storage"):
                raise KmidiError(f"{self._path} holds {full[:100]!r}, which kmidi does not read.")
            raise KmidiError(f"{self._path} holds code ({full[:100]}) and is not opened.")
        self.push(_Global(full))

    def find_line(self) -> None:
        self.find(self._line(), self._line())

    def instance(self) -> None:
        self.find_line()
        raise self._refuse("it makes an object")

    def find_stacked(self) -> None:
        name = self._stack.pop()
        self.find(self._stack.pop(), name)

    def build(self) -> None:
        # state_dict() hangs version numbers of layers on its dict; they say nothing of weights
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise self._refuse("it sets attributes of what has none")

    def call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(function) is not _Global or type(arguments) is not tuple:
            raise self._refuse("it calls what is no function")
        name = function.name
        match arguments:
            case () if name == ORDERED_DICT:
                self.push({})
            case (tuple() as shape,) if name == _SIZE:
                self.push(shape)
            case (str() as device, *_) if name == _DEVICE:
                self.push(device)
            case (StoredTensor() as tensor, *_) if name == _PARAMETER:
                self.push(tensor)
            case (Storage(dtype=str() as dtype) as storage, *view) if name == TENSOR:
                self.push(self._tensor(storage, dtype, view))
            case (Storage() as storage, *view, _Global(kind)) if name == TENSOR_3:
                self.push(self._tensor(storage, kind.removeprefix("torch."), view))
            case _:
                raise self._refuse(f"it calls {name} in an unknown way")

    def _tensor(self, storage: Storage, dtype: str, view: list[Any]) -> StoredTensor:
        match view:
            case [offset, tuple() as shape, tuple() as strides, _, _, *_] if (
                dtype in DTYPES
                and len(shape) == len(strides) <= _MOST_DIMENSIONS
                and all(_is_size(number) for number in (offset, *shape, *strides))
            ):
                return StoredTensor(storage, dtype, offset, shape, strides)
        raise self._refuse("a tensor has no usable shape")

    def storage(self) -> None:
        match self._stack.pop():
            case ("storage", _Global(name), str() as key, str(), count) if _is_size(count):
                dtype = STORAGES.get(name.removeprefix("torch."))
                if dtype is not None or name in UNTYPED:
                    self.push(Storage(key, dtype, count))
                    return
        raise self._refuse("it refers to what is no storage")


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 1 << 48


_INSTRUCTIONS: dict[bytes, Callable[[_Reader], None]] = {
    pickle.PROTO: _Reader.protocol,
    pickle.FRAME: _Reader.frame,
    pickle.MARK: _Reader.mark,
    pickle.NONE: lambda reader: reader.push(None),
    pickle.NEWTRUE: lambda reader: reader.push(True),
    pickle.NEWFALSE: lambda reader: reader.push(False),
    pickle.BININT: lambda reader: reader.integer("<i"),
    pickle.BININT1: lambda reader: reader.integer("<B"),
    pickle.BININT2: lambda reader: reader.integer("<H"),
    pickle.BINFLOAT: lambda reader: reader.integer(">d"),
    pickle.LONG1: lambda reader: reader.long_integer("<B"),
    pickle.LONG4: lambda reader: reader.long_integer("<i"),
    pickle.SHORT_BINUNICODE: lambda reader: reader.text("<B"),
    pickle.BINUNICODE: lambda reader: reader.text("<I"),
    pickle.BINUNICODE8: lambda reader: reader.text("<Q"),
    pickle.EMPTY_TUPLE: lambda reader: reader.push(()),
    pickle.TUPLE1: lambda reader: reader.pack(1),
    pickle.TUPLE2: lambda reader: reader.pack(2),
    pickle.TUPLE3: lambda reader: reader.pack(3),
    pickle.TUPLE: _Reader.pack_marked,
    pickle.EMPTY_LIST: lambda reader: reader.push([]),
    pickle.APPEND: lambda reader: reader.append([reader._stack.pop()]),
    pickle.APPENDS: lambda reader: reader.append(reader._items()),
    pickle.EMPTY_DICT: lambda reader: reader.push({}),
    pickle.SETITEM: lambda reader: reader.set_items([reader._stack.pop(-2), reader._stack.pop()]),
    pickle.SETITEMS: lambda reader: reader.set_items(reader._items()),
    pickle.BINPUT: lambda reader: reader.remember(reader._number("<B")),
    pickle.LONG_BINPUT: lambda reader: reader.remember(reader._number("<I")),
    pickle.MEMOIZE: lambda reader: reader.remember(len(reader._memo)),
    pickle.BINGET: lambda reader: reader.recall("<B"),
    pickle.LONG_BINGET: lambda reader: reader.recall("<I"),
    pickle.GLOBAL: _Reader.find_line,
    pickle.INST: _Reader.instance,
    pickle.STACK_GLOBAL: _Reader.find_stacked,
    pickle.REDUCE: _Reader.call,
    pickle.BUILD: _Reader.build,
    pickle.BINPERSID: _Reader.storage,
}
