"""Relief: the depth of the cloud, a landscape shaped by the 32 MIDI features.

z of a point at (x, y) is a sum of fixed shapes, each with a weight that is linear in the features:
one table says which feature raises which shape. The pitch classes enter through the tonal centroid
(Harte, Sandler, Gasser, "Detecting harmonic change in musical audio", 2006): three waves, for
fifths, minor thirds and major thirds, whose height and phase are the chord's, so that a change of
harmony turns the landscape.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.features import FEATURE_COUNT, FEATURE_NAMES

__all__ = ["SHAPES", "WEIGHTS", "relief"]

#: Shapes of the landscape: even, by pitch, by time, saddle, bowl, ripples along time, points apart
#: in depth, rough folds, and cosine and sine of the three harmonic waves.
SHAPES = (
    "offset",
    "rise",
    "slope",
    "saddle",
    "bowl",
    "ripple",
    "thickness",
    "folds",
    *(f"{interval}_{part}" for interval in ("fifths", "minor", "major") for part in ("cos", "sin")),
)

_SCALARS: dict[str, dict[str, float]] = {
    "density": {"ripple": 0.16},
    "polyphony": {"thickness": 0.05, "bowl": 0.12},
    "pitch_mean": {"offset": 0.10},
    "pitch_spread": {"bowl": 0.14},
    "pitch_range": {"saddle": 0.12},
    "velocity_mean": {"offset": 0.14, "slope": 0.10},
    "velocity_spread": {"slope": 0.12},
    "onset_regularity": {"ripple": 0.08},
    "ioi_mean": {"bowl": -0.10},
    "ioi_spread": {"folds": 0.08},
    "articulation": {"ripple": -0.05},
    "low_register": {"rise": -0.16},
    "middle_register": {"bowl": -0.06},
    "high_register": {"rise": 0.16},
    "mode": {"slope": 0.14, "rise": 0.10},
    "key_clarity": {"folds": -0.06},
    "tonal_tension": {"folds": 0.26, "thickness": 0.06},
    "dissonance": {"folds": 0.24, "thickness": 0.08},
    "novelty": {"saddle": 0.18},
    "sounding": {"offset": -0.12},
}
_HARMONIC_HEIGHT = 0.38
#: Semitone steps that turn the circles of fifths, minor thirds and major thirds once round.
_CIRCLES = (7.0 / 12.0, 1.0 / 4.0, 1.0 / 3.0)
_WAVES = ((0.9, 0.7), (-0.6, 1.3), (1.5, -0.5))
_THICKNESS_OF_ALL = 0.03

_Floats = NDArray[np.float32]


def _weights() -> _Floats:
    table = np.zeros((FEATURE_COUNT, len(SHAPES)))
    for name, row in _SCALARS.items():
        for shape, weight in row.items():
            table[FEATURE_NAMES.index(name), SHAPES.index(shape)] = weight
    turn = 2.0 * np.pi * np.arange(12)[:, None] * np.array(_CIRCLES)
    table[:12, -6::2] = _HARMONIC_HEIGHT * np.cos(turn)
    table[:12, -5::2] = _HARMONIC_HEIGHT * np.sin(turn)
    return table.astype(np.float32)


#: float32 (32, 14): what each feature adds to the weight of each shape.
WEIGHTS = _weights()
WEIGHTS.flags.writeable = False


def relief(x: _Floats, y: _Floats, layer: _Floats, features: _Floats, scatter: float) -> _Floats:
    """Return the depth of points before loudness lifts them.

    Args:
        x: (n,) in [-1, 1].
        y: (n,) in [-1, 1].
        layer: (n,) in [-1, 1], the point's fixed place in the cloud's thickness.
        features: float32 (32,), as of `kmidi_mlx.music.features`.
        scatter: >= 0, added to the thickness (from arousal and storm).

    Returns:
        float32 (n,).
    """
    weight = features @ WEIGHTS
    fixed = layer * (float(weight[6]) + _THICKNESS_OF_ALL + scatter)
    z = weight[0] + weight[1] * y + weight[2] * x + weight[3] * (x * y)
    z += weight[4] * (x * x + y * y - np.float32(2.0 / 3.0))
    z += weight[5] * np.sin(9.0 * x + 3.0 * y) + fixed
    z += weight[7] * np.sin(9.0 * x - 1.0) * np.cos(8.0 * y + 2.0)
    for wave, (along, up) in enumerate(_WAVES):
        phase = np.pi * (along * x + up * y)
        z += weight[8 + 2 * wave] * np.cos(phase) + weight[9 + 2 * wave] * np.sin(phase)
    result: _Floats = z.astype(np.float32)
    return result
