from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio import files
from kmidi_mlx.audio.files import read_audio, resample, write_wav
from kmidi_mlx.errors import KmidiError


def sine(hz: float, rate: int, seconds: float, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(
        np.float32
    )


def complaint(path: Path) -> str:
    with pytest.raises(KmidiError) as caught:
        read_audio(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


def middle(samples: np.ndarray) -> np.ndarray:
    return samples[len(samples) // 4 : -(len(samples) // 4)]


# --- resampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 22_050, 32_000, 48_000, 96_000, 192_000, 44_099])
def test_a_tone_stays_the_same_tone(rate: int) -> None:
    resampled = resample(sine(1000.0, rate, 0.5), rate, 44_100)
    expected = sine(1000.0, 44_100, 0.5)
    assert abs(len(resampled) - len(expected)) <= 1
    length = min(len(resampled), len(expected))
    assert np.abs(middle(resampled[:length] - expected[:length])).max() < 1e-4


def test_what_does_not_fit_is_removed() -> None:
    too_high = resample(sine(30_000.0, 192_000, 0.3), 192_000, 44_100)
    assert np.abs(middle(too_high)).max() < 0.5 * 10 ** (-80 / 20)
    high = resample(sine(19_000.0, 192_000, 0.3), 192_000, 44_100)
    assert np.abs(middle(high)).max() == pytest.approx(0.5, rel=0.01)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(48_000, 44_100), (16_000, 44_100), (192_000, 16_000)]), st.data())
def test_blocks_leave_no_seams(rates: tuple[int, int], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 20_000))
    samples = np.random.default_rng(length).normal(0, 0.2, length).astype(np.float32)
    whole = resample(samples, *rates)
    original = files._BLOCK_FRAMES
    try:
        files._BLOCK_FRAMES = data.draw(st.integers(1, 5_000))
        assert np.abs(resample(samples, *rates) - whole).max() < 1e-6
    finally:
        files._BLOCK_FRAMES = original


def test_rates_out_of_range_are_refused() -> None:
    with pytest.raises(KmidiError, match="0 Hz"):
        resample(np.zeros(10, np.float32), 0, 44_100)
    with pytest.raises(KmidiError, match="rates are 1000"):
        resample(np.zeros(10, np.float32), 44_100, 10**9)


# --- files that can be read ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff", "a.mp3"])
def test_formats(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, sine(440.0, 44_100, 0.5), 44_100)
    samples = read_audio(tmp_path / name)
    assert samples.dtype == np.float32
    assert samples.shape[0] == pytest.approx(22_050, abs=2_500)  # MP3 pads
    spectrum = np.abs(np.fft.rfft(middle(samples) * np.hanning(len(middle(samples)))))
    assert spectrum.argmax() * 44_100 / len(middle(samples)) == pytest.approx(440, abs=5)
    assert np.abs(middle(samples)).max() == pytest.approx(0.5, rel=0.05)


def test_eight_channels_are_mixed(tmp_path: Path) -> None:
    channels = np.stack([sine(100.0 * (k + 1), 48_000, 0.25, 0.1) for k in range(8)], axis=1)
    soundfile.write(tmp_path / "8.wav", channels, 48_000, subtype="FLOAT")
    samples = read_audio(tmp_path / "8.wav", 48_000)
    assert np.abs(samples - channels.mean(axis=1)).max() < 1e-6


def test_192_khz_and_several_blocks(tmp_path: Path) -> None:
    tone = sine(1000.0, 192_000, 2.0)  # more than one block
    soundfile.write(tmp_path / "fine.wav", tone, 192_000, subtype="FLOAT")
    samples = read_audio(tmp_path / "fine.wav")
    assert len(samples) == 88_200
    assert np.abs(middle(samples - sine(1000.0, 44_100, 2.0))).max() < 1e-4


def test_silence_and_one_sample_are_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(4410), 44_100)
    assert read_audio(tmp_path / "silent.wav").tolist() == [0.0] * 4410
    soundfile.write(tmp_path / "one.wav", np.array([0.5]), 44_100)
    assert read_audio(tmp_path / "one.wav").tolist() == [0.5]
    soundfile.write(tmp_path / "one192.wav", np.array([0.5]), 192_000)
    assert len(read_audio(tmp_path / "one192.wav")) == 1


# --- files that cannot ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 32_768.0])
def test_numbers_that_are_no_sound_are_refused(tmp_path: Path, value: float) -> None:
    samples = np.zeros((44_100, 2), np.float32)
    samples[22_050:, 1] = value
    soundfile.write(tmp_path / "bad.wav", samples, 44_100, subtype="FLOAT")
    assert "at 0.500 s" in complaint(tmp_path / "bad.wav")
    soundfile.write(tmp_path / "all.wav", np.full(100, value), 44_100, subtype="FLOAT")
    assert "at 0.000 s" in complaint(tmp_path / "all.wav")


def test_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").write_bytes(b"")
    assert "cannot be read as sound" in complaint(tmp_path / "nothing.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 44_100)
    assert "holds no sound" in complaint(tmp_path / "empty.wav")


def test_other_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not a sound")
    assert "cannot be read as sound" in complaint(tmp_path / "text.wav")
    assert "is not a file" in complaint(tmp_path)
    assert "no such sound file" in complaint(tmp_path / "missing.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # reading it would wait for ever
    assert "is not a file" in complaint(tmp_path / "pipe.wav")


@pytest.mark.parametrize("name", ["cut.flac", "cut.ogg", "cut.wav"])
def test_truncated_files_are_read_to_their_end_or_refused(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 44_100).astype(np.float32)
    whole = tmp_path / f"whole{Path(name).suffix}"
    soundfile.write(whole, noise, 44_100)
    data = whole.read_bytes()
    for size in (10, 60, len(data) // 2, len(data) - 50):
        (tmp_path / name).write_bytes(data[:size])
        try:
            samples = read_audio(tmp_path / name)
        except KmidiError:
            complaint(tmp_path / name)
        else:
            assert 0 < len(samples) <= 44_100
            expected = read_audio(whole)[: max(0, len(samples) - 2_000)]
            assert np.abs(samples[: len(expected)] - expected).max(initial=0) < 1e-3


def test_a_file_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(100, np.int16), 1000)
    size = 44 + 2 * 1000 * 7201
    with path.open("r+b") as file:
        file.seek(4)
        file.write((size - 8).to_bytes(4, "little"))
        file.seek(40)
        file.write((size - 44).to_bytes(4, "little"))
        file.truncate(size)  # sparse: takes no room on the disk
    assert "longer than 2 hours" in complaint(path)


def test_a_rate_of_one_sample_a_second_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(10), 1)
    assert "1 samples a second" in complaint(tmp_path / "slow.wav")


# --- writing -------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    stereo = np.stack([sine(440.0, 44_100, 0.1), sine(550.0, 44_100, 0.1)], axis=1)
    write_wav(tmp_path / "out.wav", stereo)
    back, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 44_100
    assert np.abs(back - stereo).max() < 1 / 32_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_too_loud_is_made_quieter_as_a_whole(tmp_path: Path) -> None:
    loud = sine(440.0, 44_100, 0.1, amplitude=3.0)
    write_wav(tmp_path / "out.wav", loud)
    back, _ = soundfile.read(tmp_path / "out.wav")
    assert np.abs(back - loud / np.abs(loud).max()).max() < 1 / 16_000


def test_nothing_is_written_where_it_cannot_be(tmp_path: Path) -> None:
    samples = np.zeros(10, np.float32)
    with pytest.raises(KmidiError, match=r"end in \.wav"):
        write_wav(tmp_path / "out.mp3", samples)
    with pytest.raises(KmidiError, match="does not exist"):
        write_wav(tmp_path / "no" / "out.wav", samples)
    with pytest.raises(KmidiError, match="finite"):
        write_wav(tmp_path / "out.wav", np.full(10, np.nan, np.float32))
    (tmp_path / "old.wav").write_bytes(b"old")
    with pytest.raises(KmidiError, match="finite"):
        write_wav(tmp_path / "old.wav", np.zeros((2, 2, 2), np.float32))
    assert (tmp_path / "old.wav").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
