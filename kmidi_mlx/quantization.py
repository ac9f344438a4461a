"""Weights that MLX has quantised, back as plain numbers; no framework.

`mlx.nn.quantize` keeps `X.weight` as packed integers of a few bits with `X.scales` and `X.biases`,
one pair for every group of neighbours in a row: weight = scale * integer + bias. A row is one
stream of bits, lowest first, in little-endian 32-bit words, so that three, five and six bits run
across the words (MLX documentation of `mlx.core.quantize`, mode "affine").
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = ["dequantize", "dequantized"]

_WORD_BITS = 32
_BITS = (1, 2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_ROWS_AT_ONCE = 256  # bounds the memory that the single bits of a weight take


def dequantized(
    arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]], path: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Replace every quantised weight by plain numbers.

    Args:
        arrays: of a checkpoint.
        expected: shape of every parameter of its model, which tells bits and group size.
        path: what to name in an error.

    Returns:
        The arrays, without scales and biases; and for every weight that was quantised how, such as
        "4 bits in groups of 64".

    Raises:
        KmidiError: when one is quantised in another way than MLX's mode "affine".
    """
    plain = dict(arrays)
    how: dict[str, str] = {}
    layers = [name.removesuffix(".scales") for name in arrays if name.endswith(".scales")]
    for layer in layers:
        name = f"{layer}.weight"
        if f"{layer}.scales" in expected or name not in expected or name not in arrays:
            continue  # told by the comparison of names
        scales, biases = plain.pop(f"{layer}.scales"), plain.pop(f"{layer}.biases", None)
        if biases is None or arrays[name].dtype != np.uint32 or scales.dtype.kind != "f":
            raise KmidiError(
                f"{path}: {name} is not quantised in MLX's mode 'affine'; quantise with that, or "
                "convert the weights from before."
            )
        bits, group = _layout(arrays[name].shape, scales.shape, expected[name])
        if not bits or biases.shape != scales.shape:
            raise KmidiError(
                f"{path}: {name} is quantised to the shape {arrays[name].shape} with scales "
                f"{scales.shape}, which does not fit a weight of {expected[name]}."
            )
        plain[name] = dequantize(arrays[name], scales, biases, bits)
        how[name] = f"{bits} bits in groups of {group}"
    return plain, how


def _layout(
    packed: tuple[int, ...], scales: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[int, int]:
    """Bits and group size, (0, 0) where the shapes are those of no layout."""
    if len(shape) == 2 and packed[:-1] == scales[:-1] == shape[:-1]:
        for bits in _BITS:
            for group in _GROUPS:
                if packed[-1] * _WORD_BITS == shape[-1] * bits and scales[-1] * group == shape[-1]:
                    return bits, group
    return 0, 0


def dequantize(
    packed: NDArray[np.uint32], scales: NDArray[Any], biases: NDArray[Any], bits: int
) -> NDArray[Any]:
    """Return `scale * integer + bias`, rounded as `mlx.core.dequantize` does.

    Args:
        packed: `(rows, columns * bits / 32)`.
        scales, biases: `(rows, columns / group size)`, of one float type.
        bits: of an integer, 1 to 8.

    Returns:
        `(rows, columns)` of the type of the scales.
    """
    rows, columns = packed.shape[0], packed.shape[1] * _WORD_BITS // bits
    weights = np.empty((rows, columns), scales.dtype)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        data = np.ascontiguousarray(packed[part], dtype="<u4").view(np.uint8)
        stream = np.unpackbits(data, axis=-1, bitorder="little").reshape(-1, bits)
        integers = np.packbits(stream, axis=-1, bitorder="little").astype(scales.dtype)
        grouped = integers.reshape(*scales[part].shape, -1)
        grouped = grouped * scales[part][..., None] + biases[part][..., None]
        weights[part] = grouped.reshape(-1, columns)
    return weights
