"""The losses in PyTorch are those in MLX: values, gradients, and what is kept in memory."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kmidi_mlx.config import CloudLossConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.training import cloud_losses as ours
from kmidi_mlx.training.losses import cross_entropy_sum as our_cross_entropy_sum
from kmidi_torch.training import cloud_losses as theirs
from kmidi_torch.training.losses import cross_entropy_sum as their_cross_entropy_sum

Array = NDArray[np.float32]
PARTS = ("chamfer", "color", "properties", "smoothness", "identity")


def relative(one: mx.array, two: Any) -> float:
    """Largest difference over the largest value."""
    mine, other = np.array(one, np.float64), two.detach().numpy().astype(np.float64)
    assert mine.shape == other.shape
    return float(np.abs(mine - other).max() / np.abs(mine).max())


def clouds(seed: int, batch: int = 4, points: int = 70) -> Array:
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [rng.uniform(-1, 1, (batch, points, 3)), rng.uniform(0, 1, (batch, points, 7))], axis=-1
    ).astype(np.float32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cross_entropy(label_smoothing: float) -> None:
    rng = np.random.default_rng(0)
    logits = (4 * rng.normal(size=(3, 5, 11))).astype(np.float32)
    targets = rng.integers(0, 11, (3, 5)).astype(np.int32)
    weights = rng.uniform(size=(3, 5)).astype(np.float32)
    loss, gradient = mx.value_and_grad(
        lambda x: our_cross_entropy_sum(x, mx.array(targets), mx.array(weights), label_smoothing)
    )(mx.array(logits))
    x = torch.tensor(logits, requires_grad=True)
    told = torch.from_numpy(targets), torch.from_numpy(weights)
    value = their_cross_entropy_sum(x, *told, label_smoothing)
    value.backward()
    assert relative(loss, value) < 1e-5  # measured 1e-7
    assert relative(gradient, x.grad) < 1e-4  # measured 2e-7


@pytest.mark.parametrize("identity", [0.0, 1.0])
def test_cloud_losses(identity: float) -> None:
    weights = CloudLossConfig(identity=identity, smoothness=0.7)
    predicted, target = clouds(0), clouds(1)

    def total(points: mx.array) -> mx.array:
        return mx.sum(ours.cloud_losses(points, mx.array(target), weights).total(weights))

    gradient = mx.grad(total)(mx.array(predicted))
    x = torch.tensor(predicted, requires_grad=True)
    found = theirs.cloud_losses(x, torch.tensor(target), weights)
    torch.sum(found.total(weights)).backward()
    expected = ours.cloud_losses(mx.array(predicted), mx.array(target), weights)
    for part in PARTS:
        # measured 2e-7
        assert relative(getattr(expected, part), getattr(found, part)) < 1e-5, part
    assert relative(gradient, x.grad) < 1e-4  # measured 1e-7


def test_chamfer_of_clouds_of_different_sizes_by_brute_force() -> None:
    a, b = clouds(2, points=40)[..., :3], clouds(3, points=90)[..., :3]
    squares = np.square(a[:, :, None].astype(np.float64) - b[:, None]).sum(-1)
    expected = squares.min(2).mean(1) + squares.min(1).mean(1)
    found = theirs.chamfer(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_the_nearest_points_stay_exact_under_autocast() -> None:
    a, b = (torch.tensor(clouds(seed)[..., :3]) for seed in (4, 5))
    exact = theirs.nearest(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = theirs.nearest(a, b)
    for one, two in zip(exact, rounded, strict=True):
        assert torch.equal(one, two)


def test_no_matrix_of_all_pairs_is_kept_for_the_backward_pass() -> None:
    points = 300
    predicted = torch.tensor(clouds(6, points=points), requires_grad=True)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    weights = CloudLossConfig()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = theirs.cloud_losses(predicted, torch.tensor(clouds(7, points=points)), weights)
        losses.total(weights).sum().backward()
    assert kept
    assert max(kept) <= 4 * points * 10 < 4 * points * points


@pytest.mark.parametrize("shape", [(2, 6, 10), (1, 5, 10)])
def test_clouds_that_cannot_be_compared_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(KmidiError, match=r"cannot be compared with \("):
        theirs.cloud_losses(torch.zeros(2, 5, 10), torch.zeros(shape), CloudLossConfig())
