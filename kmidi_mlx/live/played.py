"""What sounded in the last seconds: for the cloud, which is told of the notes, and for the page."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.music.notes import Notes

__all__ = ["PlayedLog"]

# Longest stretch that anybody asks for: two bars at the slowest tempo.
_KEPT_SECONDS = 12.0


@dataclass(eq=False, slots=True)
class _Note:
    pitch: int
    velocity: int
    onset: float
    step: float
    offset: float | None = None
    end_step: float | None = None


class PlayedLog:
    """Remembers what sounded in the last twelve seconds; a sink of the player.

    Args:
        clock: tells the score step of a moment.
    """

    name = "log"
    lead_seconds = 0.0

    def __init__(self, clock: SongClock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._notes: deque[_Note] = deque()
        self._sounding: dict[int, _Note] = {}

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Remember that a note began."""
        with self._lock:
            self._end(pitch, at)
            note = _Note(pitch, velocity, at, self._clock.step_at(at))
            self._sounding[pitch] = note
            self._notes.append(note)
            self._forget(at)

    def note_off(self, pitch: int, at: float) -> None:
        """Remember that a note ended."""
        with self._lock:
            self._end(pitch, at)

    def silence(self) -> None:
        """Remember that everything ended now."""
        now = time.monotonic()
        with self._lock:
            for pitch in list(self._sounding):
                self._end(pitch, now)

    def close(self) -> None:
        """Nothing is to be given back."""

    def clear(self) -> None:
        """Forget everything: the score begins anew."""
        with self._lock:
            self._notes.clear()
            self._sounding.clear()

    def notes_until(self, now: float, seconds: float) -> Notes:
        """Return what sounded in the last `seconds`, times counted from their beginning.

        A note that sounds still ends at `now`, as far as is known by then.
        """
        start = now - seconds
        with self._lock:
            rows = [
                (
                    note.pitch,
                    note.velocity,
                    note.onset - start,
                    (now if note.offset is None else note.offset) - start,
                )
                for note in self._notes
                if note.onset < now and (note.offset is None or note.offset > start)
            ]
        # what began before the window is heard from its beginning on
        rows = [(p, v, max(0.0, on), off) for p, v, on, off in rows if off > max(0.0, on)]
        if not rows:
            return Notes.empty()
        pitch, velocity, onset, offset = zip(*rows, strict=True)
        return Notes.build(pitch, velocity, onset, offset)

    def rows_since(self, step: float) -> list[list[float | int | None]]:
        """Return [first step, last step or None, pitch, velocity, 1] of notes since a step."""
        with self._lock:
            return [
                [round(n.step), None if n.end_step is None else round(n.end_step), n.pitch,
                 n.velocity, 1]
                for n in self._notes
                if n.end_step is None or n.end_step > step
            ]  # fmt: skip

    @property
    def sounding(self) -> dict[int, float]:
        """Pitches that sound, with the step that each began at."""
        with self._lock:
            return {pitch: note.step for pitch, note in self._sounding.items()}

    def _end(self, pitch: int, at: float) -> None:
        note = self._sounding.pop(pitch, None)
        if note is not None:
            note.offset = max(at, note.onset)
            note.end_step = max(self._clock.step_at(note.offset), note.step)

    def _forget(self, now: float) -> None:
        oldest = now - _KEPT_SECONDS
        if self._notes[0].onset < oldest:
            kept = (note for note in self._notes if note.offset is None or note.offset >= oldest)
            self._notes = deque(kept)
