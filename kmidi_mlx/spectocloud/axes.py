"""The axes of a cloud: which time is which x, which frequency is which y.

x is time in the window, -1 the oldest of 64 mel frames and 1 now. y is pitch: octaves have equal
height from D1 (37 Hz) at -1 to E9 (11 kHz) at 1;
what little lies outside is drawn at the edge. The mel bands are those of the project's spectrogram:
128 bands from 0 to 22,050 Hz, equally spaced on Slaney's mel scale (Slaney, "Auditory Toolbox",
1998: linear below 1 kHz, logarithmic above).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "BAND_EDGES_HZ",
    "BAND_Y",
    "BAND_Y_EDGES",
    "FRAMES_PER_SECOND",
    "MEL_BANDS",
    "MEL_FRAMES_PER_SECOND",
    "WINDOW_FRAMES",
    "check_mel",
    "pitch_to_y",
]

MEL_BANDS = 128
#: Mel frames of a window: 0.743 s.
WINDOW_FRAMES = 64
MEL_FRAMES_PER_SECOND = 44_100 / 512
#: Video frames a second; the engine advances in these steps.
FRAMES_PER_SECOND = 60

_LOWEST_PITCH, _HIGHEST_PITCH = 26.0, 124.0
_HIGHEST_HZ = 22_050.0
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_LOG_START_HZ, _LOG_START_MEL = 1000.0, 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LOG_START_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _LOG_START_MEL) - _LOG_START_MEL))
    hz: NDArray[np.float64] = np.where(mel < _LOG_START_MEL, mel * _LINEAR_HZ_PER_MEL, above)
    return hz


def pitch_to_y(pitch: ArrayLike) -> NDArray[np.float64]:
    """Return the height in [-1, 1] of MIDI pitches (fractions allowed; clipped to D1-E9)."""
    share = (np.asarray(pitch, np.float64) - _LOWEST_PITCH) / (_HIGHEST_PITCH - _LOWEST_PITCH)
    y: NDArray[np.float64] = np.clip(2.0 * share - 1.0, -1.0, 1.0)
    return y


def _hz_to_y(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return pitch_to_y(69.0 + 12.0 * np.log2(np.maximum(hz, 1.0) / 440.0))


_MEL_STEP = (_LOG_START_MEL + np.log(_HIGHEST_HZ / _LOG_START_HZ) / _LOG_STEP) / (MEL_BANDS + 1)
#: float64 (130,): band b is a triangle from edge b over edge b + 1 to edge b + 2, in Hz.
BAND_EDGES_HZ = _mel_to_hz(np.arange(MEL_BANDS + 2) * _MEL_STEP)
#: float64 (128,): height of the bands' centres.
BAND_Y = _hz_to_y(BAND_EDGES_HZ[1:-1])
#: float64 (129,): heights between the bands, from -1 to 1.
BAND_Y_EDGES = _hz_to_y(_mel_to_hz((np.arange(MEL_BANDS + 1) + 0.5) * _MEL_STEP))
BAND_Y_EDGES[0], BAND_Y_EDGES[-1] = -1.0, 1.0


def check_mel(name: str, mel: ArrayLike, frames: int | None = None) -> NDArray[np.float32]:
    """Return a log-compressed mel spectrogram as float32 after a look at its numbers.

    Args:
        name: how the message calls it.
        mel: (128, time) numbers in [0, 1].
        frames: how many frames it has to have; None: any number, also none.

    Raises:
        KmidiError: for a wrong shape or a number that is not in [0, 1].
    """
    try:
        array = np.asarray(mel, np.float32)
    except (TypeError, ValueError) as error:
        raise KmidiError(f"{name} has to be an array of numbers: {error}.") from error
    wanted = "time" if frames is None else str(frames)
    if array.ndim != 2 or len(array) != MEL_BANDS or frames not in (None, array.shape[1]):
        raise KmidiError(f"{name} has shape {array.shape}; it has to be ({MEL_BANDS}, {wanted}).")
    # A NaN makes either comparison false.
    if array.size and not (array.min() >= 0.0 and array.max() <= 1.0):
        valid = (array >= 0.0) & (array <= 1.0)
        band, frame = np.unravel_index(int(np.argmin(valid)), array.shape)
        raise KmidiError(
            f"{name} is {array[band, frame]:g} in band {band} of frame {frame}; "
            "log-compressed mel numbers are from 0 to 1."
        )
    return array
