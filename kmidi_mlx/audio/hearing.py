"""What the emotion recogniser hears: mel frames, and beside each the strength of every semitone.

A mel band is wider than a semitone below 1 kHz, and a frame short enough for the beat cannot tell
neighbouring low notes apart; so nobody can hear major from minor in it. The semitones come from a
longer window that ends with the mel frame's own, so both are ready at the same moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.mel import MelSettings, MelStream, compress, mel_spectrogram
from kmidi_mlx.errors import KmidiError

__all__ = ["SEMITONES", "Hearing", "HearingStream", "SemitoneSettings", "hear"]

#: Semitone bands: five octaves, C2 (65 Hz) to B6 (1976 Hz); band k is pitch class k % 12.
SEMITONES = 60
_LOWEST_PITCH = 36
_A4_HZ, _A4_PITCH = 440.0, 69
# Bands overlap a little, so that a piano that is out of tune by 0.1 semitones loses nothing.
_HALF_WIDTH = 0.6
# A full-scale sine reaches `mel.CEILING_DB`.
_SINE_POWER = 1e4


@dataclass(frozen=True)
class SemitoneSettings(MelSettings):
    """A spectrogram whose bands are triangles around the semitones instead of mel bands."""

    n_fft: int = 8192
    n_mels: int = SEMITONES

    def weights(self) -> NDArray[np.float32]:
        """Return float32 (`SEMITONES`, n_fft // 2 + 1), read only, 1 at the pitch itself."""
        return _semitone_bands(self)


@dataclass(frozen=True)
class Hearing:
    """Shape of what is heard.

    Attributes:
        mel: the mel frames.
        semitones: the frames of semitones, with the same sample_rate and hop_length, and a window
            that is as long or longer; None: none.

    Raises:
        KmidiError: if the two do not fit together.
    """

    mel: MelSettings
    semitones: SemitoneSettings | None = None

    def __post_init__(self) -> None:
        if self.semitones and self.delay < 0:
            raise KmidiError(
                f"the window of the semitones, {self.semitones.n_fft} samples, is shorter than "
                f"that of the mel frames, {self.mel.n_fft}; give at least as many."
            )

    @property
    def delay(self) -> int:
        """Samples by which the centre of the longer window lies before that of the shorter."""
        return (self.semitones.n_fft - self.mel.n_fft) // 2 if self.semitones else 0

    @property
    def bands(self) -> int:
        """Columns of a frame: mel bands, then semitones."""
        return self.mel.n_mels + (SEMITONES if self.semitones else 0)


def hear(samples: NDArray[np.float32], hearing: Hearing) -> NDArray[np.float32]:
    """Return what is heard of a whole recording.

    Args:
        samples: float (n,), one channel, full scale is 1.
        hearing: shape of the frames.

    Returns:
        float32 (1 + n // hop_length, bands), compressed to [0, 1] as by `mel.compress`.

    Raises:
        KmidiError: if `samples` is not one channel, or not all of it is a finite number.
    """
    power = mel_spectrogram(samples, hearing.mel)
    if hearing.semitones:
        late = mel_spectrogram(np.pad(samples, (hearing.delay, 0)), hearing.semitones)
        power = np.concatenate([power, late[:, : power.shape[1]]])
    return compress(np.ascontiguousarray(power.T))


class HearingStream:
    """The frames of `hear` of samples that arrive in pieces of any size.

    Args:
        hearing: shape of the frames.
    """

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing
        self._mel = MelStream(hearing.mel)
        self._semitones = MelStream(hearing.semitones) if hearing.semitones else None
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if no sample had come yet."""
        self._mel.reset()
        if self._semitones:
            self._semitones.reset()
            self._semitones.push(np.zeros(self._hearing.delay, np.float32))

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples and return the frames that they complete.

        Args:
            samples: float (n,), one channel, any length.

        Returns:
            float32 (k, bands).

        Raises:
            KmidiError: as `hear`; the samples are then left out.
        """
        power = self._mel.push(samples)
        if self._semitones:
            power = np.concatenate([power, self._semitones.push(samples)])
        return compress(np.ascontiguousarray(power.T))


@lru_cache(maxsize=8)
def _semitone_bands(settings: SemitoneSettings) -> NDArray[np.float32]:
    hz = np.linspace(0.0, settings.sample_rate / 2.0, settings.n_fft // 2 + 1)
    pitch = _A4_PITCH + 12.0 * np.log2(np.maximum(hz, 1.0) / _A4_HZ)
    distance = np.abs(pitch - (_LOWEST_PITCH + np.arange(SEMITONES))[:, None])
    full_scale = _SINE_POWER * (4.0 / settings.n_fft) ** 2
    bands = (np.maximum(0.0, 1.0 - distance / _HALF_WIDTH) * full_scale).astype(np.float32)
    bands.flags.writeable = False  # every caller gets the same array
    return bands
