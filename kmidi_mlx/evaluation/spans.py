"""Which events a model is asked to predict, and from how much history.

A piece is read in windows of `context` events that begin every `stride` events. Of the first window
every event counts, of each later one only those that no window before it reached. So every event of
a piece counts exactly once, and is predicted from all events before it up to the window's start:

- event j < context from all j events before it (and the start token);
- any other from at least context - stride + 1 and at most `context` events.

A smaller stride gives more history and costs more: a piece is read about context / stride times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.batches import ADVICE
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY

__all__ = ["Span", "held_out_pieces", "legal_events", "note_starts", "sliding_spans"]

_GOLDEN = (5**0.5 - 1) / 2
_TABLES = grammar.tables()
_ANY_LENGTH = grammar.Limits(128, np.inf, np.inf, 0, 127)


@dataclass(frozen=True)
class Span:
    """A window of a piece and the events in it that count; all are event numbers of the piece.

    Attributes:
        piece: number of the piece.
        position: first event that the window predicts.
        first: first event that counts.
        stop: one past the last event that counts, and the end of what the window predicts.
    """

    piece: int
    position: int
    first: int
    stop: int

    def __len__(self) -> int:
        """Return the number of events that count."""
        return self.stop - self.first


def held_out_pieces(reader: ShardReader, split: str) -> NDArray[np.int64]:
    """Return the pieces of a side but exact duplicates, int64 (m,), versions of a song together.

    Raises:
        KmidiError: for an unknown side, or one without music.
    """
    pieces = reader.split(split)
    pieces = pieces[~reader.pieces.duplicate[pieces] & (reader.pieces.length[pieces] > 0)]
    if not len(pieces):
        raise KmidiError(f"{reader.folder} has no pieces in {split!r}; {ADVICE[split]}.")
    return pieces[np.argsort(reader.pieces.song[pieces], kind="stable")]


def sliding_spans(
    reader: ShardReader,
    pieces: NDArray[np.int64],
    context: int,
    stride: int,
    limit: int | None = None,
) -> list[Span]:
    """Cut pieces into the windows described at the head of this module.

    Args:
        reader: the data set.
        pieces: (m,) their numbers.
        context: events in a window.
        stride: events from one window to the next, 1 to `context`.
        limit: about how many events are to count; the windows are then spread evenly over all
            music, always the same ones. None: all.

    Returns:
        The windows in the order of the pieces; with a limit as few as reach it.

    Raises:
        KmidiError: if stride or limit is out of range.
    """
    if not 1 <= stride <= context:
        raise KmidiError(
            f"the stride is {stride}; it has to be from 1 to {context}, the events of a window."
        )
    if limit is not None and limit < 1:
        raise KmidiError(f"the limit is {limit} events; it has to be at least 1.")
    spans: list[Span] = []
    for piece in pieces.tolist():
        length = int(reader.pieces.length[piece])
        spans.append(Span(piece, 0, 0, min(context, length)))
        for position in range(stride, length - context + stride, stride):
            reached = position - stride + context
            spans.append(Span(piece, position, reached, min(reached + stride, length)))
    if limit is None:
        return spans
    # Multiples of the golden ratio: any beginning of this order is spread evenly.
    order = np.argsort(np.arange(len(spans)) * _GOLDEN % 1.0, kind="stable")
    counted = np.cumsum([len(spans[index]) for index in order.tolist()])
    chosen = np.sort(order[: int(np.searchsorted(counted, limit)) + 1])
    return [spans[index] for index in chosen.tolist()]


def note_starts(events: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return for each pitch where the note that sounds after `events` began.

    Args:
        events: (n,) event ids from silence on.

    Returns:
        int64 (128,), index of the NOTE_ON; -1 for a silent pitch.
    """
    last = np.full(TIME_SHIFT, -1)
    at = np.flatnonzero(events < TIME_SHIFT)
    np.maximum.at(last, events[at], at)
    starts: NDArray[np.int64] = np.where(last[:NOTE_OFF] > last[NOTE_OFF:], last[:NOTE_OFF], -1)
    return starts


def legal_events(events: NDArray[np.uint16], first: int, stop: int) -> NDArray[np.bool_]:
    """Return what the grammar allows at each place of a piece, whatever polyphony and lengths.

    Args:
        events: (n,) valid event ids, as `encode` writes them.
        first, stop: places, 0 <= first <= stop <= n.

    Returns:
        bool (stop - first, 388): row k is for the event at `first + k`.
    """
    # What sounds, the velocity in force and the last event are all that the past says here.
    starts = note_starts(events[:first])
    begin = int(np.min(starts, where=starts >= 0, initial=max(0, first - 1)))
    past = events[:begin]
    state = grammar.initial_state()
    for event in (*past[past >= VELOCITY][-1:], *events[begin:first]):
        state = grammar.advance(state, np.array([event]), _TABLES, np)
    states = np.empty((len(state), stop - first, state.shape[1]), np.float32)
    for row, event in enumerate(events[first:stop]):
        states[:, row] = state
        state = grammar.advance(state, np.array([event]), _TABLES, np)
    # Without limits no term runs over all pitches, so many states go through at once.
    legal: NDArray[np.bool_] = grammar.allowed(states, _ANY_LENGTH, _TABLES, np)[0]
    return legal
