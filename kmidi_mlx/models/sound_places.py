"""Where the sound of a window is, as a network needs it to put points there.

Points of a cloud are spread evenly over the energy of the spectrogram: a point's two seeds are its
shares of the energy before it in time and below it in pitch (`kmidi_mlx.spectocloud.energy`). Here
every place of a window gets these shares, and every token of an encoder a code of the shares that
it covers, in the same waves in which `kmidi_mlx.spectocloud.point_codes` tells a point's seeds, so
that a point finds its place by the product of two codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from kmidi_mlx.spectocloud.energy import (
    BRIGHT,
    DARK,
    RESTING_COLUMN,
    RESTING_PROFILE,
    RESTING_SHARE,
    SOFTEST_PEAK,
    TIME_BLUR,
)

_OCTAVES = 5
#: Numbers that tell a share: itself, and sine and cosine of its waves.
SHARE_DIM = 1 + 2 * _OCTAVES
#: Numbers that tell a place: shares of time and pitch, level, height, time, and how many points.
PLACE_DIM = 2 * SHARE_DIM + 4
_NOW_BANDS, _NOW_FRAMES = 16, 6
#: Numbers that tell what is heard now, and what was heard just before.
NOW_DIM = 2 * _NOW_BANDS


@dataclass(frozen=True)
class SoundPlaces:
    """Measures of every place of a window, all `(batch, bands, frames)`.

    Attributes:
        level: how loud it is, softened along time, in [0, 1].
        below: share of its frame's energy below this place, half of its own included, in [0, 1].
        before: share of the window's energy before its frame, half of its own included, in [0, 1].
        density: share of the points that are there; 1 on average.
    """

    level: mx.array
    below: mx.array
    before: mx.array
    density: mx.array


def sound_places(windows: mx.array) -> SoundPlaces:
    """Measure windows `(batch, bands, frames)` of a compressed mel spectrogram in [0, 1]."""
    dtype = windows.dtype
    bands, frames = windows.shape[1:]
    level = mx.clip((windows - DARK) / (BRIGHT - DARK), 0, 1)
    level = mx.matmul(level, mx.array(TIME_BLUR, dtype))
    peak = mx.max(level, axis=(1, 2), keepdims=True)
    relief = mx.square(level / mx.maximum(peak, SOFTEST_PEAK))
    rest = mx.array(RESTING_PROFILE[:, None], dtype)
    energy = relief * relief * relief * mx.square(peak) + rest
    column = mx.sum(energy, axis=1, keepdims=True)
    energy = energy / column
    below = mx.matmul(mx.array(_halved(bands), dtype), energy)
    resting = RESTING_COLUMN - (1.0 + RESTING_SHARE) * float(RESTING_PROFILE.sum())
    mass = column + (resting + RESTING_SHARE * mx.mean(column, axis=2, keepdims=True))
    mass = mass / mx.sum(mass, axis=2, keepdims=True)
    before = mx.matmul(mass, mx.array(_halved(frames).T, dtype))
    before = mx.broadcast_to(before, windows.shape)
    return SoundPlaces(level, below, before, energy * mass * (bands * frames))


def place_codes(places: SoundPlaces, height: int, width: int) -> mx.array:
    """Tell what a map of `height` x `width` tokens covers: the mean over the points in a token.

    Returns:
        `(batch, height * width, PLACE_DIM)`, row by row.
    """
    batch, bands, frames = places.level.shape
    dtype = places.level.dtype
    waves = mx.array(np.pi / 2.0 * 2.0 ** np.arange(_OCTAVES), dtype).reshape(1, -1, 1, 1)
    parts = []
    for share in (places.before, places.below):
        place = (2.0 * share - 1.0)[:, None]
        parts += [place, mx.sin(waves * place), mx.cos(waves * place)]
    shape = (1, 1, bands, frames)
    high = mx.array(np.linspace(-1.0, 1.0, bands), dtype)[None, None, :, None]
    late = mx.array(np.linspace(-1.0, 1.0, frames), dtype)
    parts += [places.level[:, None], mx.broadcast_to(high, shape), mx.broadcast_to(late, shape)]
    one = mx.ones(shape, dtype)
    everything = [mx.broadcast_to(part, (batch, *part.shape[1:])) for part in (*parts, one)]
    weighted = mx.concatenate(everything, axis=1) * places.density[:, None]
    pooled = mx.matmul(weighted, mx.array(_pooling(frames, width).T, dtype))
    pooled = mx.matmul(mx.array(_pooling(bands, height), dtype), pooled)
    points = pooled[:, -1:]
    codes = mx.concatenate([pooled[:, :-1] / (points + 0.01), mx.log(points + 0.05)], axis=1)
    return codes.reshape(batch, PLACE_DIM, height * width).transpose(0, 2, 1)


def now_codes(places: SoundPlaces) -> mx.array:
    """Tell how loud each part of the register is now and was just before: `(batch, NOW_DIM)`."""
    batch, bands, frames = places.level.shape
    dtype = places.level.dtype
    latest = np.zeros((frames, 2))
    latest[-_NOW_FRAMES:, 0] = latest[-2 * _NOW_FRAMES : -_NOW_FRAMES, 1] = 1.0 / _NOW_FRAMES
    pooled = mx.matmul(places.level, mx.array(latest, dtype))
    pooled = mx.matmul(mx.array(_pooling(bands, _NOW_BANDS), dtype), pooled)
    return pooled.reshape(batch, NOW_DIM)


def _halved(size: int) -> np.ndarray:
    """Matrix that adds up all numbers before each and half of itself."""
    return np.tri(size) - 0.5 * np.eye(size)


def _pooling(size: int, parts: int) -> np.ndarray:
    """Matrix (parts, size) that takes means of equal stretches."""
    return np.kron(np.eye(parts), np.full(size // parts, parts / size))
