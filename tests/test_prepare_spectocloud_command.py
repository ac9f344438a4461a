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
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.prepare import main


def test_practice_pieces_become_clouds_and_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = ["spectocloud", "--synthetic", "2", "--out", out, "--samples", "2"]
    assert run(main, [*command, "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "2 files: 2 read, 0 as before" in captured.out
    assert "4 samples in" in captured.out
    assert f"ready: {out}" in captured.out
    assert "samples 4" in captured.err
    assert run(main, [*command, "--licence", "mine", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prepared"], report["reused"], report["complete"]) == (0, 2, True)
    assert report["summary"]["licences"] == ["generated, free to use", "mine"]
    assert report["summary"]["synthetic"] is True
    reader = CloudReader(out)
    assert len(reader.split("train")) == len(reader.split("val")) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "{tmp}/o"], "nothing to prepare"),
        (["{tmp}/nowhere", "--out", "{tmp}/o"], "nowhere does not exist"),
        (["{tmp}/empty", "--out", "{tmp}/o"], "has no .mid"),
        (["--synthetic", "1", "--samples", "3", "--out", "{tmp}/o"], "--samples 3"),
        (["--synthetic", "1", "--emotion", "vareid", "--out", "{tmp}/o"], "did you mean varied?"),
        (["{tmp}/text.txt", "--out", "{tmp}/o"], "nor a MIDI or sound file"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    given = ["spectocloud", *(argument.format(tmp=tmp_path) for argument in arguments)]
    assert run(main, given) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("kmidi prepare: ")
    assert says in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_keeps_its_songs(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    arguments = ["spectocloud", "--synthetic", "5", "--out", str(out), "--samples", "2"]
    command = [sys.executable, "-m", "kmidi_mlx.prepare", *arguments, "--workers", "1"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    while not list(out.glob(".songs/[0-9a-f]*.npz")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "of 5 files; the same command goes on from there" in error
    kept = len(list(out.glob(".songs/[0-9a-f]*.npz")))
    assert 1 <= kept < 5
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (report["reused"], report["prepared"]) == (kept, 5 - kept)
    assert len(CloudReader(out)) == 5


def test_help_names_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out.split("\n\n")[0]
    assert "kmidi prepare midi [-h] --out DIR" in text
    assert "kmidi prepare spectocloud [-h] --out DIR" in text
