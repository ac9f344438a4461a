"""`python -m kmidi_torch.train` answers as `kmidi train` does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kmidi_mlx import checkpoint
from kmidi_mlx.command import run
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_torch import train
from kmidi_torch.training.memory import memory_advice

Captured = pytest.CaptureFixture[str]

# gives the process a little more memory than it has when everything is loaded
LITTLE_MEMORY = """
import resource, sys
import kmidi_torch.training.run
from kmidi_mlx.command import run
from kmidi_torch import train
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(run(train.main, sys.argv[2:]))
"""


@pytest.fixture
def flags(tiny_settings: list[str]) -> list[str]:
    sets = [word for setting in tiny_settings for word in ("--set", setting)]
    return ["--device", "cpu", *sets, "--set", "training.max_steps=4"]


@pytest.fixture
def _deterministic_again() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def complaint(capsys: Captured, arguments: list[str]) -> str:
    """Run a command that has to fail and return its one line."""
    assert run(train.main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("kmidi train: ")
    return line


@pytest.mark.usefixtures("_deterministic_again")
def test_training_makes_a_checkpoint_folder_and_goes_on(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path / "run")]
    slow = ["--deterministic", "--tf32", "--no-compile", "--set", "training.max_minutes=1e-6"]
    assert run(train.main, [*out, *flags, *slow]) == 0
    captured = capsys.readouterr()
    assert "stopped at the time limit training.max_minutes" in captured.out
    assert (
        f"go on with: python -m kmidi_torch.train --model midi_generator --out {tmp_path / 'run'} "
        "--resume --set training.max_minutes=0\n" in captured.out
    )
    assert "midi_generator: 0.2M parameters" in captured.err
    assert "fp32 on the CPU" in captured.err
    assert torch.are_deterministic_algorithms_enabled()
    more = ["--device", "cpu", "--resume", "--set", "training.max_minutes=0", "--json"]
    assert run(train.main, [*out, *more]) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    result = json.loads(capsys.readouterr().out)
    assert (result["reason"], result["step"]) == ("finished", 4)
    assert result["synthetic"] is True
    assert {item.name for item in (tmp_path / "run").iterdir()} == {
        ".lock", "best.safetensors", "config.yaml", "last", "metrics.jsonl"
    }  # fmt: skip
    assert "already holds a run; use --resume" in complaint(capsys, [*out, *flags])


def test_help_and_wrong_flags_need_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None\n" + (
        "from kmidi_torch import train\nfrom kmidi_mlx.command import run\n"
        "print(run(train.main, ['--help-config']), run(train.main, ['--devise']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("0 2\n")
    assert "did you mean --device?" in done.stderr


def test_what_is_not_there_is_named(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    out = ["--out", str(tmp_path), *flags]
    assert "--device 'gpu' is unknown; give cuda" in complaint(capsys, [*out, "--device", "gpu"])
    missing = complaint(capsys, [*out, "--device", "cuda:63"])
    assert "--device cuda:63: PyTorch" in missing
    assert "number 63 is asked for" in missing
    if not torch.backends.mps.is_available():
        assert "no Apple GPU" in complaint(capsys, [*out, "--device", "mps"])
    nowhere = ["--out", str(tmp_path / "new" / "run"), *flags, "--data", str(tmp_path / "nowhere")]
    assert str(tmp_path / "nowhere") in complaint(capsys, nowhere)
    assert not (tmp_path / "new").exists()
    large = [*out, "--set", "training.batch_size=100000000"]
    assert "lower training.batch_size" in complaint(capsys, large)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_out_of_memory_is_one_line_and_leaves_the_save(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path), "--device", "cpu"]
    assert run(train.main, [*out, *flags]) == 0
    save = (tmp_path / checkpoint.LAST).read_bytes()
    huge = ["training.batch_size=6000", "training.memory_gb=100000", "training.max_steps=8"]
    sets = [word for setting in huge for word in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, "400000000", *out, "--resume", *sets],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "memory" in line]
    assert "out of memory: lower training.batch_size from 6000 and raise" in line
    assert "training.grad_accum_steps from 1 as much, or lower data.sequence_length from 32" in line
    assert "or set training.gradient_checkpointing=true, or set training.precision=bf16" in line
    assert f"the last save in {tmp_path} is whole, go on with --resume." in line
    assert (tmp_path / checkpoint.LAST).read_bytes() == save


@pytest.mark.parametrize(
    ("model", "settings", "named"),
    [
        ("midi_generator", ["training.precision=bf16"], "or lower data.sequence_length from 1024"),
        ("spectocloud", ["training.batch_size=2"], "set training.gradient_checkpointing=true"),
        ("emotion_recognizer", [], "or set training.precision=bf16."),
    ],
)
def test_the_advice_names_what_helps(
    model: str, settings: list[str], named: str, tmp_path: Path
) -> None:
    config = load_config(model, [], settings)

    def fails(error: BaseException) -> Callable[[], Any]:
        def work() -> None:
            with memory_advice(config, tmp_path):
                raise error

        return work

    for error in (torch.OutOfMemoryError("CUDA out of memory."), MemoryError()):
        with pytest.raises(KmidiError, match=r"^out of memory: ") as caught:
            fails(error)()
        assert named in str(caught.value)
        assert ("gradient_checkpointing" in str(caught.value)) == (model != "emotion_recognizer")
    with pytest.raises(RuntimeError, match="shapes differ"):
        fails(RuntimeError("shapes differ"))()
