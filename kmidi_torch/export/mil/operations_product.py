"""Products of matrices, attention, normalisation, and what adds up along axes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kmidi_torch.export.mil.arguments import Operation, axes_of, number
from kmidi_torch.export.mil.values import Array

__all__ = ["OPERATIONS"]


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    # one product of two matrices is faster than one for every row of a batch
    rows = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        rows += bias
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def _matmul(
    x: Array, y: Array, transpose_x: Array | bool = False, transpose_y: Array | bool = False
) -> Array:
    left = x.swapaxes(-1, -2) if transpose_x else x
    right = y.swapaxes(-1, -2) if transpose_y else y
    return np.matmul(left, right)


def _softmax(x: Array, axis: Array | int = -1) -> Array:
    along = number(axis)
    shares = np.exp(x - np.max(x, axis=along, keepdims=True))
    shares /= np.sum(shares, axis=along, keepdims=True)
    return shares


def _attention(query: Array, key: Array, value: Array, attn_mask: Array | None = None) -> Array:
    scores = (query * np.float32(1.0 / math.sqrt(query.shape[-1]))) @ key.swapaxes(-1, -2)
    if attn_mask is not None and attn_mask.dtype == np.bool_:
        scores = np.where(attn_mask, scores, np.float32(-np.inf))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _softmax(scores) @ value


def _layer_norm(
    x: Array,
    axes: Array | None = None,
    gamma: Array | None = None,
    beta: Array | None = None,
    epsilon: float | Array = 1e-5,
) -> Array:
    along = axes_of(axes, x.ndim)
    centred = x - np.mean(x, axis=along, keepdims=True)
    variance = np.mean(np.square(centred), axis=along, keepdims=True)
    result = centred / np.sqrt(variance + np.float32(epsilon))
    # gain and bias have only the axes that are normalised
    shape = [x.shape[axis] if axis in along else 1 for axis in range(x.ndim)]
    if gamma is not None:
        result = result * gamma.reshape(shape)
    if beta is not None:
        result = result + beta.reshape(shape)
    return result


def _reduction(function: Callable[..., Array]) -> Operation:
    def evaluate(x: Array, axes: Array | None = None, keep_dims: Array | bool = False) -> Array:
        along = axes_of(axes, x.ndim)
        return function(x, axis=along, keepdims=bool(keep_dims))

    return evaluate


def _sum(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    # numpy would add up small integers as large ones
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _cumsum(
    x: Array,
    axis: Array | int = 0,
    exclusive: Array | bool = False,
    reverse: Array | bool = False,
) -> Array:
    along = number(axis)
    terms = np.flip(x, along) if reverse else x
    total = np.cumsum(terms, axis=along, dtype=x.dtype)
    if exclusive:
        total = total - terms
    return np.flip(total, along) if reverse else total


OPERATIONS: dict[str, Operation] = {
    "cumsum": _cumsum,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "matmul": _matmul,
    "reduce_max": _reduction(np.max),
    "reduce_mean": _reduction(np.mean),
    "reduce_min": _reduction(np.min),
    "reduce_sum": _reduction(_sum),
    "scaled_dot_product_attention": _attention,
    "softmax": _softmax,
}
