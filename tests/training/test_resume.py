"""Runs as people start them, killed and resumed, against runs that were left alone."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models import Arrays, same_bits

from kmidi_mlx import checkpoint

# what a resumed run cannot repeat
TIMING = ("tokens_per_second", "peak_memory_gb")

VARIANTS = {
    "fp32": [],
    "accumulated and averaged": ["training.grad_accum_steps=2", "training.ema_decay=0.95"],
    "fp16 and checkpointed": [
        "training.precision=fp16",
        "training.ema_decay=0.95",
        "training.gradient_checkpointing=true",
    ],
}


class Run:
    """A training run in a folder of its own, started as often as it takes.

    Attributes:
        folder: its checkpoint folder.
        seconds: how long the last process took.
    """

    def __init__(self, folder: Path, settings: list[str]) -> None:
        self.folder = folder
        self.seconds = 0.0
        self._flags = ["--out", str(folder)]
        for setting in settings:
            self._flags += ["--set", setting]

    def start(self) -> subprocess.Popen[str]:
        """Start the run, or go on with it."""
        begun = (self.folder / checkpoint.CONFIG).exists()
        flags = ["--out", str(self.folder), "--resume"] if begun else self._flags
        return subprocess.Popen(
            [sys.executable, "-m", "kmidi_mlx.train", "--json", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> dict[str, Any]:
        """Run to the end without any trouble and return what the command printed."""
        started = time.monotonic()
        process = self.start()
        out, errors = process.communicate(timeout=300)
        self.seconds = time.monotonic() - started
        assert process.returncode == 0, errors
        result: dict[str, Any] = json.loads(out)
        assert result["reason"] == "finished"
        return result

    def cut(self, when: Callable[[float], bool], number: int) -> int:
        """Start, send a signal when `when(seconds since the start)` says so, return the status."""
        started = time.monotonic()
        process = self.start()
        while process.poll() is None and not when(time.monotonic() - started):
            time.sleep(0.0005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors
        return process.returncode

    def arrays(self, name: str) -> Arrays:
        return dict(sorted(checkpoint.load_arrays(self.folder / name)[0].items()))

    def metadata(self, name: str) -> dict[str, Any]:
        metadata = checkpoint.load_arrays(self.folder / name)[1]
        metadata.get("progression", {}).pop("seconds", None)
        return metadata

    def metrics(self) -> list[dict[str, Any]]:
        lines = (self.folder / checkpoint.METRICS).read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]

    def samples(self) -> dict[str, bytes]:
        return {
            item.name: item.read_bytes() for item in (self.folder / checkpoint.SAMPLES).iterdir()
        }

    def is_saving(self) -> bool:
        """Whether a save is half written just now."""
        return any(
            folder.is_dir() and any(folder.glob(".tmp*"))
            for folder in (self.folder, self.folder / "last")
        )

    def saved_step(self) -> int:
        """The step a resume would start from."""
        if not (self.folder / checkpoint.LAST).exists():
            return 0
        step: int = self.metadata(checkpoint.LAST)["progression"]["step"]
        return step


def settings_of(tiny_settings: list[str], variant: str, steps: int = 60) -> list[str]:
    return [
        *tiny_settings,
        f"training.max_steps={steps}",
        "training.patience=0",
        "training.eval_every=9",
        "training.save_every=4",
        "training.log_every=1",
        "training.sample_seconds=0.5",
        *VARIANTS[variant],
    ]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_settings: list[str]
) -> Callable[..., Run]:
    """Return the run of a variant that nobody disturbed: `undisturbed(variant, steps=60)`."""
    runs: dict[tuple[str, int], Run] = {}

    def run(variant: str, steps: int = 60) -> Run:
        if (variant, steps) not in runs:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            own = runs[variant, steps] = Run(folder, settings_of(tiny_settings, variant, steps))
            assert own.finish()["step"] == steps
        return runs[variant, steps]

    return run


def assert_equal_runs(run: Run, other: Run) -> None:
    for name in (checkpoint.BEST, checkpoint.LAST):
        assert same_bits(run.arrays(name), other.arrays(name)), name
        assert run.metadata(name) == other.metadata(name)
    assert run.metrics() == other.metrics()
    assert run.samples() == other.samples()
    leftovers = [item for item in run.folder.rglob(".*") if item.name != ".lock"]
    assert leftovers == []


def in_a_save(run: Run, rng: random.Random) -> Callable[[float], bool]:
    """When the first or second save from now on is half written."""
    wanted, seen, was_saving = rng.randint(1, 2), 0, False

    def when(elapsed: float) -> bool:
        nonlocal seen, was_saving
        saving = run.is_saving()
        seen += saving and not was_saving
        was_saving = saving
        return seen >= wanted

    return when


def after_some_steps(run: Run, rng: random.Random) -> Callable[[float], bool]:
    """When a few steps are done, and a moment later."""
    log = run.folder / checkpoint.METRICS
    wanted = run.saved_step() + rng.randint(1, 12)
    pause, before = rng.uniform(0, 0.03), log.stat().st_ino if log.exists() else None

    def when(elapsed: float) -> bool:
        # a new file: this process has dropped the lines that an earlier one wrote too many
        if not log.exists() or log.stat().st_ino == before:
            return False
        if log.read_bytes().count(b'"loss"') < wanted:
            return False
        time.sleep(pause)
        return True

    return when


def at_some_time(seconds: float, rng: random.Random) -> Callable[[float], bool]:
    """At any time, also while the process starts."""
    moment = rng.uniform(0, seconds)
    return lambda elapsed: elapsed > moment


def kill_and_resume(run: Run, kills: int, seconds: float, seed: int) -> int:
    """Kill a run at random moments until it is done, then finish it.

    Returns:
        How often the kill met a process at work.
    """
    rng = random.Random(seed)
    met = 0
    for number in range(kills):
        moments = (in_a_save(run, rng), after_some_steps(run, rng), at_some_time(seconds, rng))
        status = run.cut(moments[number % 3], signal.SIGKILL)
        assert status in (0, -signal.SIGKILL)
        met += status != 0
    run.finish()
    return met


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, undisturbed: Callable[..., Run], tiny_settings: list[str], variant: str
) -> None:
    whole = undisturbed(variant)
    run = Run(tmp_path / "run", settings_of(tiny_settings, variant))
    assert kill_and_resume(run, kills=3, seconds=whole.seconds / 2, seed=len(variant)) >= 2
    assert_equal_runs(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_kills_change_nothing(
    tmp_path: Path, undisturbed: Callable[..., Run], tiny_settings: list[str], variant: str
) -> None:
    whole = undisturbed(variant, 200)
    run = Run(tmp_path / "run", settings_of(tiny_settings, variant, 200))
    assert kill_and_resume(run, kills=20, seconds=whole.seconds / 4, seed=1) >= 15
    assert_equal_runs(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_goes_on_to_the_same_bits(
    tmp_path: Path, undisturbed: Callable[..., Run], tiny_settings: list[str], number: int
) -> None:
    run = Run(tmp_path / "run", settings_of(tiny_settings, "fp32"))
    log = run.folder / checkpoint.METRICS

    def has_begun(elapsed: float) -> bool:
        return log.exists() and log.read_bytes().count(b"\n") >= 3

    assert run.cut(has_begun, number) == 130
    step = run.saved_step()
    assert 3 <= step < 60
    assert run.metrics()[-1]["step"] == step  # saved where it stopped, not where it saved last
    run.finish()
    assert_equal_runs(run, undisturbed("fp32"))


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path, tiny_settings: list[str]) -> None:
    out = tmp_path / "run"
    flags = [word for setting in tiny_settings for word in ("--set", setting)]
    flags += ["--set", "training.max_steps=100000", "--set", "training.epochs=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kmidi_mlx.train", "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = out / checkpoint.METRICS
    while process.poll() is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted at step " in printed
    assert f"go on with: kmidi train --model midi_generator --out {out} --resume\n" in printed
    assert "Traceback" not in errors
