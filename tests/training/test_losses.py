from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from kmidi_mlx.training.losses import cross_entropy_sum

CLASSES = 388


def drawn(seed: int, spread: float = 3.0) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (3, 5, CLASSES)).astype(np.float32)
    return logits, rng.integers(0, CLASSES, (3, 5)).astype(np.int32)


def reference(
    logits: NDArray[np.float32],
    targets: NDArray[np.int32],
    weights: NDArray[np.float32],
    smoothing: float,
) -> float:
    """Cross-entropy against the smoothed target distribution, in float64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    log_probabilities = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
    wanted = np.full(exact.shape, smoothing / CLASSES)
    np.put_along_axis(wanted, targets[..., None], 1 - smoothing + smoothing / CLASSES, -1)
    return float((-(wanted * log_probabilities).sum(-1) * weights).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_it_is_the_weighted_cross_entropy(smoothing: float, spread: float) -> None:
    logits, targets = drawn(0, spread)
    weights = np.random.default_rng(1).uniform(0, 2, (3, 5)).astype(np.float32)
    loss = cross_entropy_sum(mx.array(logits), mx.array(targets), mx.array(weights), smoothing)
    assert loss.item() == pytest.approx(reference(logits, targets, weights, smoothing), rel=1e-5)


def test_even_logits_cost_the_log_of_the_classes() -> None:
    loss = cross_entropy_sum(
        mx.zeros((2, 3, CLASSES)), mx.zeros((2, 3), mx.int32), mx.ones((2, 3)), 0.2
    )
    assert loss.item() == pytest.approx(6 * np.log(CLASSES), rel=1e-6)


def test_positions_of_weight_zero_do_not_count() -> None:
    logits, targets = drawn(2)
    weights = np.ones((3, 5), np.float32)
    weights[1:] = 0
    other, other_targets = drawn(3)
    other[0], other_targets[0] = logits[0], targets[0]
    one = cross_entropy_sum(mx.array(logits), mx.array(targets), mx.array(weights))
    two = cross_entropy_sum(mx.array(other), mx.array(other_targets), mx.array(weights))
    assert one.item() == two.item() > 0


def test_the_gradient_is_softmax_minus_target() -> None:
    logits, targets = drawn(4)
    weights = np.random.default_rng(5).uniform(0, 2, (3, 5)).astype(np.float32)
    gradient = mx.grad(cross_entropy_sum)(mx.array(logits), mx.array(targets), mx.array(weights))
    wanted = np.exp(logits - logits.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    for place in np.ndindex(3, 5):
        wanted[(*place, targets[place])] -= 1
    np.testing.assert_allclose(np.asarray(gradient), wanted * weights[..., None], atol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_logits_are_summed_in_full_precision(dtype: mx.Dtype) -> None:
    logits, targets = drawn(6)
    # a sum beyond the largest fp16 number
    weights = mx.full((3, 5), 5000.0)
    half = mx.array(logits).astype(dtype)
    loss = cross_entropy_sum(half, mx.array(targets), weights)
    assert loss.dtype == mx.float32
    exact = np.asarray(half.astype(mx.float32))
    wanted = reference(exact, targets, np.full((3, 5), 5000.0, np.float32), 0.0)
    assert wanted > 70000
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
