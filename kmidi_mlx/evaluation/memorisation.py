"""How much of a piece stands in the music that a model was trained on, note for note.

Two views of a piece are looked up in the training pieces (all versions, duplicates too):

- events: the ids as they are, so with every velocity and every 10 ms;
- notes: the interval to the note before and the rhythm, so that music that was transposed, played
  faster or louder is found too, as training does these. Rhythm is the ratio of the time since the
  chord before to the time before that, in steps of half an octave (a factor of 1.41); notes that
  begin less than 30 ms after the one before are one chord and stand there from low to high.

What is found says little alone: short runs of common music are everywhere. It has to be set beside
real pieces of songs that are not in the training set, cut to the same length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.evaluation.suffix_array import SuffixArray
from kmidi_mlx.music.events import STEPS_PER_SECOND, encode, event_steps
from kmidi_mlx.music.mood import CHORD_GAP_SECONDS
from kmidi_mlx.music.notes import Notes

__all__ = [
    "WINDOW_HOP_SECONDS",
    "WINDOW_SECONDS",
    "Found",
    "Reach",
    "TrainingIndex",
    "chord_order",
    "interval_symbols",
    "reach_of",
]

#: Windows that are looked for as a whole: about eight bars.
WINDOW_SECONDS = 16.0
WINDOW_HOP_SECONDS = 2.0
#: Notes below which a window says nothing: a rest and a chord are found everywhere.
LEAST_NOTES = 16

# A set copies if more of its pieces are beyond this percentile of real pieces than there would be
# by chance in one of a hundred sets.
_USUAL = 99.0
_CHANCE = 0.01

_HALF_OCTAVES = 8  # of a ratio of times, on either side of 1
_RHYTHMS = 2 * _HALF_OCTAVES + 2
_IN_CHORD = _RHYTHMS - 1
_BETWEEN = -1


@dataclass(frozen=True)
class Found:
    """What of one piece stands in the training pieces.

    Attributes:
        events: events of the longest run that is there as it is.
        event_seconds: how long that run lasts.
        notes: notes of the longest run that is there, transposed or at another tempo perhaps.
        note_seconds: from the first to the last onset of that run.
        part: which of the training pieces has that run of notes; -1: none.
        windows: windows of `WINDOW_SECONDS` with at least `LEAST_NOTES` notes.
        windows_found: those of them whose notes, but for the first chord, all stand in one place
            of a training piece.
    """

    events: int
    event_seconds: float
    notes: int
    note_seconds: float
    part: int
    windows: int
    windows_found: int


@dataclass(frozen=True)
class Reach:
    """How far a set of pieces goes along with the training pieces, beside real pieces.

    Attributes:
        pieces: number of pieces.
        notes, events: median, 90th and 99th percentile and largest of the pieces' longest runs.
        note_seconds: how long the longest run of notes of all pieces lasts.
        part: which of the training pieces has it; -1: none.
        beyond_notes, beyond_events: pieces whose run is longer than the 99th percentile of real
            pieces.
        windows: windows of 16 s that were looked for.
        found_share: those found whole in a training piece; None without windows.
        copies: whether more pieces are beyond, in notes or in events, than chance explains
            (binomial, one in a hundred sets).
    """

    pieces: int
    notes: tuple[float, float, float, float]
    events: tuple[float, float, float, float]
    note_seconds: float
    part: int
    beyond_notes: int
    beyond_events: int
    windows: int
    found_share: float | None
    copies: bool


def reach_of(found: Sequence[Found], real: Sequence[Found]) -> Reach:
    """Sum up what was found of a set.

    Args:
        found: of the pieces of the set, at least one.
        real: of held-out real pieces of the same length, at least one.
    """
    notes, events = [one.notes for one in found], [one.events for one in found]
    longest = max(found, key=lambda one: one.notes)
    windows = sum(one.windows for one in found)
    beyond_notes = sum(n > np.percentile([one.notes for one in real], _USUAL) for n in notes)
    beyond_events = sum(n > np.percentile([one.events for one in real], _USUAL) for n in events)
    return Reach(
        pieces=len(found),
        notes=_spread(notes),
        events=_spread(events),
        note_seconds=longest.note_seconds,
        part=longest.part,
        beyond_notes=int(beyond_notes),
        beyond_events=int(beyond_events),
        windows=windows,
        found_share=sum(one.windows_found for one in found) / windows if windows else None,
        copies=min(_chance(len(found), int(n)) for n in (beyond_notes, beyond_events)) < _CHANCE,
    )


def _spread(values: Sequence[int]) -> tuple[float, float, float, float]:
    middle, high, highest, most = np.percentile(values, (50, 90, _USUAL, 100)).tolist()
    return middle, high, highest, most


def _chance(pieces: int, beyond: int) -> float:
    """Return the probability that so many or more of real pieces are beyond their percentile."""
    rare = 1 - _USUAL / 100
    fewer = sum(math.comb(pieces, k) * rare**k * (1 - rare) ** (pieces - k) for k in range(beyond))
    return 1 - fewer


def chord_order(notes: Notes) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Put notes in the order of chords, each from low to high.

    Args:
        notes: n notes.

    Returns:
        (n,) their order, and (n,) bool in that order: whether a note is the first of its chord.
    """
    onset = notes.onset_seconds
    # whole steps, so that equal times are equal whatever floats they were computed from
    steps = np.rint(np.diff(onset, prepend=-math.inf) * STEPS_PER_SECOND)
    starts = steps >= round(CHORD_GAP_SECONDS * STEPS_PER_SECOND)
    return np.lexsort((notes.pitch, np.cumsum(starts))), starts


def interval_symbols(notes: Notes) -> NDArray[np.int64]:
    """Write notes so that they are the same transposed, at another tempo, louder or more legato.

    Args:
        notes: n notes.

    Returns:
        int64 (max(0, n - 1),): of each note but the first, in the order of `chord_order`, its
        interval to the note before and its rhythm as one number, 0 to 4,589.
    """
    if len(notes) < 2:
        return np.zeros(0, np.int64)
    order, starts = chord_order(notes)
    pitch = notes.pitch[order].astype(np.int64)
    begin = np.rint(notes.onset_seconds[starts] * STEPS_PER_SECOND)
    since = np.maximum(np.diff(begin), 1.0)
    # the first time has none before it and counts as even
    ratio = np.log2(since / np.concatenate((since[:1], since[:-1])))
    rhythm = np.clip(np.rint(2 * ratio), -_HALF_OCTAVES, _HALF_OCTAVES) + _HALF_OCTAVES
    per_note = np.full(len(notes), _IN_CHORD, np.int64)
    per_note[starts] = np.concatenate(([0.0], rhythm)).astype(np.int64)
    symbols: NDArray[np.int64] = (np.diff(pitch) + 127) * _RHYTHMS + per_note[1:]
    return symbols


class TrainingIndex:
    """The training pieces in a form in which longest runs are found.

    Args:
        events: (length,) event ids of each piece.
        notes: the same pieces as notes, in that order.
    """

    def __init__(self, events: Sequence[NDArray[np.integer]], notes: Sequence[Notes]) -> None:
        self._events = SuffixArray(list(events))
        self._notes = SuffixArray([interval_symbols(piece) for piece in notes])

    def look_up(self, pieces: Sequence[Notes]) -> list[Found]:
        """Look pieces up.

        Args:
            pieces: any music on the 10 ms grid of events.
        """
        if not pieces:
            return []
        events = [encode(piece).astype(np.int64) for piece in pieces]
        symbols = [interval_symbols(piece) for piece in pieces]
        event_runs, _ = _runs(self._events, events)
        note_runs, parts = _runs(self._notes, symbols)
        return [
            _found(piece, event_run, note_run, part)
            for piece, event_run, note_run, part in zip(
                pieces, event_runs, note_runs, parts, strict=True
            )
        ]


def _runs(
    index: SuffixArray, sequences: list[NDArray[np.int64]]
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Look all sequences up at once; a symbol that matches nothing keeps them apart."""
    joined = np.concatenate([np.append(sequence, _BETWEEN) for sequence in sequences])
    matches = index.longest_matches(joined)
    cuts = np.cumsum([len(sequence) + 1 for sequence in sequences])[:-1]
    lengths = [part[:-1] for part in np.split(matches.length, cuts)]
    return lengths, [part[:-1] for part in np.split(matches.part, cuts)]


def _found(
    piece: Notes,
    event_run: NDArray[np.int64],
    note_run: NDArray[np.int64],
    part: NDArray[np.int64],
) -> Found:
    events, event_seconds = 0, 0.0
    if len(event_run) and event_run.any():
        at = int(event_run.argmax())
        events = int(event_run[at])
        steps = event_steps(encode(piece))
        before = int(steps[at - 1]) if at else 0
        event_seconds = (int(steps[at + events - 1]) - before) / STEPS_PER_SECOND
    notes, seconds, where = min(1, len(piece)), 0.0, -1
    order, starts = chord_order(piece)
    onset = piece.onset_seconds[order]
    if len(note_run):
        at = int(note_run.argmax())
        longest = int(note_run[at])
        # a run of symbols is one note longer: the one that the first interval starts from
        notes, where = longest + 1, int(part[at])
        seconds = float(onset[at + longest] - onset[at])
    windows = _windows(onset, starts, note_run, piece.duration_seconds)
    return Found(
        events=events,
        event_seconds=event_seconds,
        notes=notes,
        note_seconds=seconds,
        part=where,
        windows=len(windows),
        windows_found=sum(windows),
    )


def _windows(
    onset: NDArray[np.float64],
    starts: NDArray[np.bool_],
    run: NDArray[np.int64],
    duration_seconds: float,
) -> list[bool]:
    """Return for each window that has notes enough whether it is one run but for its first chord.

    That and the time to the second chord are rhythm only beside what was before the window.
    """
    found = []
    onset = np.maximum.accumulate(onset) if len(onset) else onset
    last = duration_seconds - WINDOW_SECONDS
    count = int(last / WINDOW_HOP_SECONDS + 1e-9) + 1 if last >= -1e-9 else 0
    for window in range(count):
        start = window * WINDOW_HOP_SECONDS
        first, stop = np.searchsorted(onset, (start, start + WINDOW_SECONDS)).tolist()
        if stop - first >= LEAST_NOTES:
            chords = np.flatnonzero(starts[first:stop])
            begin = first + int(chords[min(1, len(chords) - 1)])
            found.append(bool(begin >= len(run) or run[begin] >= stop - begin - 1))
    return found
