from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx import emotion as em
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError

signed = st.floats(-1.0, 1.0)
decimals = st.integers(-1000, 1000).map(lambda n: n / 1000)
# The Jacobian's largest singular value on a fine grid over the square is 6.72.
LIPSCHITZ = 7.0


def test_entries_are_named_once() -> None:
    assert len(em.ENTRY_NAMES) == len(set(em.ENTRY_NAMES)) == em.EMOTION_DIM == 64
    assert em.ENTRY_NAMES[:4] == ("valence", "arousal", "intensity", "given")


@settings(max_examples=100)
@given(decimals, decimals, st.none() | st.integers(0, 1000).map(lambda n: n / 1000))
def test_decode_inverts_encode_exactly(v: float, a: float, i: float | None) -> None:
    emotion = Emotion.of(v, a, i)
    back = em.decode(em.encode(emotion))
    assert back is not None
    assert (back.valence, back.arousal) == (v, a)
    assert (
        back.intensity == i
        if i is not None
        else np.float32(back.intensity) == np.float32(emotion.intensity)
    )
    np.testing.assert_array_equal(em.encode(back), em.encode(emotion))


@settings(max_examples=100)
@given(signed, signed, st.floats(0.0, 1.0))
def test_every_entry_is_bounded_and_survives_float32(v: float, a: float, i: float) -> None:
    vector = em.encode(Emotion(v, a, i))
    assert vector.dtype == np.float32
    assert vector.shape == (64,)
    assert np.isfinite(vector).all()
    assert np.abs(vector).max() <= 1.0
    np.testing.assert_array_equal(vector[:4], np.array([v, a, i, 1.0], np.float32))


@settings(max_examples=100)
@given(signed, signed, signed, signed)
def test_the_vector_moves_no_faster_than_its_bound(v: float, a: float, w: float, b: float) -> None:
    moved = np.linalg.norm(em.encode(Emotion.of(v, a)) - em.encode(Emotion.of(w, b)))
    assert moved <= LIPSCHITZ * math.dist((v, a), (w, b)) + 1e-5


@settings(max_examples=100)
@given(decimals, decimals, decimals, decimals)
def test_different_emotions_have_different_vectors(v: float, a: float, w: float, b: float) -> None:
    distance = np.linalg.norm(em.encode(Emotion.of(v, a)) - em.encode(Emotion.of(w, b)))
    assert distance >= 0.99 * math.dist((v, a), (w, b))


def test_entries_match_their_names() -> None:
    v, a, i = 0.3, -0.6, 0.4
    vector = dict(zip(em.ENTRY_NAMES, em.encode(Emotion(v, a, i)).tolist(), strict=True))
    assert vector["valence*arousal^2"] == pytest.approx(v * a * a, abs=1e-6)
    assert vector["intensity^2"] == pytest.approx(i * i, abs=1e-6)
    assert vector["cos(pi/2*(valence-arousal))"] == pytest.approx(
        math.cos(math.pi / 2 * (v - a)), abs=1e-6
    )
    assert vector["bump(0.5,-1)"] == pytest.approx(math.exp(-(0.2**2 + 0.4**2) / 0.5), abs=1e-6)
    labels = {name: value for name, value in vector.items() if name.startswith("label:")}
    assert sum(labels.values()) == pytest.approx(1.0, abs=1e-5)
    assert max(labels, key=lambda name: labels[name]) in ("label:calm", "label:tender")


def test_unconditional_is_not_the_neutral_emotion() -> None:
    np.testing.assert_array_equal(em.encode(None), np.zeros(64, np.float32))
    np.testing.assert_array_equal(em.UNCONDITIONAL, em.encode(None))
    assert em.decode(em.UNCONDITIONAL) is None
    neutral = em.encode(Emotion.of(0.0, 0.0))
    assert np.linalg.norm(neutral - em.UNCONDITIONAL) > 1.0
    assert em.decode(neutral) == Emotion(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="read-only"):
        em.UNCONDITIONAL[0] = 1.0


def test_many_equal_one_by_one() -> None:
    rng = np.random.default_rng(1)
    v, a, i = rng.uniform(-1, 1, 50), rng.uniform(-1, 1, 50), rng.uniform(0, 1, 50)
    np.testing.assert_array_equal(
        em.encode_many(v, a, i), [em.encode(Emotion(*row)) for row in zip(v, a, i, strict=True)]
    )
    np.testing.assert_array_equal(
        em.encode_many(v, a), [em.encode(Emotion.of(*row)) for row in zip(v, a, strict=True)]
    )
    assert em.encode_many([], []).shape == (0, 64)


def test_labels_are_their_own_nearest() -> None:
    for label, (v, a) in em.LABELS.items():
        emotion = em.from_label(label.upper())
        assert (emotion.valence, emotion.arousal) == (v, a)
        assert emotion.intensity == pytest.approx(min(1.0, math.hypot(v, a)))
        assert em.nearest_label(emotion) == label
    contract = {"happy", "sad", "angry", "calm", "fear", "tender", "tense", "excited"}
    assert contract <= set(em.LABELS)
    assert em.LABELS["happy"][0] > 0 > em.LABELS["sad"][0]
    assert em.LABELS["angry"][1] > 0 > em.LABELS["calm"][1]


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        ("hapy", "did you mean happy.*Known are happy, joyful"),
        ("fearful", "did you mean fear.*Known are happy, joyful"),
        ("xq", "known are happy, joyful"),
    ],
)
def test_unknown_label_names_the_nearest(label: str, hint: str) -> None:
    with pytest.raises(KmidiError, match=hint):
        em.from_label(label)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((1.01, 0.0), "valence"),
        ((0.0, math.nan), "arousal"),
        ((0.0, -math.inf), "arousal"),
        ((0.0, 0.0, -0.1), "intensity"),
        ((0.0, 0.0, math.nan), "intensity"),
        (("high", 0.0), "valence"),
    ],
)
def test_values_out_of_range_are_refused(values: tuple[float, ...], field: str) -> None:
    with pytest.raises(KmidiError, match=field):
        Emotion.of(*values)
    if not isinstance(values[0], str):
        with pytest.raises(KmidiError, match=field):
            em.encode_many(*([value] for value in values))


def test_wrong_vectors_are_refused() -> None:
    with pytest.raises(KmidiError, match="shape"):
        em.decode(np.zeros(63))
    broken = em.encode(Emotion.of(0.5, 0.5))
    broken[3] = 0.5
    with pytest.raises(KmidiError, match="entry 3"):
        em.decode(broken)
    broken[3], broken[0] = 1.0, 2.0
    with pytest.raises(KmidiError, match="valence"):
        em.decode(broken)
    with pytest.raises(KmidiError, match="one length"):
        em.encode_many([0.1, 0.2], [0.1])
    with pytest.raises(KmidiError, match="shape"):
        em.encode_many([[0.1]], [0.1])
