from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio import mel
from kmidi_mlx.audio.mel import MelSettings, MelStream, compress, expand, mel_spectrogram
from kmidi_mlx.errors import KmidiError

# Made with librosa 0.11: librosa.feature.melspectrogram(y=signal(...), sr=..., power=2.0, ...).
LIBROSA = np.load(Path(__file__).parent / "librosa_mel.npz")
SMALL = MelSettings(8_000, 256, 64, 20)
CASES = {
    "model": (MelSettings(), 11_025),
    "speech": (MelSettings(sample_rate=16_000), 6_000),
    "small": (MelSettings(16_000, 512, 160, 40), 4_001),
}


def signal(rate: int, count: int) -> np.ndarray:
    """A chirp, a dying tone and pseudo-noise, the same everywhere."""
    t = np.arange(count) / rate
    chirp = 0.4 * np.sin(2 * np.pi * (80 * t + 3000 * t**2))
    decay = 0.3 * np.exp(-6 * t) * np.sin(2 * np.pi * 440 * t)
    pseudo = ((np.arange(count) * 7919) % 10007 / 10007 - 0.5) * 0.1
    return (chirp + decay + pseudo).astype(np.float32)


def slow_mel(samples: np.ndarray, rate: int, n_fft: int, hop: int, bands: int) -> np.ndarray:
    """The definition, frame by frame and band by band, in 64 bits."""

    def to_hz(m: float) -> float:
        return m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27)

    top = rate / 2
    top_mel = top * 3 / 200 if top < 1000 else 15 + 27 * np.log(top / 1000) / np.log(6.4)
    edges = [to_hz(top_mel * k / (bands + 1)) for k in range(bands + 2)]
    window = [0.5 - 0.5 * np.cos(2 * np.pi * k / n_fft) for k in range(n_fft)]
    padded = np.concatenate([np.zeros(n_fft // 2), samples, np.zeros(n_fft // 2)])
    times = np.arange(n_fft)
    waves = np.exp(-2j * np.pi * np.outer(np.arange(n_fft // 2 + 1), times) / n_fft)
    columns = []
    for start in range(0, len(samples) + 1, hop):
        power = np.abs(waves @ (padded[start : start + n_fft] * window)) ** 2
        column = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k, value in enumerate(power):
                hz = k * rate / n_fft
                if low < hz <= centre:
                    total += value * (hz - low) / (centre - low)
                elif centre < hz < high:
                    total += value * (high - hz) / (high - centre)
            column.append(total * 2 / (high - low))
        columns.append(column)
    return np.array(columns).T


@pytest.mark.parametrize("name", list(CASES))
def test_equals_librosa(name: str) -> None:
    shape, count = CASES[name]
    ours, theirs = mel_spectrogram(signal(shape.sample_rate, count), shape), LIBROSA[name]
    assert ours.shape == theirs.shape
    assert ours.dtype == np.float32
    # measured 7e-5: both are 32-bit sums of numbers up to 700
    assert (np.abs(ours - theirs) <= 1e-4 * (theirs + 1e-6)).all()


def test_bands_equal_librosas() -> None:
    bands = mel.mel_bands(MelSettings())
    assert bands.shape == (128, 1025)
    assert np.abs(bands[::8, ::4] - LIBROSA["bands"]).max() < 1e-8
    with pytest.raises(ValueError, match="read-only"):
        bands[0, 0] = 1


def test_equals_the_definition() -> None:
    samples = signal(8_000, 1_000)
    slow = slow_mel(samples, 8_000, 256, 64, 20)
    assert np.abs(mel_spectrogram(samples, SMALL) - slow).max() < 1e-4 * slow.max()
    relative = np.abs(mel_spectrogram(samples, SMALL) - slow) / (slow + 1e-6)
    assert relative.max() < 1e-4


def test_one_window_of_the_model_is_64_frames() -> None:
    assert mel_spectrogram(np.zeros(63 * 512, np.float32)).shape == (128, 64)
    assert MelSettings().frame_seconds * 64 == pytest.approx(0.743, abs=1e-3)


def test_nothing_and_one_sample() -> None:
    assert mel_spectrogram(np.zeros(0, np.float32)).tolist() == [[0.0]] * 128
    assert mel_spectrogram(np.ones(1, np.float32)).shape == (128, 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2_000), st.lists(st.integers(0, 700), max_size=12), st.data())
def test_a_stream_gives_the_same_frames(count: int, cuts: list[int], data: st.DataObject) -> None:
    hop = data.draw(st.sampled_from([1, 50, 64, 256]))
    shape = MelSettings(8_000, 256, hop, 20)
    samples = np.random.default_rng(count).normal(0, 0.3, count).astype(np.float32)
    stream = MelStream(shape)
    for _ in range(2):  # after the end it starts anew
        pieces, start = [], 0
        for size in [*cuts, count]:
            pieces.append(stream.push(samples[start : start + size]))
            start += size
        pieces.append(stream.finish())
        streamed = np.concatenate(pieces, axis=1)
        whole = mel_spectrogram(samples, shape)
        assert streamed.shape == whole.shape
        assert (np.abs(streamed - whole) <= 1e-5 * whole + 1e-7).all()


def test_a_frame_comes_as_soon_as_its_samples_are_there() -> None:
    stream = MelStream()
    assert stream.push(np.ones(1023, np.float32)).shape == (128, 0)
    assert stream.push(np.ones(1, np.float32)).shape == (128, 1)
    assert stream.push(np.ones(511, np.float32)).shape == (128, 0)
    assert stream.push(np.ones(513, np.float32)).shape == (128, 2)


def test_a_broken_piece_leaves_the_stream_as_it_was() -> None:
    stream, samples = MelStream(SMALL), signal(8_000, 600)
    first = stream.push(samples[:300])
    with pytest.raises(KmidiError, match="sample 1 is nan"):
        stream.push(np.array([0.0, np.nan], np.float32))
    both = np.concatenate([first, stream.push(samples[300:]), stream.finish()], axis=1)
    assert np.allclose(both, mel_spectrogram(samples, SMALL), rtol=1e-5, atol=1e-7)


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(KmidiError, match=r"one channel.*\(2, 100\)"):
        mel_spectrogram(np.zeros((2, 100), np.float32))
    with pytest.raises(KmidiError, match="sample 3 is inf"):
        mel_spectrogram(np.array([0, 0, 0, np.inf], np.float32))
    for wrong in ({"sample_rate": 0}, {"n_fft": 3}, {"hop_length": 4096}, {"n_mels": 0}):
        with pytest.raises(KmidiError, match=next(iter(wrong))):
            MelSettings(**wrong)


def test_compression_is_fixed_and_undone() -> None:
    power = np.logspace(-6, 4, 50).astype(np.float32)
    compressed = compress(power)
    assert compressed.dtype == np.float32
    assert (np.diff(compressed) > 0).all()
    assert compressed[[0, -1]] == pytest.approx([0.0, 1.0], abs=1e-6)
    assert expand(compressed) == pytest.approx(power, rel=1e-4)
    assert compress(np.array([0.0, 1e-30, 1e30], np.float32)).tolist() == [0.0, 0.0, 1.0]


def test_the_range_holds_every_sound() -> None:
    t = np.arange(44_100) / 44_100
    loudest = max(
        mel_spectrogram(np.sin(2 * np.pi * hz * t).astype(np.float32)).max()
        for hz in (60, 440, 1000)
    )
    assert 10 * np.log10(loudest) == pytest.approx(mel.CEILING_DB, abs=3)
    hiss = np.random.default_rng(0).uniform(-0.5, 0.5, 44_100) / 32_768
    assert 10 * np.log10(mel_spectrogram(hiss.astype(np.float32)).max()) < mel.FLOOR_DB
