from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx.runs import tracker_host
from kmidi_mlx.runs.tracker import Tracker, grouped


class Notebook(Tracker):
    """Notes what it is told; fails at steps and beginnings that it was told to fail at."""

    def __init__(self, *failing: int) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._failing = failing

    def start(self, about: dict[str, Any], step: int) -> None:
        self.log(step, about)

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.calls.append((step, values))
        if step in self._failing:
            raise OSError(28, "No space left\non device")

    def add_samples(self, step: int, files: Sequence[Path]) -> None:
        self.calls.append((step, list(files)))

    def finish(self, reason: str) -> None:
        self.calls.append((reason,))


def serve(tracker: Notebook, *calls: list[Any], after: str = "") -> tuple[int, list[Any]]:
    answers = StringIO()
    lines = "".join(json.dumps(call) + "\n" for call in calls) + after
    status = tracker_host.serve(lambda: tracker, StringIO(lines), answers)
    return status, [json.loads(line) for line in answers.getvalue().splitlines()]


def test_calls_become_calls() -> None:
    tracker = Notebook()
    status, answers = serve(
        tracker,
        ["start", {"a": 1}, 0],
        ["log", 1, {"loss": 2.0}],
        ["add_samples", 2, ["/b/cloud.png"]],
        ["finish", "stopped_early"],
    )
    assert status == 0
    assert answers == [["finished", ""]]
    assert tracker.calls == [
        (0, {"a": 1}), (1, {"loss": 2.0}), (2, [Path("/b/cloud.png")]), ("stopped_early",)
    ]  # fmt: skip


def test_a_failure_is_told_once_and_the_next_reports_are_tried() -> None:
    tracker = Notebook(1, 2)
    calls = [["log", step, {}] for step in (1, 2, 3)]
    status, answers = serve(tracker, ["start", {}, 0], *calls, ["finish", "finished"])
    assert status == 0
    assert answers == [["failed", "[Errno 28] No space left on device"], ["finished", ""]]
    assert tracker.calls[-2:] == [(3, {}), ("finished",)]


def test_one_that_cannot_begin_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    status, answers = serve(Notebook(0), ["start", {}, 0], ["log", 1, {}])
    assert status == 1
    assert [answer[0] for answer in answers] == ["failed"]


@pytest.mark.parametrize("after", ["", '["log", 2, {"lo', '["finish", "finished"]'])
def test_a_run_that_was_killed_is_lost(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    alarms: list[int] = []
    monkeypatch.setattr(tracker_host.signal, "alarm", alarms.append)
    tracker = Notebook()
    serve(tracker, ["start", {}, 0], ["log", 1, {}], after=after)
    assert tracker.calls[-2:] == [(1, {}), ("lost",)]
    assert alarms == [120]


def test_a_sample_that_cannot_be_rendered_is_told_and_shown_as_it_is(tmp_path: Path) -> None:
    broken = tmp_path / "step-000001.mid"
    broken.write_bytes(b"MThd")
    tracker = Notebook()
    _, answers = serve(
        tracker, ["start", {}, 0], ["add_samples", 1, [str(broken)]], ["finish", "finished"]
    )
    assert (1, [broken]) in tracker.calls
    assert answers[0][0] == "failed"
    assert "step-000001.mid" in answers[0][1]


def test_names_in_groups() -> None:
    assert grouped("loss") == "train/loss"
    assert grouped("val_loss") == "val/loss"
    assert grouped("val_valence_r2") == "val/valence_r2"
