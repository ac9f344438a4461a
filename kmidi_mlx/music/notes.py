"""Notes: the one form in which music travels between the rooms of the package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError

__all__ = ["MAX_DURATION_SECONDS", "Notes", "separate_repeats"]

# No piece is longer than a day: a longer one is a broken file, and would become endless shifts.
MAX_DURATION_SECONDS = 86_400.0


@dataclass(frozen=True, eq=False)
class Notes:
    """A piece, or a part of one, as four arrays of equal length, sorted by (onset, pitch).

    The sustain pedal is already part of the offsets, so a note sounds exactly from its onset to
    its offset. The constructor takes arrays that are already in order and does not look at them;
    `Notes.build` is for everything else.

    Attributes:
        pitch: uint8 (n,), MIDI pitch, 0-127.
        velocity: uint8 (n,), MIDI velocity, 1-127.
        onset_seconds: float64 (n,), start of each note, >= 0.
        offset_seconds: float64 (n,), end of each note, > onset.
    """

    pitch: NDArray[np.uint8]
    velocity: NDArray[np.uint8]
    onset_seconds: NDArray[np.float64]
    offset_seconds: NDArray[np.float64]

    @classmethod
    def build(
        cls,
        pitch: ArrayLike,
        velocity: ArrayLike,
        onset_seconds: ArrayLike,
        offset_seconds: ArrayLike,
    ) -> Notes:
        """Check, cast and sort notes that come in any order and any numeric type.

        Args:
            pitch: (n,) whole numbers 0-127.
            velocity: (n,) whole numbers 1-127.
            onset_seconds: (n,) finite, >= 0.
            offset_seconds: (n,) finite, > onset, <= MAX_DURATION_SECONDS.

        Returns:
            The notes sorted by (onset, pitch); equal ones keep their order.

        Raises:
            KmidiError: for a wrong shape, a number out of range, or an offset not after its onset.
        """
        onsets = _as_floats("onset_seconds", onset_seconds)
        offsets = _as_floats("offset_seconds", offset_seconds)
        pitches = _as_bytes("pitch", pitch, lowest=0)
        velocities = _as_bytes("velocity", velocity, lowest=1)
        count = len(onsets)
        if not len(pitches) == len(velocities) == len(offsets) == count:
            raise KmidiError(
                f"notes need four arrays of one length, got pitch {len(pitches)}, "
                f"velocity {len(velocities)}, onset_seconds {count}, offset_seconds {len(offsets)}."
            )
        if count:
            if onsets.min() < 0.0:
                index = int(np.argmin(onsets))
                raise KmidiError(
                    f"onset_seconds of note {index} is {onsets[index]:g}; it has to be 0 or more."
                )
            if not (offsets > onsets).all():
                index = int(np.argmin(offsets > onsets))
                raise KmidiError(
                    f"note {index} ends at {offsets[index]:g} s but starts at {onsets[index]:g} s; "
                    "it has to end after it starts."
                )
            if offsets.max() > MAX_DURATION_SECONDS:
                raise KmidiError(
                    f"note {int(np.argmax(offsets))} ends after {offsets.max():.0f} s; "
                    f"a piece may last {MAX_DURATION_SECONDS / 3600:.0f} hours at most."
                )
        order = np.lexsort((pitches, onsets))
        return cls(pitches[order], velocities[order], onsets[order], offsets[order])

    @classmethod
    def empty(cls) -> Notes:
        """Return a piece without any notes."""
        return cls(
            np.zeros(0, np.uint8), np.zeros(0, np.uint8), np.zeros(0, float), np.zeros(0, float)
        )

    def __len__(self) -> int:
        """Return the number of notes."""
        return len(self.pitch)

    @property
    def duration_seconds(self) -> float:
        """Time in seconds from 0 to the end of the note that ends last; 0.0 without notes."""
        return float(self.offset_seconds.max()) if len(self.offset_seconds) else 0.0

    def equals(self, other: Notes) -> bool:
        """Return whether `other` has exactly the same notes, bit for bit, in the same order."""
        return (
            np.array_equal(self.pitch, other.pitch)
            and np.array_equal(self.velocity, other.velocity)
            and np.array_equal(self.onset_seconds, other.onset_seconds)
            and np.array_equal(self.offset_seconds, other.offset_seconds)
        )


def separate_repeats(
    pitch: NDArray[np.uint8],
    velocity: NDArray[np.uint8],
    onset: NDArray[np.int64],
    offset: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Make every pitch sound once at a time, as one key of a piano does.

    A note that is still sounding when its pitch is struck again ends there. Of notes of one pitch
    that start together one is left, with the highest velocity and the latest end of them.

    Args:
        pitch: (n,) MIDI pitch.
        velocity: (n,) MIDI velocity.
        onset: (n,) start of each note in whole ticks or steps, ascending, >= 0.
        offset: (n,) end of each note, > onset.

    Returns:
        The four arrays, shorter by the notes that started together, else in the order given.
    """
    if not len(pitch):
        return pitch, velocity, onset, offset
    by_pitch = np.argsort(pitch, kind="stable")
    sorted_pitch, start, end = pitch[by_pitch], onset[by_pitch], offset[by_pitch]
    same_pitch = sorted_pitch[1:] == sorted_pitch[:-1]
    together = same_pitch & (start[1:] == start[:-1])
    some_together = bool(together.any())
    if some_together:
        first = np.append(True, ~together).nonzero()[0]
        velocity = velocity.copy()
        velocity[by_pitch[first]] = np.maximum.reduceat(velocity[by_pitch], first)
        by_pitch, start, end = by_pitch[first], start[first], np.maximum.reduceat(end, first)
        same_pitch = same_pitch[first[1:] - 1]
    end[:-1] = np.where(same_pitch, np.minimum(end[:-1], start[1:]), end[:-1])
    separated = np.zeros_like(offset)
    separated[by_pitch] = end
    if not some_together:
        return pitch, velocity, onset, separated
    kept = separated.nonzero()[0]  # an end is never 0
    return pitch[kept], velocity[kept], onset[kept], separated[kept]


def _as_floats(name: str, values: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise KmidiError(f"{name} of notes has to be a list of numbers: {error}.") from error
    if array.ndim != 1:
        raise KmidiError(f"{name} of notes has to have one dimension, got shape {array.shape}.")
    if not np.isfinite(array).all():
        index = int(np.argmin(np.isfinite(array)))
        raise KmidiError(f"{name} of note {index} is {array[index]}; it has to be finite.")
    return array


def _as_bytes(name: str, values: ArrayLike, *, lowest: int) -> NDArray[np.uint8]:
    numbers = _as_floats(name, values)
    valid = (numbers >= lowest) & (numbers <= 127) & (numbers == np.floor(numbers))
    if not valid.all():
        index = int(np.argmin(valid))
        raise KmidiError(
            f"{name} of note {index} is {numbers[index]:g}; "
            f"it has to be a whole number from {lowest} to 127."
        )
    return numbers.astype(np.uint8)
