"""Pictures of losses: round numbers at their edges, and what a cut off run took."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.workflow.curves import draw_curves, read_peak_gb

LOSSES = st.floats(1e-4, 1e3)


def is_round(distance: float) -> bool:
    """Whether a number is 1, 2 or 5 times a power of ten."""
    mantissa = distance / 10 ** math.floor(math.log10(distance) + 1e-9)
    return min(abs(mantissa - size) for size in (1, 2, 5)) < 1e-6


@given(st.integers(1, 100_000), LOSSES, LOSSES)
def test_ticks_are_round_apart_and_hold_the_curve(last: int, one: float, two: float) -> None:
    drawn = draw_curves({"training": [(1, one), (last, two)], "held out": []}, "a", "nats")
    rows, columns = (
        [float(text.replace(",", "")) for text in re.findall(rf'{anchor}">([-\d.,]+)<', drawn)]
        for anchor in ("end", "middle")
    )
    for ticks in (rows, columns):
        gaps = [after - before for before, after in pairwise(ticks)]
        assert 2 <= len(ticks) <= 7
        assert all(math.isclose(gap, gaps[0], rel_tol=1e-6) for gap in gaps)
        assert is_round(gaps[0])
    slack = 1e-6 * max(one, two)
    assert rows[0] <= min(one, two) + slack
    assert rows[-1] >= max(one, two) - slack
    assert columns[0] == 0
    assert columns[-1] <= last
    assert all(step == int(step) for step in columns)


def test_the_peak_is_that_of_the_whole_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_peak_gb(path) == 0.0
    path.write_text('{"step": 1, "peak_memory_gb": 2.5}\n{"step": 2, "peak_memory_gb": 1.0}\n{"st')
    assert read_peak_gb(path) == 2.5
