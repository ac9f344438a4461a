"""Sound files: whatever libsndfile reads becomes one channel at one rate; sound becomes a WAV."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.errors import KmidiError

__all__ = ["LONGEST_SECONDS", "read_audio", "resample", "write_wav"]

LONGEST_SECONDS = 7200.0
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 768_000
_MOST_CHANNELS = 64
# 40 dB over full scale: beyond are files that keep whole numbers as floats, and broken ones.
_LOUDEST = 100.0

_BLOCK_FRAMES = 1 << 18
# Kaiser window: 90 dB of stop band, and a transition that ends at half the lower rate.
_STOP_BAND_DB = 90.0
_ZERO_CROSSINGS = 64
_FULL_SCALE_16_BIT = 32_767.0


def read_audio(path: Path, sample_rate: int = 44_100) -> NDArray[np.float32]:
    """Read a sound file, mix its channels and bring it to a sample rate.

    Args:
        path: a file in any format libsndfile reads: WAV, FLAC, Ogg Vorbis, MP3, AIFF, ...
        sample_rate: samples a second of the result, 1,000-768,000.

    Returns:
        float32 (n,), full scale 1, the mean of all channels; n >= 1.

    Raises:
        KmidiError: if the file is missing, is no sound file, breaks off, is empty, is longer than
            LONGEST_SECONDS, or holds NaN, infinities or samples far beyond full scale.
    """
    if not path.is_file():
        raise KmidiError(
            f"{path} is not a file." if path.exists() else f"no such sound file: {path}."
        )
    try:
        with soundfile.SoundFile(path) as file:
            rate, channels, promised = file.samplerate, file.channels, file.frames
            _check_header(path, rate, channels, promised)
            mixed = _mix(path, file)
    except soundfile.SoundFileError as error:
        raise KmidiError(
            f"{path} cannot be read as sound: {_reason(error)}; give a WAV, FLAC, Ogg or MP3 file."
        ) from error
    except OSError as error:
        raise KmidiError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not len(mixed):
        raise KmidiError(f"{path} holds no sound: it has 0 samples.")
    # MP3 headers only estimate their length
    if len(mixed) < promised and file.format != "MP3":
        raise KmidiError(
            f"{path} breaks off: {len(mixed) / rate:.2f} of {promised / rate:.2f} s can be read."
        )
    return resample(mixed, rate, sample_rate)


def resample(samples: NDArray[np.float32], rate: int, new_rate: int) -> NDArray[np.float32]:
    """Change the sample rate with a polyphase filter; what does not fit is removed, not aliased.

    Args:
        samples: float32 (n,) at `rate`.
        rate: samples a second, 1,000-768,000.
        new_rate: samples a second of the result, 1,000-768,000.

    Returns:
        float32 (ceil(n * new_rate / rate),).

    Raises:
        KmidiError: if a rate is out of range.
    """
    for value in (rate, new_rate):
        if not _LOWEST_RATE <= value <= _HIGHEST_RATE:
            raise KmidiError(
                f"cannot resample to or from {value} Hz; rates are {_LOWEST_RATE} to "
                f"{_HIGHEST_RATE} Hz."
            )
    if rate == new_rate or not len(samples):
        return samples
    shared = math.gcd(rate, new_rate)
    up, down = new_rate // shared, rate // shared
    taps = low_pass(up, down)
    # In blocks: a whole hour at once would need several times its memory. Blocks start at whole
    # multiples of `down`, where input and output samples coincide.
    margin = down * math.ceil((len(taps) // 2 / up + 1) / down)
    step = down * max(1, _BLOCK_FRAMES // down)
    result = np.empty(math.ceil(len(samples) * up / down), np.float32)
    for start in range(0, len(samples), step):
        first = max(0, start - margin)
        block = samples[first : start + step + margin]
        resampled = signal.resample_poly(block, up, down, window=taps)
        begin, end = start // down * up, min(len(result), (start + step) // down * up)
        offset = (start - first) // down * up
        result[begin:end] = resampled[offset : offset + end - begin]
    return result


def write_wav(path: Path, samples: NDArray[np.float32], sample_rate: int = 44_100) -> None:
    """Write sound as a 16-bit WAV file; a crash leaves the old file or the new one.

    Sound beyond full scale is made quieter as a whole, so that nothing is clipped.

    Args:
        path: the file to make or replace, with the suffix .wav; its folder has to exist.
        samples: float (n,) or (n, channels), full scale is 1.
        sample_rate: samples a second.

    Raises:
        KmidiError: for another suffix, samples that are not finite or not of these shapes, or a
            place that cannot be written.
    """
    if path.suffix.lower() != ".wav":
        raise KmidiError(f"cannot write {path} as WAV: its name has to end in .wav.")
    if samples.ndim not in (1, 2) or not np.isfinite(samples).all():
        raise KmidiError(f"cannot write {path}: sound has to be (n,) or (n, channels), finite.")
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    whole = np.rint(samples * (_FULL_SCALE_16_BIT / peak)).astype(np.int16)
    with atomic_write(path) as temporary:
        try:
            soundfile.write(temporary, whole, sample_rate, subtype="PCM_16", format="WAV")
        except soundfile.SoundFileError as error:
            raise KmidiError(f"cannot write {path}: {_reason(error)}.") from error


def _check_header(path: Path, rate: int, channels: int, frames: int) -> None:
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise KmidiError(
            f"{path} has {rate} samples a second; {_LOWEST_RATE} to {_HIGHEST_RATE} can be read."
        )
    if channels > _MOST_CHANNELS:
        raise KmidiError(f"{path} has {channels} channels; {_MOST_CHANNELS} at most can be mixed.")
    if frames > LONGEST_SECONDS * rate:
        raise _too_long(path)


def _mix(path: Path, file: soundfile.SoundFile) -> NDArray[np.float32]:
    """Read block by block, so that eight channels need no more memory than one."""
    blocks: list[NDArray[np.float32]] = []
    count = 0
    while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        good = np.abs(block) <= _LOUDEST  # false for NaN
        if not good.all():
            index = int(np.argmin(good.all(axis=1)))
            value = block[index][~good[index]][0]
            raise KmidiError(
                f"{path} has a sample of {value:g} at {(count + index) / file.samplerate:.3f} s; "
                "sound has to be numbers from about -1 to 1."
            )
        blocks.append(block.mean(axis=1, dtype=np.float32))
        count += len(block)
        if count > LONGEST_SECONDS * file.samplerate:
            raise _too_long(path)
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


@lru_cache(maxsize=8)
def low_pass(up: int, down: int) -> NDArray[np.float32]:
    """Return the filter between the two rates: up to 0.45 of the lower one passes unchanged."""
    widest = max(up, down)
    taps = signal.firwin(
        2 * _ZERO_CROSSINGS * widest + 1,
        0.95 / widest,
        window=("kaiser", signal.kaiser_beta(_STOP_BAND_DB)),
    )
    filtering: NDArray[np.float32] = taps.astype(np.float32)
    return filtering


def _too_long(path: Path) -> KmidiError:
    return KmidiError(
        f"{path} is longer than {LONGEST_SECONDS / 3600:g} hours; cut it into shorter files."
    )


def _reason(error: soundfile.SoundFileError) -> str:
    text = getattr(error, "error_string", str(error))
    return text.strip().rstrip(".") or "unknown reason"
