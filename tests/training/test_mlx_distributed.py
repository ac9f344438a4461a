"""Two processes train with MLX what one trains, stop together, and outlive each other's end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import ALONE
from kmidi_mlx.training.distributed import joined, processes_here
from kmidi_mlx.training.run import train_model

STEPS = 20
# the machine may be busy with something else
PATIENCE_SECONDS = 120
# what the script mlx.launch does
LAUNCH = [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]


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


def finish_alone(
    folder: Path, settings: list[str], resume: bool, model: str = "midi_generator"
) -> None:
    """Train with one process that accumulates over four micro-batches."""
    config = load_config(model, [], [*settings, "training.grad_accum_steps=4"])
    with checkpoint.exclusive(folder):
        train_model(config, folder, resume, Interruption())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, settings: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish_alone(folder, settings, resume=False)
    return folder


def apart(one: Path, other: Path, name: str) -> float:
    """Largest difference of what two folders keep under a name."""
    first, second = (checkpoint.load_arrays(folder / name)[0] for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float(np.abs(first[key] - second[key]).max()) for key in first)


def flags_of(folder: Path, settings: list[str]) -> list[str]:
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["-m", "kmidi_mlx.train", "--out", str(folder), *sets]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


def start(folder: Path, arguments: list[str], ranks: tuple[int, ...] = (0, 1)) -> Any:
    """Processes as `mlx.launch` starts them, without it."""
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not file.exists():
        time.sleep(0.001)


def ended(*processes: subprocess.Popen[str]) -> list[tuple[str, str]]:
    """What processes that end by themselves have printed; none is left behind."""
    try:
        return [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_do_what_one_does(alone: Path, settings: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = min(free_ports(2))
    words = ["-n", "2", "--starting-port", str(first), "--", sys.executable]
    # at the end of its input mlx.launch would take a core to look for more
    silent, held = os.pipe()
    try:
        launch = subprocess.run(
            [*LAUNCH, *words, *flags_of(folder, settings)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            stdin=silent,
            check=False,
        )
    finally:
        os.close(silent)
        os.close(held)
    assert launch.returncode == 0, launch.stderr
    assert launch.stdout.count(f"finished at step {STEPS}") == 1
    assert launch.stderr.count("midi_generator: ") == 1, launch.stderr
    assert "2 processes, this one on the " in launch.stderr
    for name in (checkpoint.LAST, checkpoint.BEST):
        # measured 3e-6: sums of four are added up in another order
        assert apart(alone, folder, name) < 1e-5
    reports = [
        [json.loads(line) for line in (place / checkpoint.METRICS).read_text().splitlines()]
        for place in (alone, folder)
    ]
    for one, two in zip(*reports, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() & {"loss", "grad_norm", "val_loss", "tokens"}:
            assert one[name] == pytest.approx(two[name], rel=1e-5)


def test_a_signal_to_one_process_stops_both_at_the_same_step(
    alone: Path, settings: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    leader, other = start(tmp_path, flags_of(folder, settings))
    wait_for(folder / checkpoint.LAST, leader)
    other.send_signal(signal.SIGINT)
    ends = ended(leader, other)
    assert [leader.returncode, other.returncode] == [130, 130], ends
    assert "interrupted at step " in ends[0][0]
    assert ends[1] == ("", "")  # only one of them speaks
    # what two began, one ends, or two do
    copied = shutil.copytree(folder, tmp_path / "copied")
    finish_alone(copied, settings, resume=True)
    leader, other = start(tmp_path, [*flags_of(folder, settings), "--resume"])
    ends = ended(leader, other)
    assert [leader.returncode, other.returncode] == [0, 0], ends
    for place in (copied, folder):
        assert apart(alone, place, checkpoint.LAST) < 1e-5


@pytest.mark.parametrize(
    "model",
    [
        "midi_generator",
        pytest.param("spectocloud", marks=pytest.mark.slow),
        pytest.param("emotion_recognizer", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_one_process(
    model: str, settings: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    names = {"spectocloud": "tiny_cloud_settings", "emotion_recognizer": "tiny_recognizer_settings"}
    single = request.getfixturevalue(names[model]) if model in names else settings
    single = [*single, "training.max_steps=1", "optimizer.clip_norm=1e9"]
    single += ["training.grad_accum_steps=2", "training.sample_seconds=0"]
    finish_alone(tmp_path / "one", single, resume=False, model=model)
    words = [*flags_of(tmp_path / "two", single), "--model", model]
    processes = start(tmp_path, words)
    ends = ended(*processes)
    assert [process.returncode for process in processes] == [0, 0], ends
    one, two = (
        checkpoint.load_arrays(tmp_path / name / checkpoint.LAST)[0] for name in ("one", "two")
    )
    # after one step the first moment is a tenth of the gradient
    gradients = [name for name in one if name.startswith("optimizer.") and name.endswith(".m")]
    assert len(gradients) > 20
    for name in gradients:
        assert np.abs(one[name] - two[name]).max() < 1e-7, name


def test_both_stop_early_at_the_same_step(settings: list[str], tmp_path: Path) -> None:
    still = ["optimizer.learning_rate=1e-12", "training.eval_every=2", "training.patience=1"]
    processes = start(tmp_path, flags_of(tmp_path / "run", [*settings, *still]))
    ends = ended(*processes)
    assert [process.returncode for process in processes] == [0, 0], ends
    assert "stopped early: the validation loss no longer falls at step 4 " in ends[0][0]


def test_what_is_wrong_is_said_once_and_ends_both(settings: list[str], tmp_path: Path) -> None:
    processes = start(tmp_path, [*flags_of(tmp_path / "run", settings), "--resume"])
    ends = ended(*processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert ends[1] == ("", "")
    (line,) = ends[0][1].splitlines()
    assert line == f"kmidi train: {tmp_path / 'run'} holds no run to resume; " + (
        "leave out --resume to start one."
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_the_end_of_one_process_ends_the_other(
    settings: list[str], tmp_path: Path, victim: int
) -> None:
    long = [*settings, "training.max_steps=100000", "training.eval_every=100000"]
    processes = start(tmp_path, flags_of(tmp_path / "run", long))
    wait_for(tmp_path / "run" / checkpoint.LAST, processes[0])
    processes[victim].kill()
    killed = time.monotonic()
    ends = ended(*processes)
    assert time.monotonic() - killed < 20.0
    assert processes[1 - victim].returncode == 2, ends
    told = ends[1 - victim][1]
    assert "Traceback" not in told
    assert told.splitlines()[-1] == (
        "kmidi train: another process of this run has ended; what it said tells why, and "
        "--resume goes on."
    )


WAITER = """
import signal, sys
from kmidi_mlx.command import interruptible
from kmidi_mlx.training import distributed
distributed._STEP_SECONDS = distributed._MEETING_SECONDS = float(sys.argv[1])
with distributed.joined() as processes, interruptible():
    print("met", flush=True)
    while True:
        processes.largest(0)
"""


def test_a_process_that_is_silent_ends_the_other_in_time(tmp_path: Path) -> None:
    script = tmp_path / "waiter.py"
    script.write_text(WAITER)
    leader, other = start(tmp_path, [str(script), "1.5"])
    for process in (leader, other):
        assert process.stdout.readline() == "met\n"
    other.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    _, told = leader.communicate(timeout=PATIENCE_SECONDS)
    assert 1.0 < time.monotonic() - begun < 20.0
    other.kill()
    ended(other)
    assert leader.returncode == -signal.SIGKILL
    assert told == (
        "kmidi train: another process of this run has not answered for 2 s; end them all, and go "
        "on with --resume.\n"
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_alone_gives_up_and_can_be_stopped(tmp_path: Path, rank: int) -> None:
    script = tmp_path / "waiter.py"
    script.write_text(WAITER)
    (alone,) = start(tmp_path, [str(script), "1.0"], (rank,))
    ((printed, told),) = ended(alone)
    assert (printed, alone.returncode) == ("", -signal.SIGKILL)
    assert "has not answered for 1 s; end them all" in told
    (alone,) = start(tmp_path, [str(script), "60"], (rank,))
    time.sleep(1.0)
    alone.send_signal(signal.SIGTERM)
    ended(alone)
    assert alone.returncode == -signal.SIGTERM


LAWS = """
import json, sys
import mlx.core as mx
import numpy as np
from mlx import nn
from kmidi_mlx.config import OptimizerConfig, TrainingConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.training import distributed
from kmidi_mlx.training.step import TrainStep

distributed._BUNDLE_BYTES = 64  # several messages for everything

class Line(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.weight, self.bias = mx.full((3, 5), start), mx.zeros(5)

def squares(model, batch):
    miss = batch["x"] @ model.weight + model.bias
    return mx.sum(mx.square(miss) * batch["weights"][:, None]), mx.sum(batch["weights"])

with distributed.joined() as processes:
    rank = processes.rank
    told = {"count": processes.count, "largest": processes.largest(7 - rank)}
    value = {"a": np.arange(1000.0), "b": "\\u00e4"}
    sent = processes.told(lambda: value)
    told["told"] = bool(sent["b"] == "\\u00e4" and (sent["a"] == value["a"]).all())
    def wrong():
        raise KmidiError("so.")
    try:
        processes.told(wrong)
    except KmidiError as error:
        told["raised"] = [type(error).__name__, str(error)]
    tree = {"a": mx.full((4, 30), rank + 1.0), "b": [mx.array(0.5), mx.array([rank, 2.0])]}
    total = processes.add_up(tree)
    told["sum"] = [v.tolist() for v in (total["a"][0, :2], *total["b"])]
    for precision in ("fp32", "fp16"):
        training = TrainingConfig(precision=precision, ema_decay=0.9)
        # the leader's first weights count
        step = TrainStep(Line(1.0 + rank), squares, OptimizerConfig(), training, 8, processes)
        draw = np.random.default_rng(5 + rank)
        steps = []
        for number in range(4):
            x = draw.normal(size=(2, 4, 3)).astype(np.float32)
            if number == 1 and rank == 1:
                x[0, 0, 0] = np.nan
            # unequal weights: the mean is over all processes' positions
            batches = [
                {"x": mx.array(x[k]), "weights": mx.arange(4.0) * (rank + k)} for k in range(2)
            ]
            steps.append(step.run(batches, 0.01))
        state = {name: np.asarray(v).tolist() for name, v in step.state_arrays().items()}
        told[precision] = {"steps": steps, "state": state}
print(json.dumps(told))
"""


def test_what_two_processes_agree_on(tmp_path: Path) -> None:
    script = tmp_path / "laws.py"
    script.write_text(LAWS)
    processes = start(tmp_path, [str(script)])
    ends = ended(*processes)
    assert [process.returncode for process in processes] == [0, 0], ends
    ours, theirs = (json.loads(printed) for printed, _ in ends)
    assert ours["raised"] == ["KmidiError", "so."]
    assert theirs["raised"] == ["SaidByLeaderError", "so."]
    for told in (ours, theirs):
        assert (told["count"], told["largest"], told["told"]) == (2, 7, True)
        assert told["sum"] == [[3.0, 3.0], 1.0, [1.0, 4.0]]
        for precision in ("fp32", "fp16"):
            steps, state = told[precision]["steps"], told[precision]["state"]
            assert [step["finite"] for step in steps] == [True, False, True, True]
            # 6 a batch, times rank plus its number: 0 + 1 and 1 + 2
            assert [step["weight"] for step in steps] == [24.0] * 4
            assert state["counters.skipped_steps"] == 1
            assert state == ours[precision]["state"]
            for name, array in _one_process(precision).items():
                np.testing.assert_allclose(state[name], array, rtol=1e-6, atol=1e-6)


def _one_process(precision: str) -> dict[str, Any]:
    """What one process has in the end that sees the micro-batches of both."""
    import mlx.core as mx
    from mlx import nn

    from kmidi_mlx.config import OptimizerConfig, TrainingConfig
    from kmidi_mlx.training.step import TrainStep

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = mx.full((3, 5), 1.0), mx.zeros(5)

    def squares(model: Any, batch: Any) -> tuple[mx.array, mx.array]:
        miss = batch["x"] @ model.weight + model.bias
        return mx.sum(mx.square(miss) * batch["weights"][:, None]), mx.sum(batch["weights"])

    training = TrainingConfig(precision=precision, ema_decay=0.9)
    step = TrainStep(Line(), squares, OptimizerConfig(), training, 8)
    draws = [np.random.default_rng(5 + rank) for rank in range(2)]
    for number in range(4):
        x = [draw.normal(size=(2, 4, 3)).astype(np.float32) for draw in draws]
        if number == 1:
            x[1][0, 0, 0] = np.nan
        batches = [
            {"x": mx.array(x[rank][k]), "weights": mx.arange(4.0) * (rank + k)}
            for k in range(2)
            for rank in range(2)
        ]
        step.run(batches, 0.01)
    return step.state_arrays()


def test_who_is_not_launched_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined() as processes:
        assert processes is ALONE
    assert processes_here() == 1
    hosts = tmp_path / "hosts.json"
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(hosts))
    for text in ("\n", '[["127.0.0.1:5000"]]'):
        hosts.write_text(text)  # as mlx.launch -n 1 does
        with joined() as processes:
            assert processes is ALONE
    hosts.write_text('[["10.0.0.1:5000"], ["10.0.0.2:5000"], ["10.0.0.1:5001"]]')
    assert processes_here() == 2
    for text in ('{"a": 1}', "[[]]", "[1]", "[["):
        hosts.write_text(text)
        with pytest.raises(KmidiError, match="cannot be used"), joined():
            pass
