from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kmidi_mlx import checkpoint, train
from kmidi_mlx.command import run
from kmidi_mlx.config_file import load_config

Captured = pytest.CaptureFixture[str]

FULL_DISK = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.execv(sys.executable, [sys.executable, "-m", "kmidi_mlx.train", *sys.argv[2:]])
"""


@pytest.fixture
def flags(tiny_settings: list[str]) -> list[str]:
    return [word for setting in tiny_settings for word in ("--set", setting)]


def complaint(capsys: Captured, arguments: list[str]) -> str:
    """Run a command that has to fail and return its one line."""
    assert run(train.main, arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("kmidi train: ")
    return lines[0]


def test_training_makes_a_checkpoint_folder(
    tmp_path: Path, flags: list[str], practice_data: Path, capsys: Captured
) -> None:
    out = tmp_path / "a" / "run"
    assert run(train.main, ["--out", str(out), *flags]) == 0
    captured = capsys.readouterr()
    assert "finished at step 20 after " in captured.out
    assert f"weights: {out / 'best.safetensors'}" in captured.out
    assert "note: trained on synthetic practice music" in captured.out
    assert "go on with" not in captured.out
    assert "train: 20/20 steps" in captured.err
    assert {item.name for item in out.iterdir()} == {
        ".lock", "best.safetensors", "config.yaml", "last", "metrics.jsonl"
    }  # fmt: skip
    config = load_config("midi_generator", [out / checkpoint.CONFIG])
    assert config.data.path == str(practice_data)
    assert config.training.max_steps == 20


def test_json_is_all_there_is_on_stdout(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    assert run(train.main, ["--json", "--out", str(tmp_path / "run"), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["reason"] == "finished"
    assert result["step"] == 20
    assert 0 < result["val_loss"] < 6.5
    assert result["best_step"] in (10, 20)
    assert result["tokens"] > 500
    assert result["skipped_steps"] == 0
    assert result["synthetic"] is True
    assert result["checkpoint"] == str(tmp_path / "run" / "best.safetensors")


def test_data_and_config_and_set_in_their_order(
    tmp_path: Path, flags: list[str], practice_data: Path, capsys: Captured
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("name: midi_generator\ntraining:\n  max_steps: 3\n  batch_size: 1\n")
    arguments = ["--config", str(file), "--out", str(tmp_path / "run"), *flags]
    arguments += ["--set", "data.path=nowhere", "--data", str(practice_data)]
    arguments += ["--set", "training.max_steps=2", "--json"]
    assert run(train.main, arguments) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_help_config_lists_every_option(capsys: Captured) -> None:
    assert run(train.main, ["--help-config"]) == 0
    out = capsys.readouterr().out
    for option in ("training.batch_size", "model.hidden_dim", "sampling.top_p", "data.path"):
        assert option in out
    assert "passes over the data at the most" in out


# --- wrong use -----------------------------------------------------------------------------------


def test_wrong_flags_answer_with_the_nearest_right_one(tmp_path: Path, capsys: Captured) -> None:
    assert "did you mean --resume?" in complaint(capsys, ["--resum"])
    assert "did you mean midi_generator?" in complaint(capsys, ["--model", "midi_generater"])
    unknown = ["--out", str(tmp_path), "--set", "training.batchsize=3"]
    assert "did you mean training.batch_size?" in complaint(capsys, unknown)
    wrong = ["--out", str(tmp_path), "--set", "training.batch_size=0"]
    assert "training.batch_size: 0 is below the smallest" in complaint(capsys, wrong)
    assert "missing.yaml" in complaint(
        capsys, ["--out", str(tmp_path), "--config", str(tmp_path / "missing.yaml")]
    )


def test_a_missing_data_folder_is_named(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    arguments = ["--out", str(tmp_path / "run"), *flags, "--data", str(tmp_path / "nowhere")]
    line = complaint(capsys, arguments)
    assert str(tmp_path / "nowhere") in line
    # and nothing is in the way of another try
    assert not (tmp_path / "run").exists()
    assert "holds no run" in complaint(capsys, ["--out", str(tmp_path / "run"), "--resume"])


def test_a_folder_that_is_no_data_set_is_named(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    (tmp_path / "music").mkdir()
    (tmp_path / "music" / "song.mid").write_bytes(b"MThd")
    arguments = ["--out", str(tmp_path / "run"), *flags, "--data", str(tmp_path / "music")]
    assert str(tmp_path / "music") in complaint(capsys, arguments)


def test_an_existing_run_is_never_overwritten(
    tiny_run: Path, flags: list[str], capsys: Captured
) -> None:
    before = {item: item.read_bytes() for item in tiny_run.rglob("*") if item.is_file()}
    line = complaint(capsys, ["--out", str(tiny_run), *flags])
    assert f"{tiny_run} already holds a run; use --resume" in line
    assert before == {item: item.read_bytes() for item in tiny_run.rglob("*") if item.is_file()}


def test_there_has_to_be_a_run_to_resume(tmp_path: Path, capsys: Captured) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        line = complaint(capsys, ["--out", str(folder), "--resume"])
        assert f"{folder} holds no run to resume; leave out --resume" in line


def test_a_copied_run_needs_its_configuration(
    tmp_path: Path, tiny_run: Path, capsys: Captured
) -> None:
    shutil.copytree(tiny_run / "last", tmp_path / "last")
    line = complaint(capsys, ["--out", str(tmp_path), "--resume"])
    assert f"{tmp_path} holds a run without its config.yaml; copy that file too" in line


def test_a_folder_in_use_is_refused(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    with checkpoint.exclusive(tmp_path):
        assert "another run is training into" in complaint(capsys, ["--out", str(tmp_path), *flags])


def test_a_resume_with_another_model_is_refused(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert run(train.main, [*out, *flags, "--set", "training.max_steps=1"]) == 0
    capsys.readouterr()
    line = complaint(capsys, [*out, "--resume", "--set", "model.num_layers=1"])
    assert "model.num_layers is 2 in the run" in line
    assert "cannot become 1 on --resume" in line
    # the run is as it was
    config = load_config("midi_generator", [tmp_path / "run" / checkpoint.CONFIG])
    assert config.model.num_layers == 2
    assert run(train.main, [*out, "--resume"]) == 0


def test_a_damaged_save_is_named(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    out = ["--out", str(tmp_path)]
    assert run(train.main, [*out, *flags, "--set", "training.max_steps=1"]) == 0
    capsys.readouterr()
    save = tmp_path / checkpoint.LAST
    save.write_bytes(save.read_bytes()[:5000])
    assert f"{save} is not a readable safetensors file" in complaint(capsys, [*out, "--resume"])


# --- going on ------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_settings_and_takes_new_ones(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path), "--json"]
    assert run(train.main, [*out, *flags, "--set", "training.max_steps=4"]) == 0
    assert run(train.main, [*out, "--resume", "--set", "training.max_steps=6"]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["step"] for result in results] == [4, 6]
    config = load_config("midi_generator", [tmp_path / checkpoint.CONFIG])
    assert config.training.max_steps == 6
    assert config.training.batch_size == 2


def test_a_time_limit_says_how_to_go_on_and_that_works(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path)]
    assert run(train.main, [*out, *flags, "--set", "training.max_minutes=1e-6"]) == 0
    captured = capsys.readouterr().out
    assert "stopped at the time limit training.max_minutes" in captured
    advice = f"go on with: kmidi train --model midi_generator --out {tmp_path} --resume"
    assert f"{advice} --set training.max_minutes=0\n" in captured
    arguments = [*out, "--resume", "--set", "training.max_minutes=0", "--json"]
    assert run(train.main, arguments) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 20


def test_a_run_cut_short_before_its_first_save_starts_over_with_resume(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path), "--json"]
    assert run(train.main, [*out, *flags]) == 0
    whole = checkpoint.load_arrays(tmp_path / checkpoint.BEST)[0]
    lines = (tmp_path / checkpoint.METRICS).read_text().count("\n")
    # as a kill between the first evaluation and the first save leaves it
    (tmp_path / checkpoint.LAST).unlink()
    assert run(train.main, [*out, "--resume"]) == 0
    again = checkpoint.load_arrays(tmp_path / checkpoint.BEST)[0]
    assert all(again[name].tobytes() == whole[name].tobytes() for name in whole)
    assert (tmp_path / checkpoint.METRICS).read_text().count("\n") == lines


def test_a_disk_that_fills_up_is_one_line_and_leaves_a_run_to_resume(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out = ["--out", str(tmp_path)]
    assert run(train.main, [*out, *flags, "--set", "training.max_steps=5"]) == 0
    save, best = tmp_path / checkpoint.LAST, tmp_path / checkpoint.BEST
    before = save.read_bytes()
    assert best.stat().st_size < 1_000_000 < save.stat().st_size
    more = ["--resume", "--set", "training.max_steps=12"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "1000000", *out, *more],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("kmidi train: ")]
    assert len(errors) == 1
    assert f"cannot write {save}" in errors[0]
    assert "Traceback" not in done.stderr
    assert save.read_bytes() == before
    assert [item.name for item in save.parent.iterdir()] == ["state.safetensors"]
    capsys.readouterr()
    assert run(train.main, [*out, *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 12


def test_metrics_that_cannot_be_written_stop_nothing(
    tmp_path: Path, flags: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kmidi_mlx.runs.tracker import JsonLinesTracker

    log = JsonLinesTracker.log

    def on_a_full_disk(self: JsonLinesTracker, step: int, values: dict[str, object]) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            log(self, step, values)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(JsonLinesTracker, "log", on_a_full_disk)
    assert run(train.main, ["--out", str(tmp_path), *flags]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("JsonLinesTracker failed at step 5") == 1
    assert captured.err.count("JsonLinesTracker failed") == 1
    assert "finished at step 20" in captured.out
    lines = [json.loads(line) for line in (tmp_path / checkpoint.METRICS).read_text().splitlines()]
    assert all("loss" not in line for line in lines)  # what had no room is not there by half


def test_no_thread_is_left_running(tmp_path: Path, flags: list[str]) -> None:
    before = threading.active_count()
    assert run(train.main, ["--out", str(tmp_path), *flags]) == 0
    assert threading.active_count() == before


def test_a_run_that_would_end_in_its_warm_up_says_so(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    few = ["--set", "training.max_steps=2", "--json"]
    for number, (warmup, hinted) in enumerate((("1", False), ("50", True))):
        out = ["--out", str(tmp_path / str(number)), "--set", f"optimizer.warmup_steps={warmup}"]
        assert run(train.main, [*flags, *few, *out]) == 0
        assert ("has 2 steps and warms up for 50" in capsys.readouterr().err) is hinted
