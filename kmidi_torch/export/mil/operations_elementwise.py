"""Operations on each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import erf, expit

from kmidi_torch.export.mil.arguments import Operation
from kmidi_torch.export.mil.values import Array

__all__ = ["OPERATIONS"]

# integers that a tensor may become; whatever else a cast names is of floating point or boolean
_INTEGERS: dict[str, Any] = {
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "uint8": np.uint8,
    "uint16": np.uint16,
}
_FLOATS = ("fp16", "fp32")
_SQRT_HALF = np.float32(0.5**0.5)
_TANH_GELU = np.float32((2.0 / np.pi) ** 0.5)


def _unary(function: Callable[[Array], Array]) -> Operation:
    def evaluate(x: Array) -> Array:
        return function(x)

    return evaluate


def _binary(function: Callable[[Array, Array], Array]) -> Operation:
    def evaluate(x: Array, y: Array) -> Array:
        if x.dtype != y.dtype:
            raise ValueError(f"{x.dtype} beside {y.dtype}")
        return function(x, y)

    return evaluate


def _cast(x: Array, dtype: str) -> Array:
    if dtype in _FLOATS:
        return x.astype(np.float32)
    if dtype == "bool":
        return x != 0
    target = _INTEGERS[dtype]
    whole = np.trunc(x) if x.dtype.kind == "f" else x
    limits = np.iinfo(target)
    # what a number becomes that the type does not hold depends on the hardware
    if not np.all((whole >= limits.min) & (whole <= limits.max)):
        raise ValueError(f"a number that {dtype} does not hold")
    return whole.astype(target)


def _real_div(x: Array, y: Array) -> Array:
    if x.dtype.kind != "f":
        raise ValueError(f"{x.dtype}, which floor_div is for")
    return np.divide(x, y)


def _gelu(x: Array, mode: str = "EXACT") -> Array:
    if mode == "EXACT":
        return x * np.float32(0.5) * (np.float32(1.0) + erf(x * _SQRT_HALF))
    if mode == "TANH_APPROXIMATION":
        inner = _TANH_GELU * (x + np.float32(0.044715) * x * x * x)
        return x * np.float32(0.5) * (np.float32(1.0) + np.tanh(inner))
    raise ValueError(f"mode {mode}")


def _clip(x: Array, alpha: Array, beta: Array) -> Array:
    return np.minimum(np.maximum(x, alpha), beta)


def _log(x: Array, epsilon: float | Array = 1e-45) -> Array:
    return np.log(x + np.float32(epsilon))


def _rsqrt(x: Array, epsilon: float | Array = 1e-12) -> Array:
    return np.float32(1.0) / np.sqrt(x + np.float32(epsilon))


def _inverse(x: Array, epsilon: float | Array = 1e-4) -> Array:
    return np.float32(1.0) / (x + np.float32(epsilon))


def _select(cond: Array, a: Array, b: Array) -> Array:
    if cond.dtype != np.bool_ or a.dtype != b.dtype:
        raise ValueError(f"{cond.dtype}, {a.dtype}, {b.dtype}")
    return np.where(cond, a, b)


OPERATIONS: dict[str, Operation] = {
    "abs": _unary(np.abs),
    "add": _binary(np.add),
    "cast": _cast,
    "ceil": _unary(np.ceil),
    "clip": _clip,
    "cos": _unary(np.cos),
    "equal": _binary(np.equal),
    "erf": _unary(erf),
    "exp": _unary(np.exp),
    "floor": _unary(np.floor),
    "floor_div": _binary(np.floor_divide),
    "gelu": _gelu,
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "identity": _unary(np.asarray),
    "inverse": _inverse,
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "log": _log,
    "logical_and": _binary(np.logical_and),
    "logical_not": _unary(np.logical_not),
    "logical_or": _binary(np.logical_or),
    "logical_xor": _binary(np.logical_xor),
    "maximum": _binary(np.maximum),
    "minimum": _binary(np.minimum),
    "mod": _binary(np.mod),
    "mul": _binary(np.multiply),
    "not_equal": _binary(np.not_equal),
    "pow": _binary(np.power),
    "real_div": _binary(_real_div),
    "relu": _unary(lambda x: np.maximum(x, np.zeros((), x.dtype))),
    "rsqrt": _rsqrt,
    "select": _select,
    "sigmoid": _unary(expit),
    "silu": _unary(lambda x: x * expit(x)),
    "sin": _unary(np.sin),
    "sqrt": _unary(np.sqrt),
    "square": _unary(np.square),
    "sub": _binary(np.subtract),
    "tanh": _unary(np.tanh),
}
