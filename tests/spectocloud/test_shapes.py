"""Lifeline, relief and adhesion: the laws of their shapes."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.music.features import FEATURE_NAMES
from kmidi_mlx.spectocloud import adhesion
from kmidi_mlx.spectocloud.energy import measure_energy
from kmidi_mlx.spectocloud.lifeline import lifeline_points, lifeline_width
from kmidi_mlx.spectocloud.relief import WEIGHTS, relief

X, Y, LAYER = (np.random.default_rng(1).uniform(-1, 1, (3, 500))).astype(np.float32)


def described(**given: float) -> np.ndarray:
    features = np.zeros(32, np.float32)
    for name, value in given.items():
        features[FEATURE_NAMES.index(name)] = value
    return features


def test_lifeline_widens_from_016_to_055() -> None:
    assert lifeline_width(0.0) == pytest.approx(0.16)
    assert lifeline_width(1.0) == pytest.approx(0.55)
    silence = measure_energy(np.zeros((128, 64), np.float32))
    for progress in (0.0, 0.5, 1.0):
        x, y, z, _ = lifeline_points(silence, 400, progress)
        # both edges at about the same time are the width apart
        first, second = (np.column_stack([x, y, z])[k::2] for k in (0, 1))
        np.testing.assert_allclose(
            np.linalg.norm(first - second, axis=1), lifeline_width(progress), atol=1e-5
        )


def test_lifeline_follows_the_sound_and_leaves_no_gap() -> None:
    mel = np.zeros((128, 64), np.float32)
    mel[10:13, :32], mel[70:73, 32:] = 0.7, 0.7
    x, y, _, loudness = lifeline_points(measure_energy(mel), 170, 0.0)
    assert y[x < -0.2].mean() < y[x > 0.2].mean() - 0.5
    assert loudness.min() > 0.2
    assert np.diff(np.sort(x[::2])).max() < 0.06


@settings(max_examples=30)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_tension_widens_the_cloud(low: float, high: float, dissonance: float) -> None:
    low, high = sorted((low, high))
    spreads = [
        np.abs(
            relief(X, Y, LAYER, described(tonal_tension=t, dissonance=dissonance), 0.1)
            - relief(X, Y, 0.0 * LAYER, described(tonal_tension=t, dissonance=dissonance), 0.1)
        ).mean()
        for t in (low, high)
    ]
    assert spreads[0] <= spreads[1] + 1e-6


def test_every_feature_shapes_the_depth() -> None:
    assert (np.abs(WEIGHTS).sum(axis=1) > 0.0).all()
    flat = relief(X, Y, LAYER, described(), 0.1)
    for name in FEATURE_NAMES:
        assert np.abs(relief(X, Y, LAYER, described(**{name: 1.0}), 0.1) - flat).max() > 0.02, name


def test_chords_turn_the_landscape() -> None:
    def triad(root: int, third: int) -> np.ndarray:
        return described(**{f"pitch_class_{(root + step) % 12}": 1 / 3 for step in (0, third, 7)})

    shapes = [relief(X, Y, LAYER, triad(r, t), 0.1) for r in range(12) for t in (3, 4)]
    for k, one in enumerate(shapes):
        for other in shapes[:k]:
            assert np.abs(one - other).mean() > 0.02


@settings(max_examples=30)
@given(st.floats(-1, 1), st.floats(-1, 1))
def test_emotion_moves_hue_spread_and_opacity_one_way(low: float, high: float) -> None:
    low, high = sorted((low, high))
    for law in (adhesion.hue, adhesion.spread, adhesion.opacity):
        assert law(low) <= law(high)


def test_hue_goes_from_blue_to_red() -> None:
    ends = [
        adhesion.rgb(np.array([adhesion.hue(v)], np.float32), np.ones(1), np.ones(1))[:, 0]
        for v in (-1.0, 1.0)
    ]
    assert ends[0].argmax() == 2
    assert ends[1].argmax() == 0


@settings(max_examples=50)
@given(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_colours_are_those_of_the_standard_library(h: float, s: float, v: float) -> None:
    mine = adhesion.rgb(*(np.array([value]) for value in (h, s, v)))[:, 0]
    np.testing.assert_allclose(mine, colorsys.hsv_to_rgb(h % 1.0, s, v), atol=1e-6)


def test_emotion_has_inertia() -> None:
    emotion, target = (0.0, -1.0, 0.2), (1.0, 1.0, 1.0)
    for _ in range(round(60 * adhesion.INERTIA_SECONDS)):
        emotion = adhesion.dragged(emotion, target)
    assert emotion[0] == pytest.approx(1.0 - np.exp(-1.0), abs=1e-3)
    assert emotion[1] == pytest.approx(1.0 - 2.0 * np.exp(-1.0), abs=2e-3)
