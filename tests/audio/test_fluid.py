"""A SoundFont of the user's own, played by FluidSynth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_soundfont import Zone, sine_sample, write_soundfont

from kmidi_mlx import generate
from kmidi_mlx.audio.fluid import INSTALL, FluidSynth
from kmidi_mlx.command import run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes


@pytest.fixture
def soundfont(tmp_path: Path) -> Path:
    try:
        import fluidsynth  # noqa: F401
    except ImportError:
        pytest.skip(f"needs FluidSynth: {INSTALL}")
    return write_soundfont(tmp_path / "own.sf2", [sine_sample()], [[Zone(target=0)]])


def notes(*rows: tuple[float, float, int, int]) -> Notes:
    onsets, offsets, pitches, velocities = zip(*rows, strict=True)
    return Notes.build(pitches, velocities, onsets, offsets)


def test_notes_sound_at_their_time_and_pitch(soundfont: Path) -> None:
    sound = FluidSynth(soundfont).render(notes((0.5, 1.5, 60, 100), (2.0, 3.0, 72, 100)))
    assert sound.dtype == np.float32
    assert sound.shape[1] == 2
    mono = sound.mean(axis=1)
    assert np.abs(mono[:22_000]).max() < 1e-3
    for start, hz in ((0.6, 441.0), (2.1, 882.0)):
        part = mono[int(start * 44_100) :][: 44_100 // 2]
        assert np.abs(part).max() > 0.01
        peak = np.abs(np.fft.rfft(part * np.hanning(len(part)))).argmax() * 2.0
        assert peak == pytest.approx(hz, rel=0.02)
    # dies away, and does not go on for ever
    assert 3.0 * 44_100 <= len(mono) < 33.1 * 44_100
    assert np.abs(mono[-2000:]).max() < 1e-2


def test_a_piece_without_notes_is_no_sound(soundfont: Path) -> None:
    assert FluidSynth(soundfont).render(Notes.empty()).shape == (0, 2)


def test_generate_plays_it(tiny_run: Path, tmp_path: Path, soundfont: Path) -> None:
    wav = tmp_path / "out.wav"
    flags = ["--checkpoint", str(tiny_run), "--seconds", "2", "--out", str(tmp_path / "out.mid")]
    flags += ["--wav", str(wav), "--soundfont", str(soundfont)]
    assert run(generate.main, flags) == 0
    sound, rate = soundfile.read(wav)
    assert rate == 44_100
    assert np.abs(sound).max() > 0.005


def test_what_is_not_a_soundfont_is_refused(
    soundfont: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.sf2"
    wrong.write_bytes(b"RIFF not really")
    with pytest.raises(KmidiError, match=r"wrong\.sf2: FluidSynth finds no playable preset"):
        FluidSynth(wrong)
    with pytest.raises(KmidiError, match="no such file"):
        FluidSynth(tmp_path / "absent.sf2")
    capfd.readouterr()


def test_without_fluidsynth_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fluidsynth", None)
    flags = ["--out", str(tmp_path / "o.mid"), "--wav", str(tmp_path / "o.wav")]
    assert run(generate.main, [*flags, "--soundfont", "mine.sf2"]) == 2
    assert "brew install fluid-synth" in capsys.readouterr().err
    assert run(generate.main, [*flags[:2], "--soundfont", "mine.sf2"]) == 2
    assert "add --wav FILE" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
