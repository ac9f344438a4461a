"""Weights in 8 or 4 bits: how coremltools is asked for them, and what is left of a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QUANTISATIONS", "Quantisation", "palettise"]

QUANTISATIONS = ("int8", "int4-palette")

#: Rows of a weight that share a palette, where the system knows more than one for a weight.
GROUP_ROWS = 16
_COLOURS = 16
_SMALLEST = 1024
_ROUNDS = 60
_BINS = 256
Array = NDArray[np.floating]


@dataclass(frozen=True)
class Quantisation:
    """How the weights of layers become smaller.

    What is no weight of a layer (norms, biases, tables that are looked up and the layer tied to
    them) stays as it is: it is small, or every number of it is read at once.

    Attributes:
        kind: one of `QUANTISATIONS`: 8 bits with one scale a row, or 4 bits that name one of 16
            numbers.
        grouped: whether rows share a palette in groups rather than all; needs macOS 15.
    """

    kind: str
    grouped: bool
    _known: dict[bytes, tuple[Array, NDArray[np.uint8]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def covers(self, weight: NDArray[Any]) -> bool:
        """Tell whether the weight of a layer is quantised."""
        return weight.ndim == 2 and weight.size >= _SMALLEST and len(weight) % GROUP_ROWS == 0

    def left_of(self, weight: Array) -> Array:
        """Return what a package computes with in place of a weight, of the same type."""
        if not self.covers(weight):
            return weight
        if self.kind == "int8":
            return _round_to_int8(weight)
        groups = np.split(weight, len(weight) // GROUP_ROWS) if self.grouped else [weight]
        parts = []
        for group in groups:
            palette, indices = self._palette_of(group)
            parts.append(palette[indices].reshape(group.shape))
        return np.concatenate(parts)

    def apply(self, package: Any, weights: Mapping[str, NDArray[Any]]) -> Any:
        """Quantise a converted function.

        Args:
            package: a `coremltools.models.MLModel`.
            weights: of its layers, by name.
        """
        import coremltools.optimize.coreml as optimize

        names = [name for name, weight in weights.items() if self.covers(weight)]
        names += [f"{name}_to_fp16" for name in names]
        # sizes were looked at above; without the thresholds small weights would be left out again
        if self.kind == "int8":
            chosen: Any = optimize.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", weight_threshold=0
            )
            function: Callable[..., Any] = optimize.linear_quantize_weights
        else:
            chosen = optimize.OpPalettizerConfig(
                mode="custom",
                lut_function=self._palette_of,
                granularity="per_grouped_channel" if self.grouped else "per_tensor",
                group_size=GROUP_ROWS,
                channel_axis=0 if self.grouped else None,
                weight_threshold=0,
            )
            function = optimize.palettize_weights
        config = optimize.OptimizationConfig(op_name_configs=dict.fromkeys(names, chosen))
        return function(package, config)

    def _palette_of(self, weight: Array) -> tuple[Array, NDArray[np.uint8]]:
        """As `palettise`; a weight that is in several functions is looked at once."""
        key = hashlib.sha256(str(weight.dtype).encode() + weight.tobytes()).digest()
        if key not in self._known:
            self._known[key] = palettise(weight)
        return self._known[key]


def _round_to_int8(weight: Array) -> Array:
    """What 8 bits with one scale a row leave, in the type of the weight throughout."""
    most = np.abs(weight).max(axis=1, keepdims=True)
    scale = (most - -most) / 254
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.clip(np.round(weight / scale), -127, 127)
    steps = np.where(scale > 0, steps, 0.0)
    # the product of both is rounded once
    left: Array = (steps.astype(np.float32) * scale.astype(np.float32)).astype(weight.dtype)
    return left


def palettise(weight: Array) -> tuple[Array, NDArray[np.uint8]]:
    """Find the 16 numbers that a weight's are nearest to on average.

    k-means in one dimension (Lloyd 1982, Least squares quantization in PCM), begun where the best
    numbers are when there are many: as dense as the cube root of what they stand for (Panter and
    Dite 1951). The same weight always gives the same numbers.

    Args:
        weight: any shape.

    Returns:
        The numbers `(16,)`, sorted, of the type of the weight; which of them each element becomes
        uint8 `(size,)`.
    """
    ordered = np.sort(weight.ravel()).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    counts, borders = np.histogram(ordered, _BINS)
    crowding = np.concatenate([[0.0], np.cumsum(np.cbrt(counts))])
    wanted = (np.arange(_COLOURS) + 0.5) / _COLOURS * crowding[-1]
    centres = np.interp(wanted, crowding, borders)
    for _ in range(_ROUNDS):
        borders = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        counts = np.diff(edges)
        means = np.where(counts, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
        if np.array_equal(means, centres):
            break
        centres = means
    palette = centres.astype(weight.dtype)
    middles = (palette[1:].astype(np.float64) + palette[:-1]) / 2
    return palette, np.searchsorted(middles, weight.ravel()).astype(np.uint8)
