from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import MidiGeneratorConfig, OptimizerConfig, TrainingConfig
from kmidi_mlx.runs.schedule import learning_rate, pace_of

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


@settings(max_examples=50)
@given(restarts=st.integers(0, 5), length=st.integers(2, 60), final=st.floats(0.0, 0.9))
def test_restarts_repeat_one_cosine(restarts: int, length: int, final: float) -> None:
    config = OptimizerConfig(
        learning_rate=0.01, warmup_steps=4, final_lr_fraction=final, restarts=restarts
    )
    total = 4 + (restarts + 1) * length
    rates = [learning_rate(step, total, config) for step in range(4, total)]
    once = OptimizerConfig(learning_rate=0.01, warmup_steps=4, final_lr_fraction=final)
    cycle = [learning_rate(step, 4 + length, once) for step in range(4, 4 + length)]
    assert rates == pytest.approx((restarts + 1) * cycle)
    assert learning_rate(total, total, config) == pytest.approx(0.01 * final)


def test_epochs_become_steps_where_they_are_given() -> None:
    steps = MidiGeneratorConfig(
        training=TrainingConfig(epochs=7, max_steps=50, eval_every=9, save_every=8),
        optimizer=OptimizerConfig(warmup_steps=3),
    )
    pace = pace_of(steps, 10)
    assert (pace.total_steps, pace.least_steps, pace.eval_every, pace.save_every) == (50, 0, 9, 8)
    assert pace.optimizer.warmup_steps == 3
    epochs = MidiGeneratorConfig(
        training=TrainingConfig(epochs=7, min_epochs=2, eval_epochs=1, save_epochs=3),
        optimizer=OptimizerConfig(warmup_epochs=0.25),
    )
    pace = pace_of(epochs, 10)
    assert (pace.total_steps, pace.least_steps, pace.eval_every, pace.save_every) == (
        70, 20, 10, 30,
    )  # fmt: skip
    assert pace.optimizer.warmup_steps == 3
