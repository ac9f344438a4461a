"""What a precision means: types, and how near an export has to come to the model in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kmidi_torch.export.report import Difference, compare

__all__ = ["PRECISIONS", "Precision"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Precision:
    """A precision of weights and computation.

    Attributes:
        name: of it.
        weights: type of the weights that are traced, and of the generator's cache.
        bound: of differences, times the spread of the output where that is above 1: in fp32 and
            fp16 of the largest, in int8 of the root mean square.
        other_events: share of the greedy events that may differ, and of those drawn.
    """

    name: str
    weights: torch.dtype
    bound: float
    other_events: float

    @property
    def cache(self) -> type[np.floating]:
        """Type of the generator's cache."""
        return np.float16 if self.weights == torch.float16 else np.float32

    def judge(self, expected: Arrays, found: Arrays, when: str) -> list[Difference]:
        """Compare outputs by name.

        Args:
            expected: of the model.
            found: of the export, at least the same names.
            when: circumstances, for `Difference.what`.
        """
        if self.name == "fp32":
            # rounding grows with what is rounded: large logits on another processor's kernels
            bounds = {name: self.bound * _spread(value) for name, value in expected.items()}
            return compare(expected, found, bounds, when)
        return [
            Difference(f"{name}, {when}", self._apart(value, found[name]), self.bound)
            for name, value in expected.items()
        ]

    def _apart(self, expected: NDArray[Any], found: NDArray[Any]) -> float:
        if expected.shape != found.shape:
            return float("inf")
        apart = np.abs(found.astype(np.float64) - expected)
        whole = apart.max() if self.name == "fp16" else np.sqrt(np.square(apart).mean())
        return float(whole / _spread(expected))


def _spread(values: NDArray[Any]) -> float:
    return max(1.0, float(values.std()))


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", torch.float32, 1e-4, 0.0),
        Precision("fp16", torch.float16, 3e-2, 0.05),
        Precision("int8", torch.float32, 1e-1, 0.15),
    )
}
