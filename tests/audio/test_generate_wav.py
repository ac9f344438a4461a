"""`generate --wav`: the written sound is that of the written notes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kmidi_mlx import generate
from kmidi_mlx.audio import render
from kmidi_mlx.command import run
from kmidi_mlx.music import read_midi

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def flags(tiny_run: Path) -> list[str]:
    return ["--checkpoint", str(tiny_run), "--seconds", "2", "--emotion", "happy"]


def test_the_piece_is_written_as_sound_too(
    tmp_path: Path, flags: list[str], capsys: Captured
) -> None:
    out, wav = tmp_path / "out.mid", tmp_path / "new" / "out.wav"
    assert run(generate.main, ["--out", str(out), "--wav", str(wav), *flags]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} and {wav}: ")
    sound, rate = soundfile.read(wav, dtype="float32")
    assert rate == 44_100
    expected = render(read_midi(out))
    expected = expected / max(1.0, float(np.abs(expected).max()))
    assert sound.shape[1] == 2
    length = min(len(sound), len(expected))
    assert abs(len(sound) - len(expected)) < 44_100
    assert np.abs(sound[:length] - expected[:length]).max() < 1e-3
    assert np.abs(sound).max() > 0.01
    assert [path.name for path in wav.parent.iterdir()] == ["out.wav"]


def test_json_names_the_sound(tmp_path: Path, flags: list[str], capsys: Captured) -> None:
    out, wav = tmp_path / "out.mid", tmp_path / "out.wav"
    assert run(generate.main, ["--out", str(out), "--wav", str(wav), "--json", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["wav"] == str(wav)


@pytest.mark.parametrize(
    ("name", "text"),
    [("out.mp3", "--wav"), ("folder.wav", "is a folder"), ("file/out.wav", "cannot make")],
)
def test_wrong_names_are_refused_before_the_work(
    tmp_path: Path, flags: list[str], capsys: Captured, name: str, text: str
) -> None:
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "file").write_text("")
    out = tmp_path / "out.mid"
    assert run(generate.main, ["--out", str(out), "--wav", str(tmp_path / name), *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "note: " not in line]
    assert len(lines) == 1
    assert text in lines[0]
    assert not out.exists()
