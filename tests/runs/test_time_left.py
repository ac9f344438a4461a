"""How long a run will take: everything counts that takes time."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_trainer import ScriptedTask, train

from kmidi_mlx.config import OptimizerConfig
from kmidi_mlx.runs.schedule import Pace
from kmidi_mlx.runs.time_left import EVALUATIONS, SAVES, STEPS, TimeLeft


def pace_of(total: int, eval_every: int, save_every: int) -> Pace:
    return Pace(total, 0, eval_every, save_every, OptimizerConfig())


@given(st.integers(8, 400), st.integers(1, 50), st.integers(1, 500), st.floats(0.0, 60.0))
def test_it_is_what_a_run_takes_whose_parts_are_known(
    total: int, eval_every: int, save_every: int, after: float
) -> None:
    pace = pace_of(total, eval_every, save_every)
    left = TimeLeft(pace, False, after)
    costs = {STEPS: 1.0, EVALUATIONS: 20.0, SAVES: 3.0}
    for part, seconds in costs.items():
        for _ in range(6):
            left.add(part, seconds)
    # as the trainer does it, step by step
    done, seconds = 7, after
    for step in range(done + 1, total + 1):
        seconds += costs[STEPS]
        seconds += costs[EVALUATIONS] * (step % eval_every == 0)
        seconds += costs[SAVES] * (step % save_every == 0)
    seconds += costs[EVALUATIONS] * (total % eval_every != 0) + costs[SAVES]
    assert left.seconds(done) == pytest.approx(seconds)


def test_it_is_said_after_some_steps_and_again_when_more_is_known() -> None:
    left = TimeLeft(pace_of(100, 10, 50), False)
    left.add(STEPS, 60.0)  # compiles
    for step in range(1, 6):
        assert left.news(step) is None
        left.add(STEPS, 1.0)
    said = left.news(6)
    assert said == (
        "about 2 minutes here for the 94 steps that are left, evaluations and saves not counted yet"
    )
    assert left.news(7) is None
    left.add(EVALUATIONS, 30.0)
    assert left.news(10) == (
        "about 6 minutes here for the 90 steps and 9 evaluations that are left, saves not counted "
        "yet"
    )
    # what changes little is not worth a line
    left.add(SAVES, 0.1)
    assert left.news(50) is None
    assert left.seconds(50) == pytest.approx(50 + 5 * 30 + 2 * 0.1)


def test_a_run_says_what_its_evaluations_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class SlowToJudge(ScriptedTask):
        def evaluate(self) -> dict[str, float]:
            time.sleep(0.2)
            return super().evaluate()

    train(SlowToJudge(max_steps=80, eval_every=10, save_every=10, patience=0), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if " here for the " in line]
    assert len(lines) == 2
    found = re.fullmatch(
        r"about (\d+) seconds? here for the 70 steps, 7 evaluations and 8 saves that are left",
        lines[1],
    )
    assert found, lines
    # 7 evaluations of 0.2 s, and whatever the machine does beside them
    assert 1 <= int(found[1]) <= 30
    assert "evaluations and saves not counted yet" in lines[0]


def test_what_may_end_earlier_says_so() -> None:
    left = TimeLeft(pace_of(100, 10, 50), True)
    for _ in range(6):
        left.add(STEPS, 1.0)
    assert str(left.news(6)).endswith("; it stops earlier when the validation loss no longer falls")
