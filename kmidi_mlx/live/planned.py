"""Notes that are planned and not yet played, between the composer and the player."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

__all__ = ["NoteRing", "PlannedEvent"]


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """A note begins or ends.

    Attributes:
        step: score time.
        pitch: MIDI pitch.
        velocity: 1-127; 0: the note ends.
        note: identity of the note, so that its end can never end a later note of the same pitch.
    """

    step: int
    pitch: int
    velocity: int
    note: int


class NoteRing:
    """The plan: events in the order of their steps, bounded; any thread may use it.

    Args:
        capacity: events that it holds at the most.

    Attributes:
        changed: condition that is notified when the plan changes, for a thread that waits.
    """

    def __init__(self, capacity: int = 128) -> None:
        self.capacity = capacity
        self.changed = threading.Condition()
        self._events: deque[PlannedEvent] = deque()

    @property
    def room(self) -> int:
        """Events that can still be pushed."""
        return self.capacity - len(self._events)

    def __len__(self) -> int:
        """Return the number of events planned."""
        return len(self._events)

    def push(self, event: PlannedEvent) -> None:
        """Append an event, not earlier than the last.

        Raises:
            OverflowError: when there is no room; nothing is dropped.
            ValueError: when it is earlier than the last.
        """
        with self.changed:
            if len(self._events) >= self.capacity:
                raise OverflowError(f"the plan holds {self.capacity} events already")
            if self._events and event.step < self._events[-1].step:
                raise ValueError(f"step {event.step} comes before step {self._events[-1].step}")
            self._events.append(event)
            self.changed.notify_all()

    def next_step(self) -> float:
        """Step of the first event; infinite when nothing is planned."""
        with self.changed:
            return self._events[0].step if self._events else math.inf

    def pop_due(self, step: float) -> list[PlannedEvent]:
        """Take the events up to and at `step`."""
        due = []
        with self.changed:
            while self._events and self._events[0].step <= step:
                due.append(self._events.popleft())
        return due

    def cut(self, step: float) -> list[PlannedEvent]:
        """Take back the events at and after `step`, to be planned anew."""
        taken: deque[PlannedEvent] = deque()
        with self.changed:
            while self._events and self._events[-1].step >= step:
                taken.appendleft(self._events.pop())
            self.changed.notify_all()
        return list(taken)

    def snapshot(self) -> tuple[PlannedEvent, ...]:
        """What is planned now."""
        with self.changed:
            return tuple(self._events)
