"""Samples in pieces of any size: the reading is that of all that was heard."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio.hearing import hear
from kmidi_mlx.config import (
    AudioEmotionDataConfig,
    EmotionRecognizerConfig,
    EmotionRecognizerModelConfig,
)
from kmidi_mlx.data.audio_emotion import hearing_of
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.emotion_recognizer_stream import EmotionStream

CONFIG = EmotionRecognizerConfig(
    model=EmotionRecognizerModelConfig(n_mels=16, dim=12, num_layers=2, labels=("happy", "sad")),
    data=AudioEmotionDataConfig(n_fft=256, hop_length=64, semitone_n_fft=1024),
)


def stream_of(temperature: float = 1.0) -> EmotionStream:
    model = EmotionRecognizer(CONFIG.model)
    model.initialise(1)
    return EmotionStream(model, CONFIG, temperature)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 0.1, count).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_the_reading_is_that_of_all_frames_so_far(cuts: list[int]) -> None:
    stream, sound = stream_of(), noise(sum(cuts) + 1)
    reading, heard = None, 0
    for count in cuts:
        reading = stream.push(sound[heard : heard + count])
        heard += count
    # a frame is complete when half a window after its centre has come in
    frames = max(0, (heard - 128) // 64 + 1) if heard >= 128 else 0
    if frames < CONFIG.model.patch_frames:
        assert reading is None
        return
    whole_frames = hear(sound[:heard], hearing_of(CONFIG))[:frames]
    model = EmotionRecognizer(CONFIG.model)
    model.initialise(1)
    whole = model(mx.array(whole_frames)[None])
    assert reading is not None
    emotion = reading.emotion
    found = [emotion.valence, emotion.arousal, emotion.intensity]
    np.testing.assert_allclose(found, np.array(whole.numbers)[0], atol=1e-5)
    shares = np.array(mx.softmax(whole.logits[0]))
    np.testing.assert_allclose(list(reading.probabilities.values()), shares, atol=1e-5)


def test_the_temperature_flattens_probabilities() -> None:
    sound = noise(4000)
    sharp, flat = (stream_of(temperature).push(sound) for temperature in (0.05, 50.0))
    assert sharp is not None
    assert flat is not None
    assert list(sharp.probabilities) == ["happy", "sad"]
    assert max(sharp.probabilities.values()) > max(flat.probabilities.values()) > 0.5
    assert max(flat.probabilities.values()) < 0.51
    assert sum(sharp.probabilities.values()) == pytest.approx(1)


def test_after_a_reset_nothing_was_heard() -> None:
    stream, sound = stream_of(), noise(3000)
    first = stream.push(sound)
    stream.push(noise(5000))
    stream.reset()
    assert stream.push(sound[:10]) is None
    stream.reset()
    assert stream.push(sound) == first


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(KmidiError, match="finite"):
        stream_of().push(np.full(10, np.nan, np.float32))
