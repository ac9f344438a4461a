"""What a person plays, as events among those that the composer wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import (
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VELOCITY_BINS,
)

__all__ = ["FedEvent", "GivenNote", "Keyboard", "PlayedKey", "Sounding", "merge", "rests"]

#: The model is told no longer silence than this: a person may be away for an hour.
LONGEST_REST_STEPS = 10 * STEPS_PER_SECOND


class PlayedKey(NamedTuple):
    """A key went down or up: score step, MIDI pitch, velocity 1-127 (0: up)."""

    step: float
    pitch: int
    velocity: int


class GivenNote(NamedTuple):
    """A note begins, or ends where `velocity_bin` is None; `theirs`: a person's note."""

    step: int
    pitch: int
    velocity_bin: int | None
    theirs: bool


class FedEvent(NamedTuple):
    """An event to read, the score step after it, and whether a person's playing brought it."""

    event: int
    step: int
    theirs: bool


class Sounding(NamedTuple):
    """A note that sounds: score step of its beginning, and whether it is a person's."""

    onset: int
    theirs: bool


class Keyboard:
    """Brings keys onto the grid of steps, as `kmidi_mlx.music.events.encode` would.

    Times are rounded, a note lasts at least one step, a key that goes down twice goes up between.
    """

    def __init__(self) -> None:
        self._down: set[int] = set()
        self._last: dict[int, int] = {}
        self._phrase_start: float = math.inf

    def read(self, keys: Sequence[PlayedKey], earliest: int) -> list[GivenNote]:
        """Read keys in order of time; what is before `earliest` becomes that.

        Returns:
            Notes that begin and end; none for a key that goes up without having gone down.

        Raises:
            KmidiError: for a pitch, velocity or time that is none; no key is read then.
        """
        for key in keys:
            if not (0 <= key.pitch < 128 and 0 <= key.velocity < 128 and math.isfinite(key.step)):
                raise KmidiError(f"no key can be {key}: pitches and velocities go from 0 to 127.")
        notes = []
        for key in keys:
            step = max(math.floor(key.step + 0.5), earliest)
            if key.pitch in self._down:
                step = max(step, self._last[key.pitch] + 1)
                notes.append(GivenNote(step, key.pitch, None, theirs=True))
                self._down.discard(key.pitch)
                self._last[key.pitch] = step
            if key.velocity:
                step = max(step, self._last.get(key.pitch, step))
                velocity_bin = (key.velocity - 1) * VELOCITY_BINS // 128
                notes.append(GivenNote(step, key.pitch, velocity_bin, theirs=True))
                self._down.add(key.pitch)
                self._last[key.pitch] = step
                self._phrase_start = min(self._phrase_start, step)
        return notes

    def begin_phrase(self) -> None:
        """What is played from here on is a phrase of its own."""
        self._phrase_start = math.inf

    def phrase_steps(self, step: int) -> int:
        """Length up to a score step of the phrase; 0 if none began."""
        return step - int(min(self._phrase_start, step))


def rests(step: int, until: int) -> list[FedEvent]:
    """Let time pass from one score step to a later one, in canonical form.

    Of a long time the model is told the last `LONGEST_REST_STEPS`.
    """
    told = max(step, until - LONGEST_REST_STEPS)
    shifts = []
    while told < until:
        shift = min(until - told, MAX_SHIFT_STEPS)
        told += shift
        shifts.append(FedEvent(TIME_SHIFT + shift - 1, told, theirs=False))
    return shifts


def merge(
    notes: Sequence[GivenNote],
    step: int,
    velocity_bin: int,
    sounding: Mapping[int, Sounding],
) -> list[FedEvent]:
    """Write notes of both players as events, in canonical order.

    A pitch that is struck while it sounds ends first, whoever played it; at one step the
    composer's note goes before a person's on the same pitch, which is left out. Ends of what does
    not sound any more are left out too.

    Args:
        notes: beginnings and ends, not before `step`.
        step, velocity_bin, sounding: what is so before them.

    Returns:
        What the model has to read.
    """
    events: list[FedEvent] = []
    now = dict(sounding)
    ordered = sorted(notes, key=lambda n: (n.step, n.velocity_bin is not None, n.theirs))
    for note in ordered:
        held = now.get(note.pitch)
        is_end = note.velocity_bin is None
        if held is None if is_end else held is not None and held.onset == note.step:
            continue
        if is_end and held is not None and held.theirs != note.theirs:
            continue
        if note.step > step:
            events += rests(step, note.step)
            step = note.step
        if held is not None:
            events.append(FedEvent(note.pitch + NOTE_OFF, step, note.theirs))
            del now[note.pitch]
        if note.velocity_bin is not None:
            if note.velocity_bin != velocity_bin:
                velocity_bin = note.velocity_bin
                events.append(FedEvent(VELOCITY + velocity_bin, step, note.theirs))
            events.append(FedEvent(note.pitch, step, note.theirs))
            now[note.pitch] = Sounding(note.step, note.theirs)
    return events
