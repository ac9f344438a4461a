"""Changes of sound and spectrograms that leave the music what it is, for training.

What is not given is drawn from the generator, so one seed makes one result. Where MIDI is at hand,
transposing and stretching it before rendering is exact; stretching sound is for recordings.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from kmidi_mlx.errors import KmidiError

__all__ = [
    "add_noise",
    "mask_frequency",
    "mask_time",
    "pitch_shift",
    "tilt",
    "time_stretch",
]

_STRETCH_RANGE = (0.9, 1.1)
_PITCH_RANGE = (-3.0, 3.0)
_SNR_RANGE = (20.0, 40.0)
_TILT_RANGE = (-3.0, 3.0)

_PIVOT_HZ = 1000.0
_LOWEST_HZ, _HIGHEST_HZ = 40.0, 16_000.0
_TILT_TAIL = 4096
_LONGEST_TIME_MASK, _LONGEST_FREQUENCY_MASK = 0.25, 0.2


def time_stretch(
    samples: NDArray[np.float32],
    generator: np.random.Generator,
    factor: float | None = None,
    sample_rate: int = 44_100,
) -> NDArray[np.float32]:
    """Make sound last `factor` times as long; its pitch stays.

    By Signalsmith Stretch (G. Luff), a phase vocoder that maps peaks of the spectrum.

    Args:
        samples: float32 (n,), one channel, n >= 1.
        generator: where the factor and the phases of the vocoder come from.
        factor: 0.5-2, above 1 is slower; by default drawn from 0.9-1.1.
        sample_rate: samples a second.

    Returns:
        float32 (round(n * factor),), at least one sample.

    Raises:
        KmidiError: if the factor is out of range, `samples` is not one channel of sound, or
            python-stretch is not installed.
    """
    factor = _drawn(generator, "factor", factor, _STRETCH_RANGE, (0.5, 2.0))
    length = max(1, round(len(_one_channel(samples)) * factor))
    return _stretched(samples, generator, length, 0.0, sample_rate)


def pitch_shift(
    samples: NDArray[np.float32],
    generator: np.random.Generator,
    semitones: float | None = None,
    sample_rate: int = 44_100,
) -> NDArray[np.float32]:
    """Move the pitch of sound; its length stays.

    Args:
        samples: float32 (n,), one channel, n >= 1.
        generator: where the interval and the phases of the vocoder come from.
        semitones: -12 to 12, up is positive; by default drawn from -3 to 3.
        sample_rate: samples a second.

    Returns:
        float32 (n,).

    Raises:
        KmidiError: as `time_stretch`.
    """
    semitones = _drawn(generator, "semitones", semitones, _PITCH_RANGE, (-12.0, 12.0))
    return _stretched(samples, generator, len(_one_channel(samples)), semitones, sample_rate)


def add_noise(
    samples: NDArray[np.float32],
    generator: np.random.Generator,
    snr_db: float | None = None,
) -> NDArray[np.float32]:
    """Add white noise at a distance from the loudness of the sound.

    Silence stays silence: noise has no distance from it.

    Args:
        samples: float32 (n,), one channel, n >= 1.
        generator: where the distance and the noise come from.
        snr_db: power of the sound over that of the noise in decibels, 0-120; by default drawn from
            20-40.

    Returns:
        float32 (n,).

    Raises:
        KmidiError: if `snr_db` is out of range or `samples` is not one channel of sound.
    """
    snr_db = _drawn(generator, "snr_db", snr_db, _SNR_RANGE, (0.0, 120.0))
    power = float(np.mean(np.square(_one_channel(samples), dtype=np.float64)))
    noise = generator.standard_normal(len(samples), np.float32)
    return samples + noise * np.float32(math.sqrt(power * 10.0 ** (-snr_db / 10.0)))


def tilt(
    samples: NDArray[np.float32],
    generator: np.random.Generator,
    db_per_octave: float | None = None,
    sample_rate: int = 44_100,
) -> NDArray[np.float32]:
    """Make sound brighter or darker by a slope over frequency that turns around 1 kHz.

    Below 40 Hz and above 16 kHz the slope ends. The filter has no phase.

    Args:
        samples: float32 (n,), one channel, n >= 1.
        generator: where the slope comes from.
        db_per_octave: -6 (darker) to 6; by default drawn from -3 to 3.
        sample_rate: samples a second.

    Returns:
        float32 (n,).

    Raises:
        KmidiError: if the slope is out of range or `samples` is not one channel of sound.
    """
    slope = _drawn(generator, "db_per_octave", db_per_octave, _TILT_RANGE, (-6.0, 6.0))
    count = len(_one_channel(samples))
    # silence behind it, so that the end does not ring into the beginning
    length = fft.next_fast_len(count + _TILT_TAIL, real=True)
    frequencies = np.clip(fft.rfftfreq(length, 1.0 / sample_rate), _LOWEST_HZ, _HIGHEST_HZ)
    gain = 10.0 ** (slope * np.log2(frequencies / _PIVOT_HZ) / 20.0)
    spectrum = fft.rfft(samples, length) * gain.astype(np.float32)
    tilted: NDArray[np.float32] = fft.irfft(spectrum, length)[:count]
    return tilted.astype(np.float32)


def mask_time(
    spectrogram: NDArray[np.float32],
    generator: np.random.Generator,
    longest: float = _LONGEST_TIME_MASK,
    fill: float = 0.0,
) -> NDArray[np.float32]:
    """Blank out some neighbouring frames (SpecAugment, Park et al., 2019, arXiv 1904.08779).

    Args:
        spectrogram: float32 (bands, frames).
        generator: where place and width come from.
        longest: greatest share of the frames, 0-1.
        fill: what to put there; 0 is silence in a compressed spectrogram.

    Returns:
        A changed copy, float32 (bands, frames).

    Raises:
        KmidiError: if `longest` is out of range.
    """
    start, end = _stretch_of(spectrogram.shape[1], generator, longest)
    masked = spectrogram.copy()
    masked[:, start:end] = fill
    return masked


def mask_frequency(
    spectrogram: NDArray[np.float32],
    generator: np.random.Generator,
    longest: float = _LONGEST_FREQUENCY_MASK,
    fill: float = 0.0,
) -> NDArray[np.float32]:
    """Blank out some neighbouring bands (SpecAugment, Park et al., 2019, arXiv 1904.08779).

    Args:
        spectrogram: float32 (bands, frames).
        generator: where place and width come from.
        longest: greatest share of the bands, 0-1.
        fill: what to put there; 0 is silence in a compressed spectrogram.

    Returns:
        A changed copy, float32 (bands, frames).

    Raises:
        KmidiError: if `longest` is out of range.
    """
    start, end = _stretch_of(spectrogram.shape[0], generator, longest)
    masked = spectrogram.copy()
    masked[start:end] = fill
    return masked


def _stretched(
    samples: NDArray[np.float32],
    generator: np.random.Generator,
    length: int,
    semitones: float,
    sample_rate: int,
) -> NDArray[np.float32]:
    try:
        from python_stretch.Signalsmith import Stretch
    except ImportError as error:
        raise KmidiError(
            "stretching sound needs python-stretch; install it with: "
            "pip install 'kmidi-mlx[audio]'."
        ) from error
    stretch = Stretch(int(generator.integers(1 << 31)))
    stretch.preset(1, float(sample_rate))
    stretch.timeFactor = len(samples) / length
    stretch.setTransposeSemitones(semitones)
    result = np.asarray(stretch.process(np.ascontiguousarray(samples[None], np.float32)))[0]
    # the library rounds the length its own way
    whole = np.zeros(length, np.float32)
    whole[: len(result)] = result[:length]
    return whole


def _drawn(
    generator: np.random.Generator,
    name: str,
    given: float | None,
    usual: tuple[float, float],
    allowed: tuple[float, float],
) -> float:
    if given is None:
        return float(generator.uniform(*usual))
    if not allowed[0] <= given <= allowed[1]:
        raise KmidiError(f"{name} is {given}; give {allowed[0]:g} to {allowed[1]:g}.")
    return given


def _one_channel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
        raise KmidiError(
            f"one channel of sound is needed, finite and not empty; got shape {samples.shape}."
        )
    return samples


def _stretch_of(size: int, generator: np.random.Generator, longest: float) -> tuple[int, int]:
    if not 0.0 <= longest <= 1.0:
        raise KmidiError(f"longest is {longest}; give 0 to 1.")
    width = int(generator.integers(int(size * longest) + 1))
    start = int(generator.integers(size - width + 1))
    return start, start + width
