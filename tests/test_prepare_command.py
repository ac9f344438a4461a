from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kmidi_mlx.command import run
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.prepare import main


def test_synthetic_music_is_prepared_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run(main, ["midi", "--synthetic", "4", "--out", out, "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "4 files: 4 read, 0 as before" in text
    assert "4 given" in text
    assert f"ready: {out}" in text
    options = ["--synthetic", "4", "--out", out, "--licence", "mine", "--json"]
    assert run(main, ["midi", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prepared"], report["reused"], report["complete"]) == (0, 4, True)
    assert report["summary"]["licences"] == ["generated, free to use", "mine"]
    assert len(ShardReader(out)) == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["midi", "--out", "{tmp}/o"], "nothing to prepare"),
        (["midi", "{tmp}/nowhere", "--out", "{tmp}/o"], "nowhere does not exist"),
        (["midi", "--synthetic", "-1", "--out", "{tmp}/o"], "synthetic has to be >= 0"),
        (["midi", "--synthetic", "2", "--out", "{tmp}/file/o"], "cannot write"),
        (["midi", "--sythetic", "2", "--out", "{tmp}/o"], "--synthetic"),
        (["mide"], "midi"),
        ([], "KIND"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(main, [argument.format(tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("kmidi prepare: ")
    assert says in error


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(main, ["midi", "--synthetic", "80", "--out", str(tmp_path / "made")]) == 0
    command = [sys.executable, "-m", "kmidi_mlx.prepare", "midi", str(tmp_path / "made/synthetic")]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (out / ".lock").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in error
    assert "Traceback" not in error
    assert run(main, [*command[3:], "--out", str(out)]) == 0
    assert len(ShardReader(out)) == 80
