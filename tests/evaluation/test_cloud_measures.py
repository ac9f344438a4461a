from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.evaluation.cloud_measures import CloudErrors, compare_pairs, estimate

Floats = NDArray[np.float32]


def clouds(seed: int, pairs: int, points: int) -> Floats:
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0, 1, (pairs, 2, points, 10)).astype(np.float32)
    drawn[..., :3] = 2 * drawn[..., :3] - 1
    return drawn


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    pairs=st.integers(1, 3),
    points=st.integers(1, 30),
    more=st.integers(0, 30),
)
def test_pairs_are_compared_as_brute_force_does(
    seed: int, pairs: int, points: int, more: int
) -> None:
    predicted, target = clouds(seed, pairs, points), clouds(seed + 1, pairs, points + more)
    found = compare_pairs(predicted, target)
    gaps = predicted[:, :, :, None, :3].astype(float) - target[:, :, None, :, :3]
    squares = (gaps**2).sum(-1)
    chamfer = squares.min(3).mean(2) + squares.min(2).mean(2)
    np.testing.assert_allclose(found.chamfer, chamfer.mean(1), rtol=1e-5)
    forth = predicted - np.take_along_axis(target, squares.argmin(3)[..., None], 2)
    back = np.take_along_axis(predicted, squares.argmin(2)[..., None], 2) - target
    color = ((forth[..., 3:7] ** 2).mean((1, 2, 3)) + (back[..., 3:7] ** 2).mean((1, 2, 3))) / 2
    np.testing.assert_allclose(found.color, color, rtol=1e-5)
    sizes = (np.abs(forth[..., 7:]).mean((1, 2, 3)) + np.abs(back[..., 7:]).mean((1, 2, 3))) / 2
    np.testing.assert_allclose(found.properties, sizes, rtol=1e-5)
    way = predicted[:, 1, :, :3] - predicted[:, 0, :, :3]
    wanted = (target[:, 1] - target[:, 0])[:, :points, :3]
    for name, moved in (
        ("movement", way),
        ("teacher_movement", wanted),
        ("movement_error", way - wanted),
    ):
        np.testing.assert_allclose(getattr(found, name), (moved**2).sum(2).mean(1), rtol=1e-5)


def test_the_teacher_is_without_error_and_as_lively_as_itself() -> None:
    target = clouds(0, 4, 60)
    score = compare_pairs(target, target).score(np.arange(4))
    assert score.chamfer.mean == score.color_mse == score.property_error == score.jitter == 0
    assert score.movement == 1


def test_movement_is_told_from_jitter() -> None:
    target = clouds(1, 4, 60)
    target[:, 1, :, :3] = target[:, 0, :, :3] + (0.03, 0.0, 0.04)
    still, fast, back = target.copy(), target.copy(), target.copy()
    still[:, 1] = still[:, 0]
    fast[:, 1, :, :3] += (0.03, 0.0, 0.04)
    back[:, 1, :, :3] -= (0.06, 0.0, 0.08)
    scores = [compare_pairs(drawn, target).score(np.arange(4)) for drawn in (still, fast, back)]
    assert [score.movement for score in scores] == pytest.approx([0, 2, 1], abs=1e-5)
    assert [score.jitter for score in scores] == pytest.approx([0.05, 0.05, 0.1], abs=1e-5)


def test_movement_is_unknown_where_there_is_none() -> None:
    target = clouds(2, 2, 20)
    score = compare_pairs(target[:, ::-1], target, sequence=False).score(np.arange(2))
    assert score.movement is None
    assert score.jitter is None
    assert score.chamfer.mean > 0
    target[:, 1] = target[:, 0]
    score = compare_pairs(clouds(3, 2, 20), target).score(np.arange(2))
    assert score.movement is None
    assert score.jitter is not None
    assert score.jitter > 0


def test_points_that_all_lie_together_are_measured_too() -> None:
    predicted, target = clouds(4, 1, 1200), clouds(5, 1, 1200)
    predicted[..., :3] = 0.0
    found = compare_pairs(predicted, target)
    squares = (target[..., :3].astype(float) ** 2).sum(-1)
    assert found.chamfer[0] == pytest.approx((squares.min(2) + squares.mean(2)).mean(), rel=1e-6)


def test_batches_are_joined_in_order() -> None:
    predicted, target = clouds(6, 5, 20), clouds(7, 5, 20)
    whole = compare_pairs(predicted, target)
    parts = [compare_pairs(predicted[k : k + 2], target[k : k + 2]) for k in (0, 2, 4)]
    joined = CloudErrors.joined(parts)
    np.testing.assert_array_equal(joined.chamfer, whole.chamfer)
    np.testing.assert_array_equal(joined.movement_error, whole.movement_error)


def test_the_standard_error_counts_songs_not_pairs() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    apart = estimate(values, np.array([7, 8, 9, 3]))
    assert apart.mean == 3
    assert apart.standard_error == pytest.approx(values.std(ddof=1) / 2)
    # the same pairs ten times over tell nothing new
    again = estimate(np.repeat(values, 10), np.repeat([7, 8, 9, 3], 10))
    assert again.standard_error == pytest.approx(apart.standard_error)
    assert estimate(values, np.zeros(4, int)).standard_error is None


def test_the_standard_error_is_what_repeated_draws_show() -> None:
    rng = np.random.default_rng(0)
    song = np.repeat(np.arange(40), 5)
    means, errors = [], []
    for _ in range(300):
        values = rng.normal(size=40)[song] + rng.normal(size=200)
        found = estimate(values, song)
        assert found.standard_error is not None
        means.append(found.mean)
        errors.append(found.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)
