"""Whether music that goes on for long stays alive: no silence, no loop, no drift.

Real pieces say what is usual. Each figure of a stream has a limit, the 99th percentile of that
figure over real pieces (of the least notes a minute the 1st):

- dead: its longest rest is longer, or a minute has fewer notes;
- looping: in some stretch as long as the median real piece, it repeats what it played up to 20 s
  before for longer, its longest repeat of anything is longer, or a larger share of its windows of
  4 s occurred before;
- drifting: from its first to its last minute density, register, key clarity or pitch-class entropy
  change by more, in either direction.

A repeat is the same pitches in the same order, each as long after the chord before it as the first
time, to 30 ms. Real pieces last some minutes and have a beginning and an end, so the limits for
drift are wide; and as they are percentiles, some real pieces break one too: `faults` of real pieces
is the rate to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kmidi_mlx.evaluation.memorisation import chord_order
from kmidi_mlx.evaluation.music_measures import MEASURES, measure
from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.music.events import STEPS_PER_SECOND
from kmidi_mlx.music.notes import Notes

__all__ = [
    "DRIFTS",
    "FAULTS",
    "LOOP_SECONDS",
    "REPEAT_WINDOW_SECONDS",
    "Limits",
    "Repeats",
    "Stream",
    "faults",
    "limits_of",
    "measure_stream",
    "repeats_of",
]

#: What may be wrong with a stream.
FAULTS = ("dead", "looping", "drifting")
#: Figures whose change from the first to the last minute is drift. The density counts as a ratio,
#: in octaves; register in semitones; key clarity 0-1; entropy in bits.
DRIFTS = ("note_density", "mean_pitch", "key_clarity", "pitch_class_entropy")
#: Length of the windows that may have occurred before.
REPEAT_WINDOW_SECONDS = 4.0
#: Longest period of what counts as a loop.
LOOP_SECONDS = 20.0

_MINUTE_SECONDS = 60.0
_TOLERANCE_STEPS = 3
_LEAST_NOTES = 8
_USUAL = 99.0
# Notes a second below which a ratio of densities says nothing.
_LEAST_DENSITY = 0.05


@dataclass(frozen=True)
class Repeats:
    """What comes back in a piece.

    Attributes:
        loop_seconds: for how long, at most, music goes on that is what was played a constant
            number of notes and up to 20 s before: a verse that is played twice, or a loop.
        longest_seconds: from the first to the last onset of the longest stretch that was there
            before; the two may overlap, so a loop counts from its second round to its end.
        share: of the windows of 4 s, one from each chord on, that have at least 8 notes: those
            that were there before; 0 without windows.
    """

    loop_seconds: float
    longest_seconds: float
    share: float


@dataclass(frozen=True)
class Stream:
    """What one long piece is like.

    Attributes:
        seconds: its length.
        longest_rest: seconds in which nothing sounds, after the first note; at the end too.
        notes_by_minute: notes that begin in each whole minute; of a shorter piece, a minute's rate.
        repeats: over all of it.
        worst: the largest of each figure over stretches of the length that repeats are judged by.
        drift: of each of `DRIFTS`, last minute less first; of a shorter piece, of its thirds.
    """

    seconds: float
    longest_rest: float
    notes_by_minute: tuple[int, ...]
    repeats: Repeats
    worst: Repeats
    drift: dict[str, float]


@dataclass(frozen=True)
class Limits:
    """What is usual in real pieces; see the head of this module.

    Attributes:
        pieces: number of real pieces.
        seconds: median length, the stretch by which repeats are judged.
        longest_rest, least_notes, longest_loop, longest_repeat, repeated_share: limits.
        drift: limit of the size of each drift.
    """

    pieces: int
    seconds: float
    longest_rest: float
    least_notes: float
    longest_loop: float
    longest_repeat: float
    repeated_share: float
    drift: dict[str, float]


def measure_stream(notes: Notes, seconds: float, judged_seconds: float) -> Stream:
    """Measure a long piece.

    Args:
        notes: the piece.
        seconds: its length, > 0; it may end in silence.
        judged_seconds: length of the stretches whose repeats are judged, > 0.
    """
    onset = notes.onset_seconds
    minutes = int(seconds / _MINUTE_SECONDS + 1e-6)
    if minutes:
        edges = np.arange(minutes + 1) * _MINUTE_SECONDS
        by_minute = np.diff(np.searchsorted(onset, edges)).tolist()
    else:
        by_minute = [round(len(notes) * _MINUTE_SECONDS / seconds)]
    whole = repeats_of(notes)
    stretches = max(1, round(seconds / judged_seconds))
    parts = [whole]
    if stretches > 1:
        length = seconds / stretches
        parts = [
            repeats_of(slice_notes(notes, k * length, (k + 1) * length)) for k in range(stretches)
        ]
    span = min(_MINUTE_SECONDS, seconds / 3)
    return Stream(
        seconds=seconds,
        longest_rest=_longest_rest(notes, seconds),
        notes_by_minute=tuple(by_minute),
        repeats=whole,
        worst=Repeats(
            loop_seconds=max(part.loop_seconds for part in parts),
            longest_seconds=max(part.longest_seconds for part in parts),
            share=max(part.share for part in parts),
        ),
        drift=_drift(
            slice_notes(notes, 0, span), slice_notes(notes, seconds - span, seconds), span
        ),
    )


def limits_of(real: Sequence[Stream]) -> Limits:
    """Take the limits from real pieces.

    Args:
        real: at least one.
    """

    def usual(values: Sequence[float]) -> float:
        return float(np.percentile(values, _USUAL))

    least = [min(stream.notes_by_minute) for stream in real]
    return Limits(
        pieces=len(real),
        seconds=float(np.median([stream.seconds for stream in real])),
        longest_rest=usual([stream.longest_rest for stream in real]),
        least_notes=float(np.percentile(least, 100 - _USUAL)),
        longest_loop=usual([stream.worst.loop_seconds for stream in real]),
        longest_repeat=usual([stream.worst.longest_seconds for stream in real]),
        repeated_share=usual([stream.worst.share for stream in real]),
        drift={name: usual([abs(stream.drift[name]) for stream in real]) for name in DRIFTS},
    )


def faults(stream: Stream, limits: Limits) -> dict[str, list[str]]:
    """Say what is wrong with a stream.

    Args:
        stream: measured with the limits' `seconds`.
        limits: of real pieces.

    Returns:
        For each of `FAULTS` what exceeds its limit, in words; empty lists: nothing.
    """
    found: dict[str, list[str]] = {name: [] for name in FAULTS}
    if stream.longest_rest > limits.longest_rest:
        found["dead"].append(f"a rest of {stream.longest_rest:.1f} s")
    if min(stream.notes_by_minute) < limits.least_notes:
        found["dead"].append(f"{min(stream.notes_by_minute)} notes in a minute")
    if stream.worst.loop_seconds > limits.longest_loop:
        found["looping"].append(f"a loop of {stream.worst.loop_seconds:.1f} s")
    if stream.worst.longest_seconds > limits.longest_repeat:
        found["looping"].append(f"a repeat of {stream.worst.longest_seconds:.1f} s")
    if stream.worst.share > limits.repeated_share:
        found["looping"].append(f"{stream.worst.share:.0%} of the windows repeated")
    for name in DRIFTS:
        if abs(stream.drift[name]) > limits.drift[name]:
            found["drifting"].append(f"{name.replace('_', ' ')} {stream.drift[name]:+.2f}")
    return found


def repeats_of(notes: Notes) -> Repeats:
    """Find what comes back in a piece, by comparing it with itself at every distance.

    Args:
        notes: n notes; the time taken grows as n².
    """
    count = len(notes)
    if count < 2:
        return Repeats(0.0, 0.0, 0.0)
    order, starts = chord_order(notes)
    pitch = notes.pitch[order].astype(np.int16)
    onset = np.maximum.accumulate(notes.onset_seconds[order])
    begin = np.rint(notes.onset_seconds[starts] * STEPS_PER_SECOND)
    since = np.zeros(count, np.int32)
    since[starts] = np.diff(begin, prepend=begin[0]).astype(np.int32)
    # a chord's first note is one, whatever the time before it
    kind = (2 * pitch + starts).astype(np.int16)
    run, loop = np.zeros(count, np.int64), 0.0
    for lag in range(1, count):
        same = kind[lag:] == kind[:-lag]
        if not same.any():
            continue
        same &= np.abs(since[lag:] - since[:-lag]) <= _TOLERANCE_STEPS
        # how far each place is from the next one that differs
        ends = np.append(np.flatnonzero(~same), len(same))
        place = np.flatnonzero(same)
        length = ends[np.searchsorted(ends, place)] - place
        run[place + lag] = np.maximum(run[place + lag], length)
        near = onset[place + lag] - onset[place] <= LOOP_SECONDS
        lasts = onset[place + lag + length - 1] - onset[place + lag]
        loop = max(loop, float(lasts[near].max(initial=0.0)))
    last = np.arange(count) + np.maximum(run, 1) - 1
    longest = float((onset[last] - onset)[run > 0].max(initial=0.0))
    first = np.flatnonzero(starts)
    stop = np.searchsorted(onset, onset[first] + REPEAT_WINDOW_SECONDS)
    inside = onset[first] + REPEAT_WINDOW_SECONDS <= onset[-1] + 1e-9
    size = stop - first
    judged = inside & (size >= _LEAST_NOTES)
    share = float((run[first] >= size)[judged].mean()) if judged.any() else 0.0
    return Repeats(loop, longest, share)


def _longest_rest(notes: Notes, seconds: float) -> float:
    if not len(notes):
        return seconds
    ended = np.maximum.accumulate(notes.offset_seconds)
    return float(np.max(np.append(notes.onset_seconds[1:], seconds) - ended, initial=0.0))


def _drift(first: Notes, last: Notes, seconds: float) -> dict[str, float]:
    # a part without notes has no pitch; its density says that it is empty
    before, after = (
        dict(zip(MEASURES, np.nan_to_num(row), strict=True)) for row in measure([first, last])
    )
    drift = {name: float(after[name] - before[name]) for name in DRIFTS[1:]}
    if not (len(first) and len(last)):
        drift = dict.fromkeys(DRIFTS[1:], 0.0)
    # by the time given, not to the end of the last note
    density = [max(len(part) / seconds, _LEAST_DENSITY) for part in (first, last)]
    return {DRIFTS[0]: math.log2(density[1] / density[0]), **drift}
