"""Mode and key in sound are those of the notes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kmidi_mlx.audio.hearing import Hearing, SemitoneSettings, hear
from kmidi_mlx.audio.mel import MelSettings
from kmidi_mlx.audio.sampler import render
from kmidi_mlx.models import tonality
from kmidi_mlx.models.tonality import TONAL_FEATURES, chroma, tonal_features
from kmidi_mlx.music.mood import MOOD_FEATURES, STATISTICS, mood_features
from kmidi_mlx.music.notes import Notes

HEARING = Hearing(MelSettings(16_000, 1024, 256, 8), SemitoneSettings(16_000, 8192, 256))


def raw(profile: np.ndarray) -> np.ndarray:
    found = np.array(tonal_features(mx.array(profile.astype(np.float32))))
    return found * np.array(tonality._SPREAD) + np.array(tonality._CENTRE)


def test_features_of_a_profile_are_those_of_the_notes() -> None:
    profile = np.random.default_rng(0).gamma(0.5, 1.0, (50, 12))
    statistics = np.zeros((50, len(STATISTICS)))
    first = STATISTICS.index("pitch_class_0")
    statistics[:, :3] = 1.0
    statistics[:, first : first + 12] = profile
    expected = mood_features(statistics)[:, [MOOD_FEATURES.index(name) for name in TONAL_FEATURES]]
    np.testing.assert_allclose(raw(profile), expected, atol=1e-4)
    np.testing.assert_allclose(raw(1e-3 * profile), expected, atol=1e-2)


def test_a_transposition_changes_nothing() -> None:
    profile = np.random.default_rng(1).gamma(0.5, 1.0, (4, 12))
    for semitones in range(12):
        np.testing.assert_allclose(
            raw(np.roll(profile, semitones, axis=1)), raw(profile), atol=1e-5
        )


def test_silence_has_no_mode() -> None:
    silence = chroma(mx.zeros((3, 5, 60)))
    assert not np.array(silence).any()
    found = raw(np.zeros((1, 12)))
    np.testing.assert_allclose(found, 0.0, atol=1e-6)


def test_only_peaks_sound_and_octaves_are_one_class() -> None:
    level = np.zeros((1, 60), np.float32)
    level[0, [4, 5, 6]] = 0.5, 0.7, 0.6
    level[0, 29] = 0.7
    found = np.array(chroma(mx.array(level)))[0]
    # 0.7 of 100 dB above -60 dB is 10 dB
    assert found[5] == pytest.approx(2 * 10**0.5, rel=1e-2)
    assert not np.delete(found, 5).any()


@pytest.mark.parametrize("root", [0, 3, 7, 10])
def test_major_is_told_from_minor_on_the_piano(root: int) -> None:
    modes = []
    for third, sixth, seventh in ((4, 9, 11), (3, 8, 10)):
        degrees = [0, 2, third, 5, 7, sixth, seventh, 12, 7, third, 0, 7, 12]
        pitch = 48 + root + np.array([*degrees, *np.array(degrees) + 12])
        onset = np.concatenate([np.arange(13), np.arange(13)]) * 0.2
        notes = Notes.build(pitch, np.full(26, 70), onset, onset + 0.2)
        sound = render(notes, sample_rate=16_000, seconds=2.8).mean(axis=1)
        found = chroma(mx.array(hear(sound, HEARING)[:, 8:])).sum(axis=0)
        modes.append(float(raw(np.array(found)[None])[0, 0]))
    assert modes[0] > 0.1 > -0.1 > modes[1]
