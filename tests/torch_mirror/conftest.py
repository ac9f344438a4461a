"""Gives a network in MLX and its mirror in PyTorch the same weights, and compares them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.stressed_weights import stressed

# The mirror is tested where PyTorch is installed (extra `torch`); the rest of kmidi needs none.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

Arrays = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small are slower on many threads."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., Arrays]:
    """A function that draws weights and loads them strictly into (MLX, PyTorch)."""
    import mlx.core as mx
    import torch
    from mlx.utils import tree_flatten

    def load(ours: Any, theirs: Any, seed: int = 0) -> Arrays:
        rng = np.random.default_rng(seed)
        weights = {
            name: stressed(name, value.shape, rng)
            for name, value in tree_flatten(ours.parameters())
        }
        ours.load_weights([(name, mx.array(value)) for name, value in weights.items()])
        theirs.load_state_dict(
            {name: torch.from_numpy(value) for name, value in weights.items()}, strict=True
        )
        return weights

    return load


@pytest.fixture(scope="session")
def apart() -> Callable[[Any, Any], float]:
    """A function that tells the largest difference of an MLX array and a tensor."""

    def largest(ours: Any, theirs: Any) -> float:
        mine, other = np.array(ours), theirs.detach().numpy()
        assert mine.shape == other.shape
        return float(np.abs(mine - other).max())

    return largest


@pytest.fixture(scope="session")
def gradients_apart() -> Callable[[Any, Any], float]:
    """A function that tells how far two networks' gradients are apart.

    The largest difference of a parameter's gradients over its largest gradient, of the parameter
    where that is largest.
    """
    from mlx.utils import tree_flatten

    def largest(ours: Any, theirs: Any) -> float:
        mine = {name: np.array(value) for name, value in tree_flatten(ours)}
        other = {name: weight.grad.numpy() for name, weight in theirs.named_parameters()}
        assert mine.keys() == other.keys()
        assert all(np.abs(value).max() > 0 for value in mine.values())
        return max(
            float(np.abs(value - other[name]).max() / np.abs(value).max())
            for name, value in mine.items()
        )

    return largest
