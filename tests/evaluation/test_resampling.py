from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.control import Control, control_of
from kmidi_mlx.evaluation.resampling import (
    RESAMPLES,
    Interval,
    correlations,
    interval_of,
    interval_of_values,
    resample_counts,
    share,
    slopes,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=15)
@given(count=st.integers(3, 40), seed=st.integers(0, 2**32 - 1))
def test_every_resample_is_what_its_items_give_one_by_one(count: int, seed: int) -> None:
    draw = rng(seed)
    x, y = draw.normal(size=(2, count))
    y += x
    hit = y > 0
    counts = resample_counts(draw, np.arange(count))
    assert counts.shape == (1 + RESAMPLES, count)
    np.testing.assert_array_equal(counts.sum(axis=1), count)
    np.testing.assert_array_equal(counts[0], 1)
    r, slope, rate = (f(counts) for f in (correlations(x, y), slopes(x, y), share(hit)))
    for row in (0, 1, 2, RESAMPLES):
        items = np.repeat(np.arange(count), counts[row].astype(int))
        assert rate[row] == pytest.approx(hit[items].mean())
        if len(np.unique(items)) < 2:
            assert np.isnan(r[row])
            continue
        assert r[row] == pytest.approx(np.corrcoef(x[items], y[items])[0, 1], abs=1e-6)
        assert slope[row] == pytest.approx(np.polyfit(x[items], y[items], 1)[0], abs=1e-6)


def test_items_of_a_group_are_drawn_together() -> None:
    draw = rng(1)
    x, y = draw.normal(size=(2, 12))
    alone = interval_of(correlations(x, y), resample_counts(rng(2), np.arange(12)))
    # five copies of each are no more evidence than one
    copies = np.repeat(np.arange(12), 5)
    grouped = resample_counts(rng(2), copies)
    together = interval_of(correlations(x[copies], y[copies]), grouped)
    for one, other in zip(vars(alone).values(), vars(together).values(), strict=True):
        assert one == pytest.approx(other)
    naive = interval_of(correlations(x[copies], y[copies]), resample_counts(rng(2), np.arange(60)))
    assert _width(naive) < 0.7 * _width(together)


def test_intervals_cover_the_truth() -> None:
    truth, covered, above, below = 0.6, 0, 0, 0
    for seed in range(60):
        draw = rng(seed)
        x, noise = draw.normal(size=(2, 50))
        y = truth * x + np.sqrt(1 - truth**2) * noise
        found = interval_of(correlations(x, y), resample_counts(draw, np.arange(50)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
        above += found.low > truth
        below += found.high < truth
    # 95 % of 60 is 57; three standard deviations are 5
    assert covered >= 51
    assert above + below == 60 - covered > 0


def test_more_pieces_make_a_narrower_interval() -> None:
    def width(count: int) -> float:
        hit = np.arange(count) % 2 == 0
        return _width(interval_of(share(hit), resample_counts(rng(), np.arange(count))))

    assert width(40) == pytest.approx(2 * width(160), rel=0.2)
    # the normal approximation, 1.96 standard errors to either side
    assert width(160) == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(160), rel=0.1)


@pytest.mark.parametrize("constant", [0.0, 0.1 + 0.2, 1e6 / 3])
def test_a_constant_has_no_correlation(constant: float) -> None:
    x, y = np.full(7, constant), np.arange(7.0)
    counts = resample_counts(rng(), np.arange(7))
    for one, other in ((x, y), (y, x)):
        assert interval_of(correlations(one, other), counts) == Interval(None, None, None)
    assert interval_of(slopes(x, y), counts).value is None
    found = interval_of(slopes(y, x), counts)
    assert found == Interval(0.0, 0.0, 0.0)


def test_of_nothing_nothing_is_known() -> None:
    counts = resample_counts(rng(), np.zeros(0, np.int64))
    nothing = np.zeros(0)
    for statistic in (correlations(nothing, nothing), slopes(nothing, nothing), share(nothing > 0)):
        assert interval_of(statistic, counts) == Interval(None, None, None)
    assert control_of([]) == Control(0, None, None, None, None, None, None)


def test_ends_may_be_never_and_the_undefined_is_left_out() -> None:
    values = np.concatenate([[3.0], np.arange(90.0), np.full(10, np.inf), np.full(7, np.nan)])
    assert interval_of_values(values) == Interval(3.0, 2.0, None)
    assert interval_of_values(np.array([np.inf, 1.0, 2.0])) == Interval(None, 1.0, 2.0)
    assert interval_of_values(np.array([np.nan, 1.0])) == Interval(None, None, None)


def test_a_sign_beyond_doubt() -> None:
    assert Interval(1.0, 0.1, 2.0).excludes_zero
    assert Interval(-1.0, -2.0, -0.1).excludes_zero
    for low, high in ((-0.1, 2.0), (0.0, 2.0), (None, 2.0), (1.0, None)):
        assert not Interval(1.0, low, high).excludes_zero


def _width(found: Interval) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low
