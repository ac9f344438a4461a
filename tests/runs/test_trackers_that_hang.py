"""A run that is interrupted does not wait long for a service that does not answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from plain_step import PlainStep
from test_trainer import ScriptedTask

from kmidi_mlx.command import Interruption
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs import tracker_process
from kmidi_mlx.runs.tracker_process import FINISH_SECONDS, INTERRUPTED_SECONDS, ProcessTracker
from kmidi_mlx.runs.trackers import open_trackers
from kmidi_mlx.runs.trainer import Trainer

# a service that takes everything and never comes to an end
HANGS = """
import time
from pathlib import Path

class Run:
    summary = {}
    def log(self, values, step): pass
    def finish(self, exit_code):
        Path(__file__).with_name("asked").touch()
        time.sleep(600)

def Settings(**options): pass
def init(**options): return Run()
"""


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a pretend wandb that the tracker's process imports."""
    folder = tmp_path / "packages" / "wandb"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    return folder


def interrupted(out: Path, trackers: list[ProcessTracker]) -> float:
    """Interrupt a run in its second step; how many seconds it took to end."""
    asked = Interruption()
    began = 0.0

    def on_batch(index: int) -> None:
        nonlocal began
        if index == 1:
            asked.requested, began = True, time.monotonic()

    task = ScriptedTask(on_batch=on_batch)
    trainer = Trainer(task, PlainStep(task.model, task.config.training), out, False)
    trainer.trackers += trackers
    assert trainer.train(asked).reason == "interrupted"
    return time.monotonic() - began


def test_ctrl_c_waits_ten_seconds_at_the_most() -> None:
    assert INTERRUPTED_SECONDS <= 10 < FINISH_SECONDS


def test_what_hangs_is_ended_soon_and_its_files_are_named(
    pretend: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracker_process, "INTERRUPTED_SECONDS", 3.0)
    out = tmp_path / "out"
    out.mkdir()
    (tracker,) = open_trackers(["wandb"], out, "midi_generator")
    seconds = interrupted(out, [tracker])
    assert 3.0 <= seconds < 20.0
    assert (pretend / "asked").exists()  # it hung where the real one does
    lines = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert lines == [
        f"wandb may lack lines: did not finish within 3 s; what it has not sent is kept in {out}/"
        f"wandb: wandb sync {out}/wandb/*run-*"
    ]
    assert tracker._process is None


def test_a_run_that_ends_by_itself_waits_longer(
    pretend: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_process, "INTERRUPTED_SECONDS", 0.1)
    tracker = ProcessTracker("wandb", tmp_path, "p", 1.5)
    tracker.start({}, 0)
    number = tracker._process.pid if tracker._process else 0
    began = time.monotonic()
    with pytest.raises(KmidiError, match=r"did not finish within 1\.5 s$"):
        tracker.finish("finished")
    assert time.monotonic() - began >= 1.5
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
