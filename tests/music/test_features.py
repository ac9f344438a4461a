from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.features import FEATURE_COUNT, FEATURE_NAMES, features
from kmidi_mlx.music.notes import Notes

INDEX = {name: k for k, name in enumerate(FEATURE_NAMES)}


@st.composite
def pieces(draw: st.DrawFn, low: int = 0, high: int = 127) -> Notes:
    count = draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # A coarse grid makes chords, unisons and equal intervals likely.
    onset = np.round(rng.uniform(0, draw(st.sampled_from([0.05, 3.0, 60.0])), count), 1)
    length = rng.choice([0.01, 0.1, 0.5, 7.0], count)
    pitch = rng.integers(low, high + 1, count)
    return Notes.build(pitch, rng.integers(1, 128, count), onset, onset + length)


def line(pitches: list[int], step: float = 0.5, length: float = 0.5, velocity: int = 64) -> Notes:
    onset = np.arange(len(pitches)) * step
    return Notes.build(pitches, [velocity] * len(pitches), onset, onset + length)


def value(notes: Notes, name: str, window: tuple[float, float] | None = None) -> float:
    return float(features(notes, window)[INDEX[name]])


def test_names() -> None:
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == FEATURE_COUNT == 32


@settings(max_examples=150)
@given(pieces(), st.none() | st.tuples(st.floats(-5, 70), st.floats(0.001, 30)))
def test_bounds(notes: Notes, span: tuple[float, float] | None) -> None:
    window = None if span is None else (span[0], span[0] + span[1])
    values = features(notes, window)
    assert values.dtype == np.float32
    assert values.shape == (32,)
    assert np.isfinite(values).all()
    assert values.max() <= 1.0
    assert np.delete(values, INDEX["mode"]).min() >= 0.0
    assert values[INDEX["mode"]] >= -1.0
    total = values[:12].sum()
    assert total == pytest.approx(1.0, abs=1e-5) or not values.any()


@settings(max_examples=60)
@given(pieces(low=20, high=100), st.integers(-20, 20))
def test_transposition_rotates_the_pitch_classes(notes: Notes, semitones: int) -> None:
    moved = Notes.build(
        notes.pitch.astype(int) + semitones,
        notes.velocity,
        notes.onset_seconds,
        notes.offset_seconds,
    )
    before, after = features(notes), features(moved)
    np.testing.assert_allclose(after[:12], np.roll(before[:12], semitones), atol=1e-6)
    moves = {"pitch_mean", "low_register", "middle_register", "high_register"}
    stays = [k for name, k in INDEX.items() if k >= 12 and name not in moves]
    np.testing.assert_allclose(after[stays], before[stays], atol=1e-5)
    expected = before[INDEX["pitch_mean"]] + semitones / 127
    assert after[INDEX["pitch_mean"]] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60)
@given(pieces())
def test_velocity_touches_only_velocity(notes: Notes) -> None:
    softer = Notes(
        notes.pitch, (notes.velocity + 1) // 2, notes.onset_seconds, notes.offset_seconds
    )
    changed = {k for k in range(32) if features(notes)[k] != features(softer)[k]}
    assert changed <= {INDEX["velocity_mean"], INDEX["velocity_spread"]}


@settings(max_examples=60)
@given(pieces(), st.integers(0, 80), st.integers(1, 80))
def test_only_time_within_the_window_matters(notes: Notes, quarter: int, quarters: int) -> None:
    # Off the grid of the onsets, so that rounding moves no note across the window's edge.
    start, length, shift = quarter / 4 + 0.013, quarters / 4, 1000.0
    later = Notes(
        notes.pitch, notes.velocity, notes.onset_seconds + shift, notes.offset_seconds + shift
    )
    np.testing.assert_allclose(
        features(later, (start + shift, start + shift + length)),
        features(notes, (start, start + length)),
        atol=1e-5,
    )


def test_silence_is_all_zeros() -> None:
    assert not features(Notes.empty()).any()
    assert not features(Notes.empty(), (0.0, 4.0)).any()
    notes = line([60, 64, 67])
    assert not features(notes, (1.5, 9.0)).any()
    assert not features(notes, (-3.0, 0.0)).any()
    assert features(notes, (1.4, 9.0)).any()


def test_numbers_of_a_plain_scale() -> None:
    scale = line([60, 62, 64, 65, 67, 69, 71, 72])
    values = dict(zip(FEATURE_NAMES, features(scale).tolist(), strict=True))
    assert values["pitch_class_0"] == pytest.approx(0.25)
    assert values["pitch_class_1"] == 0.0
    assert values["density"] == pytest.approx(2.0 / 10.0)
    assert values["polyphony"] == pytest.approx(1.0 / 5.0)
    assert values["pitch_mean"] == pytest.approx(66.25 / 127.0)
    assert values["pitch_range"] == pytest.approx(12.0 / 127.0)
    assert values["velocity_mean"] == pytest.approx(64.0 / 127.0)
    assert values["velocity_spread"] == 0.0
    assert values["onset_regularity"] == pytest.approx(1.0)
    assert values["ioi_mean"] == pytest.approx(0.5)
    assert values["ioi_spread"] == pytest.approx(0.0, abs=1e-6)
    assert values["articulation"] == pytest.approx(1.0)
    assert values["middle_register"] == pytest.approx(7 / 8)
    assert values["high_register"] == pytest.approx(1 / 8)
    assert values["sounding"] == pytest.approx(1.0)
    assert values["mode"] > 0.0
    assert values["key_clarity"] > 0.7


def test_each_feature_orders_what_it_is_named_for() -> None:
    assert value(line([60] * 16, 0.1), "density") > value(line([60] * 16, 1.0), "density")
    chord = Notes.build([48, 60, 64], [64] * 3, [0, 0, 0], [2, 2, 2])
    assert value(chord, "polyphony") == pytest.approx(3 / 7)
    assert value(line([60, 62], length=0.1), "articulation") == pytest.approx(0.2)
    uneven = Notes.build([60] * 4, [64] * 4, [0, 0.5, 2.0, 2.1], [0.4, 0.9, 2.1, 2.2])
    assert value(uneven, "onset_regularity") < 0.5
    assert value(uneven, "ioi_spread") > 0.3
    minor, major = [57, 60, 64, 57, 60, 64], [57, 61, 64, 57, 61, 64]
    assert value(line(minor), "mode") < 0 < value(line(major), "mode")
    chromatic = list(range(60, 72))
    for name in ("tonal_tension", "dissonance"):
        assert value(line(chromatic), name) > value(line(major), name) > 0
    assert value(line([60, 60]), "tonal_tension") == pytest.approx(0.0, abs=1e-6)
    assert value(line([60, 61]), "dissonance") == pytest.approx(1.0)
    assert value(line([60, 67]), "dissonance") == pytest.approx(0.0, abs=1e-6)
    assert value(line([60, 62, 60, 62]), "novelty") == pytest.approx(0.0, abs=1e-6)
    assert value(line([60, 60, 62, 62]), "novelty") == pytest.approx(1.0)
    assert value(line([60, 60, 60], 1.0, 0.25), "sounding") == pytest.approx(0.75 / 2.25)


def test_a_held_note_counts_with_the_part_that_sounds() -> None:
    notes = Notes.build([60, 64], [80, 40], [0.0, 5.0], [10.0, 6.0])
    window = (4.0, 6.0)
    assert value(notes, "pitch_class_0", window) == pytest.approx(2 / 3)
    assert value(notes, "density", window) == pytest.approx(0.5 / 8.5)
    assert value(notes, "polyphony", window) == pytest.approx(1.5 / 5.5)
    assert value(notes, "sounding", window) == pytest.approx(1.0)
    assert value(notes, "density", (7.0, 9.0)) == 0.0


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_wrong_windows_are_refused(window: tuple[float, float]) -> None:
    with pytest.raises(KmidiError, match="stretch of time"):
        features(line([60]), window)
