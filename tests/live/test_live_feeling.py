"""What is felt is what the recogniser hears in the whole sound, made calm."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio.files import resample
from kmidi_mlx.checkpoint import BEST, save_arrays
from kmidi_mlx.config import (
    AudioEmotionDataConfig,
    EmotionRecognizerConfig,
    EmotionRecognizerModelConfig,
)
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.feeling import Feeling

RATE = 44_100
CONFIG = EmotionRecognizerConfig(
    model=EmotionRecognizerModelConfig(n_mels=16, dim=12, num_layers=2, labels=("happy", "sad")),
    data=AudioEmotionDataConfig(n_fft=256, hop_length=64, semitone_n_fft=1024),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser of random weights."""
    from mlx.utils import tree_flatten

    from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer

    model = EmotionRecognizer(CONFIG.model)
    model.initialise(1)
    weights = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    metadata = {
        "model": CONFIG.name, "config": config_to_dict(CONFIG), "temperature": 1.7,
        "synthetic": True,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("recognizer")
    save_arrays(folder / BEST, weights, metadata)
    return folder


def music(seconds: float, seed: int = 0) -> np.ndarray:
    """Notes that come and go, int16 (n, 2), different on both sides."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    sides = []
    for _ in range(2):
        hz = 220 * 2 ** (rng.integers(0, 24, 64) / 12)
        note = (time * 4).astype(int) % 64
        sides.append(0.4 * np.sin(2 * np.pi * hz[note] * time) * np.exp(-3 * (time % 0.25)))
    return (32_767 * np.stack(sides, axis=1)).astype(np.int16)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6))
def test_it_hears_what_the_recogniser_hears_in_the_whole(checkpoint: Path, cuts: list[int]) -> None:
    from kmidi_mlx.models.emotion_recognizer_stream import EmotionStream
    from kmidi_mlx.models.loading import load_recognizer

    feeling = Feeling(checkpoint)
    assert feeling.notice is not None
    taken: list[np.ndarray] = []
    push = feeling._network.push
    feeling._network.push = lambda piece: (taken.append(piece), push(piece))[1]  # type: ignore
    sound, first = music(sum(cuts) / RATE + 0.1), 0
    for count in cuts:
        feeling.push(sound[first : first + count])
        first += count
    mono = sound[:first].mean(axis=1, dtype=np.float32) / 32_768
    heard = np.concatenate([*taken, np.zeros(0, np.float32)])
    # no more than a tenth of a second and a filter's half behind
    assert len(heard) > (first / RATE - 0.11) * CONFIG.data.sample_rate
    whole = resample(mono, RATE, CONFIG.data.sample_rate)[: len(heard)]
    settled = len(heard) - 200  # the end of the whole hears silence behind it
    np.testing.assert_allclose(heard[:settled], whole[:settled], atol=2e-6)
    stream = EmotionStream(load_recognizer(checkpoint).model, CONFIG, temperature=1.7)
    expected = stream.push(heard)
    if expected is None:
        assert feeling.reading is None
        return
    assert feeling.reading is not None
    for name in ("valence", "arousal", "intensity"):
        found = getattr(feeling.reading.emotion, name)
        assert found == pytest.approx(getattr(expected.emotion, name), abs=1e-5)
    assert feeling.reading.probabilities == pytest.approx(expected.probabilities, abs=1e-5)


class Script:
    """A recogniser that says what it is told to say, by the second."""

    def __init__(self, feeling: Feeling, say: object) -> None:
        self.say = say
        self.seconds = 0.0
        feeling._network = self

    def push(self, piece: np.ndarray) -> SimpleNamespace:
        self.seconds += len(piece) / CONFIG.data.sample_rate
        return SimpleNamespace(emotion=Emotion.of(*self.say(self.seconds)))

    def reset(self) -> None:
        self.seconds = 0.0


def felt(feeling: Feeling, sound: np.ndarray) -> list[tuple[float, Emotion]]:
    found = []
    for start in range(0, len(sound), 882):
        emotion = feeling.push(sound[start : start + 882])
        if emotion is not None:
            found.append(((start + 882) / RATE, emotion))
    return found


def test_a_change_is_followed_in_two_seconds_and_twice_a_second(checkpoint: Path) -> None:
    feeling = Feeling(checkpoint)
    Script(feeling, lambda seconds: (0.5, 0.0) if seconds < 6 else (-0.5, 0.4))
    found = felt(feeling, music(20))
    times = np.array([time for time, _ in found])
    # nothing before so much was heard that it means something, and nothing new while it rests
    assert 1.9 < times[0] < 2.3
    assert 6.0 < times[1] < 6.7
    assert found[0][1].valence == pytest.approx(0.5)
    assert np.diff(times).min() > 0.45
    # two seconds after the change it has come two thirds of the way
    valence = next(one.valence for time, one in found if time >= 8.0)
    assert valence == pytest.approx(0.5 - (1 - math.exp(-1)), abs=0.15)
    # and rests where it was heading
    assert found[-1][1].valence == pytest.approx(-0.5, abs=0.05)
    assert times[-1] < 15
    moves = [
        math.hypot(one.valence - two.valence, one.arousal - two.arousal)
        for (_, one), (_, two) in itertools.pairwise(found)
    ]
    assert min(moves) > 0.03
    assert feeling.emotion == found[-1][1]


def test_small_trembling_is_not_followed(checkpoint: Path) -> None:
    feeling = Feeling(checkpoint)
    Script(feeling, lambda seconds: (0.2 + 0.1 * math.sin(20 * seconds), -0.3))
    assert len(felt(feeling, music(10))) == 1


def test_silence_says_nothing(checkpoint: Path) -> None:
    feeling = Feeling(checkpoint)
    Script(feeling, lambda seconds: (0.5, 0.5) if seconds < 5 else (-0.9, -0.9))
    found = felt(feeling, np.concatenate([music(4), np.zeros((6 * RATE, 2), np.int16)]))
    assert len(found) == 1
    assert felt(feeling, music(6))[-1][1].valence < -0.5


def test_after_a_reset_nothing_was_heard(checkpoint: Path) -> None:
    feeling = Feeling(checkpoint)
    sound = music(4)
    first = felt(feeling, sound)
    assert first
    feeling.push(music(1, seed=3))
    feeling.reset()
    assert feeling.reading is None
    assert feeling.emotion is None
    assert felt(feeling, sound) == first


def test_another_rate_is_heard_the_same(checkpoint: Path) -> None:
    sound = music(4)
    feeling, other = Feeling(checkpoint), Feeling(checkpoint, sample_rate=48_000)
    felt(feeling, sound)
    faster = np.stack([resample(side.astype(np.float32), RATE, 48_000) for side in sound.T], axis=1)
    felt(other, np.clip(faster, -32_768, 32_767).astype(np.int16))
    assert feeling.reading is not None
    assert other.reading is not None
    assert other.reading.emotion.valence == pytest.approx(feeling.reading.emotion.valence, abs=0.02)


def test_no_recogniser_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="emotion_recognizer"):
        Feeling(tmp_path)
