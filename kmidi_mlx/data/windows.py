"""One training window: cut out of a piece, augmented, with its harmony and mood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.music.augment import scale_velocity, time_stretch, transpose
from kmidi_mlx.music.chords import CHORD_COUNT, KEY_COUNT, transpose_chord, transpose_key
from kmidi_mlx.music.events import (
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    TIME_SHIFT,
    VELOCITY,
    VOCABULARY_SIZE,
    decode,
    encode,
    event_steps,
)
from kmidi_mlx.music.notes import Notes

__all__ = ["Augmentation", "Window", "WindowCutter"]

# Events before a window that are decoded with it, so that notes which sound at its start are known.
_PREROLL = 128
# Pitches of a piano; music is not transposed beyond them.
_LOWEST_PITCH, _HIGHEST_PITCH = 21, 108
# Decoded velocities are the lowest of their bin of 4; scaling starts from its middle.
_HALF_BIN = 2
# A note that starts at the last step of a slice is given one step, which a stretch makes two.
_LONGEST_CUT_STEPS = 2

_SHIFT_STEPS = np.zeros(VOCABULARY_SIZE, np.int64)
_SHIFT_STEPS[TIME_SHIFT : TIME_SHIFT + MAX_SHIFT_STEPS] = np.arange(1, MAX_SHIFT_STEPS + 1)
_CHORDS = np.array(
    [[transpose_chord(chord, n) for chord in range(CHORD_COUNT)] for n in range(12)], np.uint8
)
_KEYS = np.array([[transpose_key(key, n) for key in range(KEY_COUNT)] for n in range(12)], np.uint8)


@dataclass(frozen=True)
class Augmentation:
    """How a window is changed.

    Attributes:
        semitones: asked transposition; less is done where pitches would leave the piano.
        stretch: factor on all times.
        velocity: factor on all velocities.
    """

    semitones: int
    stretch: float
    velocity: float


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of events with what holds while they happen.

    Attributes:
        events: (m,) event ids, m <= length + 1, or length at the start of a piece.
        at_start: whether the first event is the first of the piece.
        chords: uint8 (m,), chord id in force when each event is about to happen; 0 unknown.
        key: key id that is in force at most events; 0 unknown.
        valence, arousal: mean mood of the stretch in the original, steering scale.
        intensity: as given for the piece; NaN if it was not.
    """

    events: NDArray[np.uint16]
    at_start: bool
    chords: NDArray[np.uint8]
    key: int
    valence: float
    arousal: float
    intensity: float


class WindowCutter:
    """Cuts windows out of the pieces of a data set.

    Args:
        reader: the data set.
        length: targets in a window.
    """

    def __init__(self, reader: ShardReader, length: int) -> None:
        self._reader = reader
        self._length = length

    def cut(self, piece: int, position: int, change: Augmentation | None = None) -> Window:
        """Cut the window whose first target is event `position` (about that, if augmented).

        Augmented events are those that `encode` writes for the changed music, so they keep the
        laws of the vocabulary.

        Args:
            piece: its number.
            position: 0 to the piece's length - 1; 0 gives a window at the start.
            change: how to augment; None for the events as they are.
        """
        tokens = self._reader.tokens(piece)
        at_start = position == 0
        wanted = self._length if at_start else self._length + 1
        # The event before the first target is an input.
        first = max(0, position - 1)
        if change is None:
            events = tokens[first : first + wanted]
            origin = int(_SHIFT_STEPS[tokens[:first]].sum())
            before = _steps_before(events)
            stretch, semitones = 1.0, 0
        else:
            low = max(0, first - _PREROLL)
            events, semitones = self._augmented(tokens, low, first + wanted, change)
            if len(events) < 2:
                return self.cut(piece, position)  # silence: there is nothing to change
            origin = int(_SHIFT_STEPS[tokens[:low]].sum())
            before = _steps_before(events)
            begin = min(_same_place(tokens[low:first], events), max(0, len(events) - wanted))
            events, before = events[begin : begin + wanted], before[begin : begin + wanted]
            stretch = change.stretch
        chords, key = self._harmony(piece, before, origin, stretch, semitones)
        # A window that follows others has seen no time pass before its first event.
        steps = origin + np.array([before[0], before[-1]]) / stretch
        valence, arousal = self._mood(piece, float(steps[0]), float(steps[1]))
        intensity = float(self._reader.pieces.intensity[piece])
        return Window(events, at_start, chords, key, valence, arousal, intensity)

    def _augmented(
        self, tokens: NDArray[np.uint16], low: int, high: int, change: Augmentation
    ) -> tuple[NDArray[np.uint16], int]:
        # Merged velocities and shifts make a stream shorter.
        high = min(len(tokens), high + self._length // 8 + 64)
        before = tokens[:low]
        velocity_in_force = before[before >= VELOCITY][-1:]
        notes = decode(np.concatenate((velocity_in_force, tokens[low:high])))
        pitch = notes.pitch
        highest, lowest = int(pitch.max(initial=0)), int(pitch.min(initial=127))
        semitones = min(change.semitones, max(0, _HIGHEST_PITCH - highest))
        semitones = max(semitones, -max(0, lowest - _LOWEST_PITCH))
        centred = Notes(
            pitch, notes.velocity + np.uint8(_HALF_BIN), notes.onset_seconds, notes.offset_seconds
        )
        changed = scale_velocity(transpose(centred, semitones), change.velocity)
        events = encode(time_stretch(changed, change.stretch))
        if high < len(tokens) and len(events):
            # Notes that sound where the slice ends were cut there: not music.
            steps = event_steps(events)
            events = events[: int(np.searchsorted(steps, steps[-1] - _LONGEST_CUT_STEPS))]
        return events, semitones

    def _harmony(
        self,
        piece: int,
        before: NDArray[np.int64],
        origin: int,
        stretch: float,
        semitones: int,
    ) -> tuple[NDArray[np.uint8], int]:
        pieces = self._reader.pieces
        own = slice(int(pieces.chord_offset[piece]), int(pieces.chord_offset[piece + 1]))
        steps = _moved(pieces.chord_step[own], origin, stretch)
        chords = _in_force(steps, _CHORDS[semitones % 12][pieces.chord[own]], before)
        own = slice(int(pieces.key_offset[piece]), int(pieces.key_offset[piece + 1]))
        steps = _moved(pieces.key_step[own], origin, stretch)
        keys = _in_force(steps, _KEYS[semitones % 12][pieces.key[own]], before)
        return chords, int(np.bincount(keys).argmax())

    def _mood(self, piece: int, begin: float, end: float) -> tuple[float, float]:
        reader = self._reader
        offset = reader.pieces.mood_offset
        low, high = int(offset[piece]), int(offset[piece + 1])
        window, hop = reader.mood_window_steps, reader.mood_hop_steps
        first, last = round(begin / hop), round((end - window) / hop)
        if last < first:
            # No row lies within: take the one around the middle.
            first = last = round(((begin + end) / 2 - window / 2) / hop)
        rows = slice(
            low + min(max(first, 0), high - low - 1), low + min(max(last, 0), high - low - 1) + 1
        )
        valence = reader.pieces.valence[rows].astype(np.float64).mean()
        arousal = reader.pieces.arousal[rows].astype(np.float64).mean()
        return float(valence), float(arousal)


def _same_place(passed: NDArray[np.uint16], events: NDArray[np.uint16]) -> int:
    """Return where in changed events the music stands that follows the events `passed`.

    Notes are counted: changes add and remove velocities and shifts, but hardly ever a note.
    """
    starts = np.flatnonzero(passed < NOTE_OFF)
    changed = np.flatnonzero(events < NOTE_OFF)
    if not 0 < len(starts) <= len(changed):
        return len(passed)
    return int(changed[len(starts) - 1]) + len(passed) - int(starts[-1])


def _steps_before(events: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return (m,) time in steps when each event is about to happen."""
    shifts = _SHIFT_STEPS[events]
    steps: NDArray[np.int64] = np.cumsum(shifts) - shifts
    return steps


def _moved(steps: NDArray[np.int32], origin: int, stretch: float) -> NDArray[np.int64]:
    """Return times of the piece as times of a window that begins at `origin`, stretched."""
    moved: NDArray[np.int64] = np.floor((steps - origin) * stretch + 0.5).astype(np.int64)
    return moved


def _in_force(
    steps: NDArray[np.int64], ids: NDArray[np.uint8], at: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return the id that came into force last at each time; 0 before the first."""
    known = np.concatenate((np.zeros(1, np.uint8), ids))
    in_force: NDArray[np.uint8] = known[np.searchsorted(steps, at, side="right")]
    return in_force
