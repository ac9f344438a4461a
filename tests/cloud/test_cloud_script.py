"""The script that rented machines run: it trains, keeps, goes on elsewhere, exports, and stops."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from kmidi_mlx import checkpoint
from tests.cloud.rented import Machine

MODELS = ("midi_generator", "spectocloud")


def _wait_for(path: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def _steps(folder: Path) -> list[int]:
    lines = (folder / checkpoint.METRICS).read_text("utf-8").splitlines()
    return [entry["step"] for line in lines if "loss" in (entry := json.loads(line))]


@pytest.mark.parametrize(
    ("targets", "exports"),
    [
        ("", []),
        pytest.param("onnx coreml", ["best.onnx", "best.mlpackage"], marks=pytest.mark.slow),
    ],
)
def test_a_machine_is_taken_away_and_another_one_ends_the_work(
    targets: str, exports: list[str], tmp_path: Path, tiny_task: dict[str, str]
) -> None:
    bucket = tmp_path / "bucket" / "kept"
    longer = " --set training.max_steps=30 --set training.save_every=5 --set training.log_every=1"
    task = tiny_task | {
        "KMIDI_KEEP": str(bucket),
        "KMIDI_EXPORTS": targets,
        "KMIDI_MIDI_FLAGS": tiny_task["KMIDI_MIDI_FLAGS"] + longer,
    }
    first = Machine(tmp_path / "first", task)
    process = first.start()
    _wait_for(bucket / "midi_generator" / checkpoint.LAST)
    first.take_away(process)
    assert not (bucket / "midi_generator" / "done.txt").exists()
    kept = checkpoint.load_arrays(bucket / "midi_generator" / checkpoint.LAST)[1]

    # what the first machine had on its disk is lost; its successor has the bucket alone, and cannot
    # mount it
    shutil.copytree(tiny_task["KMIDI_CLOUD_DATA"], tmp_path / "bucket" / "data" / "clouds")
    data = {"KMIDI_CLOUD_DATA": "s3://bucket/data/clouds"}
    second = Machine(tmp_path / "second", task | data | {"KMIDI_KEEP": "s3://bucket/kept"})
    assert second.run() == 0, second.said()
    assert "midi_generator: brought back from s3://bucket/kept" in second.said()
    assert "spectocloud: brought back" not in second.said()
    assert 0 < kept["progression"]["step"] < 30
    assert _steps(second.out / "midi_generator") == list(range(1, 31))
    for model in MODELS:
        here, there = second.out / model, bucket / model
        written = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
        assert {Path(name) for name in (checkpoint.BEST, checkpoint.LAST)} <= set(written)
        assert all((here / name).exists() for name in exports)
        for name in written:
            if name.name != checkpoint.LOCK:
                assert (there / name).read_bytes() == (here / name).read_bytes(), (model, name)
        done = (here / "done.txt").read_text("utf-8").splitlines()
        assert [line.split()[0] for line in done] == ["train", *targets.split()]

    # all is done: neither here nor on a third machine does a start change a byte
    before = {path: path.read_bytes() for path in bucket.rglob("*") if path.is_file()}
    third = Machine(tmp_path / "third", task | data)
    for machine in (second, third):
        assert machine.run() == 0, machine.said()
        for model in MODELS:
            assert f"{model}: already trained" in machine.said()
            for target in targets.split():
                assert f"{model}: already exported to {target}" in machine.said()
    assert "training, GPUs" not in third.said()
    assert before == {path: path.read_bytes() for path in bucket.rglob("*") if path.is_file()}


def test_an_export_that_fails_is_named_and_the_others_are_kept(
    tmp_path: Path, tiny_task: dict[str, str]
) -> None:
    changed = {"KMIDI_MODELS": "spectocloud", "KMIDI_EXPORTS": "pt3 pt2", "KMIDI_KEEP": "~/kept"}
    machine = Machine(tmp_path / "machine", tiny_task | changed)
    assert machine.run() == 1
    assert "train_both: not exported: spectocloud to pt3; what was trained" in machine.said()
    kept = tmp_path / "machine" / "kept" / "spectocloud"
    assert (kept / "best.pt2").exists()
    done = (kept / "done.txt").read_text("utf-8").splitlines()
    assert [line.split()[0] for line in done] == ["train", "pt2"]


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(
    tmp_path: Path, tiny_task: dict[str, str]
) -> None:
    steps = " --set training.max_steps=40 --set training.save_every=1000"
    task = tiny_task | {
        "KMIDI_MODELS": "midi_generator",
        "KMIDI_EXPORTS": "",
        "KMIDI_MIDI_FLAGS": tiny_task["KMIDI_MIDI_FLAGS"] + steps,
    }
    whole = Machine(tmp_path / "whole", task)
    assert whole.run() == 0, whole.said()

    halved = Machine(tmp_path / "halved", task)
    process = halved.start()
    _wait_for(halved.out / "midi_generator" / checkpoint.METRICS)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130, halved.said()
    saved = checkpoint.load_arrays(halved.out / "midi_generator" / checkpoint.LAST)[1]
    assert saved["progression"]["step"] < 40
    assert halved.run() == 0, halved.said()
    ends = [
        checkpoint.load_arrays(machine.out / "midi_generator" / checkpoint.LAST)[0]
        for machine in (whole, halved)
    ]
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value, ends[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("changed", "status", "said"),
    [
        ({"KMIDI_MODELS": "spectoclown"}, 2, "KMIDI_MODELS: spectoclown is not trained here"),
        ({"KMIDI_MIDI_DATA": "~/nowhere"}, 2, "/machine/nowhere"),
        ({"KMIDI_KEEP": "/dev/null/kept"}, 1, "could not keep the checkpoints in /dev/null/kept"),
    ],
)
def test_what_is_wrong_is_said(
    changed: dict[str, str], status: int, said: str, tmp_path: Path, tiny_task: dict[str, str]
) -> None:
    task = tiny_task | {"KMIDI_EXPORTS": "", "KMIDI_MODELS": "midi_generator"} | changed
    machine = Machine(tmp_path / "machine", task)
    assert machine.run() == status, machine.said()
    assert said in machine.said()
