"""Two processes on a CPU train what one trains, stop together, and get over the death of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption, run
from kmidi_mlx.config_file import load_config
from kmidi_torch import finetune
from kmidi_torch.training.device import DeviceOptions
from kmidi_torch.training.run import train_model

STEPS = 60
StateOf = Callable[[Path, str], dict[str, Any]]
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def settings(tiny_settings: list[str]) -> list[str]:
    """A run of two processes that accumulate over two micro-batches each."""
    return [
        *tiny_settings,
        f"training.max_steps={STEPS}",
        f"training.eval_every={STEPS // 2}",
        "training.eval_batches=1",
        "training.save_every=5",
        "training.log_every=1",
        "training.ema_decay=0.9",
        "training.grad_accum_steps=2",
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    """The folder of one process that accumulates over four."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    config = load_config("midi_generator", [], [*settings, "training.grad_accum_steps=4"])
    with checkpoint.exclusive(folder):
        train_model(config, folder, False, Interruption(), options=DeviceOptions("cpu"))
    return folder


def flags_of(folder: Path, settings: list[str]) -> list[str]:
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["-m", "kmidi_torch.train", "--device", "cpu", "--out", str(folder), *sets]


def start_two(arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes as `torchrun` starts them, without it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not file.exists():
        time.sleep(0.001)


def ended(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """What processes that end by themselves have printed; none is left behind."""
    try:
        return [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def worker_of(agent: int, rank: int) -> int:
    """The process id of the worker that `torchrun` gave a rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return int(child)
    raise AssertionError(f"no worker of rank {rank} among {children}")


@linux
def test_a_killed_worker_is_replaced_and_two_processes_do_what_one_does(
    alone: Path,
    settings: list[str],
    state_of: StateOf,
    arrays_apart: Callable[..., float],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    agent = subprocess.Popen(
        [sys.executable, *launch, "--max-restarts=1", *flags_of(folder, settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(folder / checkpoint.LAST, agent)
    killed = worker_of(agent.pid, 1)
    os.kill(killed, signal.SIGKILL)
    ((printed, errors),) = ended(agent)
    assert agent.returncode == 0, errors
    assert "Traceback" not in errors
    # said twice, by the leaders of the first and of the second start
    assert errors.count("midi_generator: ") == 2, errors
    assert printed.count(f"finished at step {STEPS}") == 1
    for name in (checkpoint.LAST, checkpoint.BEST):
        states = [state_of(place, name) for place in (alone, folder)]
        assert arrays_apart(*states) < 1e-5  # measured 0: gloo adds two numbers exactly as one does
    lines = [(place / checkpoint.METRICS).read_text().count("\n") for place in (alone, folder)]
    assert lines[0] == lines[1]


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    alone: Path,
    settings: list[str],
    state_of: StateOf,
    arrays_apart: Callable[..., float],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    leader, other = start_two(flags_of(folder, settings))
    wait_for(folder / checkpoint.LAST, leader)
    other.send_signal(signal.SIGTERM)
    ends = ended(leader, other)
    assert [leader.returncode, other.returncode] == [130, 130], ends
    assert "interrupted at step " in ends[0][0]
    assert ends[1] == ("", "")  # only one of them speaks
    # what two began, one ends
    config = load_config(
        "midi_generator", [folder / checkpoint.CONFIG], ["training.grad_accum_steps=4"]
    )
    with checkpoint.exclusive(folder):
        outcome = train_model(config, folder, True, Interruption(), options=DeviceOptions("cpu"))
    assert outcome.progression.step == STEPS
    states = [state_of(place, checkpoint.LAST) for place in (alone, folder)]
    assert arrays_apart(*states) < 1e-5


def test_what_is_wrong_is_said_once_and_ends_all(settings: list[str], tmp_path: Path) -> None:
    processes = start_two([*flags_of(tmp_path / "run", settings), "--resume"])
    ends = ended(*processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert ends[1] == ("", "")
    assert ends[0][0] == ""
    (line,) = ends[0][1].splitlines()
    assert line == f"kmidi train: {tmp_path / 'run'} holds no run to resume; " + (
        "leave out --resume to start one."
    )


def test_two_processes_teach_what_one_does(
    tiny_run: Path,
    practice_data: Path,
    state_of: StateOf,
    arrays_apart: Callable[..., float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_run, base)
    settings = [
        "adapter.method=dora",
        "adapter.rank=4",
        "adapter.dropout=0.3",
        "training.max_steps=4",
        "training.eval_batches=2",
        "training.sample_seconds=0",
        "training.ema_decay=0.9",
        "optimizer.learning_rate=1e-2",
        "optimizer.warmup_epochs=0",
    ]

    def flags(name: str, accumulated: int) -> list[str]:
        given = [*settings, f"training.grad_accum_steps={accumulated}"]
        sets = [word for setting in given for word in ("--set", setting)]
        data = ["--base", str(base), "--data", str(practice_data), "--name", name]
        return ["--device", "cpu", "--json", *data, *sets]

    assert run(finetune.main, flags("one", 4)) == 0
    processes = start_two(["-m", "kmidi_torch.finetune", *flags("two", 2)])
    (printed, errors), other = ended(*processes)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert other == ("", "")
    results = [json.loads(text) for text in (capsys.readouterr().out, printed)]
    assert results[0]["step"] == results[1]["step"] == 4
    for when in ("before", "after"):
        assert results[0]["memory"][when] == pytest.approx(results[1]["memory"][when])
    for name in (checkpoint.LAST, checkpoint.ADAPTER):
        states = [state_of(base / "adapters" / place, name) for place in ("one", "two")]
        assert arrays_apart(*states) < 1e-5
