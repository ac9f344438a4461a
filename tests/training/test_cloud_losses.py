from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.config import CloudLossConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.training.cloud_losses import (
    CloudLoss,
    chamfer,
    cloud_losses,
    distance_factors,
    nearest,
)

Floats = NDArray[np.float32]
BY_NEAREST = CloudLossConfig(identity=0.0)
BY_INDEX = CloudLossConfig(identity=1.0)
PARTS = ("chamfer", "color", "properties", "smoothness", "identity")


def clouds(seed: int, batch: int = 4, points: int = 50) -> Floats:
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0, 1, (batch, points, 10)).astype(np.float32)
    drawn[..., :3] = 2 * drawn[..., :3] - 1
    return drawn


def squares(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Squared distances of all pairs of points, (batch, n, m)."""
    return ((a[:, :, None].astype(float) - b[:, None].astype(float)) ** 2).sum(-1)


def chamfer_reference(a: Floats, b: Floats) -> NDArray[np.float64]:
    pairs = squares(a, b)
    return pairs.min(2).mean(1) + pairs.min(1).mean(1)


def chamfer_by_broadcast(a: mx.array, b: mx.array) -> mx.array:
    pairs = mx.square(a[:, :, None] - b[:, None]).sum(-1)
    return pairs.min(2).mean(1) + pairs.min(1).mean(1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 3),
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    # a coarse grid makes equal points and ties, the finest has none
    grid=st.sampled_from([1, 2, 5, 10**6]),
)
def test_it_is_what_brute_force_finds(seed: int, batch: int, n: int, m: int, grid: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        (rng.integers(-grid, grid + 1, (batch, k, 3)) / grid).astype(np.float32) for k in (n, m)
    )
    found = np.asarray(chamfer(mx.array(a), mx.array(b)))
    np.testing.assert_allclose(found, chamfer_reference(a, b), rtol=1e-5, atol=2e-6)
    to_b, to_a = (np.asarray(index)[..., None] for index in nearest(mx.array(a), mx.array(b)))
    pairs = squares(a, b)
    chosen = np.take_along_axis(pairs, to_b, 2)[..., 0]
    np.testing.assert_allclose(chosen, pairs.min(2), atol=2e-6)
    chosen = np.take_along_axis(pairs.swapaxes(1, 2), to_a, 2)[..., 0]
    np.testing.assert_allclose(chosen, pairs.min(1), atol=2e-6)


def test_many_chunks_are_one_batch() -> None:
    a, b = clouds(1, 5, 700)[..., :3], clouds(2, 5, 900)[..., :3]
    found = np.asarray(chamfer(mx.array(a), mx.array(b)))
    alone = [float(chamfer(mx.array(a[i : i + 1]), mx.array(b[i : i + 1]))[0]) for i in range(5)]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    np.testing.assert_allclose(found, chamfer_reference(a, b), rtol=1e-5)


def test_it_is_zero_for_equal_sets_alone() -> None:
    a = clouds(3)[..., :3]
    shuffled = np.take_along_axis(a, np.random.default_rng(0).permutation(50)[None, :, None], 1)
    assert np.asarray(chamfer(mx.array(a), mx.array(shuffled))).max() == 0
    moved = a.copy()
    moved[:, 7] += 0.01
    assert np.asarray(chamfer(mx.array(a), mx.array(moved))).min() > 0
    subset = np.asarray(chamfer(mx.array(a), mx.array(a[:, :25])))
    assert subset.min() > 0


def test_moving_both_sets_or_swapping_them_changes_nothing() -> None:
    a, b = clouds(4)[..., :3], clouds(5, points=30)[..., :3]
    here = np.asarray(chamfer(mx.array(a), mx.array(b)))
    move = np.array([2.5, -1.0, 4.0], np.float32)
    there = np.asarray(chamfer(mx.array(a + move), mx.array(b + move)))
    np.testing.assert_allclose(there, here, rtol=1e-4)
    swapped = np.asarray(chamfer(mx.array(b), mx.array(a)))
    np.testing.assert_allclose(swapped, here, rtol=1e-6)


def test_the_gradient_is_that_of_the_whole_expression() -> None:
    a, b = (mx.array(clouds(seed)[..., :3]) for seed in (6, 7))

    def both(loss: Callable[[mx.array, mx.array], mx.array]) -> list[mx.array]:
        return list(mx.grad(lambda a, b: loss(a, b).sum(), argnums=(0, 1))(a, b))

    for found, wanted in zip(both(chamfer), both(chamfer_by_broadcast), strict=True):
        np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=1e-7)
        assert np.abs(np.asarray(found)).max() > 1e-3


@pytest.mark.parametrize("weights", [BY_NEAREST, BY_INDEX])
def test_the_total_has_the_gradient_that_small_steps_show(weights: CloudLossConfig) -> None:
    predicted, target = clouds(8, 2, 12), mx.array(clouds(9, 2, 12))

    def total(predicted: mx.array) -> mx.array:
        return cloud_losses(predicted, target, weights).total(weights).sum()

    gradient = np.asarray(mx.grad(total)(mx.array(predicted)))
    assert np.isfinite(gradient).all()
    rng, step = np.random.default_rng(0), 1e-3
    for _ in range(20):
        place = tuple(int(rng.integers(size)) for size in predicted.shape)
        up, down = predicted.copy(), predicted.copy()
        up[place] += step
        down[place] -= step
        slope = (total(mx.array(up)).item() - total(mx.array(down)).item()) / (2 * step)
        assert gradient[place] == pytest.approx(slope, abs=1e-3)


def smooth_l1(error: NDArray[np.float64]) -> NDArray[np.float64]:
    size = np.abs(error)
    return np.where(size < 1, 0.5 * size**2, size - 0.5)


def test_matched_points_are_compared_in_both_directions() -> None:
    predicted, target = clouds(10), clouds(11)
    pairs = squares(predicted[..., :3], target[..., :3])
    forth = predicted - np.take_along_axis(target, pairs.argmin(2)[..., None], 1)
    back = np.take_along_axis(predicted, pairs.argmin(1)[..., None], 1) - target
    found = cloud_losses(mx.array(predicted), mx.array(target), BY_NEAREST)
    color = [(error[..., 3:7] ** 2).mean((1, 2)) for error in (forth, back)]
    np.testing.assert_allclose(np.asarray(found.color), sum(color) / 2, rtol=1e-5)
    properties = [smooth_l1(error[..., 7:]).mean((1, 2)) for error in (forth, back)]
    np.testing.assert_allclose(np.asarray(found.properties), sum(properties) / 2, rtol=1e-5)
    reference = chamfer_reference(predicted[..., :3], target[..., :3])
    np.testing.assert_allclose(np.asarray(found.chamfer), reference, rtol=1e-5)


def test_with_identity_points_are_compared_by_index() -> None:
    predicted, target = clouds(12), clouds(13)
    target[:, :, 7] += 2  # beyond where smooth L1 turns into a line
    error = (predicted - target).astype(float)
    found = cloud_losses(mx.array(predicted), mx.array(target), BY_INDEX)
    np.testing.assert_allclose(
        np.asarray(found.color), (error[..., 3:7] ** 2).mean((1, 2)), rtol=1e-5
    )
    np.testing.assert_allclose(
        np.asarray(found.properties), smooth_l1(error[..., 7:]).mean((1, 2)), rtol=1e-5
    )
    distance = (error[..., :3] ** 2).sum(-1).mean(1)
    np.testing.assert_allclose(np.asarray(found.identity), distance, rtol=1e-5)


def test_smoothness_is_movement_that_the_teacher_does_not_make() -> None:
    target = clouds(14, batch=4)
    aside = target.copy()
    aside[:2, :, :3] += 0.3  # both frames of the first pair alike
    aside[3, :, :3] += (0.1, 0.0, -0.2)  # only the second frame of the second
    found = cloud_losses(mx.array(aside), mx.array(target), BY_NEAREST).smoothness
    np.testing.assert_allclose(np.asarray(found), [0, 0, 0.05, 0.05], atol=1e-6)


def test_the_order_of_points_matters_to_movement_and_identity_alone() -> None:
    predicted, target = clouds(15), clouds(16)
    order = np.random.default_rng(1).permutation(50)
    plain = cloud_losses(mx.array(predicted), mx.array(target), BY_NEAREST)
    mixed = cloud_losses(mx.array(predicted[:, order]), mx.array(target), BY_NEAREST)
    for part in ("chamfer", "color", "properties"):
        np.testing.assert_allclose(
            np.asarray(getattr(plain, part)), np.asarray(getattr(mixed, part)), rtol=1e-6
        )
    for part in ("smoothness", "identity"):
        gap = np.asarray(getattr(plain, part)) - np.asarray(getattr(mixed, part))
        assert np.abs(gap).max() > 0.01


@pytest.mark.parametrize("weights", [BY_NEAREST, BY_INDEX])
def test_a_perfect_prediction_costs_nothing(weights: CloudLossConfig) -> None:
    target = mx.array(clouds(17))
    found = cloud_losses(target, target, weights)
    assert [mx.max(getattr(found, part)).item() for part in PARTS] == [0.0] * 5


def test_the_total_weighs_each_part() -> None:
    parts = CloudLoss(*(mx.array([10.0**power, 0.0]) for power in range(5)))
    weights = CloudLossConfig(chamfer=1, color=2, properties=3, smoothness=4, identity=5)
    assert parts.total(weights).tolist() == [54321.0, 0.0]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_clouds_have_losses_in_full_precision(dtype: mx.Dtype) -> None:
    predicted, target = (mx.array(clouds(seed)).astype(dtype) for seed in (18, 19))
    found = cloud_losses(predicted, target, BY_NEAREST)
    exact = cloud_losses(predicted.astype(mx.float32), target.astype(mx.float32), BY_NEAREST)
    for part in PARTS:
        value = getattr(found, part)
        assert value.dtype == mx.float32
        assert value.tolist() == getattr(exact, part).tolist()
    gradient = mx.grad(lambda p: chamfer(p[..., :3], target[..., :3]).sum())(predicted)
    assert gradient.dtype == dtype


def test_distances_survive_products_in_tf32() -> None:
    a, b = (clouds(seed, 1, 200)[..., :3] for seed in (20, 21))

    def tf32(x: Floats) -> Floats:
        # ten bits behind the point, rounded
        bits = x.view(np.uint32)
        rounded: NDArray[np.uint32] = (bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)
        return rounded.view(np.float32)

    left, right = (np.array(part) for part in distance_factors(mx.array(a), mx.array(b)))
    wanted = squares(a, b)
    np.testing.assert_allclose(tf32(left) @ tf32(right), wanted, atol=4e-6)
    plain = (a**2).sum(-1)[..., None] + (b**2).sum(-1)[:, None]
    plain = plain - 2 * tf32(a) @ tf32(b).swapaxes(1, 2)
    assert np.abs(plain - wanted).max() > 1e-4  # the split is needed


@pytest.mark.parametrize(
    ("one", "other"),
    [((4, 50, 10), (4, 40, 10)), ((3, 50, 10), (3, 50, 10)), ((50, 10), (50, 10))],
)
def test_clouds_that_do_not_fit_are_refused(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(KmidiError, match="pairs of neighbouring frames"):
        cloud_losses(mx.zeros(one), mx.zeros(other), BY_NEAREST)


MEASURE_MEMORY = """
import json
from kmidi_mlx.config import CloudLossConfig
from kmidi_mlx.training.cloud_losses import cloud_losses
import mlx.core as mx

weights = CloudLossConfig()
predicted, target = (mx.random.uniform(-1, 1, (32, 1200, 10)) for _ in range(2))
step = mx.compile(
    mx.value_and_grad(lambda p: cloud_losses(p, target, weights).total(weights).sum())
)
mx.eval(predicted, target)
loss, gradient = step(predicted)
mx.eval(loss, gradient)
print(json.dumps([mx.get_peak_memory(), loss.item(), gradient.abs().max().item()]))
"""


def test_a_batch_of_32_needs_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY], capture_output=True, text=True, check=True
    )
    peak, loss, largest = json.loads(done.stdout)
    assert peak < 250e6
    assert loss > 0
    assert largest > 0
