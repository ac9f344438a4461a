"""EmotionRecognizer: streams equal whole clips, nothing looks ahead, padding does not count."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.config import EmotionRecognizerModelConfig
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer, Estimate

TINY = EmotionRecognizerModelConfig(
    n_mels=16,
    dim=12,
    num_layers=3,
    kernel_size=3,
    memory_frames=40,
    labels=("happy", "sad"),
    num_cues=2,
)


def model_of(config: EmotionRecognizerModelConfig = TINY, seed: int = 0) -> EmotionRecognizer:
    model = EmotionRecognizer(config)
    model.initialise(seed)
    # biases and gains start as 0 and 1; a wrong use of one would not show
    rng = np.random.default_rng(seed)
    weights = [
        (name, value + mx.array(rng.normal(0, 0.2, value.shape).astype(np.float32)))
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(weights)
    return model


def mel_of(frames: int, batch: int = 2, seed: int = 0) -> mx.array:
    rng = np.random.default_rng((1, seed))
    return mx.array(rng.random((batch, frames, 16 + SEMITONES)).astype(np.float32))


def same(one: Estimate | None, two: Estimate, tolerance: float = 1e-5) -> None:
    assert one is not None
    np.testing.assert_allclose(np.array(one.numbers), np.array(two.numbers), atol=tolerance)
    np.testing.assert_allclose(np.array(one.logits), np.array(two.logits), atol=10 * tolerance)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 23), min_size=1, max_size=12), st.integers(0, 5))
def test_a_stream_gives_what_the_whole_gives(cuts: list[int], seed: int) -> None:
    model = model_of()
    total = sum(cuts)
    mel = mel_of(max(total, 1), seed=seed)
    state, found, heard = model.start(2), None, 0
    for count in cuts:
        found, state = model.step(mel[:, heard : heard + count], state)
        heard += count
        if heard < TINY.patch_frames:
            assert found is None
        else:
            same(found, model(mel[:, :heard]))


def test_a_long_stream_stays_with_the_whole() -> None:
    model, mel = model_of(), mel_of(3000, batch=1)
    state, found = model.start(), None
    for start in range(0, 3000, 7):
        found, state = model.step(mel[:, start : start + 7], state)
    same(found, model(mel), 1e-4)


def test_frames_after_the_end_of_a_clip_do_not_count() -> None:
    model = model_of()
    mel = mel_of(48)
    found = model(mel, mx.array([21, 48]))
    short, long = model(mel[:1, :20]), model(mel[1:])
    np.testing.assert_allclose(found.numbers[0], short.numbers[0], atol=1e-5)
    np.testing.assert_allclose(found.numbers[1], long.numbers[0], atol=1e-5)
    other = mx.concatenate([mel[:, :20], 1 - mel[:, 20:]], axis=1)
    np.testing.assert_array_equal(found.numbers[0], model(other, mx.array([21, 48])).numbers[0])


def test_what_was_heard_last_counts_most() -> None:
    model, mel = model_of(), mel_of(400, batch=1)
    base = np.array(model(mel).numbers)
    early = mx.concatenate([1 - mel[:, :40], mel[:, 40:]], axis=1)
    late = mx.concatenate([mel[:, :360], 1 - mel[:, 360:]], axis=1)
    moved = [float(np.abs(np.array(model(other).numbers) - base).sum()) for other in (early, late)]
    # forty frames are one time constant; 320 frames later they weigh e^-8
    assert moved[0] < 0.02 * moved[1]


def test_numbers_are_in_range_and_dropout_factors_scale_what_the_heads_see() -> None:
    model, mel = model_of(), mel_of(40)
    found = model(mel)
    numbers = np.array(found.numbers)
    assert (np.abs(numbers[:, :2]) <= 1).all()
    assert (numbers[:, 2] >= 0).all()
    assert found.logits.shape == (2, 2)
    ones = mx.ones((2, model.pooled_dim))
    same(model(mel, None, ones), found, 0.0)
    # what the blocks found is dropped, what the semitones say is not
    other = mx.concatenate([1 - mel[..., :16], mel[..., 16:]], axis=-1)
    same(model(mel, None, 0 * ones), model(other, None, 0 * ones), 0.0)
    assert np.abs(np.array(model(other).numbers - found.numbers)).max() > 1e-4
    flat = mx.concatenate([mel[..., :16], mx.zeros((2, 40, SEMITONES))], axis=-1)
    silent = model(flat, None, 0 * ones).numbers - model(mel, None, 0 * ones).numbers
    assert np.abs(np.array(silent)).max() > 1e-4


def test_numbers_depend_on_cues_and_key_alone() -> None:
    model, mel = model_of(), mel_of(40)
    model.cues.weight, model.cues.bias = 0 * model.cues.weight, 0 * model.cues.bias
    other = mx.concatenate([1 - mel[..., :16], mel[..., 16:]], axis=-1)
    one, two = model(mel), model(other)
    np.testing.assert_array_equal(np.array(one.numbers), np.array(two.numbers))
    assert np.abs(np.array(one.logits - two.logits)).max() > 1e-4


def test_without_labels_there_is_no_head_for_them() -> None:
    config = EmotionRecognizerModelConfig(n_mels=16, dim=12, num_layers=1)
    model = EmotionRecognizer(config)
    assert model(mel_of(16)).logits.shape == (2, 0)
    assert not any(name.startswith("labels") for name, _ in tree_flatten(model.parameters()))


def test_the_default_has_a_third_of_a_million_weights() -> None:
    model = EmotionRecognizer(EmotionRecognizerModelConfig(labels=("happy", "sad")))
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    assert 0.3e6 < count < 0.35e6


def test_the_seed_makes_the_weights() -> None:
    def weights(seed: int) -> bytes:
        model = EmotionRecognizer(TINY)
        model.initialise(seed)
        return b"".join(np.array(value).tobytes() for _, value in tree_flatten(model.parameters()))

    assert weights(3) == weights(3) != weights(4)


def test_without_semitones_only_the_mel_bands_are_heard() -> None:
    config = replace(TINY, semitones=False)
    model, mel = model_of(config), mel_of(50)[..., :16]
    assert (model.bands, model.pooled_dim) == (16, 24)
    state, found = model.start(2), None
    for start in range(0, 50, 7):
        found, state = model.step(mel[:, start : start + 7], state)
    same(found, model(mel))


def test_the_mode_reaches_the_heads_whatever_the_mel_bands_hold() -> None:
    model, mel = model_of(), mel_of(48, batch=1)
    scales = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))
    found = []
    for scale in scales:
        semitones = np.zeros((1, 48, SEMITONES), np.float32)
        for place, degree in enumerate((0, *scale, 7, 0)):
            semitones[0, place * 4 + 3, 24 + degree] = 0.6
        found.append(np.array(model(mx.concatenate([mel[..., :16], mx.array(semitones)], 2)).cues))
    assert np.abs(found[0] - found[1]).max() > 0.05


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_comes_near(dtype: mx.Dtype) -> None:
    model, mel = model_of(), mel_of(100)
    exact = model(mel)
    model.update(tree_map(lambda weight: weight.astype(dtype), model.parameters()))
    same(model(mel), exact, 0.05)
