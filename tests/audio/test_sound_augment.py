from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.audio.augment import (
    add_noise,
    mask_frequency,
    mask_time,
    pitch_shift,
    tilt,
    time_stretch,
)
from kmidi_mlx.errors import KmidiError

RATE = 44_100
SOUND = (
    0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    + 0.1 * np.sin(2 * np.pi * 4000 * np.arange(RATE) / RATE)
).astype(np.float32)
CHANGES: list[Callable[..., np.ndarray]] = [time_stretch, pitch_shift, add_noise, tilt]
MASKS = [mask_time, mask_frequency]
PICTURE = np.random.default_rng(0).uniform(0.1, 1, (40, 64)).astype(np.float32)


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def strongest(sound: np.ndarray) -> float:
    middle = sound[8_000:-8_000]
    size = 1 << 19
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size)).argmax() * RATE / size)


def level_db(sound: np.ndarray, hz: float) -> float:
    waves = np.exp(-2j * np.pi * hz * np.arange(len(sound)) / RATE) * np.hanning(len(sound))
    return float(20 * np.log10(abs(sound @ waves)))


@pytest.mark.parametrize("change", CHANGES + MASKS)
def test_one_seed_makes_one_result(change: Callable[..., np.ndarray]) -> None:
    given_array = PICTURE if change in MASKS else SOUND
    before = given_array.copy()
    first, again, other = (change(given_array, seeded(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(given_array, before)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30_000))
def test_what_is_drawn_stays_in_range(seed: int, count: int) -> None:
    sound = SOUND[:count]
    ratio = len(time_stretch(sound, seeded(seed))) / count
    assert 0.9 - 1 / count <= ratio <= 1.1 + 1 / count
    for change in (pitch_shift, add_noise, tilt):
        changed = change(sound, seeded(seed))
        assert len(changed) == count
        assert np.isfinite(changed).all()


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_stretching_keeps_pitch_and_moves_time(factor: float) -> None:
    stretched = time_stretch(SOUND, seeded(0), factor)
    assert len(stretched) == round(RATE * factor)
    assert strongest(stretched) == pytest.approx(440, rel=2e-3)
    burst = np.zeros(2 * RATE, np.float32)
    burst[RATE : RATE + 2_000] = SOUND[:2_000] * np.hanning(2_000)
    moved = np.abs(time_stretch(burst, seeded(0), factor))
    centre = (moved * np.arange(len(moved))).sum() / moved.sum()
    assert centre == pytest.approx((RATE + 1_000) * factor, abs=441)


@pytest.mark.parametrize("semitones", [-3, -1, 2, 3])
def test_pitch_moves_and_time_stays(semitones: int) -> None:
    shifted = pitch_shift(SOUND, seeded(0), semitones)
    assert len(shifted) == len(SOUND)
    assert 12 * np.log2(strongest(shifted) / 440) == pytest.approx(semitones, abs=0.15)


@pytest.mark.parametrize("snr_db", [20, 40])
def test_noise_has_its_distance(snr_db: float) -> None:
    noise = add_noise(SOUND, seeded(0), snr_db) - SOUND
    measured = 10 * np.log10(np.mean(SOUND**2) / np.mean(noise**2))
    assert measured == pytest.approx(snr_db, abs=0.1)
    assert abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.02  # white


def test_drawn_noise_is_between_20_and_40_db() -> None:
    distances = [
        10 * np.log10(np.mean(SOUND**2) / np.mean((add_noise(SOUND, seeded(k)) - SOUND) ** 2))
        for k in range(20)
    ]
    assert 19.8 < min(distances) < 25
    assert 35 < max(distances) < 40.2


def test_silence_stays_silence() -> None:
    silence = np.zeros(5_000, np.float32)
    assert not add_noise(silence, seeded(0)).any()
    assert not tilt(silence, seeded(0)).any()


def test_tilt_turns_around_1_khz() -> None:
    tilted = tilt(SOUND, seeded(0), 3.0)
    assert len(tilted) == len(SOUND)
    assert level_db(tilted, 4000) - level_db(SOUND, 4000) == pytest.approx(6, abs=0.1)
    assert level_db(tilted, 440) - level_db(SOUND, 440) == pytest.approx(3 * np.log2(0.44), abs=0.1)
    assert np.abs(tilt(SOUND, seeded(0), 0.0) - SOUND).max() < 1e-5


def test_tilting_there_and_back_is_nothing() -> None:
    window = np.hanning(RATE).astype(np.float32)
    there = tilt(SOUND * window, seeded(0), 2.0)
    assert np.abs(tilt(there, seeded(0), -2.0) - SOUND * window).max() < 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_masks_blank_one_stretch(seed: int, longest: float) -> None:
    for mask, axis in ((mask_time, 1), (mask_frequency, 0)):
        masked = mask(PICTURE, seeded(seed), longest)
        blank = (masked == 0).all(axis=1 - axis)
        assert blank.sum() <= longest * PICTURE.shape[axis]
        assert np.count_nonzero(np.diff(np.pad(blank.astype(int), 1))) <= 2  # in one piece
        kept = np.compress(~blank, masked, axis=axis)
        assert np.array_equal(kept, np.compress(~blank, PICTURE, axis=axis))
        assert (mask(PICTURE, seeded(seed), longest, fill=-1.0) == -1).sum() == (masked == 0).sum()


def test_wrong_use() -> None:
    random = seeded(0)
    for call, text in (
        (lambda: time_stretch(SOUND, random, 3.0), "factor is 3.0"),
        (lambda: pitch_shift(SOUND, random, 13), "semitones is 13"),
        (lambda: add_noise(SOUND, random, float("nan")), "snr_db is nan"),
        (lambda: tilt(SOUND, random, -7), "db_per_octave is -7"),
        (lambda: mask_time(PICTURE, random, 1.5), "longest is 1.5"),
        (lambda: time_stretch(PICTURE, random), r"one channel.*\(40, 64\)"),
        (lambda: tilt(np.zeros(0, np.float32), random), "not empty"),
        (lambda: add_noise(np.full(5, np.nan, np.float32), random), "finite"),
    ):
        with pytest.raises(KmidiError, match=text):
            call()


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_stretch.Signalsmith", None)
    with pytest.raises(KmidiError, match="pip install"):
        time_stretch(SOUND, seeded(0))
