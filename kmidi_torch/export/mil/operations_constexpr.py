"""Weights that are stored smaller: evaluated once, when a program is opened."""

from __future__ import annotations

import numpy as np

from kmidi_torch.export.mil.arguments import Operation, axes_of, numbers
from kmidi_torch.export.mil.values import Array, unpack

__all__ = ["OPERATIONS", "is_constexpr"]


def is_constexpr(kind: str) -> bool:
    """Tell whether an operation makes a constant."""
    return kind.startswith("constexpr_")


def _affine_dequantize(
    quantized_data: Array, zero_point: Array, scale: Array, axis: Array
) -> Array:
    (along,) = axes_of(axis, quantized_data.ndim)

    def beside(value: Array) -> Array:
        if value.ndim == 0:
            return value.astype(np.float32)
        shape = [-1 if at == along else 1 for at in range(quantized_data.ndim)]
        return value.astype(np.float32).reshape(shape)

    return beside(scale) * (quantized_data.astype(np.float32) - beside(zero_point))


def _blockwise_shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    numbers_ = data.astype(np.float32)
    if offset is not None:
        numbers_ = numbers_ - _repeat(offset.astype(np.float32), data.shape)
    return _repeat(scale, data.shape) * numbers_


def _repeat(blocks: Array, shape: tuple[int, ...]) -> Array:
    """Repeat each element for its block."""
    for axis, (count, size) in enumerate(zip(blocks.shape, shape, strict=True)):
        if size % count:
            raise ValueError(f"{count} blocks of {size} elements")
        blocks = np.repeat(blocks, size // count, axis=axis)
    return blocks


def _lut_to_dense(
    indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None
) -> Array:
    if shape is not None:
        # until iOS 17 indices are packed bits and there is one table
        sizes = numbers(shape)
        bits = int(lut.size).bit_length() - 1
        return lut[unpack(indices, bits, int(np.prod(sizes)))].reshape(sizes)
    if vector_axis is not None and lut.shape[-1] != 1:
        raise ValueError(f"vectors of {lut.shape[-1]} numbers are not evaluated")
    # the first axes of the table say which table belongs to which block
    tables = lut.reshape(-1, lut.shape[-2])
    which = np.arange(len(tables)).reshape(lut.shape[:-2])
    return tables[_repeat(which, indices.shape), indices]


OPERATIONS: dict[str, Operation] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
}
