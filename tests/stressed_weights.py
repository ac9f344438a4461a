"""Weights under which every part of a network counts, so that a comparison can fail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stressed(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a weight: unit-scale activations, sharp attention, gains away from one."""
    drawn = rng.normal(size=shape)
    if "embedding" in name and "patch" not in name:
        drawn *= 0.2
    elif name == "modulation.weight":
        drawn *= 0.3 / shape[1] ** 0.5
    elif name == "modulation.bias":
        drawn = 0.6 + 0.3 * drawn  # gains and biases alike
    elif len(shape) == 2 and "bias_table" not in name:
        drawn *= 1.2 / shape[1] ** 0.5
    elif "norm" in name and name.endswith("weight"):
        drawn = 1.0 + 0.3 * drawn
    return drawn.astype(np.float32)
