"""`python -m kmidi_torch.finetune` answers as `kmidi finetune` does; killed, another goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx import checkpoint
from kmidi_mlx import finetune as ours
from kmidi_mlx import generate as our_generate
from kmidi_mlx.command import run
from kmidi_torch import finetune as theirs
from kmidi_torch import generate as their_generate
from kmidi_torch.training.device import DeviceOptions

Captured = pytest.CaptureFixture[str]

QUICK = [
    "training.epochs=4",
    "training.min_epochs=0",
    "training.patience=0",
    "training.save_epochs=1",
    "training.grad_accum_steps=2",
    "optimizer.learning_rate=5e-3",
    "optimizer.warmup_epochs=1",
    "training.sample_seconds=0",
    "adapter.rank=4",
]
SETS = [word for setting in QUICK for word in ("--set", setting)]
WITHOUT = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from kmidi_mlx.command import run
from kmidi_torch.finetune import main
sys.exit(run(main, sys.argv[2:]))
"""


def complaint(capsys: Captured, arguments: list[str]) -> str:
    capsys.readouterr()
    assert run(theirs.main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    complaints = [line for line in captured.err.splitlines() if line.startswith("kmidi finetune: ")]
    assert len(complaints) == 1, captured.err
    return complaints[0].removeprefix("kmidi finetune: ")


def test_own_music_becomes_an_adapter_that_both_play(
    base: Path, tunes: Path, tmp_path: Path, capsys: Captured
) -> None:
    flags = ["--base", str(base), "--data", str(tunes), "--device", "cpu", *SETS]
    assert run(theirs.main, [*flags, "--fuse"]) == 0
    out, said = base / "adapters" / "tunes", capsys.readouterr()
    assert "3 to learn from, 1 held out" in said.err
    assert " of them are trained (" in said.err
    assert f"hear it: python -m kmidi_torch.generate --checkpoint {base} --adapter tunes:1.0" in (
        said.out
    )
    memory = json.loads((out / "finetune.json").read_text())
    assert memory["after"]["own"] < memory["before"]["own"] - 0.05
    assert f"own music {memory['before']['own']:.3f} -> {memory['after']['own']:.3f}" in said.out
    arrays, metadata = checkpoint.load_arrays(out / checkpoint.ADAPTER)
    assert {name.rpartition(".")[2] for name in arrays} == {"lora_a", "lora_b"}
    assert metadata["base"]["name"] == "base"

    pieces = []
    fused = ["--checkpoint", str(out / "fused")]
    adapted = ["--checkpoint", str(base), "--adapter", "tunes"]
    for command in (our_generate.main, their_generate.main):
        for model in (adapted, fused, adapted[:2]):
            piece = tmp_path / f"{len(pieces)}.mid"
            asked = ["--seconds", "3", "--seed", "2", "--out", str(piece)]
            assert run(command, [*model, *asked]) == 0
            pieces.append(piece.read_bytes())
    assert pieces[:3] == pieces[3:]
    assert pieces[0] == pieces[1] != pieces[2]

    capsys.readouterr()
    whole = ["--name", "all", "--set", "adapter.method=full", "--set", "training.epochs=1"]
    assert run(theirs.main, [*flags, *whole, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] == str(base.parent / "base-all" / checkpoint.BEST)
    shapes = [
        {name: value.shape for name, value in checkpoint.load_arrays(path)[0].items()}
        for path in (base / checkpoint.BEST, Path(result["weights"]))
    ]
    assert shapes[0] == shapes[1]


def test_what_one_framework_was_killed_in_the_other_ends(
    base: Path, tunes: Path, capsys: Captured
) -> None:
    def flags(name: str) -> list[str]:
        return ["--base", str(base), "--data", str(tunes), "--name", name, "--json", *SETS]

    cut = base / "adapters" / "cut"
    command = [sys.executable, "-m", "kmidi_torch.finetune", "--device", "cpu", *flags("cut")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (cut / checkpoint.LAST).exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == -signal.SIGKILL, errors

    results: list[dict[str, Any]] = []
    resumed = ["--out", str(cut), "--resume", "--json"]
    for main, arguments in ((ours.main, resumed), (ours.main, flags("whole"))):
        capsys.readouterr()
        assert run(main, arguments) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["step"] == results[1]["step"]
    for when in ("before", "after"):
        one, two = (result["memory"][when]["own"] for result in results)
        assert one == pytest.approx(two, abs=1e-3)
    one, two = (
        checkpoint.load_arrays(base / "adapters" / name / checkpoint.ADAPTER)[0]
        for name in ("cut", "whole")
    )
    assert one.keys() == two.keys()
    assert max(float(np.abs(one[name] - two[name]).max()) for name in one) < 1e-4


def test_what_is_wrong_is_said_in_a_sentence(base: Path, tunes: Path, capsys: Captured) -> None:
    given = ["--base", str(base), "--data", str(tunes), *SETS]

    def say(*arguments: str) -> str:
        return complaint(capsys, [*given, *arguments])

    assert "a name is that of a folder" in say("--name", "a/b")
    assert "holds no run to resume" in say("--resume")
    assert "--device 'gpu' is unknown" in say("--device", "gpu")
    assert "rank 900 does not suit" in say("--set", "adapter.rank=900", "--device", "cpu")
    assert "base_bits: 5 is none of" in say("--set", "adapter.base_bits=5")
    assert "--fuse: full fine-tuning leaves" in say("--fuse", "--set", "adapter.method=full")
    assert not list((base / "adapters").rglob(checkpoint.ADAPTER))


def test_the_device_is_asked_for_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(theirs, "_finetune", lambda args, options: asked.append(options) or 0)
    flags = ["--device", "mps", "--no-compile", "--deterministic", "--tf32"]
    assert run(theirs.main, flags) == 0
    assert asked == [DeviceOptions("mps", False, True, True)]


@pytest.mark.parametrize(
    ("blocked", "flags", "status"),
    [("torch", ["--help-config"], 0), ("torch", ["--devise"], 2), ("mlx", ["--data", "x"], 2)],
)
def test_it_needs_only_what_it_uses(blocked: str, flags: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, blocked, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "not installed" not in done.stderr
