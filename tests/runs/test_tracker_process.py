from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
from plain_step import PlainStep, same_bits
from test_trainer import ScriptedTask

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs import tracker_process
from kmidi_mlx.runs.tracker_process import ProcessTracker
from kmidi_mlx.runs.trainer import Trainer
from kmidi_mlx.torch_file import Arrays

# hosts that tell, die, hang or end in their own ways
WRITES = """
import sys
with open(sys.argv[1], "w") as file:
    for line in sys.stdin:
        file.write(line)
        if '"finish"' in line:
            break
print('["finished", ""]', flush=True)
"""
COMPLAINS = """
import sys
sys.stdin.readline()
print('["failed", "no room on the disk"]', flush=True)
for line in sys.stdin:
    if '"finish"' in line:
        break
print('["finished", ""]', flush=True)
"""
DIES = "import sys; sys.stdin.readline(); sys.exit(3)"
HANGS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def tracker_of(
    script: str, *arguments: str, finish_seconds: float = 20.0, folder: Path = Path()
) -> ProcessTracker:
    command = [sys.executable, "-c", script, *arguments]
    return ProcessTracker("double", folder, "project", finish_seconds, command)


def until_it_fails(tracker: ProcessTracker) -> str:
    for step in range(2000):
        try:
            tracker.log(step, {"loss": 1.0})
        except KmidiError as error:
            return str(error)
        time.sleep(0.005)
    raise AssertionError("no failure was told")


def test_what_is_told_arrives_in_its_order(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    tracker = tracker_of(WRITES, str(heard))
    tracker.start({"model": {"width": 8}}, 5)
    tracker.log(6, {"loss": 2.5})
    tracker.add_samples(6, [tmp_path / "step-000006.mid"])
    for step in range(7, 2000):
        tracker.log(step, {"loss": 1.0, "filling": "x" * 100})
    tracker.finish("finished")
    calls = [json.loads(line) for line in heard.read_text().splitlines()]
    assert calls[:3] == [
        ["start", {"model": {"width": 8}}, 5],
        ["log", 6, {"loss": 2.5}],
        ["add_samples", 6, [str(tmp_path / "step-000006.mid")]],
    ]
    assert [call[1] for call in calls[3:-1]] == list(range(7, 2000))
    assert calls[-1] == ["finish", "finished"]
    assert tracker.dropped == 0


def test_what_fails_there_is_told_here_once() -> None:
    tracker = tracker_of(COMPLAINS)
    tracker.start({}, 0)
    assert until_it_fails(tracker) == "no room on the disk"
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")


def test_a_failure_that_nobody_has_heard_of_is_told_at_the_end() -> None:
    tracker = tracker_of(COMPLAINS)
    tracker.start({}, 0)
    with pytest.raises(KmidiError, match=r"^no room on the disk$"):
        tracker.finish("finished")


def test_a_process_that_dies_is_told() -> None:
    tracker = tracker_of(DIES)
    tracker.start({}, 0)
    assert until_it_fails(tracker) == "its process has ended"
    with pytest.raises(KmidiError, match="ended"):
        tracker.finish("finished")


def test_one_that_cannot_be_started_raises_at_the_start_alone(tmp_path: Path) -> None:
    tracker = ProcessTracker("double", tmp_path, "p", command=[str(tmp_path / "missing")])
    with pytest.raises(OSError, match="No such file"):
        tracker.start({}, 0)
    tracker.log(1, {})
    tracker.finish("finished")


def test_one_that_hangs_takes_no_time_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_process, "MOST_WAITING_BYTES", 100_000)
    tracker = tracker_of(HANGS, finish_seconds=0.5)
    tracker.start({}, 0)
    assert tracker._process is not None
    number = tracker._process.pid
    started = time.monotonic()
    complaints = set()
    for step in range(5000):
        try:
            tracker.log(step, {"loss": 1.0, "filling": "x" * 100})
        except KmidiError as error:
            complaints.add(str(error))
    assert time.monotonic() - started < 5.0
    assert complaints == {"it is too far behind, and reports are dropped"}
    assert 0 < tracker.dropped < 5000
    started = time.monotonic()
    with pytest.raises(KmidiError, match=rf"within 0\.5 s; {tracker.dropped} reports were dropped"):
        tracker.finish("finished")
    assert time.monotonic() - started < 5.0
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def run_with(tmp_path: Path, *trackers: ProcessTracker) -> Arrays:
    tmp_path.mkdir()
    task = ScriptedTask(sample_seconds=1.0)
    trainer = Trainer(task, PlainStep(task.model, task.config.training), tmp_path, False)
    trainer.trackers += trackers
    assert trainer.train(Interruption()).reason == "finished"
    return checkpoint.load_arrays(tmp_path / checkpoint.LAST)[0]


def test_no_tracker_changes_a_bit_of_a_run_or_stops_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = run_with(tmp_path / "alone")
    assert capsys.readouterr().err.count("double") == 0
    heard = tmp_path / "heard"
    followed = run_with(
        tmp_path / "followed",
        tracker_of(HANGS, finish_seconds=0.2),
        tracker_of(DIES),
        tracker_of(WRITES, str(heard)),
    )
    assert same_bits(alone, followed)
    complaints = [line for line in capsys.readouterr().err.splitlines() if "double" in line]
    assert "double may lack lines: did not finish within 0.2 s" in complaints
    assert 2 <= len(complaints) <= 3  # one that died says so during the run or at its end
    calls = [json.loads(line) for line in heard.read_text().splitlines()]
    assert calls[0][0] == "start"
    assert calls[0][1]["training"]["max_steps"] == 8
    assert calls[0][1]["data_licences"] == ["none"]
    assert [call[1] for call in calls if call[0] == "log"] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]
    samples = [call[1:] for call in calls if call[0] == "add_samples"]
    assert samples == [
        [step, [str((tmp_path / f"followed/samples/step-{step:06d}.txt").resolve())]]
        for step in (2, 4, 6, 8)
    ]
    assert calls[-1] == ["finish", "finished"]


def test_trackers_hear_of_a_run_that_fails(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    task = ScriptedTask(poisoned=lambda index: index >= 3, max_bad_steps=2)
    trainer = Trainer(task, PlainStep(task.model, task.config.training), tmp_path, False)
    trainer.trackers.append(tracker_of(WRITES, str(heard)))
    with pytest.raises(KmidiError, match="NaN"):
        trainer.train(Interruption())
    assert json.loads(heard.read_text().splitlines()[-1]) == ["finish", "failed"]
