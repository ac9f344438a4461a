"""Steps are done once, again when something changed, gone on with when cut off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kmidi_mlx.command import Interruption
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.workflow.commands import shown
from kmidi_mlx.workflow.journal import Journal, digest_of_files, fingerprint
from kmidi_mlx.workflow.runner import Done, run_step
from kmidi_mlx.workflow.steps import Step

PRETEND = "pretend_command"


@pytest.fixture(autouse=True)
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def step_of(path: Path, text: str = "hello", name: str = "write") -> Step:
    return Step(name, "Writing", ((PRETEND, "write", str(path), text),), outputs=(path,))


def do(step: Step, folder: Path, interruption: Interruption | None = None) -> Done | None:
    """Do a step if it is not done; None: it was."""
    journal = Journal(folder)
    wanted = fingerprint(step.commands, step.inputs())
    if journal.is_done(step.name, wanted):
        return None
    return run_step(step, wanted, journal, folder / "logs", interruption or Interruption())


def test_a_step_is_done_once_and_again_when_anything_changed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    assert do(step_of(path), tmp_path) == Done(0)
    assert do(step_of(path), tmp_path) is None
    entry = Journal(tmp_path)["write"]
    assert entry.results == [{"wrote": "hello"}]
    assert entry.seconds > 0
    assert entry.outputs == {str(path): digest_of_files([path])}
    # other words, and what it left being changed or gone
    assert do(step_of(path, "other"), tmp_path) == Done(0)
    path.write_text("changed by somebody")
    assert do(step_of(path, "other"), tmp_path) == Done(0)
    path.unlink()
    assert do(step_of(path, "other"), tmp_path) == Done(0)
    assert path.with_suffix(".calls").read_text() == "4"


def test_inputs_count(tmp_path: Path) -> None:
    source, path = tmp_path / "source", tmp_path / "file.txt"
    source.write_text("1")

    def step() -> Step:
        command = (PRETEND, "write", str(path), "hello")
        return Step("s", "S", (command,), lambda: [digest_of_files([source])], (path,))

    assert do(step(), tmp_path) == Done(0)
    assert do(step(), tmp_path) is None
    source.write_text("2")
    assert do(step(), tmp_path) == Done(0)


def test_a_step_that_fails_is_not_done_and_says_which_command(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    good = (PRETEND, "write", str(path), "hello")
    bad = (PRETEND, "fail")
    step = Step("both", "Both", (good, bad, good), outputs=(path,))
    done = do(step, tmp_path)
    assert done == Done(2, bad)
    assert shown(done.command) == f"python -m {PRETEND} fail"
    assert do(step, tmp_path) == Done(2, bad)
    assert Journal(tmp_path)["both"].done == ""
    assert path.with_suffix(".calls").read_text() == "2"


def test_the_peak_of_memory_is_that_of_the_largest_process(tmp_path: Path) -> None:
    commands = tuple((PRETEND, "hold", size) for size in ("1", "200", "10"))
    assert do(Step("hold", "Hold", commands), tmp_path) == Done(0)
    assert 0.2 < Journal(tmp_path)["hold"].peak_gb < 0.3


KILLED = """
import sys
from pathlib import Path
from kmidi_mlx.command import Interruption
from kmidi_mlx.workflow import runner
from kmidi_mlx.workflow.journal import Journal, fingerprint
from kmidi_mlx.workflow.steps import Step
runner._KEEP_SECONDS = 0.2
folder, command = Path(sys.argv[1]), tuple(sys.argv[2:])
step = Step("heavy", "Heavy", (command,))
journal = Journal(folder)
runner.run_step(step, fingerprint(step.commands, []), journal, folder / "logs", Interruption())
"""


def test_what_a_killed_workflow_has_spent_counts(tmp_path: Path) -> None:
    there = tmp_path / "there"
    command = (PRETEND, "once-heavy", str(there), "150")
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), *command])
    spent = 0.0
    while killed.poll() is None and (spent < 0.4 or Journal(tmp_path)["heavy"].peak_gb < 0.15):
        time.sleep(0.02)
        spent = Journal(tmp_path)["heavy"].seconds
    assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = Journal(tmp_path)["heavy"]
    assert do(Step("heavy", "Heavy", (command,)), tmp_path) == Done(0)
    after = Journal(tmp_path)["heavy"]
    assert after.done
    assert after.seconds > before.seconds >= 0.4
    assert after.peak_gb >= before.peak_gb > 0.15
    # begun from other inputs it counts anew
    light = (PRETEND, "once-heavy", str(there), "1")
    assert do(Step("heavy", "Heavy", (light,)), tmp_path) == Done(0)
    assert Journal(tmp_path)["heavy"].peak_gb < 0.15


def test_a_training_that_fails_is_repeated_by_what_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    command = (PRETEND, "train", "--model", "m", "--out", str(folder), "--json", "--set", "a=1")
    done = do(Step("t", "T", (command,), folders={0: folder}), tmp_path)
    assert done is not None
    assert done.status == 3
    # it has saved something: begun anew, it would be refused
    assert shown(done.command) == f"python -m {PRETEND} train --model m --out {folder} --resume"


def test_a_run_that_was_cut_off_is_gone_on_with_and_another_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def step(option: str) -> Step:
        command = (
            *(PRETEND, "train", "--model", "midi_generator", "--out", str(folder), "--json"),
            *("--original", "where", "--set", option),
        )
        return Step("t", "T", (command,), outputs=(folder / "best.safetensors",),
                    folders={0: folder})  # fmt: skip

    assert do(step("a=1"), tmp_path).status == 3
    # other settings: begun anew, the old run beside it
    assert do(step("a=2"), tmp_path).status == 3
    assert (tmp_path / "model.before" / "words").read_text().endswith("--set a=1\n")
    # the same: gone on with
    assert do(step("a=2"), tmp_path) == Done(0)
    assert (folder / "words").read_text().splitlines() == [
        f"--model midi_generator --out {folder} --json --original where --set a=2",
        f"--model midi_generator --out {folder} --resume --original where --json",
    ]
    assert do(step("a=2"), tmp_path) is None


def test_a_step_that_leaves_nothing_is_not_done(tmp_path: Path) -> None:
    command = (PRETEND, "hold", "1")
    step = Step("s", "S", (command,), outputs=(tmp_path / "file",))
    with pytest.raises(KmidiError, match=r"s ended well and left no .*file"):
        do(step, tmp_path)
    assert Journal(tmp_path)["s"].done == ""


def test_what_is_said_is_kept(tmp_path: Path) -> None:
    do(step_of(tmp_path / "file.txt"), tmp_path)
    assert "some words" in (tmp_path / "logs" / "write-1.log").read_text()


def test_an_interruption_is_passed_on(tmp_path: Path) -> None:
    there = tmp_path / "there"
    step = Step("wait", "Wait", ((PRETEND, "wait", str(there)),))
    interruption = Interruption()

    def interrupt() -> None:
        while not there.exists():
            time.sleep(0.01)
        interruption.requested = True

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    assert do(step, tmp_path, interruption).status == 128 + signal.SIGINT
    assert time.monotonic() - began < 30
    thread.join()
    assert Journal(tmp_path)["wait"].done == ""


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "workflow.json").write_text('{"write": {"begun": 1, "what": 2}}')
    with pytest.raises(KmidiError, match=r"workflow\.json is damaged: .*; remove it to do every"):
        Journal(tmp_path)
