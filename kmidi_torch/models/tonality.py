"""Mode and key in sound, as `kmidi_mlx.music.mood` finds them in notes; nothing here is learnt.

Pitch-class profiles of audio go back to Fujishima ("Realtime chord recognition of musical sound",
ICMC 1999); a key is what the profile resembles (Krumhansl 1990, see `mood.key_correlations`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from kmidi_mlx.audio.hearing import SEMITONES
from kmidi_mlx.audio.mel import CEILING_DB, FLOOR_DB
from kmidi_mlx.music.mood import DEGREE_WEIGHTS, KEY_PROFILES, KEY_SHARPNESS

__all__ = ["TONAL_FEATURES", "chroma", "tonal_features"]

#: Columns of `tonal_features`; what they mean is said of `mood.MOOD_FEATURES`.
TONAL_FEATURES = ("mode", "third", "sixth", "flat_second", "tritone", "diatonic")

# Means and standard deviations over eight seconds of piano music, which make them about standard.
_CENTRE = torch.tensor((0.126, -0.0089, 0.0249, 0.0228, 0.0209, 0.858))
_SPREAD = torch.tensor((0.234, 0.0366, 0.0367, 0.0157, 0.0163, 0.0625))
# Natural logarithm of the amplitude that compressed 0 and 1 stand for.
_LOG_10 = 2.302585092994046
_FLOOR, _RANGE = _LOG_10 * FLOOR_DB / 20.0, _LOG_10 * (CEILING_DB - FLOOR_DB) / 20.0
_TINY = 1e-6

_KEY_PROFILES = torch.from_numpy(KEY_PROFILES.astype(np.float32))
_DEGREE_WEIGHTS = torch.from_numpy(DEGREE_WEIGHTS.astype(np.float32))


def chroma(semitones: Tensor) -> Tensor:
    """Return the strength of the twelve pitch classes.

    Args:
        semitones: `(..., SEMITONES)` as `hear` gives them, in [0, 1].

    Returns:
        `(..., 12)` fp32: amplitudes of the semitones that are at least as strong as both of their
        neighbours, added up over the octaves; 0 in silence.
    """
    level = semitones.float()
    edge = torch.zeros_like(level[..., :1])
    below = torch.cat([edge, level[..., :-1]], dim=-1)
    above = torch.cat([level[..., 1:], edge], dim=-1)
    peak = torch.logical_and(level >= below, level >= above)
    # e^(range * level) - 1 as a difference of squares: wherever it is exported to, silence is
    # exactly 0 (a residue would have a key) and no factor is too large for fp16
    root = torch.exp(level * (0.5 * _RANGE))
    amplitude = (root - 1.0) * math.exp(_FLOOR) * (root + 1.0)
    heard = torch.where(peak, amplitude, 0.0)
    return torch.sum(heard.reshape(*heard.shape[:-1], SEMITONES // 12, 12), dim=-2)


def tonal_features(profile: Tensor) -> Tensor:
    """Return features of mode and key, about standardised, of sums of `chroma`.

    Args:
        profile: `(batch, 12)` fp32, any scale.

    Returns:
        `(batch, 6)` fp32, columns as in `TONAL_FEATURES`.
    """
    profile = profile / (torch.sum(profile, dim=-1, keepdim=True) + _TINY)
    centred = profile - torch.mean(profile, dim=-1, keepdim=True)
    scale = torch.sqrt(torch.mean(torch.square(centred), dim=-1, keepdim=True))
    # products by hand: autocast would make them coarse
    fit = torch.sum((centred / (scale + _TINY))[..., None] * _KEY_PROFILES.to(profile), dim=1)
    keys = torch.softmax(KEY_SHARPNESS * fit, dim=-1)
    mode = 2.0 * torch.sum(keys[:, :12], dim=-1, keepdim=True) - 1.0
    degrees = torch.sum(profile[..., None] * _DEGREE_WEIGHTS.to(profile), dim=1)
    degrees = degrees.reshape(profile.shape[0], -1, 24)
    found = torch.cat([mode, torch.sum(degrees * keys[:, None], dim=-1)], dim=-1)
    return (found - _CENTRE.to(found)) / _SPREAD.to(found)
