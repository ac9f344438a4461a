from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.runs.processes import ALONE, Processes


class Member(Processes):
    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 100))
def test_processes_see_in_a_step_what_one_would_see_that_accumulates_more(
    count: int, accumulated: int, step: int
) -> None:
    seen = [
        Member(rank, count).share(step * accumulated + number)
        for rank in range(count)
        for number in range(accumulated)
    ]
    whole = count * accumulated
    assert sorted(seen) == list(range(step * whole, (step + 1) * whole))


def test_one_process_leads_and_agrees_with_itself() -> None:
    assert ALONE.leads
    assert not Member(1, 2).leads
    assert [ALONE.share(number) for number in range(4)] == [0, 1, 2, 3]
    assert ALONE.largest(2) == 2
    assert ALONE.told(lambda: "made") == "made"
