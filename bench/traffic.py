"""What one pass of a network asks of a machine, read off its traced graph.

`mx.export_function` hands over every primitive of a graph with the shapes and types of what goes in
and out. From that follow the floating-point operations, the bytes that move, and the kernels that
copy because a reshape cannot be told as strides. `mx.fast` operations are replaced by stand-ins
while tracing (`bench.kernels`), so that they count as the one kernel that they are on Metal.

Values that only pass from one elementwise operation to another never leave the registers of the
fused kernel and cost no bytes. Caches are not modelled: everything else is read from memory each
time, so for what is small the bytes are an upper bound.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from bench import kernels

__all__ = ["Product", "Traffic", "trace"]

#: Rows, inner dimension and columns of a matrix product.
Product = tuple[int, int, int]

_ELEMENTWISE = """
    Abs Add AsType BitwiseBinary BitwiseInvert Ceil Cos Divide Equal Erf Exp Expm1 Floor Greater
    GreaterEqual IsInf IsNaN Less LessEqual Log Log1p LogAddExp LogicalAnd LogicalNot LogicalOr
    Maximum Minimum Multiply Negative NotEqual Power Reciprocal Remainder Round Rsqrt Select
    Sigmoid Sign Sin Sqrt Square Subtract Tanh
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
_PRODUCTS = frozenset(["AddMM", "Matmul", "QuantizedMatmul"])
_IN_PLACE = frozenset(["DynamicSliceUpdate", "SliceUpdate"])


@dataclass(frozen=True)
class Traffic:
    """What a graph asks for.

    Attributes:
        weight_bytes: read of arrays that the function holds itself, its weights above all.
        input_bytes: read of the function's arguments.
        activation_bytes: read and written of everything in between, results included.
        flops: of matrix products and attentions; a multiplication and an addition are two.
        copies: reshapes that need a kernel of their own, which `bench.kernels` takes for free.
        products: every matrix product with weights, attentions left out.
    """

    weight_bytes: int
    input_bytes: int
    activation_bytes: int
    flops: int
    copies: int
    products: tuple[Product, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes that move in all."""
        return self.weight_bytes + self.input_bytes + self.activation_bytes


@dataclass(eq=False)
class _Tensor:
    """A tensor of the graph: `strides` is a stand-in that only has its memory layout.

    `root` is the tensor that owns the memory, itself unless this is a view.
    """

    strides: NDArray[np.uint8]
    item_size: int
    kind: str
    producer: str
    root: _Tensor | None = None
    readers: list[str] = field(default_factory=list)

    @property
    def owner(self) -> _Tensor:
        return self.root or self

    @property
    def bytes_read(self) -> int:
        """Of one reading: a broadcast reads what it repeats once."""
        owner = self.owner
        size = min(self.strides.size, owner.strides.size)
        return size * owner.item_size

    @property
    def in_registers(self) -> bool:
        """Made and read by elementwise operations only."""
        owner = self.owner
        return (
            owner.producer in ELEMENTWISE
            and bool(owner.readers)
            and ELEMENTWISE.issuperset(owner.readers)
        )


def trace(run: Callable[..., list[mx.array]], *inputs: mx.array) -> Traffic:
    """Count what `run(*inputs)` moves and computes, without computing it.

    Args:
        run: pure; arrays that it holds are its weights and have been evaluated. It must use its
            inputs, or graphs that are compiled inside cannot be read.
        inputs: evaluated arguments.
    """
    records: list[dict[str, Any]] = []
    with kernels.fast_operations_as_one():
        mx.export_function(records.append, run, *inputs)
    return _Counter(records).traffic()


class _Counter:
    """Walks the records of `mx.export_function` twice: who reads what, then what it costs."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._tensors: dict[str, _Tensor] = {}
        self._primitives = [record for record in records if record["type"] == "primitive"]
        self._bytes: dict[str, int] = defaultdict(int)
        self._products: list[Product] = []
        self._flops = self._copies = 0
        for record in records:
            if record["type"] == "inputs":
                for name, shape, dtype in record["inputs"]:
                    self._tensors[name] = _new(shape, dtype, "input")
            elif record["type"] == "constants":
                for name, array in record["constants"]:
                    self._tensors[name] = _new(array.shape, array.dtype, "weight")
            elif record["type"] == "outputs":
                results = {name for name, _, _ in record["outputs"]}
        for primitive in self._primitives:
            self._add(primitive)
        for name in results:
            self._tensors[name].owner.readers.append("result")

    def _add(self, primitive: dict[str, Any]) -> None:
        """Make the tensors that a primitive puts out, and enter it as a reader."""
        name = primitive["name"]
        given = [self._tensors[key] for key, _, _ in primitive["inputs"]]
        for index, (key, shape, dtype) in enumerate(primitive["outputs"]):
            if name in kernels.VIEWS:
                self._tensors[key] = self._view(primitive, given[0], index, tuple(shape), dtype)
            elif name in _IN_PLACE:
                self._tensors[key] = given[0]
            else:
                self._tensors[key] = _new(shape, dtype, "activation", name)
        if name not in kernels.VIEWS:
            for tensor in given:
                tensor.owner.readers.append(name)

    def _view(
        self,
        primitive: dict[str, Any],
        given: _Tensor,
        index: int,
        shape: tuple[int, ...],
        dtype: mx.Dtype,
    ) -> _Tensor:
        """Tensor that a view primitive puts out; a new one when it has to be copied."""
        name, arguments = primitive["name"], primitive["arguments"]
        layout = given.strides
        if name == "Transpose":
            layout = layout.transpose(arguments[0])
        elif name == "Slice":
            layout = layout[tuple(slice(*part) for part in zip(*arguments, strict=True))]
        elif name == "Split":
            layout = np.split(layout, arguments[0], axis=arguments[1])[index]
        elif name in ("Broadcast", "BroadcastAxes"):
            layout = np.broadcast_to(layout, shape)
        else:
            layout = layout.reshape(shape)
            if layout.size and not np.may_share_memory(layout, given.strides):
                self._copies += 1
                given.owner.readers.append("copy")
                self._move(given, written=layout.size * dtype.size)
                return _new(shape, dtype, "activation", "copy")
        return _Tensor(layout, dtype.size, given.kind, given.producer, given.owner)

    def _move(self, *read: _Tensor, written: int) -> None:
        for tensor in read:
            self._bytes[tensor.owner.kind] += tensor.bytes_read
        self._bytes["activation"] += written

    def traffic(self) -> Traffic:
        """Sum up what every primitive costs."""
        for primitive in self._primitives:
            if primitive["name"] not in kernels.VIEWS:
                self._count(primitive)
        return Traffic(
            self._bytes["weight"],
            self._bytes["input"],
            self._bytes["activation"],
            self._flops,
            self._copies,
            tuple(self._products),
        )

    def _count(self, primitive: dict[str, Any]) -> None:
        name = primitive["name"]
        shapes = [tuple(shape) for _, shape, _ in primitive["inputs"]]
        given = [self._tensors[key] for key, _, _ in primitive["inputs"]]
        made = [self._tensors[key] for key, _, _ in primitive["outputs"]]
        if name in _IN_PLACE:
            self._move(*given[1:], written=given[1].bytes_read)
            return
        written = sum(tensor.bytes_read for tensor in made if not tensor.in_registers)
        if name == "Gather":  # only the rows that are asked for
            self._move(*given[1:], written=written)
            self._bytes[given[0].owner.kind] += written
            return
        self._move(*(tensor for tensor in given if not tensor.in_registers), written=written)
        if name in _PRODUCTS:
            columns, inner = primitive["outputs"][0][1][-1], shapes[0][-1]
            rows = math.prod(primitive["outputs"][0][1][:-1])
            self._flops += 2 * rows * inner * columns
            self._products.append((rows, inner, columns))
        elif name == kernels.STAND_IN and [len(shape) for shape in shapes[:3]] == [4, 4, 4]:
            queries, keys, values = shapes[:3]
            pairs = math.prod(queries[:-1]) * keys[-2]
            self._flops += 2 * pairs * (queries[-1] + values[-1])


def _new(shape: Any, dtype: mx.Dtype, kind: str, producer: str = "") -> _Tensor:
    return _Tensor(np.empty(tuple(shape), np.uint8), dtype.size, kind, producer)
