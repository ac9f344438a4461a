"""Mel spectrogram of a whole recording, and of a stream while it comes in.

Both forms give the same frames: frame k is centred on sample k * hop_length, and before the first
and after the last sample there is silence. Frequencies and areas of the bands follow Slaney's
Auditory Toolbox (Interval Research, technical report 1998-010).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from kmidi_mlx.errors import KmidiError

__all__ = [
    "CEILING_DB",
    "FLOOR_DB",
    "MelSettings",
    "MelStream",
    "compress",
    "expand",
    "mel_bands",
    "mel_spectrogram",
]

# What `compress` maps to 0 and 1. A full-scale sine reaches 40 dB in its band; -60 dB is below the
# noise of a 16-bit recording.
FLOOR_DB = -60.0
CEILING_DB = 40.0

# Slaney's scale: linear below 1 kHz, then 27 bands for a factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0

# Frames that are transformed together: more would fall out of the processor's cache.
_FRAMES_AT_ONCE = 64


@dataclass(frozen=True)
class MelSettings:
    """Shape of a mel spectrogram.

    Attributes:
        sample_rate: samples a second, 1-1,000,000.
        n_fft: samples in a frame, even, 2 or more; the window is a periodic Hann window of that
            length.
        hop_length: samples from one frame to the next, 1 to n_fft.
        n_mels: number of bands, 1 or more, from 0 Hz to half the sample rate.

    Raises:
        KmidiError: if a number is out of range.
    """

    sample_rate: int = 44_100
    n_fft: int = 2048
    hop_length: int = 512
    n_mels: int = 128

    def __post_init__(self) -> None:
        if not 1 <= self.sample_rate <= 1_000_000:
            raise KmidiError(f"sample_rate is {self.sample_rate}; give 1 to 1000000.")
        if self.n_fft < 2 or self.n_fft % 2:
            raise KmidiError(f"n_fft is {self.n_fft}; give an even number, 2 or more.")
        if not 1 <= self.hop_length <= self.n_fft:
            raise KmidiError(f"hop_length is {self.hop_length}; give 1 to n_fft ({self.n_fft}).")
        if self.n_mels < 1:
            raise KmidiError(f"n_mels is {self.n_mels}; give 1 or more.")

    @property
    def frame_seconds(self) -> float:
        """Time in seconds from one frame to the next."""
        return self.hop_length / self.sample_rate

    def weights(self) -> NDArray[np.float32]:
        """Return what turns a power spectrum into bands, float32 (bands, n_fft // 2 + 1)."""
        return mel_bands(self)


@lru_cache(maxsize=8)
def mel_bands(settings: MelSettings) -> NDArray[np.float32]:
    """Return the weights that turn a power spectrum into mel bands.

    Args:
        settings: shape of the spectrogram.

    Returns:
        float32 (n_mels, n_fft // 2 + 1), read only: triangles whose area over frequency is 1 Hz
        each, as Slaney's filter bank has them.
    """
    nyquist = settings.sample_rate / 2.0
    edges = _to_hz(np.linspace(0.0, _to_mel(nyquist), settings.n_mels + 2))
    bins = np.linspace(0.0, nyquist, settings.n_fft // 2 + 1)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (upper - lower))
    bands: NDArray[np.float32] = weights.astype(np.float32)
    bands.flags.writeable = False  # every caller gets the same array
    return bands


def mel_spectrogram(
    samples: NDArray[np.float32], settings: MelSettings | None = None
) -> NDArray[np.float32]:
    """Return the mel power spectrogram of a whole recording.

    Args:
        samples: float (n,), one channel, full scale is 1.
        settings: shape of the spectrogram; by default the one the models see.

    Returns:
        float32 (n_mels, 1 + n // hop_length), power, not compressed.

    Raises:
        KmidiError: if `samples` is not one channel, or not all of it is a finite number.
    """
    settings = settings or MelSettings()
    samples = _checked(samples)
    half = settings.n_fft // 2
    padded = np.pad(samples, half)
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)
    frames = frames[: len(samples) + 1 : settings.hop_length]
    result = np.empty((len(frames), settings.n_mels), np.float32)
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        result[start : start + _FRAMES_AT_ONCE] = _mel_of(
            frames[start : start + _FRAMES_AT_ONCE], settings
        )
    return np.ascontiguousarray(result.T)


class MelStream:
    """Mel power spectrogram of samples that arrive in pieces of any size.

    The last n_fft samples lie in a ring buffer that is kept twice, one copy behind the other, so
    that every frame is one contiguous stretch of memory and nothing is ever moved. A frame is
    ready n_fft / 2 samples after its centre has come in.

    Args:
        settings: shape of the spectrogram; by default the one the models see.
    """

    def __init__(self, settings: MelSettings | None = None) -> None:
        self.settings = settings or MelSettings()
        self._ring = np.zeros(2 * self.settings.n_fft, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if no sample had come yet."""
        self._ring[:] = 0.0
        self._write = 0
        # the first frame is centred on the first sample
        self._until_frame = self.settings.n_fft // 2
        self._received = 0
        self._frames = 0

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples and return the frames that they complete.

        Args:
            samples: float (n,), one channel, any length.

        Returns:
            float32 (n_mels, k), the next k frames of what `mel_spectrogram` gives for everything.

        Raises:
            KmidiError: as `mel_spectrogram`; the samples are then left out.
        """
        samples = _checked(samples)
        self._received += len(samples)
        return self._advance(samples)

    def finish(self) -> NDArray[np.float32]:
        """Return the frames that are still due at the end of the stream, and start anew.

        Returns:
            float32 (n_mels, k).
        """
        due = 1 + self._received // self.settings.hop_length - self._frames
        silence = np.zeros(self.settings.n_fft // 2, np.float32)
        rest = self._advance(silence)[:, :due]
        self.reset()
        return rest

    def _advance(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        n_fft, hop = self.settings.n_fft, self.settings.hop_length
        count = 0
        if len(samples) >= self._until_frame:
            count = 1 + (len(samples) - self._until_frame) // hop
        result = np.empty((count, self.settings.n_mels), np.float32)
        start = 0
        for index in range(count):
            start = self._store(samples, start, start + self._until_frame)
            frame = self._ring[self._write : self._write + n_fft]
            result[index] = _mel_of(frame[None], self.settings)[0]
            self._until_frame = hop
        while start < len(samples):
            end = min(start + n_fft, len(samples))
            self._until_frame -= end - start
            start = self._store(samples, start, end)
        self._frames += count
        return result.T

    def _store(self, samples: NDArray[np.float32], start: int, end: int) -> int:
        """Put samples[start:end], at most n_fft of them, into both copies of the ring."""
        n_fft, ring = self.settings.n_fft, self._ring
        while start < end:
            size = min(end - start, n_fft - self._write)
            piece = samples[start : start + size]
            ring[self._write : self._write + size] = piece
            ring[n_fft + self._write : n_fft + self._write + size] = piece
            self._write = (self._write + size) % n_fft
            start += size
        return end


def compress(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map mel power to what the models see: decibels, FLOOR_DB to 0 and CEILING_DB to 1.

    The range is fixed, so that loud and quiet music stay apart and a frame needs no other frame.

    Args:
        power: float, any shape, >= 0.

    Returns:
        float32 of the same shape, in [0, 1]; what lies outside the range is cut to it.
    """
    floor, ceiling = 10.0 ** (FLOOR_DB / 10.0), 10.0 ** (CEILING_DB / 10.0)
    decibels = 10.0 * np.log10(np.clip(power, floor, ceiling))
    scaled = (decibels - FLOOR_DB) / (CEILING_DB - FLOOR_DB)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


def expand(compressed: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo `compress` within its range.

    Args:
        compressed: float, any shape, in [0, 1].

    Returns:
        float32 of the same shape, mel power.
    """
    decibels = compressed * (CEILING_DB - FLOOR_DB) + FLOOR_DB
    power: NDArray[np.float32] = np.power(10.0, decibels / 10.0).astype(np.float32)
    return power


def _mel_of(frames: NDArray[np.float32], settings: MelSettings) -> NDArray[np.float32]:
    spectrum = fft.rfft(frames * _window(settings.n_fft), axis=-1)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    product: NDArray[np.float32] = power @ settings.weights().T
    return product


@lru_cache(maxsize=8)
def _window(n_fft: int) -> NDArray[np.float32]:
    phase = 2.0 * np.pi * np.arange(n_fft) / n_fft
    window: NDArray[np.float32] = (0.5 - 0.5 * np.cos(phase)).astype(np.float32)
    return window


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1:
        raise KmidiError(f"a spectrogram needs one channel, got samples of shape {samples.shape}.")
    # one sum finds every NaN and infinity without a second array
    if not np.isfinite(np.dot(samples, samples)) and not np.isfinite(samples).all():
        index = int(np.argmin(np.isfinite(samples)))
        raise KmidiError(f"sample {index} is {samples[index]}; sound has to be finite numbers.")
    return samples


def _to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _HZ_PER_MEL
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, logarithmic)
