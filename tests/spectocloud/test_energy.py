from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.spectocloud.axes import BAND_Y, BAND_Y_EDGES
from kmidi_mlx.spectocloud.energy import Energy, measure_energy, sample_columns, spread_points
from kmidi_mlx.spectocloud.points import low_discrepancy

SEEDS = low_discrepancy(400).astype(np.float32)


def window(seed: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.uniform(0.0, 1.0, (128, 64)) * (rng.uniform(size=(128, 64)) < share)).astype(
        np.float32
    )


def slow_spread(energy: Energy, u: float, v: float) -> tuple[float, float]:
    """Invert both distributions by plain interpolation."""
    x = np.interp(u, energy.time_cdf, np.linspace(-1.0, 1.0, 65))
    place = min(max((x + 1.0) * 32.0 - 0.5, 0.0), 63.0)
    first = min(int(place), 62)
    mixed = energy.pitch_cdf[first] + (place - first) * (
        energy.pitch_cdf[first + 1] - energy.pitch_cdf[first]
    )
    return float(x), float(np.interp(v, mixed, BAND_Y_EDGES))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.3, 1.0]))
def test_spread_equals_plain_interpolation(seed: int, share: float) -> None:
    energy = measure_energy(window(seed, share))
    x, y, level = spread_points(energy, SEEDS[0], SEEDS[1])
    slow = np.array([slow_spread(energy, u, v) for u, v in SEEDS[:2].T.tolist()])
    np.testing.assert_allclose(x, slow[:, 0], atol=1e-5)
    np.testing.assert_allclose(y, slow[:, 1], atol=2e-3)
    assert level.min() >= 0.0
    assert level.max() <= 1.0


def test_points_gather_where_the_sound_is() -> None:
    mel = np.zeros((128, 64), np.float32)
    mel[40:44, 40:] = 0.8
    x, y, level = spread_points(measure_energy(mel), SEEDS[0], SEEDS[1])
    inside = (x > 0.2) & (y > BAND_Y[39]) & (y < BAND_Y[44])
    # the patch is 38 % of the time and a thirtieth of the height
    assert inside.mean() > 0.5
    assert level[inside].mean() > 0.6
    assert level[~inside].mean() < 0.15


def test_silence_is_spread_evenly_over_time() -> None:
    energy = measure_energy(np.zeros((128, 64), np.float32))
    x, _, level = spread_points(energy, SEEDS[0], SEEDS[1])
    np.testing.assert_allclose(x, 2.0 * SEEDS[0] - 1.0, atol=1e-5)
    assert not level.any()
    assert energy.loudness_now == energy.brightness == energy.attack == 0.0


def test_measures_move_the_right_way() -> None:
    quiet, loud, high = (np.zeros((128, 64), np.float32) for _ in range(3))
    quiet[20:23], loud[20:23], high[80:83] = 0.45, 0.8, 0.8
    assert measure_energy(quiet).loudness_now < measure_energy(loud).loudness_now
    assert measure_energy(loud).brightness < measure_energy(high).brightness
    assert measure_energy(loud).line.mean() < measure_energy(high).line.mean()
    assert measure_energy(loud).attack == 0.0
    begins = np.where(np.arange(64) >= 58, loud, 0.0).astype(np.float32)
    assert measure_energy(begins).attack > 0.3


def test_columns_are_read_linearly() -> None:
    values = np.arange(64, dtype=np.float32)
    x = np.linspace(-1.0, 1.0, 31, dtype=np.float32)
    expected = np.clip((x + 1.0) * 32.0 - 0.5, 0.0, 63.0)
    np.testing.assert_allclose(sample_columns(x, values), expected, atol=1e-4)
