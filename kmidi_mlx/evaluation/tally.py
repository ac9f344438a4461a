"""Adding up how well events were predicted, song by song, and what follows from the sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY

__all__ = ["KINDS", "OnProgress", "Score", "Tally", "gain"]

#: Kinds of events, in the order of their ids.
KINDS = ("note_on", "note_off", "time_shift", "velocity")

#: Called with a number of events that were scored just now.
OnProgress = Callable[[int], None]

_FIRST_IDS = np.array((NOTE_OFF, TIME_SHIFT, VELOCITY))
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How well events were predicted. None stands where there was nothing to measure.

    Attributes:
        events: number of events.
        notes: number of note-ons among them.
        songs: number of songs; versions of a song are one.
        nats_per_event: mean of -ln p(event).
        standard_error: of nats_per_event, over songs; None for a single song.
        perplexity: exp(nats_per_event).
        nats_per_note: all nats, those of other events too, divided by the note-ons.
        accuracy: by kind of the true event, share in which the likeliest of all 388 was right.
        illegal_mass: mean probability of events that the grammar forbids at their place, 0 to 1.
    """

    events: int
    notes: int
    songs: int
    nats_per_event: float
    standard_error: float | None
    perplexity: float
    nats_per_note: float | None
    accuracy: dict[str, float | None]
    illegal_mass: float


class Tally:
    """Sums over events, by song.

    Args:
        songs: number of songs in the data set; songs without events do not count.
    """

    def __init__(self, songs: int) -> None:
        self._events = np.zeros((songs, len(KINDS)))
        self._correct = np.zeros((songs, len(KINDS)))
        self._nats = np.zeros(songs)
        self._illegal = np.zeros(songs)

    def add(
        self,
        song: int,
        targets: NDArray[np.integer],
        nats: NDArray[np.floating],
        correct: NDArray[np.bool_],
        illegal_mass: NDArray[np.floating],
    ) -> None:
        """Count events of a song.

        Args:
            song: its number.
            targets: (n,) the true event ids.
            nats: (n,) -ln p of each.
            correct: (n,) whether each was the likeliest.
            illegal_mass: (n,) probability of what the grammar forbids there.
        """
        kind = np.searchsorted(_FIRST_IDS, targets, side="right")
        self._events[song] += np.bincount(kind, minlength=len(KINDS))
        self._correct[song] += np.bincount(kind, correct, len(KINDS))
        self._nats[song] += nats.sum(dtype=np.float64)
        self._illegal[song] += illegal_mass.sum(dtype=np.float64)

    @property
    def nats(self) -> _Floats:
        """Nats by song, float64 (songs,)."""
        return self._nats

    @property
    def events(self) -> _Floats:
        """Events by song, float64 (songs,)."""
        counts: _Floats = self._events.sum(axis=1)
        return counts

    def score(self) -> Score:
        """Return what the sums say; at least one event has to be there."""
        events, correct = self._events.sum(axis=0), self._correct.sum(axis=0)
        nats, error = _ratio(self._nats, self.events)
        return Score(
            events=int(events.sum()),
            notes=int(events[0]),
            songs=int((self.events > 0).sum()),
            nats_per_event=nats,
            standard_error=error,
            perplexity=math.exp(nats),
            nats_per_note=float(self._nats.sum() / events[0]) if events[0] else None,
            accuracy={
                name: float(right / count) if count else None
                for name, right, count in zip(KINDS, correct, events, strict=True)
            },
            illegal_mass=float(self._illegal.sum() / events.sum()),
        )


def gain(better: Tally, worse: Tally) -> tuple[float, float | None]:
    """Return how many nats per event `better` saves over `worse`, and the standard error of that.

    The error is of the difference, song by song, and so smaller than the errors of the two.

    Args:
        better, worse: tallies of the same events.
    """
    return _ratio(worse.nats - better.nats, better.events)


def _ratio(sums: _Floats, counts: _Floats) -> tuple[float, float | None]:
    """Return sum / count and its standard error with songs as the units.

    Ratio estimator, Cochran, "Sampling Techniques" (3rd edition, 1977), section 6.4.
    """
    used = counts > 0
    sums, counts = sums[used], counts[used]
    ratio, songs = float(sums.sum() / counts.sum()), len(counts)
    if songs < 2:
        return ratio, None
    spread = np.square(sums - ratio * counts).sum()
    return ratio, math.sqrt(spread * songs / (songs - 1)) / float(counts.sum())
