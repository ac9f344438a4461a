from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from kmidi_mlx import checkpoint, train
from kmidi_mlx.command import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def flags(tiny_settings: list[str]) -> list[str]:
    words = [word for setting in tiny_settings for word in ("--set", setting)]
    return [*words, "--set", "training.sample_seconds=3"]


def test_a_run_in_tensorboard_and_its_resume(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    alone, out = tmp_path / "alone", tmp_path / "run"
    assert run(train.main, ["--out", str(alone), *flags]) == 0
    tracked = ["--tracker", "tensorboard"]
    short = ["--set", "training.max_minutes=1e-6"]  # one step, then the limit
    assert run(train.main, ["--out", str(out), *flags, *tracked, *short]) == 0
    captured = capsys.readouterr()
    assert f"tensorboard --logdir {out}" in captured.err
    assert "--resume --set training.max_minutes=0 --tracker tensorboard" in captured.out
    more = ["--resume", "--set", "training.max_minutes=0", *tracked]
    assert run(train.main, ["--out", str(out), *more]) == 0
    assert "may lack lines" not in capsys.readouterr().err
    reader = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in reader.Scalars("train/loss")] == [5, 10, 15, 20]
    judged = [event.step for event in reader.Scalars("val/loss")]
    assert judged[-2:] == [10, 20]
    assert reader.Images("samples/picture")[-1].step == 20
    assert reader.Tensors("samples/sound")[-1].step == 20
    lines = [json.loads(line) for line in (out / checkpoint.METRICS).read_text().splitlines()]
    told = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert {event.step: event.value for event in reader.Scalars("train/loss")} == {
        step: pytest.approx(loss, rel=1e-6) for step, loss in told.items()
    }
    one, two = (checkpoint.load_arrays(folder / checkpoint.LAST)[0] for folder in (alone, out))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_told_before_anything_is_made(
    tmp_path: Path, flags: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    out = tmp_path / "run"
    assert run(train.main, ["--out", str(out), *flags, "--tracker", name]) == 2
    complaint = f"--tracker {name} needs a package that is not installed: pip install {name}."
    assert capsys.readouterr().err == f"kmidi train: {complaint}\n"
    assert not out.exists()


def test_an_unknown_tracker_is_named(tmp_path: Path, capsys: Captured) -> None:
    assert run(train.main, ["--tracker", "tensorbord"]) == 2
    assert "did you mean tensorboard?" in capsys.readouterr().err
