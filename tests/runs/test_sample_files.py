from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmidi_mlx.audio.files import read_audio
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.runs.sample_files import SAMPLE_RATE, with_renderings


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "step-000010.mid"
    write_midi(Notes.build([60, 64], [80, 90], [0.0, 0.5], [0.5, 1.0]), path)
    return path


def test_a_midi_file_gets_a_picture_and_a_sound(sample: Path) -> None:
    cloud = sample.with_name("other.png")
    files, problems = with_renderings([sample, cloud])
    assert problems == []
    picture, sound = sample.with_suffix(".png"), sample.with_suffix(".wav")
    assert files == sorted([cloud, sample, picture, sound])
    with Image.open(picture) as image:
        assert image.size == (960, 352)
    samples = read_audio(sound, SAMPLE_RATE)
    assert len(samples) > SAMPLE_RATE
    assert np.abs(samples).max() > 0.01


def test_what_is_there_already_is_not_made_again_unless_it_is_older(sample: Path) -> None:
    with_renderings([sample])
    sound = sample.with_suffix(".wav")
    sound.write_bytes(b"mine")
    os.utime(sound, ns=(0, sample.stat().st_mtime_ns + 1))
    with_renderings([sample])
    assert sound.read_bytes() == b"mine"
    os.utime(sound, ns=(0, sample.stat().st_mtime_ns - 1))
    with_renderings([sample, sound])
    assert sound.read_bytes()[:4] == b"RIFF"


def test_an_empty_piece_is_an_empty_keyboard(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.mid"
    write_midi(Notes.empty(), path)
    files, problems = with_renderings([path])
    assert problems == []
    assert [file.suffix for file in files] == [".mid", ".png", ".wav"]
