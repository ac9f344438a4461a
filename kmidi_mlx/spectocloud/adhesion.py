"""Adhesion: how emotion clings to the cloud, with inertia, as hue, spread and opacity."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud.axes import FRAMES_PER_SECOND

__all__ = ["INERTIA_SECONDS", "dragged", "hue", "opacity", "rgb", "spread"]

#: Time in which the cloud's emotion covers 63 % of the way to a new one.
INERTIA_SECONDS = 1.2
_STEP = 1.0 - math.exp(-1.0 / (INERTIA_SECONDS * FRAMES_PER_SECOND))
# Hue as a share of the circle: blue at valence -1, by violet and rose to red at 1.
_BLUE, _RED = 0.575, 1.05

_Floats = NDArray[np.float32]


def dragged(
    emotion: tuple[float, float, float], target: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return valence, arousal, intensity one video frame nearer to the target's."""
    v, a, i = (now + _STEP * (then - now) for now, then in zip(emotion, target, strict=True))
    return v, a, i


def hue(valence: float) -> float:
    """Return the cloud's hue in turns: 0.575 (blue) at -1, rising evenly to 1.05 (red) at 1."""
    return _BLUE + (_RED - _BLUE) * 0.5 * (valence + 1.0)


def spread(arousal: float) -> float:
    """Return how far points stray from the sound, 0.25 for the calmest to 1."""
    return 0.25 + 0.75 * 0.5 * (arousal + 1.0)


def opacity(arousal: float) -> float:
    """Return the opacity of a fully sounding point, 0.3 for the calmest to 1."""
    return 0.3 + 0.7 * 0.5 * (arousal + 1.0)


def rgb(hues: _Floats, saturation: _Floats, value: _Floats) -> _Floats:
    """Turn hues in turns (n,), saturation (n,) and value (n,) in [0, 1] into float32 (3, n)."""
    sector = (6.0 * hues + np.array([[0.0], [4.0], [2.0]], np.float32)) % 6.0
    full = np.clip(np.abs(sector - 3.0) - 1.0, 0.0, 1.0)
    colours: _Floats = (value * (1.0 - saturation * (1.0 - full))).astype(np.float32)
    return colours
