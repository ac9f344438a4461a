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
        (["midi", "--synthetic", "-1", "--out", "{tmp}/o"], "--synthetic -1 has to be at least 0"),
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
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("kmidi prepare: ")
    assert says in error


def test_help_shows_how_music_is_prepared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: kmidi prepare midi [-h] --out DIR")
    assert "[SRC ...]" in text.split("\n\n")[0]


def test_one_song_and_forgotten_sources_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, out = tmp_path / "made", tmp_path / "out"
    assert run(main, ["midi", "--synthetic", "3", "--out", str(made)]) == 0
    capsys.readouterr()
    assert run(main, ["midi", str(made / "synthetic" / "manifest.jsonl"), "--out", str(out)]) == 0
    assert "nothing is held out" not in capsys.readouterr().out
    one = ["midi", str(made / "synthetic" / "00001.mid"), "--out", str(out)]
    assert run(main, one) == 0
    text = capsys.readouterr().out
    assert "1 file: 0 read" in text or "1 file: 1 read" in text
    assert "only one song: nothing is held out; training needs a second one" in text
    assert "2 pieces of the last run are no longer in the data set: name all sources" in text
    both = ["midi", *(str(made / "synthetic" / f"0000{n}.mid") for n in (0, 2)), "--out", str(out)]
    assert run(main, [*both, "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["left_behind"] == 1
    # nothing new: nothing to show
    assert run(main, both) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_writing_practice_music_can_be_stopped(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "kmidi_mlx.prepare", "midi", "--synthetic", "3000"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out/synthetic/00003.mid").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 3,000 practice pieces; the same command goes on from there" in error
    assert "Traceback" not in error


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
