"""Operations that move elements and make tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmidi_torch.export.mil.arguments import Operation, axes_of, number, numbers
from kmidi_torch.export.mil.values import Array

__all__ = ["OPERATIONS"]

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _reshape(x: Array, shape: Array) -> Array:
    sizes = numbers(shape)
    # a 0 keeps the size of the same axis
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _transpose(x: Array, perm: Array) -> Array:
    return x.transpose(numbers(perm))


def _expand_dims(x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(numbers(np.atleast_1d(axes))))


def _squeeze(x: Array, axes: Array | None = None) -> Array:
    return np.squeeze(x, None if axes is None else axes_of(axes, x.ndim))


def _slice_by_index(
    x: Array,
    begin: Array,
    end: Array,
    stride: Array | None = None,
    begin_mask: Array | None = None,
    end_mask: Array | None = None,
    squeeze_mask: Array | None = None,
) -> Array:
    first, last = numbers(begin), numbers(end)
    if not len(first) == len(last) == x.ndim:
        raise ValueError(f"{len(first)} begins and {len(last)} ends for {x.ndim} axes")
    steps = [1] * x.ndim if stride is None else numbers(stride)
    unmasked = [False] * x.ndim
    open_first, open_last, single = (
        unmasked if mask is None else numbers(mask) for mask in (begin_mask, end_mask, squeeze_mask)
    )
    where: list[Any] = []
    for axis in range(x.ndim):
        start = None if open_first[axis] else first[axis]
        if single[axis]:
            where.append(start or 0)
        else:
            where.append(slice(start, None if open_last[axis] else last[axis], steps[axis]))
    return x[tuple(where)]


def _slice_by_size(x: Array, begin: Array, size: Array) -> Array:
    where = []
    for count, start, length in zip(x.shape, numbers(begin), numbers(size), strict=True):
        stop = count if length == -1 else start + length
        if not 0 <= start <= stop <= count:
            raise ValueError(f"{length} elements from {start} on of {count}")
        where.append(slice(start, stop))
    return x[tuple(where)]


def _split(
    x: Array,
    axis: Array,
    num_splits: Array | None = None,
    split_sizes: Array | None = None,
) -> list[Array]:
    along = number(axis)
    if split_sizes is None:
        if num_splits is None:
            raise ValueError("neither num_splits nor split_sizes")
        return np.split(x, number(num_splits), axis=along)
    sizes = numbers(split_sizes)
    if sum(sizes) != x.shape[along]:
        raise ValueError(f"sizes {sizes} of {x.shape[along]} elements")
    return np.split(x, np.cumsum(sizes)[:-1], axis=along)


def _same_dtype(values: Sequence[Array]) -> None:
    if len({value.dtype for value in values}) != 1:
        raise ValueError(f"dtypes {[str(value.dtype) for value in values]} in one")


def _concat(values: Sequence[Array], axis: Array, interleave: Array | bool = False) -> Array:
    if interleave:
        raise ValueError("interleave is not evaluated")
    _same_dtype(values)
    return np.concatenate(values, axis=number(axis))


def _stack(values: Sequence[Array], axis: Array) -> Array:
    _same_dtype(values)
    return np.stack(values, axis=number(axis))


def _tile(x: Array, reps: Array) -> Array:
    times = numbers(reps)
    if len(times) != x.ndim:
        raise ValueError(f"{len(times)} repeats for {x.ndim} axes")
    return np.tile(x, times)


def _gather(
    x: Array,
    indices: Array,
    axis: Array | int = 0,
    batch_dims: Array | int = 0,
    validate_indices: Array | bool = False,
) -> Array:
    along, batches = axes_of(np.asarray(axis), x.ndim)[0], number(batch_dims)
    # without validation hardware reads whatever is there; a program that does so is wrong
    if np.any(indices < 0) or np.any(indices >= x.shape[along]):
        raise ValueError(f"an index outside the {x.shape[along]} elements")
    if not batches:
        return np.take(x, indices, axis=along)
    if x.shape[:batches] != indices.shape[:batches]:
        raise ValueError(f"{batches} batch axes of {list(x.shape)} and {list(indices.shape)}")
    rows = x.reshape(-1, *x.shape[batches:])
    wanted = indices.reshape(-1, *indices.shape[batches:])
    taken = [np.take(row, want, along - batches) for row, want in zip(rows, wanted, strict=True)]
    return np.stack(taken).reshape(*x.shape[:batches], *taken[0].shape)


def _gather_along_axis(
    x: Array, indices: Array, axis: Array | int = 0, validate_indices: Array | bool = False
) -> Array:
    along = number(axis)
    if np.any(indices < 0) or np.any(indices >= x.shape[along]):
        raise ValueError(f"an index outside the {x.shape[along]} elements")
    return np.take_along_axis(x, indices.astype(np.int64), along)


def _fill(shape: Array, value: Array) -> Array:
    return np.full(numbers(shape), value)


def _range_1d(end: Array, start: Array, step: Array) -> Array:
    return np.arange(start, end, step, dtype=np.result_type(start))


def _band_part(x: Array, lower: Array | int = -1, upper: Array | int = -1) -> Array:
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    below, above = number(lower), number(upper)
    kept = (below < 0) | (rows - columns <= below)
    kept = kept & ((above < 0) | (columns - rows <= above))
    return np.where(kept, x, np.zeros((), x.dtype))


def _pad(x: Array, pad: Array, mode: str = "constant", constant_val: Array | float = 0.0) -> Array:
    given = np.reshape(numbers(pad), (-1, 2)).tolist()
    widths = [[0, 0]] * (x.ndim - len(given)) + given
    if mode == "constant":
        return np.pad(x, widths, constant_values=np.asarray(constant_val, x.dtype))
    return np.pad(x, widths, mode=_PAD_MODES[mode])  # type: ignore[call-overload]


def _reverse(x: Array, axes: Array | None = None) -> Array:
    return np.flip(x, axes_of(axes, x.ndim))


OPERATIONS: dict[str, Operation] = {
    "band_part": _band_part,
    "concat": _concat,
    "expand_dims": _expand_dims,
    "fill": _fill,
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "pad": _pad,
    "range_1d": _range_1d,
    "reshape": _reshape,
    "reverse": _reverse,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
