"""A mel spectrogram of notes that nobody has played: for songs that are only MIDI.

Each note is a struck string: eight harmonic partials that get weaker upwards and die away, the high
ones and the high notes sooner, until the note is let go. The result is on the scale of a recorded
piano (power from -60 to 40 dB becomes 0 to 1, where a full-scale sine has 40 dB and the loudest key
19), close enough for a cloud to look alike; where there is sound, take its real spectrogram.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud.axes import BAND_EDGES_HZ, MEL_BANDS, MEL_FRAMES_PER_SECOND

__all__ = ["mel_from_notes"]

_FLOOR_DB, _CEILING_DB = -60.0, 40.0
_LOUDEST_DB = 19.0
_PARTIALS = 8
_SLOPE = 1.8
_RELEASE_SECONDS = 0.08
_LONGEST_RING_SECONDS = 6.0
# A partial is as wide as the main lobe of a 2048-sample Hann window at 44.1 kHz.
_LOBE_HZ = np.linspace(-43.0, 43.0, 9)
_LOBE = np.cos(np.pi * _LOBE_HZ / 2.0 / 48.0) ** 4

_Floats = NDArray[np.float64]


def mel_from_notes(notes: Notes) -> NDArray[np.float32]:
    """Derive a log-compressed mel spectrogram from notes.

    Args:
        notes: the piece.

    Returns:
        float32 (128, time) in [0, 1], 86.13 frames a second from 0 to the end of the last note.
    """
    frames = math.ceil(notes.duration_seconds * MEL_FRAMES_PER_SECOND) + 1
    power = np.zeros((frames, MEL_BANDS))
    profiles, seconds = _profiles(), 1.0 / MEL_FRAMES_PER_SECOND
    first = np.ceil(notes.onset_seconds / seconds).astype(np.intp)
    held = np.minimum(notes.offset_seconds - notes.onset_seconds, _LONGEST_RING_SECONDS)
    count = np.ceil((held + 4.0 * _RELEASE_SECONDS) / seconds).astype(np.intp)
    loud = (notes.velocity / 127.0) ** 3.4
    for pitch, start, length, ends, loudness in zip(
        notes.pitch.tolist(),
        first.tolist(),
        count.tolist(),
        held.tolist(),
        loud.tolist(),
        strict=True,
    ):
        time = np.arange(min(length, frames - start)) * seconds
        let_go = np.exp(-np.maximum(time - ends, 0.0) / (0.5 * _RELEASE_SECONDS))
        struck = 1.0 - np.exp(-(time + seconds) / 0.012)
        decay = np.exp(-time[:, None] * _decay_rates(pitch))
        power[start : start + len(time)] += (
            loudness * ((let_go * struck)[:, None] * decay) @ profiles[pitch]
        )
    decibels = _LOUDEST_DB + 10.0 * np.log10(np.maximum(power.T, 1e-12))
    level: NDArray[np.float32] = np.clip(
        (decibels - _FLOOR_DB) / (_CEILING_DB - _FLOOR_DB), 0.0, 1.0
    ).astype(np.float32)
    return level


def _decay_rates(pitch: int) -> _Floats:
    """Return how fast the power of each partial dies away, a second: (8,)."""
    of_note = 2.2 * 2.0 ** ((pitch - 48) / 18.0)
    rates: _Floats = of_note * (1.0 + 0.35 * np.arange(_PARTIALS))
    return rates


@cache
def _profiles() -> _Floats:
    """Return how much of the power of each pitch's partials falls into each band: (128, 8, 128)."""
    hertz = 440.0 * 2.0 ** ((np.arange(128) - 69) / 12.0)
    places = hertz[:, None, None] * np.arange(1, _PARTIALS + 1)[:, None] + _LOBE_HZ
    low, centre, high = (BAND_EDGES_HZ[k : k + MEL_BANDS] for k in range(3))
    rising = (places[..., None] - low) / (centre - low)
    falling = (high - places[..., None]) / (high - centre)
    shares = np.clip(np.minimum(rising, falling), 0.0, 1.0) * (62.0 / (high - low))
    of_partial = np.arange(1, _PARTIALS + 1) ** (-2.0 * _SLOPE)
    profiles: _Floats = of_partial[:, None] * np.einsum("l,pklb->pkb", _LOBE / _LOBE.sum(), shares)
    return profiles
