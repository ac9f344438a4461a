from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gaussian_kde

from kmidi_mlx.evaluation.music_measures import PROFILES
from kmidi_mlx.evaluation.overlap import (
    FEATURES,
    LEAST_HALF,
    alternated,
    divergence,
    features_of,
    halves,
    likeness,
    overlap_area,
)
from kmidi_mlx.music.notes import Notes
from tests.evaluation.conftest import random_notes

SAMPLES = st.lists(st.floats(0, 50), min_size=1, max_size=40).map(np.array)


@settings(max_examples=50)
@given(SAMPLES, SAMPLES)
def test_overlap_and_divergence_keep_their_laws(a: np.ndarray, b: np.ndarray) -> None:
    assert overlap_area(a, a) == pytest.approx(1)
    assert divergence(a, a) == pytest.approx(0, abs=1e-9)
    assert 0 <= overlap_area(a, b) <= 1 + 1e-9
    assert overlap_area(a, b) == pytest.approx(overlap_area(b, a))
    assert divergence(a, b) >= 0


def test_far_samples_share_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(10, 1, 200), rng.normal(60, 2, 300)
    assert overlap_area(a, b) < 1e-6
    assert divergence(a, b) > 10


@settings(max_examples=10)
@given(st.integers(0, 1000), st.floats(0, 4), st.floats(0.5, 2))
def test_densities_are_those_of_scipy(seed: int, shift: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.gamma(4, 1, 300), shift + scale * rng.gamma(4, 1, 500)
    grid = np.linspace(-10, 60, 2_001)
    of_a, of_b = gaussian_kde(a)(grid), gaussian_kde(b)(grid)
    step = grid[1] - grid[0]
    assert overlap_area(a, b) == pytest.approx(np.minimum(of_a, of_b).sum() * step, abs=0.005)
    # where the other sample has next to nothing, the floor and the reach of the kernel count
    wanted = (of_a * np.log((of_a + 1e-9) / (of_b + 1e-9))).sum() * step
    assert divergence(a, b) == pytest.approx(wanted, rel=0.1, abs=0.02)


def test_distances_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    found = likeness(a, b)
    pairs = [np.linalg.norm(a[i] - a[j]) for i in range(5) for j in range(i)]
    assert found.within == pytest.approx(np.mean(pairs))
    pairs = [np.linalg.norm(b[i] - b[j]) for i in range(7) for j in range(i)]
    assert found.within_other == pytest.approx(np.mean(pairs))
    assert found.between == pytest.approx(np.mean([np.linalg.norm(x - y) for x in a for y in b]))


def test_sets_of_one_kind_overlap_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    alike = likeness(real, same)
    assert alike.overlap > 0.9
    assert alike.divergence < 0.05
    assert likeness(real, same + 20).overlap < 0.01
    # one piece over and over lies in the middle of all, and yet is no set of that kind
    collapsed = likeness(real, 0.01 * same)
    assert collapsed.overlap < 0.1
    assert collapsed.within_other < 0.05 * collapsed.within


@settings(max_examples=30)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(0, 100))
def test_halves_keep_songs_together(groups: list[int], seed: int) -> None:
    names = np.array(groups, np.int64)
    found = halves(names, 5, seed)
    assert len(found) <= 5
    for first, second in found:
        assert len(first) == len(second) >= LEAST_HALF
        assert len(set(first) | set(second)) == 2 * len(first)
        assert not set(names[first]) & set(names[second])
    if len(groups) == len(set(groups)) >= 2 * LEAST_HALF + 1:
        assert len(found) == 5
        assert all(len(first) == len(groups) // 2 for first, _ in found)


def test_halves_differ_and_one_song_has_none() -> None:
    ways = halves(np.arange(40), 10, 0)
    assert len({tuple(first) for first, _ in ways}) == 10
    assert not halves(np.zeros(40, np.int64), 10, 0)


def test_real_music_is_the_measure_of_written_music() -> None:
    rng = np.random.default_rng(0)
    real = {"a": rng.normal(size=(40, 3))}
    ways = halves(np.arange(40), 10, 0)
    reached = alternated(real, real, ways)["a"]
    assert reached.lowest_overlap <= reached.overlap
    alike = alternated(real, {"a": rng.normal(size=(40, 3))}, ways)["a"]
    other = alternated(real, {"a": rng.normal(3, 1, size=(40, 3))}, ways)["a"]
    assert alike.overlap >= reached.lowest_overlap > other.overlap
    assert other.divergence > reached.divergence


def test_features_of_a_set() -> None:
    pieces = [random_notes(seed, 40) for seed in range(3)]
    found = features_of([*pieces, Notes.empty()])
    assert tuple(found) == FEATURES
    for name, rows in found.items():
        assert rows.shape == (4, PROFILES.get(name, 1))
        assert np.isfinite(rows).all()
        # pieces without any order repeat nothing
        assert rows[:3].any() or name == "repetition"
        assert not rows[3].any()
