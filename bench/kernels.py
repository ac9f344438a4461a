"""Count the kernels that a lazy MLX graph launches: deterministic, the same on every machine.

On Apple GPUs a small model is bound by the number of kernels, not by bytes, so the count argues
speed where no such GPU is at hand. `mx.fast` operations are one kernel on Metal but are expanded
on a CPU; while counting they are replaced by a one-primitive stand-in with the same inputs.
Primitives that only rename memory (reshape, transpose, slice ...) launch nothing.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx import nn

VIEWS = frozenset(
    [
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    ]
)
STAND_IN = "Depends"


def _stand_in(x: mx.array, *others: Any) -> mx.array:
    return mx.depends([x], [other for other in others if isinstance(other, mx.array)])[0]


@contextmanager
def fast_operations_as_one() -> Iterator[None]:
    """While open, `mx.fast` attention, norm and rotary embedding are one primitive each."""
    with (
        mock.patch.object(mx.fast, "rms_norm", lambda x, weight, eps: _stand_in(x, weight)),
        mock.patch.object(
            mx.fast,
            "layer_norm",
            lambda x, weight, bias, eps: _stand_in(x, weight, bias),
        ),
        mock.patch.object(
            mx.fast,
            "rope",
            lambda x, dims, *, traditional, base, scale, offset, freqs=None: _stand_in(x, offset),
        ),
        mock.patch.object(
            mx.fast,
            "scaled_dot_product_attention",
            lambda q, k, v, *, scale, mask=None, sinks=None: _stand_in(q, k, v, mask, sinks),
        ),
    ):
        yield


def launching_primitives(outputs: list[mx.array]) -> Counter[str]:
    """Primitives of an unevaluated graph that launch work, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        names = re.findall(r'label ?= ?"([A-Za-z]\w*)", shape=rectangle', path.read_text())
    return Counter(name for name in names if name not in VIEWS)


def count(build: Callable[[], list[mx.array]]) -> Counter[str]:
    """Count the launching primitives of the graph that `build` returns without evaluating it."""
    with fast_operations_as_one():
        return launching_primitives(build())


def products(build: Callable[[], list[mx.array]]) -> int:
    """Floating-point operations of the matrix products and attentions that `build` asks for.

    A multiplication and an addition are two; norms, activations and softmax are left out, and so
    are products that are written with `@`.
    """
    total = 0
    addmm, matmul = mx.addmm, mx.matmul
    attention = mx.fast.scaled_dot_product_attention

    def count_product(a: mx.array, b: mx.array) -> None:
        nonlocal total
        rows = max(math.prod(a.shape[:-1]), math.prod(b.shape[:-2]) * a.shape[-2])
        total += 2 * rows * a.shape[-1] * b.shape[-1]

    def counted_addmm(c: mx.array, a: mx.array, b: mx.array, **others: Any) -> mx.array:
        count_product(a, b)
        return addmm(c, a, b, **others)

    def counted_matmul(a: mx.array, b: mx.array) -> mx.array:
        count_product(a, b)
        return matmul(a, b)

    def counted_linear(layer: nn.Linear, x: mx.array) -> mx.array:
        weight = layer.weight.T
        if "bias" in layer:
            return counted_addmm(layer.bias, x, weight)
        count_product(x, weight)
        return x @ weight

    def counted_attention(q: mx.array, k: mx.array, v: mx.array, **others: Any) -> mx.array:
        nonlocal total
        pairs = q.size // q.shape[-1] * k.shape[-2]
        total += 2 * pairs * (q.shape[-1] + v.shape[-1])
        return attention(q, k, v, **others)

    with (
        mock.patch.object(nn.Linear, "__call__", counted_linear),
        mock.patch.object(mx, "addmm", counted_addmm),
        mock.patch.object(mx, "matmul", counted_matmul),
        mock.patch.object(mx.fast, "scaled_dot_product_attention", counted_attention),
    ):
        build()
    return total
