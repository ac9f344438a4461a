"""The workflow as people start it: shown, done, done again, cut off, and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmidi_mlx.command import run
from kmidi_mlx.config_file import load_sections
from kmidi_mlx.workflow.__main__ import main
from kmidi_mlx.workflow.config import WorkflowConfig
from kmidi_mlx.workflow.curves import draw_curves, read_losses
from kmidi_mlx.workflow.steps import steps_of

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "mlx_workflow_tiny.yaml"
ASSETS = ROOT / "kmidi_mlx" / "assets" / "pop909"
QUICK = [
    *("--set", f"prepare.midi=[{ASSETS}/manifest.jsonl]", "--set", "bench.seconds=0"),
    *("--set", "export.targets=[]"),
]


def settings(out: Path) -> list[str]:
    return ["--config", str(TINY), *QUICK, "--out", str(out)]


def test_both_configurations_are_whole(tmp_path: Path) -> None:
    for name in ("mlx_workflow.yaml", "mlx_workflow_tiny.yaml"):
        config = load_sections(WorkflowConfig, [ROOT / "configs" / name])
        assert config.prepare.midi
    names = [step.name for step in steps_of(load_sections(WorkflowConfig, [TINY]))]
    assert names == [
        *("prepare-midi", "prepare-spectocloud", "train-midi_generator", "train-spectocloud"),
        *("evaluate-midi_generator", "evaluate-spectocloud"),
        *("finetune-midi_generator", "finetune-spectocloud", "pieces"),
        *("quantize-midi_generator", "quantize-spectocloud", "export-onnx", "export-coreml"),
        "bench",
    ]


def test_a_dry_run_shows_commands_and_does_nothing(tmp_path: Path, capsys: Captured) -> None:
    assert run(main, [*settings(tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "prepare-midi: to do\n    python -m kmidi_mlx.prepare midi " in said
    assert "finetune-spectocloud: left out: no music of your own" in said
    assert not (tmp_path / "out").exists()
    assert run(main, [*settings(tmp_path / "out"), "--dry-run", "--from", "pieces"]) == 0
    assert "prepare" not in capsys.readouterr().out.partition("pieces")[0]


def test_steps_are_done_once_and_reported(tmp_path: Path, capfd: Captured) -> None:
    out = tmp_path / "out"
    small = [
        *("training.max_steps=2", "training.eval_batches=1", "training.sample_seconds=0"),
        *("model.hidden_dim=64", "model.num_heads=1", "model.num_layers=1"),
        *("model.cross_attention_layers=[0]", "data.sequence_length=32", "training.batch_size=2"),
    ]
    arguments = [*settings(out), "--set", f"midi_generator.set={json.dumps(small)}"]
    chosen = ["--only", "prepare-midi", "--only", "train-midi_generator"]
    assert run(main, [*arguments, *chosen]) == 0
    first = capfd.readouterr()
    assert "train-midi_generator: done in" in first.err
    assert f"report: {out / 'report.md'}" in first.out
    assert run(main, [*arguments, *chosen]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "prepare-midi: done already",
        "train-midi_generator: done already",
    ]
    report = (out / "report.md").read_text()
    assert "| train-midi_generator | done | " in report
    assert "| evaluate-midi_generator | not done |" in report
    assert "2 steps in " in report
    assert "![losses of midi_generator](pictures/midi_generator.svg)" in report
    assert "<svg" in (out / "pictures" / "midi_generator.svg").read_text()
    # what a step needs has to be there
    assert run(main, [*arguments, "--only", "evaluate-spectocloud"]) == 2
    assert "evaluate-spectocloud needs train-spectocloud" in capfd.readouterr().err


def test_a_step_that_fails_says_how_to_repeat_it(tmp_path: Path, capfd: Captured) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.mid").write_bytes(b"no music")
    arguments = [*settings(tmp_path / "out"), "--set", f"prepare.midi=[{empty}]"]
    assert run(main, arguments) == 1
    said = capfd.readouterr().err
    assert "prepare-midi failed with status 2; what it said is above. Repeat it with:" in said
    assert f"    python -m kmidi_mlx.prepare midi {empty} --out" in said
    assert "then go on with:\n    kmidi workflow --config" in said
    assert "| prepare-midi | cut off or failed |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--only", "finetun"],
            "no step is called 'finetun'; did you mean finetune-midi_generator or "
            "finetune-spectocloud?",
        ),
        (["--only", "dance"], "no step is called 'dance'; there are prepare-midi, "),
        (["--from", "benc"], "no step is called 'benc'"),
        (["--set", "prepare.midi=[]"], "prepare.midi names no music"),
        (["--set", "workflow.memory_gb=0"], "memory_gb"),
        (["--set", "quantize.bits=5"], "bits: 5 is none of 0, 4, 6, 8"),
        (["--set", "export.targets=[tflite]"], "'tflite' is not one of onnx, coreml"),
        (["--set", "finetune.midi=here"], "give a folder in midi, or practice pieces, not both"),
        (["--set", "midi_generator.set=[model.size=1]"], "model.size"),
        (["--set", "prepare.midi=[nowhere]"], "nowhere does not exist"),
        (["--only", "evaluate-spectocloud"], "evaluate-spectocloud needs train-spectocloud"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: Captured
) -> None:
    assert run(main, [*settings(tmp_path / "out"), *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kmidi_mlx.workflow", *settings(out)]
    chosen = ["--only", "prepare-midi", "--only", "train-midi_generator"]
    process = subprocess.Popen(
        [*command, *chosen], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    metrics = out / "midi_generator" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted in train-midi_generator; go on with: kmidi workflow" in errors
    assert "Traceback" not in errors
    done = json.loads((out / "workflow.json").read_text())["train-midi_generator"]
    assert done["begun"] != done["done"] == ""
    assert not _children_of(process.pid)
    again = [*command, *chosen, "--dry-run"]
    shown = subprocess.run(again, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "prepare-midi: done already" in shown
    go_on = next(line for line in shown.splitlines() if "kmidi_mlx.train" in line)
    assert go_on.endswith(f" --out {out / 'midi_generator'} --resume")


def test_killed_it_leaves_no_run_behind_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = ["--only", "prepare-midi", "--only", "train-midi_generator"]
    command = [sys.executable, "-m", "kmidi_mlx.workflow", *settings(out), *chosen]
    metrics = out / "midi_generator" / "metrics.jsonl"
    saved = out / "midi_generator" / "last" / "state.safetensors"

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT
        )

    def wait_for_metrics(process: subprocess.Popen[str], steps: int) -> None:
        while process.poll() is None and len(read_steps(metrics)) <= steps:
            time.sleep(0.01)
        assert process.poll() is None

    first = begin()
    wait_for_metrics(first, 0)
    assert len(_children_of(first.pid)) == 1
    first.kill()
    first.communicate(timeout=120)  # the run holds its stderr until it has saved and ended
    assert saved.exists()
    steps = len(read_steps(metrics))
    second = begin()
    wait_for_metrics(second, steps)
    second.send_signal(signal.SIGINT)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 130, errors
    assert "another run" not in errors
    seen = read_steps(metrics)
    assert len(seen) > steps
    assert seen == sorted(set(seen))


def read_steps(metrics: Path) -> list[int]:
    """The steps whose training loss is written down."""
    if not metrics.exists():
        return []
    rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    return [row["step"] for row in rows if "loss" in row]


def _children_of(pid: int) -> list[str]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def test_curves_leave_out_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss": 4.0}\n{"step": 20, "loss": null}\n{"step": 20, "val_loss": 3.5}\n{"st'
    )
    losses = read_losses(path)
    assert losses == {"training": [(10, 4.0)], "held out": [(20, 3.5)]}
    drawn = draw_curves(losses, "a", "nats")
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 1
    assert draw_curves({"training": [], "held out": []}, "a", "nats") == ""
    assert read_losses(tmp_path / "none") == {"training": [], "held out": []}


@pytest.mark.slow
def test_the_tiny_workflow_from_beginning_to_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "kmidi_mlx.workflow", "--config", str(TINY),
               "--set", f"workflow.out={out}"]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert time.monotonic() - began < 900
    report = (out / "report.md").read_text()
    assert "not done" not in report
    assert "failed" not in report


def test_benches_are_run_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    plan = ["--config", str(TINY), "--out", str(tmp_path / "out"), "--only", "bench", "--dry-run"]
    monkeypatch.chdir(ROOT)
    assert run(main, plan) == 0
    assert "bench: to do\n    python -m bench.live --seconds" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert run(main, plan) == 0
    assert "bench: left out: benches are run from a copy" in capsys.readouterr().out
