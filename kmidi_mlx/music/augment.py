"""Changes that leave music music: another key, tempo or loudness, and a window cut out.

Each function returns new notes in order and within range, so that `encode` of the result is valid.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import MAX_DURATION_SECONDS, Notes

__all__ = ["exchange_mode", "scale_velocity", "slice_notes", "time_stretch", "transpose"]

_OCTAVE = 12
_HIGHEST_PITCH = 127
_STRETCH_LIMIT = 100.0
# Third, sixth and seventh degree, in semitones above the tonic: major and natural minor.
_MAJOR_DEGREES, _MINOR_DEGREES = (4, 9, 11), (3, 8, 10)


def transpose(notes: Notes, semitones: int) -> Notes:
    """Move every note by a number of semitones.

    A note that would leave 0-127 comes back by as many octaves as it takes, so that it keeps its
    pitch class and the harmony stays what it is. Where nothing leaves, `transpose(_, -semitones)`
    is the exact inverse.

    Args:
        notes: n notes.
        semitones: -127 to 127; up is positive.

    Raises:
        KmidiError: if `semitones` is out of range.
    """
    if not -_HIGHEST_PITCH <= semitones <= _HIGHEST_PITCH:
        raise KmidiError(
            f"cannot transpose by {semitones} semitones; "
            f"it has to be from -{_HIGHEST_PITCH} to {_HIGHEST_PITCH}."
        )
    pitch = notes.pitch.astype(np.int64) + int(semitones)
    octaves_up = np.maximum(-(pitch // _OCTAVE), 0)
    octaves_down = np.maximum(-((_HIGHEST_PITCH - pitch) // _OCTAVE), 0)
    pitch += (octaves_up - octaves_down) * _OCTAVE
    return _in_order(
        pitch.astype(np.uint8), notes.velocity, notes.onset_seconds, notes.offset_seconds
    )


def time_stretch(notes: Notes, factor: float) -> Notes:
    """Make everything last `factor` times as long; the pitches stay.

    Args:
        notes: n notes.
        factor: 0.01-100; above 1 is slower.

    Raises:
        KmidiError: if `factor` is out of range, or the result would last longer than 24 hours.
    """
    if not 1 / _STRETCH_LIMIT <= factor <= _STRETCH_LIMIT:
        raise KmidiError(
            f"cannot stretch time by {factor:g}; "
            f"the factor has to be from {1 / _STRETCH_LIMIT:g} to {_STRETCH_LIMIT:g}."
        )
    if notes.duration_seconds * factor > MAX_DURATION_SECONDS:
        raise KmidiError(
            f"cannot stretch {notes.duration_seconds:.0f} s by {factor:g}; "
            f"a piece may last {MAX_DURATION_SECONDS / 3600:.0f} hours at most."
        )
    onset, offset = notes.onset_seconds * factor, notes.offset_seconds * factor
    # Rounding may join times that were neighbouring floats.
    offset = np.maximum(offset, np.nextafter(onset, np.inf))
    return _in_order(notes.pitch, notes.velocity, onset, offset)


def scale_velocity(notes: Notes, factor: float) -> Notes:
    """Multiply every velocity, rounded and kept within 1-127.

    Args:
        notes: n notes.
        factor: finite, >= 0; above 1 is louder.

    Raises:
        KmidiError: if `factor` is negative or not finite.
    """
    if not (math.isfinite(factor) and factor >= 0):
        raise KmidiError(f"cannot scale velocity by {factor}; the factor has to be 0 or more.")
    velocity = np.clip(np.floor(notes.velocity * float(factor) + 0.5), 1, 127).astype(np.uint8)
    return Notes(notes.pitch, velocity, notes.onset_seconds, notes.offset_seconds)


def exchange_mode(notes: Notes, tonic: int, minor: bool) -> Notes:
    """Move a piece to the parallel key: major to natural minor, or back.

    The third, sixth and seventh degree move by a semitone; what is not of the scale stays.

    Args:
        notes: n notes.
        tonic: pitch class of the key, 0 (C) to 11.
        minor: whether the piece is in minor, and so is to be in major.

    Raises:
        KmidiError: if `tonic` is out of range.
    """
    if not 0 <= tonic < _OCTAVE:
        raise KmidiError(f"the tonic {tonic} is no pitch class; it has to be from 0 to 11.")
    degree = (notes.pitch.astype(np.int64) - tonic) % _OCTAVE
    moves = np.isin(degree, _MINOR_DEGREES if minor else _MAJOR_DEGREES)
    # no pitch leaves 0-127: at the borders the note stays
    pitch = np.clip(notes.pitch + moves * (1 if minor else -1), 0, _HIGHEST_PITCH)
    return _in_order(
        pitch.astype(np.uint8), notes.velocity, notes.onset_seconds, notes.offset_seconds
    )


def slice_notes(notes: Notes, start_seconds: float, end_seconds: float) -> Notes:
    """Cut a window out of a piece; its start becomes time 0.

    Every note that sounds within [start, end) is there; one that crosses a border is cut at it.

    Args:
        notes: n notes.
        start_seconds: start of the window, >= 0.
        end_seconds: its end, >= start.

    Raises:
        KmidiError: if the window is not 0 <= start <= end.
    """
    if not 0 <= start_seconds <= end_seconds:
        raise KmidiError(
            f"cannot cut out {start_seconds:g} s to {end_seconds:g} s; it needs 0 <= start <= end."
        )
    onset = np.maximum(notes.onset_seconds, start_seconds) - start_seconds
    offset = np.minimum(notes.offset_seconds, end_seconds) - start_seconds
    kept = offset > onset
    return _in_order(notes.pitch[kept], notes.velocity[kept], onset[kept], offset[kept])


def _in_order(
    pitch: NDArray[np.uint8],
    velocity: NDArray[np.uint8],
    onset: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> Notes:
    order = np.lexsort((pitch, onset))
    return Notes(pitch[order], velocity[order], onset[order], offset[order])
