"""Mode and key in sound, as `kmidi_mlx.music.mood` finds them in notes; nothing here is learnt.

Pitch-class profiles of audio go back to Fujishima ("Realtime chord recognition of musical sound",
ICMC 1999); a key is what the profile resembles (Krumhansl 1990, see `mood.key_correlations`).
"""

from __future__ import annotations

import mlx.core as mx

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.audio.mel import CEILING_DB, FLOOR_DB
from kmidi_mlx.music.mood import DEGREE_WEIGHTS, KEY_PROFILES, KEY_SHARPNESS

__all__ = ["TONAL_FEATURES", "chroma", "tonal_features"]

#: Columns of `tonal_features`; what they mean is said of `mood.MOOD_FEATURES`.
TONAL_FEATURES = ("mode", "third", "sixth", "flat_second", "tritone", "diatonic")

# Means and standard deviations over eight seconds of piano music, which make them about standard.
_CENTRE = (0.126, -0.0089, 0.0249, 0.0228, 0.0209, 0.858)
_SPREAD = (0.234, 0.0366, 0.0367, 0.0157, 0.0163, 0.0625)
# Natural logarithm of the amplitude that compressed 0 and 1 stand for.
_LOG_10 = 2.302585092994046
_FLOOR, _RANGE = _LOG_10 * FLOOR_DB / 20.0, _LOG_10 * (CEILING_DB - FLOOR_DB) / 20.0
_TINY = 1e-6


def chroma(semitones: mx.array) -> mx.array:
    """Return the strength of the twelve pitch classes.

    Args:
        semitones: `(..., SEMITONES)` as `hear` gives them, in [0, 1].

    Returns:
        `(..., 12)` fp32: amplitudes of the semitones that are at least as strong as both of their
        neighbours, added up over the octaves; 0 in silence.
    """
    level = semitones.astype(mx.float32)
    edge = mx.zeros_like(level[..., :1])
    below = mx.concatenate([edge, level[..., :-1]], axis=-1)
    above = mx.concatenate([level[..., 1:], edge], axis=-1)
    peak = mx.logical_and(level >= below, level >= above)
    amplitude = mx.exp(level * _RANGE + _FLOOR) - mx.exp(mx.array(_FLOOR))
    heard = mx.where(peak, amplitude, 0.0)
    return mx.sum(heard.reshape(*heard.shape[:-1], SEMITONES // 12, 12), axis=-2)


def tonal_features(profile: mx.array) -> mx.array:
    """Return features of mode and key, about standardised, of sums of `chroma`.

    Args:
        profile: `(batch, 12)` fp32, any scale.

    Returns:
        `(batch, 6)` fp32, columns as in `TONAL_FEATURES`.
    """
    profile = profile / (mx.sum(profile, axis=-1, keepdims=True) + _TINY)
    centred = profile - mx.mean(profile, axis=-1, keepdims=True)
    scale = mx.sqrt(mx.mean(mx.square(centred), axis=-1, keepdims=True))
    fit = (centred / (scale + _TINY)) @ mx.array(KEY_PROFILES, mx.float32)
    keys = mx.softmax(KEY_SHARPNESS * fit, axis=-1)
    mode = 2.0 * mx.sum(keys[:, :12], axis=-1, keepdims=True) - 1.0
    degrees = (profile @ mx.array(DEGREE_WEIGHTS, mx.float32)).reshape(len(profile), -1, 24)
    found = mx.concatenate([mode, mx.sum(degrees * keys[:, None], axis=-1)], axis=-1)
    return (found - mx.array(_CENTRE)) / mx.array(_SPREAD)
