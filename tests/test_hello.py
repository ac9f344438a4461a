"""The main job of `make run`, as a newcomer meets it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kmidi_mlx import hello
from kmidi_mlx.music.events import encode, first_violation
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.notes import Notes


def _hello(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kmidi_mlx.hello", "--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_hello_writes_music_and_a_second_run_repeats_it(tmp_path: Path) -> None:
    first = _hello(tmp_path)
    assert "What next" in first.stdout
    notes = read_midi(tmp_path / "hello.mid")
    assert len(notes) > 20
    assert first_violation(encode(notes)) is None
    written = [(tmp_path / name).read_bytes() for name in ("hello.mid", "hello.png")]
    _hello(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("hello.mid", "hello.png")] == written


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "hello.png"
    write_midi(Notes.empty(), tmp_path / "silent.mid")
    assert "the piece is silent" in hello._draw(tmp_path / "silent.mid", picture)[0]
    write_midi(Notes.build([60], [80], [0.0], [1.0]), tmp_path / "one.mid")
    monkeypatch.setattr(hello, "find_spec", lambda name: None)
    assert "kmidi-mlx[cloud]" in hello._draw(tmp_path / "one.mid", picture)[0]
    assert not picture.exists()
