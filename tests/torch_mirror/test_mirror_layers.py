"""Rotary positions and learnt sinks of the PyTorch mirror are those of MLX's fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_mlx.config import MidiTransformerConfig  # noqa: E402
from kmidi_torch.models import layers  # noqa: E402

Compare = Callable[[Any, Any], float]


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 37, 9000])
def test_rotation(offset: int, apart: Compare) -> None:
    x, periods = (
        random(2, 3, 20, 32),
        MidiTransformerConfig(hidden_dim=64, num_heads=2).rope_periods,
    )
    expected = mx.fast.rope(
        mx.array(x),
        32,
        traditional=False,
        base=None,
        scale=1.0,
        offset=offset,
        freqs=mx.array(periods),
    )
    # measured 4.8e-7; where each framework makes its own angles from the base, 5e-4 at 9000
    found = layers.rope(torch.from_numpy(x), torch.tensor(periods), offset)
    print("ROT", offset, apart(expected, found))
    assert apart(expected, found) < 5e-6
    moved = layers.rope(torch.from_numpy(x), torch.tensor(periods), torch.tensor([offset]))
    assert apart(expected, moved) < 5e-6


# a sink that takes nothing, one that competes, one that takes nearly all
SINKS = np.array([-30.0, 0.5, 12.0], np.float32)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_sinks_and_its_gradients(causal: bool, apart: Compare) -> None:
    q, k, v = (random(2, 3, 24, 16, seed=seed) * 2 for seed in range(3))
    seen: NDArray[np.bool_] = np.random.default_rng(3).uniform(size=(24, 24)) < 0.7
    seen[5] = False  # all that is left is the sink
    weight = random(2, 3, 24, 16, seed=4)

    def loss(*given: mx.array) -> mx.array:
        q, k, v, sinks = given
        mask = "causal" if causal else mx.array(seen)
        found = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask, sinks=sinks)
        return mx.sum(found * mx.array(weight))

    arrays = [mx.array(part) for part in (q, k, v, SINKS)]
    expected, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2, 3))(*arrays)
    tensors = [torch.tensor(part, requires_grad=True) for part in (q, k, v, SINKS)]
    found = layers.scaled_dot_product_attention(
        *tensors[:3], 0.3, "causal" if causal else torch.from_numpy(seen), tensors[3]
    )
    (found * torch.from_numpy(weight)).sum().backward()
    assert (found * torch.from_numpy(weight)).sum().item() == pytest.approx(
        expected.item(), abs=1e-4
    )
    for gradient, tensor in zip(gradients, tensors, strict=True):
        assert apart(gradient, tensor.grad) < 1e-4  # measured 5.8e-6
    assert (tensors[3].grad != 0).any()


def test_many_queries_make_no_matrix_of_weights() -> None:
    # the fused kernel needs no memory that grows with the square of the time
    q, k, v = (torch.from_numpy(random(1, 1, 2048, 16, seed=seed)) for seed in range(3))
    with torch.profiler.profile(profile_memory=True) as recorded:
        layers.scaled_dot_product_attention(q, k, v, 0.25, "causal", torch.zeros(1))
    largest = max(event.self_cpu_memory_usage for event in recorded.events())
    assert 0 < largest < 2048 * 2048
