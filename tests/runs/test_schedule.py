from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import OptimizerConfig
from kmidi_mlx.runs.schedule import learning_rate

CONFIG = OptimizerConfig(learning_rate=0.01, warmup_steps=4, final_lr_fraction=0.1)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    rates = [learning_rate(step, 100, CONFIG) for step in range(5)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_the_cosine_falls_to_its_final_share_and_stays_there() -> None:
    middle = learning_rate(4 + 48, 100, CONFIG)
    assert middle == pytest.approx(0.01 * (0.1 + 0.9 * 0.5))
    quarter = learning_rate(4 + 24, 100, CONFIG)
    assert quarter == pytest.approx(0.01 * (0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5))))
    assert learning_rate(100, 100, CONFIG) == pytest.approx(0.001)
    assert learning_rate(5000, 100, CONFIG) == pytest.approx(0.001)


def test_a_run_without_warm_up_starts_at_the_peak() -> None:
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=0)
    assert learning_rate(0, 10, config) == pytest.approx(0.01)


@settings(max_examples=50, deadline=None)
@given(
    warmup=st.integers(0, 50),
    total=st.integers(1, 200),
    final=st.floats(0.0, 1.0),
    peak=st.floats(1e-6, 1.0),
)
def test_it_rises_then_falls_between_its_bounds(
    warmup: int, total: int, final: float, peak: float
) -> None:
    config = OptimizerConfig(learning_rate=peak, warmup_steps=warmup, final_lr_fraction=final)
    rates = [learning_rate(step, total, config) for step in range(total + 10)]
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in rising)
    assert all(final * peak * (1 - 1e-12) <= rate <= peak * (1 + 1e-12) for rate in falling)
    if total >= warmup:
        assert rates[-1] == pytest.approx(final * peak)
