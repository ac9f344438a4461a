"""What is heard: semitones where the notes are, the same frames for streams, nothing from later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio.hearing import SEMITONES, Hearing, HearingStream, SemitoneSettings, hear
from kmidi_mlx.audio.mel import MelSettings, compress, mel_spectrogram
from kmidi_mlx.errors import KmidiError

MEL = MelSettings(sample_rate=16_000, n_fft=256, hop_length=64, n_mels=12)
SMALL = Hearing(MEL, SemitoneSettings(16_000, 1024, 64))
WHOLE = Hearing(MelSettings(16_000, 1024, 256, 128), SemitoneSettings(16_000, 8192, 256))


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count).astype(np.float32)


def sine(pitch: float, loudness: float = 1.0, seconds: float = 1.5) -> np.ndarray:
    time = np.arange(int(16_000 * seconds)) / 16_000
    wave = loudness * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
    return wave.astype(np.float32)


@pytest.mark.parametrize("pitch", [40, 47, 48, 60, 61, 77, 95])
def test_a_tone_is_strongest_in_its_own_semitone(pitch: int) -> None:
    for detuned in (-0.1, 0.0, 0.1):
        level = hear(sine(pitch + detuned, 0.5), WHOLE)[60, 128:]
        assert level.argmax() == pitch - 36
        # half of full scale is 6 dB below the ceiling of 100 dB
        assert level.max() == pytest.approx(0.94, abs=0.03)
    # an octave is not a fifth: from C3 up, everything two semitones away is 15 dB softer
    if pitch >= 48:
        far = np.abs(np.arange(SEMITONES) - (pitch - 36)) > 1
        assert level[far].max() < level.max() - 0.15


def test_the_first_columns_are_the_mel_frames() -> None:
    sound = noise(5000)
    found = hear(sound, SMALL)
    mel = compress(mel_spectrogram(sound, MEL)).T
    assert found.shape == (1 + 5000 // 64, 12 + SEMITONES) == (len(mel), SMALL.bands)
    np.testing.assert_array_equal(found[:, :12], mel)
    np.testing.assert_array_equal(hear(sound, Hearing(MEL)), mel)
    assert Hearing(MEL).bands == 12


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 900), min_size=1, max_size=8), st.booleans())
def test_a_stream_hears_what_the_whole_hears(cuts: list[int], semitones: bool) -> None:
    hearing = SMALL if semitones else Hearing(MEL)
    sound, stream = noise(sum(cuts), 1), HearingStream(hearing)
    for _ in range(2):
        parts, heard = [], 0
        for count in cuts:
            parts.append(stream.push(sound[heard : heard + count]))
            heard += count
        found = np.concatenate(parts)
        # both windows are complete when half of the shorter one has come in
        assert len(found) == (max(0, 1 + (heard - 128) // 64) if heard >= 128 else 0)
        np.testing.assert_allclose(found, hear(sound, hearing)[: len(found)], atol=1e-5)
        stream.reset()


def test_no_frame_depends_on_what_comes_after_its_mel_window() -> None:
    sound = noise(6000)
    for frame in (0, 3, 40):
        end = frame * 64 + 128
        other = sound.copy()
        other[end:] = noise(6000 - end, 2)
        before, after = hear(sound, SMALL), hear(other, SMALL)
        np.testing.assert_array_equal(before[: frame + 1], after[: frame + 1])
        assert not np.array_equal(before[frame + 3], after[frame + 3])


def test_silence_is_nothing() -> None:
    assert not hear(np.zeros(3000, np.float32), SMALL).any()


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(KmidiError, match=r"128 samples, is shorter than .* 256"):
        Hearing(MEL, SemitoneSettings(16_000, 128, 64))
    with pytest.raises(KmidiError, match="one channel"):
        hear(np.zeros((2, 100), np.float32), SMALL)
