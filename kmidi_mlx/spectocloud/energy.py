"""Where the sound is: points spread over a spectrogram so that loud places get many of them.

A point has two fixed numbers u and v in [0, 1). The first goes through the inverse distribution of
energy over time and gives x, the second through that of energy over pitch at this x and gives y
(the Knothe-Rosenblatt rearrangement: Rosenblatt, "Remarks on a multivariate transformation", 1952).
The map is continuous in the spectrogram, so that a point travels as the sound changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud.axes import BAND_Y, BAND_Y_EDGES, MEL_BANDS, WINDOW_FRAMES

__all__ = [
    "BRIGHT",
    "DARK",
    "RESTING_COLUMN",
    "RESTING_PROFILE",
    "RESTING_SHARE",
    "SOFTEST_PEAK",
    "TIME_BLUR",
    "Energy",
    "measure_energy",
    "sample_columns",
    "spread_points",
]

_Floats = NDArray[np.float32]

# Compressed mel numbers that count as nothing and as full (68 and 20 dB below a full-scale sine on
# the project's scale of -60 to 40 dB).
DARK, BRIGHT = 0.32, 0.80
# What silence weighs: points rest evenly in time and in a band around the middle register.
RESTING_COLUMN = 0.3
RESTING_SHARE = 0.10
RESTING_PROFILE = np.exp(-0.5 * ((BAND_Y + 0.25) / 0.28) ** 2) * np.diff(BAND_Y_EDGES)
RESTING_PROFILE = (0.15 * RESTING_PROFILE / RESTING_PROFILE.sum()).astype(np.float32)
SOFTEST_PEAK = 0.3
# (64, 64): columns softened along time by 1 2 3 2 1, the first and the last repeated at the ends.
TIME_BLUR = np.zeros((WINDOW_FRAMES, WINDOW_FRAMES), np.float32)
for _lag, _weight in zip(range(-2, 3), (1.0, 2.0, 3.0, 2.0, 1.0), strict=True):
    for _column in range(WINDOW_FRAMES):
        TIME_BLUR[min(max(_column + _lag, 0), WINDOW_FRAMES - 1), _column] += _weight / 9.0
_COLUMN_EDGES = np.linspace(-1.0, 1.0, WINDOW_FRAMES + 1)
_Y_EDGES = BAND_Y_EDGES.astype(np.float32)
_Y = BAND_Y.astype(np.float32)
_ROW = MEL_BANDS + 1
#: mel frames that count as "now"
_NOW_FRAMES = 12


@dataclass(frozen=True, eq=False)
class Energy:
    """What one window of sound measures.

    Attributes:
        level: float32 (64, 128), time by band: the audible part of the window, softened, in [0, 1].
        time_cdf: float64 (65,), distribution of energy over the columns' edges, 0 to 1.
        pitch_cdf: float32 (64, 129), distribution over the bands' edges in each column.
        line: float32 (64,), mean height of the energy of each column, in [-1, 1].
        loudness: float32 (64,), loudness of each column in [0, 1].
        loudness_now: loudness of the last 0.14 s, in [0, 1].
        brightness: where the energy of the last 0.14 s lies: 0 the lowest band, 1 the highest.
        attack: how much louder the last 0.07 s are than the 0.07 s before, in [0, 1].
    """

    level: _Floats
    time_cdf: NDArray[np.float64]
    pitch_cdf: _Floats
    line: _Floats
    loudness: _Floats
    loudness_now: float
    brightness: float
    attack: float


def measure_energy(window: _Floats) -> Energy:
    """Measure a window of a log-compressed mel spectrogram.

    Args:
        window: float32 (128, 64) in [0, 1], the newest frame last.
    """
    audible = (window.T - np.float32(DARK)) * np.float32(1.0 / (BRIGHT - DARK))
    # softened along time, so that points glide where a note begins
    level = TIME_BLUR.T @ np.minimum(np.maximum(audible, 0.0), 1.0)
    # What stands out in the window attracts points: contrast within it, and its loudness at all.
    peak = float(level.max())
    relief = level * np.float32(1.0 / max(peak, SOFTEST_PEAK))
    relief *= relief
    energy = relief * relief * relief * np.float32(peak * peak)
    column = energy.sum(axis=1)

    mass = column + (RESTING_COLUMN + RESTING_SHARE * float(column.mean()))
    time_cdf = np.zeros(WINDOW_FRAMES + 1)
    np.cumsum(mass, out=time_cdf[1:])
    time_cdf /= time_cdf[-1]

    pitch_cdf = np.zeros((WINDOW_FRAMES, _ROW), np.float32)
    np.cumsum(energy + RESTING_PROFILE, axis=1, out=pitch_cdf[:, 1:])
    pitch_cdf /= pitch_cdf[:, -1:]

    resting = float(RESTING_PROFILE.sum())
    line = (energy @ _Y + resting * -0.25) / (column + resting)
    padded = np.concatenate([np.full(4, line[0]), line, np.full(4, line[-1])])
    line = np.convolve(padded, np.full(9, 1.0 / 9.0), "valid").astype(np.float32)

    # A mean that peaks dominate: what is heard as loud is in few bands.
    squared = level * level
    loudness = np.sqrt(np.sqrt(np.square(squared).mean(axis=1)))
    now = column[-_NOW_FRAMES:].sum()
    bands = energy[-_NOW_FRAMES:].sum(axis=0)
    centre = float(bands @ np.arange(MEL_BANDS)) / (MEL_BANDS - 1) / max(float(now), 1e-9)
    rise = float(loudness[-6:].mean() - loudness[-12:-6].mean())
    return Energy(
        level=level,
        time_cdf=time_cdf,
        pitch_cdf=pitch_cdf,
        line=line,
        loudness=loudness,
        loudness_now=float(loudness[-_NOW_FRAMES:].mean()),
        brightness=centre,
        attack=min(1.0, max(0.0, 4.0 * rise)),
    )


def spread_points(energy: Energy, u: _Floats, v: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Spread points over the energy.

    Args:
        energy: of the window.
        u: (n,) in [0, 1), the point's share of the energy before it in time.
        v: (n,) in [0, 1), its share of the energy below it in its column.

    Returns:
        float32 x (n,) and y (n,) in [-1, 1], and the level (n,) in [0, 1] at these places.
    """
    x = np.interp(u, energy.time_cdf, _COLUMN_EDGES).astype(np.float32)
    column, weight = _columns(x)
    table = energy.pitch_cdf.ravel()
    base = column * _ROW
    following = base + _ROW
    # The two neighbouring columns' distributions are mixed, then inverted by halving.
    band = np.zeros(len(x), np.intp)
    below = np.zeros(len(x), np.float32)
    for step in (64, 32, 16, 8, 4, 2, 1):
        middle = band + step
        share = table[base + middle]
        share += weight * (table[following + middle] - share)
        under = share <= v
        band = np.where(under, middle, band)
        below = np.where(under, share, below)
    upper = table[base + band + 1]
    upper = upper + weight * (table[following + band + 1] - upper)
    inside = np.clip((v - below) / np.maximum(upper - below, 1e-9), 0.0, 1.0).astype(np.float32)
    y = _Y_EDGES[band] + inside * (_Y_EDGES[band + 1] - _Y_EDGES[band])
    return x, y, _level_at(energy.level, column, weight, band + inside - np.float32(0.5))


def sample_columns(x: _Floats, values: _Floats) -> _Floats:
    """Read a number a column (64,) at places x (n,) in [-1, 1], linearly between columns."""
    column, weight = _columns(x)
    result: _Floats = values[column] + weight * (values[column + 1] - values[column])
    return result


def _columns(x: _Floats) -> tuple[NDArray[np.intp], _Floats]:
    """Return the column before each x, at most the last but one, and the weight of the next."""
    place = np.clip((x + 1.0) * (WINDOW_FRAMES / 2.0) - 0.5, 0.0, WINDOW_FRAMES - 1.0)
    column = np.minimum(place.astype(np.intp), WINDOW_FRAMES - 2)
    return column, (place - column).astype(np.float32)


def _level_at(level: _Floats, column: NDArray[np.intp], weight: _Floats, place: _Floats) -> _Floats:
    place = np.clip(place, 0.0, MEL_BANDS - 1.0)
    band = np.minimum(place.astype(np.intp), MEL_BANDS - 2)
    table, base = level.ravel(), column * MEL_BANDS + band
    low = table[base] + weight * (table[base + MEL_BANDS] - table[base])
    high = table[base + 1] + weight * (table[base + MEL_BANDS + 1] - table[base + 1])
    result: _Floats = low + (place - band).astype(np.float32) * (high - low)
    return result
