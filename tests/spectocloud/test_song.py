from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kmidi_mlx.emotion import Emotion, from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.features import FEATURE_NAMES, features
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import EmotionCurve, Song
from kmidi_mlx.spectocloud.axes import BAND_EDGES_HZ
from kmidi_mlx.spectocloud.mel_features import MelFeatures
from kmidi_mlx.spectocloud.pseudo_mel import mel_from_notes

CALM = from_label("calm")


def test_pseudo_mel_sounds_where_the_notes_are(chords: Callable[..., Notes]) -> None:
    for pitch in (33, 57, 69, 93):
        mel = mel_from_notes(Notes.build([pitch], [100], [1.0], [2.0]))
        assert mel.shape[0] == 128
        assert mel.min() >= 0.0
        assert mel.max() < 1.0
        assert not mel[:, :86].any()
        hertz = 440.0 * 2.0 ** ((pitch - 69) / 12.0)
        loudest = int(mel[:, 100].argmax())
        assert BAND_EDGES_HZ[loudest] <= hertz <= BAND_EDGES_HZ[loudest + 2]
        assert mel[:, 95].max() > mel[:, 165].max() > 0.0
    soft, loud = (mel_from_notes(chords(60, velocity=v)).max() for v in (40, 110))
    assert soft < loud - 0.05
    assert mel_from_notes(Notes.empty()).shape == (128, 1)


def test_frames_of_a_song(tune: Notes) -> None:
    song = Song(notes=tune, emotion=CALM)
    assert len(song) == pytest.approx(60 * tune.duration_seconds, abs=2)
    frame = song[300]
    newest = int(5.0 * 44_100 / 512)
    np.testing.assert_array_equal(frame.window, song.mel[:, newest - 63 : newest + 1])
    end = 301 / 60
    np.testing.assert_array_equal(frame.features, features(tune, (end - 3.0, end)))
    assert frame.emotion == (CALM.valence, CALM.arousal, CALM.intensity)
    assert frame.progress == pytest.approx(300 / len(song))
    assert not song[0].window[:, :-1].any()
    assert len(list(song)) == len(song)
    with pytest.raises(IndexError):
        song[len(song)]


def test_mood_of_the_notes_is_the_emotion_by_default(tune: Notes) -> None:
    song = Song(notes=tune)
    valence, arousal, intensity = song[600].emotion
    assert (valence, arousal) != (0.0, 0.0)
    assert intensity == pytest.approx(min(1.0, np.hypot(valence, arousal)))
    assert Song(notes=Notes.empty())[0].emotion == (0.0, 0.0, 0.0)


def test_emotion_changes_along_the_way() -> None:
    curve = EmotionCurve(np.array([1.0, 3.0]), np.array([[-1.0, 0.0, 1.0], [1.0, 0.5, 0.0]]))
    assert curve.at(0.0) == (-1.0, 0.0, 1.0)
    assert curve.at(2.0) == pytest.approx((0.0, 0.25, 0.5))
    assert curve.at(9.0) == (1.0, 0.5, 0.0)


def test_features_guessed_from_sound_resemble_those_of_the_notes(tune: Notes) -> None:
    guess = MelFeatures(mel_from_notes(tune))
    index = {name: k for k, name in enumerate(FEATURE_NAMES)}
    times = np.arange(3.0, 20.0, 0.5)
    known = np.array([features(tune, (t - 3.0, t)) for t in times])
    found = np.array([guess.at(int(t * 44_100 / 512)) for t in times])
    assert np.abs(found).max() <= 1.0
    for name, least in (("pitch_mean", 0.9), ("density", 0.3), ("velocity_mean", 0.3)):
        pair = known[:, index[name]], found[:, index[name]]
        assert np.corrcoef(*pair)[0, 1] > least, name
    assert not MelFeatures(np.zeros((128, 500), np.float32)).at(400).any()


def test_guessed_chroma_finds_the_chord(chords: Callable[..., Notes]) -> None:
    for root in range(0, 12, 5):
        notes = chords(60 + root, 64 + root, 67 + root, 72 + root)
        found = MelFeatures(mel_from_notes(notes)).at(300)[:12]
        triad = {root % 12, (root + 4) % 12, (root + 7) % 12}
        assert len(triad & set(found.argsort()[-3:].tolist())) >= 2


def test_sound_alone_makes_a_song() -> None:
    mel = np.zeros((128, 400), np.float32)
    mel[30:33] = 0.7
    song = Song(mel, emotion=CALM)
    assert song[200].features[FEATURE_NAMES.index("sounding")] > 0.5


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Song, "spectrogram or notes"),
        (lambda: Song(np.zeros((128, 90))), "needs an emotion"),
        (lambda: Song(np.zeros((90, 128)), emotion=CALM), "shape"),
        (lambda: Song(np.full((128, 9), np.nan), emotion=CALM), "frame 0"),
        (lambda: EmotionCurve(np.zeros(0), np.zeros((0, 3))), "shapes"),
        (lambda: EmotionCurve(np.zeros(1), np.zeros((1, 2))), "shapes"),
        (lambda: EmotionCurve(np.array([1.0, 1.0]), np.zeros((2, 3))), "ascending"),
        (lambda: EmotionCurve(np.zeros(1), np.array([[0.0, 2.0, 0.0]])), "out of range"),
        (lambda: EmotionCurve(np.zeros(1), np.full((1, 3), np.nan)), "not a number"),
    ],
)
def test_wrong_songs_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(KmidiError, match=told):
        make()


def test_one_emotion_is_the_same_as_a_constant_curve() -> None:
    emotion = Emotion.of(0.25, -0.5)
    assert EmotionCurve.constant(emotion).at(7.0) == (0.25, -0.5, emotion.intensity)
