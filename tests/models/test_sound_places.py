"""The sound's places are the engine's, and a code tells what its token covers."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from kmidi_mlx.models.sound_places import (
    NOW_DIM,
    PLACE_DIM,
    SHARE_DIM,
    now_codes,
    place_codes,
    sound_places,
)
from kmidi_mlx.spectocloud.axes import BAND_Y_EDGES
from kmidi_mlx.spectocloud.energy import measure_energy, spread_points
from kmidi_mlx.spectocloud.point_codes import point_codes, seed_columns
from kmidi_mlx.spectocloud.points import point_set

LOUDNESS = pytest.mark.parametrize("loudness", [0.0, 0.4, 0.7, 1.0])


def sound(loudness: float, count: int = 2) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (loudness * draw.uniform(size=(count, 128, 64)) ** 3).astype(np.float32)


@LOUDNESS
def test_places_are_those_of_the_engine(loudness: float) -> None:
    windows = sound(loudness)
    places = sound_places(mx.array(windows))
    for row, window in enumerate(windows):
        energy = measure_energy(window)
        np.testing.assert_allclose(np.array(places.level[row]), energy.level.T, atol=1e-5)
        below = 0.5 * (energy.pitch_cdf[:, 1:] + energy.pitch_cdf[:, :-1])
        before = 0.5 * (energy.time_cdf[1:] + energy.time_cdf[:-1])
        np.testing.assert_allclose(np.array(places.below[row]), below.T, atol=1e-5)
        np.testing.assert_allclose(np.array(places.before[row, 5]), before, atol=1e-5)
    np.testing.assert_allclose(np.array(places.density).mean((1, 2)), 1.0, rtol=1e-4)


@LOUDNESS
def test_a_code_is_the_mean_over_the_points_that_a_token_covers(loudness: float) -> None:
    """Slow reference: spread very many points over the sound and look where they are."""
    # smooth, because the engine reads levels between the bands, a code those of whole bands
    window = gaussian_filter(sound(loudness, 1), (0, 3, 3)) * 3
    count = 100_000
    numbers = np.arange(count)
    u, v = ((numbers + 0.5) / count), (0.618034 * numbers) % 1.0
    x, y, level = spread_points(measure_energy(window[0]), u.astype("f4"), v.astype("f4"))
    codes = np.array(place_codes(sound_places(mx.array(window)), 4, 2)[0])
    row = np.clip(np.searchsorted(BAND_Y_EDGES, y) - 1, 0, 127) // 32
    token = row * 2 + (x > 0)
    for number in range(8):
        inside = token == number
        share = inside.mean() * 8
        assert np.exp(codes[number, -1]) - 0.05 == pytest.approx(share, abs=0.02)
        if share > 0.2:
            # the code is damped where few points are
            mean = codes[number] * (share + 0.01) / share
            for start, seed in ((0, u), (SHARE_DIM, v)):
                assert mean[start] == pytest.approx((2 * seed[inside] - 1).mean(), abs=0.05)
            assert mean[2 * SHARE_DIM] == pytest.approx(level[inside].mean(), abs=0.06)


def test_points_and_places_tell_their_seeds_alike() -> None:
    points = point_set(1200)
    codes = point_codes(1200)[points.body][:, seed_columns(SHARE_DIM)]
    for start, seed in zip((0, SHARE_DIM), points.body_seeds, strict=False):
        place = 2.0 * seed - 1.0
        waves = np.pi / 2 * 2.0 ** np.arange(SHARE_DIM // 2) * place[:, None]
        told = np.column_stack([place, np.sin(waves), np.cos(waves)])
        np.testing.assert_allclose(codes[:, start : start + SHARE_DIM], told, atol=1e-5)


def test_now_is_the_newest_sound() -> None:
    window = np.zeros((1, 128, 64), np.float32)
    window[0, 8:16, -6:] = 1.0
    codes = np.array(now_codes(sound_places(mx.array(window)))).reshape(16, 2)
    assert codes.shape == (NOW_DIM // 2, 2)
    assert codes[1, 0] > 0.9
    assert codes[1, 1] < 0.2
    assert np.abs(np.delete(codes, 1, axis=0)).max() == 0.0


def test_half_precision_and_silence_stay_finite() -> None:
    for loudness in (0.0, 1.0):
        places = sound_places(mx.array(sound(loudness)).astype(mx.float16))
        codes = place_codes(places, 16, 8)
        assert codes.shape == (2, 128, PLACE_DIM)
        assert codes.dtype == mx.float16
        assert np.isfinite(np.array(codes)).all()
