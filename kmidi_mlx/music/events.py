"""Events: piano music as a sequence of 388 kinds of events, and back.

The vocabulary is that of Performance RNN (Oore et al., "This Time with Feeling", 2018) and Music
Transformer (Huang et al., ICLR 2019), in the order of note-seq's `PerformanceOneHotEncoding` with
32 velocity bins, steps of 10 ms and shifts of up to 1 s:

    0-127    NOTE_ON     pitch
    128-255  NOTE_OFF    pitch
    256-355  TIME_SHIFT  1-100 steps
    356-387  VELOCITY    bin (velocity - 1) // 4, decoded to the lowest velocity of the bin
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import MAX_DURATION_SECONDS, Notes, separate_repeats

__all__ = [
    "DEFAULT_VELOCITY",
    "INPUT_SIZE",
    "MAX_SHIFT_STEPS",
    "NOTE_OFF",
    "NOTE_ON",
    "PAD_TOKEN",
    "START_TOKEN",
    "STEPS_PER_SECOND",
    "TIME_SHIFT",
    "VELOCITY",
    "VELOCITY_BINS",
    "VOCABULARY_SIZE",
    "decode",
    "describe",
    "encode",
    "event_steps",
    "first_violation",
    "is_valid",
]

NOTE_ON = 0
NOTE_OFF = 128
TIME_SHIFT = 256
VELOCITY = 356
VOCABULARY_SIZE = 388
# What a model may read but never writes: start of piece, padding.
START_TOKEN = 388
PAD_TOKEN = 389
INPUT_SIZE = 390
STEPS_PER_SECOND = 100
MAX_SHIFT_STEPS = 100
VELOCITY_BINS = 32
# What a NOTE_ON before any VELOCITY sounds like (a window cut from a piece can begin so).
DEFAULT_VELOCITY = 65

_VELOCITIES_PER_BIN = 4


def encode(notes: Notes) -> NDArray[np.uint16]:
    """Write notes as events.

    Times are rounded to steps of 10 ms, a note lasts at least one step, and a pitch that is struck
    while it sounds ends there first (`separate_repeats`). Events are in the order of time; at one
    step the ends come before the starts, both in the order of the notes by (onset, pitch), which
    is note-seq's order. A VELOCITY comes right before a NOTE_ON whose bin differs from the last.
    A gap over 1 s becomes shifts of 1 s and a rest.

    Args:
        notes: n notes of at most 24 hours.

    Returns:
        uint16 (events,), ids below 388; without notes an empty array. Always `is_valid`.

    Raises:
        KmidiError: if the notes last longer than 24 hours.
    """
    if not len(notes):
        return np.zeros(0, np.uint16)
    if not notes.duration_seconds <= MAX_DURATION_SECONDS:
        raise KmidiError(
            f"cannot encode notes up to {notes.duration_seconds:.0f} s: "
            f"a piece may last {MAX_DURATION_SECONDS / 3600:.0f} hours at most."
        )
    onset = _nearest_steps(notes.onset_seconds)
    offset = np.maximum(_nearest_steps(notes.offset_seconds), onset + 1)
    pitch, velocity, onset, offset = separate_repeats(notes.pitch, notes.velocity, onset, offset)
    count = len(pitch)

    velocity_event = np.zeros(2 * count, np.uint16)
    velocity_event[count:] = (velocity - 1) // _VELOCITIES_PER_BIN
    velocity_event[count:] += VELOCITY
    unchanged = velocity_event[count + 1 :] == velocity_event[count:-1]
    velocity_event[count + 1 :][unchanged] = 0

    # Ends stand first, so that a stable sort by step leaves them before the starts of that step:
    # every note that ends at a step began earlier than those that start there.
    step = np.concatenate((offset, onset))
    # Sorting 16-bit numbers is several times faster, and 11 minutes fit into them.
    order = np.argsort(step.astype(np.uint16) if step.max() < 2**16 else step, kind="stable")
    step, velocity_event = step[order], velocity_event[order]
    has_velocity = velocity_event != 0
    event = np.concatenate((pitch, pitch)).astype(np.uint16)
    event[:count] += NOTE_OFF
    event = event[order]

    # Before each event stand its shifts of 1 s, then the rest (1-100 steps), then its velocity.
    gap = step.copy()
    gap[1:] -= step[:-1]
    full_shifts = (gap - 1) // MAX_SHIFT_STEPS  # -1 without a gap, as there is no rest either
    last = np.cumsum(full_shifts + has_velocity + 2) - 1
    ids = np.full(int(last[-1]) + 1, TIME_SHIFT + MAX_SHIFT_STEPS - 1, np.uint16)
    # An event without a velocity, or without a rest, writes it to a place that belongs to one of
    # the lines below. That is faster than to pick the others.
    ids[last - 1] = velocity_event
    ids[last - has_velocity - 1] = TIME_SHIFT - 1 + gap - full_shifts * MAX_SHIFT_STEPS
    ids[last] = event
    return ids


def decode(ids: ArrayLike) -> Notes:
    """Read events as notes; anything within the vocabulary can be read.

    A NOTE_OFF of a silent pitch is ignored. A NOTE_ON of a sounding pitch ends the earlier note
    first, and replaces it if both start at one step. Notes that still sound at the end, end there.
    A note lasts at least one step. Before the first VELOCITY notes have `DEFAULT_VELOCITY`.

    Args:
        ids: (events,) whole numbers 0-387.

    Returns:
        The notes, on the 10 ms grid, with the lowest velocity of each bin.

    Raises:
        KmidiError: for an id outside the vocabulary, or a sequence that lasts over 24 hours.
    """
    events = _checked(ids)
    steps = _steps_after(events)
    if len(steps) and steps[-1] > MAX_DURATION_SECONDS * STEPS_PER_SECOND:
        raise KmidiError(
            f"the events last {steps[-1] / STEPS_PER_SECOND:.0f} s; "
            f"a piece may last {MAX_DURATION_SECONDS / 3600:.0f} hours at most."
        )
    is_velocity = events >= VELOCITY
    last_velocity = np.maximum.accumulate(np.where(is_velocity, np.arange(len(events)), -1))

    at = np.flatnonzero(events < TIME_SHIFT)
    pitch = (events[at] & 127).astype(np.uint8)
    by_pitch = np.argsort(pitch, kind="stable")
    at, pitch = at[by_pitch], pitch[by_pitch]
    step = steps[at]
    starts = events[at] < NOTE_OFF
    # Whatever comes next on its pitch, a start or an end, is where a note stops.
    same_pitch = np.zeros(len(at), bool)
    np.equal(pitch[1:], pitch[:-1], out=same_pitch[:-1])
    end = np.full(len(at), steps[-1] if len(steps) else 0)
    end[:-1][same_pitch[:-1]] = step[1:][same_pitch[:-1]]

    at, pitch, step, end = at[starts], pitch[starts], step[starts], end[starts]
    replaced = np.zeros(len(at), bool)
    np.logical_and(pitch[1:] == pitch[:-1], step[1:] == step[:-1], out=replaced[:-1])
    if replaced.any():
        at, pitch, step, end = at[~replaced], pitch[~replaced], step[~replaced], end[~replaced]
    end = np.maximum(end, step + 1)

    # In the order of pitch now, so a stable sort by step gives (onset, pitch).
    order = np.argsort(step, kind="stable")
    at = at[order]
    velocity_at = last_velocity[at]
    velocity = np.where(
        velocity_at >= 0,
        (events[velocity_at].astype(np.int64) - VELOCITY) * _VELOCITIES_PER_BIN + 1,
        DEFAULT_VELOCITY,
    ).astype(np.uint8)
    return Notes(
        pitch[order], velocity, step[order] / STEPS_PER_SECOND, end[order] / STEPS_PER_SECOND
    )


def event_steps(ids: ArrayLike) -> NDArray[np.int64]:
    """Return the time in 10 ms steps at which each event happens.

    Args:
        ids: (events,) whole numbers 0-387.

    Returns:
        int64 (events,); for a TIME_SHIFT the time after it.

    Raises:
        KmidiError: for an id outside the vocabulary.
    """
    return _steps_after(_checked(ids))


def describe(event: int) -> str:
    """Name an event for people: `NOTE_ON 60`, `NOTE_OFF 60`, `TIME_SHIFT 120 ms`, `VELOCITY 65`.

    Args:
        event: id 0-387.

    Raises:
        KmidiError: for an id outside the vocabulary.
    """
    value = int(_checked([event])[0])
    if value < NOTE_OFF:
        return f"NOTE_ON {value - NOTE_ON}"
    if value < TIME_SHIFT:
        return f"NOTE_OFF {value - NOTE_OFF}"
    if value < VELOCITY:
        return f"TIME_SHIFT {(value - TIME_SHIFT + 1) * 1000 // STEPS_PER_SECOND} ms"
    return f"VELOCITY {(value - VELOCITY) * _VELOCITIES_PER_BIN + 1}"


def is_valid(ids: ArrayLike) -> bool:
    """Return whether events keep every law of the vocabulary (see `first_violation`)."""
    return first_violation(ids) is None


def first_violation(ids: ArrayLike) -> str | None:
    """Find the first event that `encode` would never write.

    The laws: every id is below 388; a NOTE_OFF ends a sounding pitch, at least one step after its
    NOTE_ON; a NOTE_ON strikes a silent pitch, and some VELOCITY came before it; a VELOCITY is
    followed by a NOTE_ON and changes the bin; a TIME_SHIFT follows another only if that one is of
    1 s; at the end nothing sounds, and the last event is no TIME_SHIFT.

    Args:
        ids: (events,) whole numbers.

    Returns:
        One phrase that names the place and the law, or None.
    """
    full_shift = TIME_SHIFT + MAX_SHIFT_STEPS - 1
    sounding: dict[int, int] = {}
    step, last_velocity, previous = 0, -1, -1
    for index, event in enumerate(np.asarray(ids).tolist()):
        if not 0 <= event < VOCABULARY_SIZE:
            return f"event {index}: {event} is outside the vocabulary of {VOCABULARY_SIZE}"
        fault = None
        if previous >= VELOCITY and event >= NOTE_OFF:
            fault = "after a VELOCITY, which only a NOTE_ON may follow"
        elif event < NOTE_OFF:
            if event in sounding:
                fault = "while that pitch sounds"
            elif last_velocity < 0:
                fault = "before any VELOCITY"
            sounding[event] = step
        elif event < TIME_SHIFT:
            start = sounding.pop(event - NOTE_OFF, None)
            if start is None:
                fault = "of a silent pitch"
            elif start == step:
                fault = "in the step of its NOTE_ON"
        elif event < VELOCITY:
            if TIME_SHIFT <= previous < full_shift:
                fault = "after a TIME_SHIFT shorter than 1 s"
            step += event - TIME_SHIFT + 1
        else:
            if event == last_velocity:
                fault = "although that is the velocity already"
            last_velocity = event
        if fault:
            return f"event {index}: {describe(event)} {fault}"
        previous = event
    if sounding:
        return f"the end: pitch {min(sounding)} still sounds"
    if previous >= TIME_SHIFT:
        return f"the end: {describe(previous)} leads to nothing"
    return None


def _nearest_steps(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(seconds * STEPS_PER_SECOND + 0.5).astype(np.int64)


def _checked(ids: ArrayLike) -> NDArray[np.integer]:
    events = np.asarray(ids)
    if events.ndim == 1 and not len(events):
        return np.zeros(0, np.uint16)
    if events.ndim != 1 or not np.issubdtype(events.dtype, np.integer):
        raise KmidiError(
            f"events have to be whole numbers in one dimension, got {events.dtype} {events.shape}."
        )
    if events.max() >= VOCABULARY_SIZE or events.min() < 0:
        index = int(np.argmax((events >= VOCABULARY_SIZE) | (events < 0)))
        raise KmidiError(
            f"event {index} is {events[index]}; ids go from 0 to {VOCABULARY_SIZE - 1}."
        )
    return events


def _steps_after(events: NDArray[np.integer]) -> NDArray[np.int64]:
    is_shift = (events >= TIME_SHIFT) & (events < VELOCITY)
    steps: NDArray[np.int64] = np.cumsum(
        np.where(is_shift, events.astype(np.int64) - (TIME_SHIFT - 1), 0)
    )
    return steps
