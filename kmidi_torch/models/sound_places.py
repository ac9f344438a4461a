"""Where the sound of a window is, as a network needs it to put points there.

Points of a cloud are spread evenly over the energy of the spectrogram: a point's two seeds are its
shares of the energy before it in time and below it in pitch (`kmidi_mlx.spectocloud.energy`). Here
every place of a window gets these shares, and every token of an encoder a code of the shares that
it covers, in the same waves in which `kmidi_mlx.spectocloud.point_codes` tells a point's seeds, so
that a point finds its place by the product of two codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kmidi_mlx.spectocloud.energy import (
    BRIGHT,
    DARK,
    RESTING_COLUMN,
    RESTING_PROFILE,
    RESTING_SHARE,
    SOFTEST_PEAK,
    TIME_BLUR,
)

# what the engine holds as numpy; all other fixed numbers are made on the device of the sound
_RESTING_PROFILE, _TIME_BLUR = torch.from_numpy(RESTING_PROFILE), torch.from_numpy(TIME_BLUR)
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

    level: Tensor
    below: Tensor
    before: Tensor
    density: Tensor


def sound_places(windows: Tensor) -> SoundPlaces:
    """Measure windows `(batch, bands, frames)` of a compressed mel spectrogram in [0, 1]."""
    bands, frames = windows.shape[1:]
    level = torch.clip((windows - DARK) / (BRIGHT - DARK), 0, 1)
    level = torch.matmul(level, _TIME_BLUR.to(windows))
    peak = torch.amax(level, dim=(1, 2), keepdim=True)
    relief = torch.square(level / torch.clip(peak, SOFTEST_PEAK))
    rest = _RESTING_PROFILE[:, None].to(windows)
    energy = relief * relief * relief * torch.square(peak) + rest
    column = torch.sum(energy, dim=1, keepdim=True)
    energy = energy / column
    below = torch.matmul(_halved(bands, windows), energy)
    resting = RESTING_COLUMN - (1.0 + RESTING_SHARE) * float(RESTING_PROFILE.sum())
    mass = column + (resting + RESTING_SHARE * torch.mean(column, dim=2, keepdim=True))
    mass = mass / torch.sum(mass, dim=2, keepdim=True)
    before = torch.matmul(mass, _halved(frames, windows).T)
    before = before.expand(windows.shape)
    return SoundPlaces(level, below, before, energy * mass * (bands * frames))


def place_codes(places: SoundPlaces, height: int, width: int) -> Tensor:
    """Tell what a map of `height` x `width` tokens covers: the mean over the points in a token.

    Returns:
        `(batch, height * width, PLACE_DIM)`, row by row.
    """
    batch, bands, frames = places.level.shape
    like = {"dtype": places.level.dtype, "device": places.level.device}
    waves = (torch.pi / 2.0 * 2.0 ** torch.arange(_OCTAVES, **like)).reshape(1, -1, 1, 1)
    parts = []
    for share in (places.before, places.below):
        place = (2.0 * share - 1.0)[:, None]
        parts += [place, torch.sin(waves * place), torch.cos(waves * place)]
    shape = (1, 1, bands, frames)
    high = torch.linspace(-1.0, 1.0, bands, **like)[None, None, :, None]
    late = torch.linspace(-1.0, 1.0, frames, **like)
    parts += [places.level[:, None], high.expand(shape), late.expand(shape)]
    one = torch.ones(shape, **like)
    everything = [part.expand(batch, *part.shape[1:]) for part in (*parts, one)]
    weighted = torch.cat(everything, dim=1) * places.density[:, None]
    pooled = torch.matmul(weighted, _pooling(frames, width, weighted).T)
    pooled = torch.matmul(_pooling(bands, height, pooled), pooled)
    points = pooled[:, -1:]
    codes = torch.cat([pooled[:, :-1] / (points + 0.01), torch.log(points + 0.05)], dim=1)
    return codes.reshape(batch, PLACE_DIM, height * width).transpose(1, 2)


def now_codes(places: SoundPlaces) -> Tensor:
    """Tell how loud each part of the register is now and was just before: `(batch, NOW_DIM)`."""
    batch, bands, frames = places.level.shape
    latest = places.level.new_zeros(frames, 2)
    latest[-_NOW_FRAMES:, 0] = latest[-2 * _NOW_FRAMES : -_NOW_FRAMES, 1] = 1.0 / _NOW_FRAMES
    pooled = torch.matmul(places.level, latest)
    pooled = torch.matmul(_pooling(bands, _NOW_BANDS, pooled), pooled)
    return pooled.reshape(batch, NOW_DIM)


def _halved(size: int, like: Tensor) -> Tensor:
    """Matrix that adds up all numbers before each and half of itself."""
    return like.new_ones(size, size).tril() - torch.diag(like.new_full((size,), 0.5))


def _pooling(size: int, parts: int, like: Tensor) -> Tensor:
    """Matrix (parts, size) that takes means of equal stretches."""
    return torch.diag(like.new_full((parts,), parts / size)).repeat_interleave(size // parts, dim=1)
