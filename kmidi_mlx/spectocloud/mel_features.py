"""The 32 MIDI features guessed from a mel spectrogram, for songs without notes.

The names and ranges are those of `kmidi_mlx.music.features`. Bands are coarse and a recording's
overtones count like notes, so the numbers are rough: good enough to shape a cloud, not to read a
score. What cannot be guessed ("articulation", "dissonance", the rhythm of neighbouring notes) is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.features import FEATURE_COUNT, FEATURE_NAMES
from kmidi_mlx.music.mood import key_correlations
from kmidi_mlx.spectocloud.axes import BAND_EDGES_HZ, MEL_FRAMES_PER_SECOND

__all__ = ["MelFeatures"]

_Floats = NDArray[np.float64]

_WINDOW_SECONDS = 3.0
_BAND_PITCH = 69.0 + 12.0 * np.log2(BAND_EDGES_HZ[1:-1] / 440.0)
# Below about 400 Hz a band spans several pitches, above 4 kHz there are only overtones.
_TELLS_PITCH = np.exp(-0.5 * ((_BAND_PITCH - 80.0) / 14.0) ** 2)
_FIFTHS = np.exp(2j * np.pi * 7.0 * np.arange(12) / 12.0)
_ONSET_RISE = 0.02


class MelFeatures:
    """Guessed features of every moment of one spectrogram."""

    def __init__(self, mel: NDArray[np.float32]) -> None:
        """Sum up a log-compressed mel spectrogram (128, time) in [0, 1]."""
        energy = mel.T.astype(np.float64) ** 3
        loudness = np.mean(mel.T.astype(np.float64) ** 4, axis=1) ** 0.25
        total = energy.sum(axis=1)
        flux = np.maximum(np.diff(mel.T, axis=0, prepend=mel.T[:1]), 0.0).mean(axis=1)
        earlier = np.concatenate([flux[:1], flux[:-1]])
        later = np.concatenate([flux[1:], flux[-1:]])
        onsets = (flux > _ONSET_RISE) & (flux >= earlier) & (flux > later)
        # bands that share the energy as evenly as these would
        bands = total**2 / np.maximum((energy**2).sum(axis=1), 1e-12)
        octave = (_BAND_PITCH[:, None] - np.arange(12) + 6.0) % 12.0 - 6.0
        chroma = energy @ (_TELLS_PITCH[:, None] * np.exp(-0.5 * (octave / 0.6) ** 2))
        columns = np.column_stack(
            [
                chroma,
                total,
                energy @ _BAND_PITCH,
                energy @ _BAND_PITCH**2,
                energy @ (_BAND_PITCH < 48.0),
                energy @ (_BAND_PITCH >= 72.0),
                loudness,
                loudness**2,
                onsets,
                bands * (loudness > 0.1),
                loudness > 0.1,
            ]
        )
        self._sums = np.concatenate([np.zeros((1, columns.shape[1])), np.cumsum(columns, axis=0)])
        self._length = round(_WINDOW_SECONDS * MEL_FRAMES_PER_SECOND)

    def at(self, end: int) -> NDArray[np.float32]:
        """Return the features (32,) of the three seconds before mel frame `end`."""
        start = max(0, end - self._length)
        found = np.maximum(self._sums[end] - self._sums[start], 0.0)
        out = np.zeros(FEATURE_COUNT)
        sounding = found[-1]
        if sounding < 1.0 or found[12] < 1e-9:
            return out.astype(np.float32)
        chroma = found[:12] / max(float(found[:12].sum()), 1e-12)
        mean = found[13] / found[12]
        loudness = found[17] / self._length
        fit = key_correlations(chroma[None])[0]
        major, minor = float(fit[:12].max()), float(fit[12:].max())
        onsets = found[19] / _WINDOW_SECONDS
        values = {
            "density": onsets / (onsets + 8.0),
            "polyphony": found[20] / sounding / (found[20] / sounding + 24.0),
            "pitch_mean": mean / 127.0,
            "pitch_spread": np.sqrt(max(found[14] / found[12] - mean * mean, 0.0)) / 63.5,
            "velocity_mean": loudness,
            "velocity_spread": np.sqrt(max(found[18] / self._length - loudness**2, 0.0)),
            "low_register": found[15] / found[12],
            "middle_register": 1.0 - (found[15] + found[16]) / found[12],
            "high_register": found[16] / found[12],
            "mode": major - minor,
            "key_clarity": max(major, minor, 0.0),
            "tonal_tension": 1.0 - float(np.abs(chroma @ _FIFTHS)),
            "novelty": self._novelty(start, end),
            "sounding": sounding / self._length,
        }
        out[:12] = chroma
        for name, value in values.items():
            out[FEATURE_NAMES.index(name)] = value
        limited: NDArray[np.float32] = np.clip(out, -1.0, 1.0).astype(np.float32)
        return limited

    def _novelty(self, start: int, end: int) -> float:
        middle = (start + end) // 2
        early = (self._sums[middle] - self._sums[start])[:12]
        late = (self._sums[end] - self._sums[middle])[:12]
        norm = float(np.sqrt((early @ early) * (late @ late)))
        return max(0.0, 1.0 - float(early @ late) / norm) if norm > 0.0 else 0.0
