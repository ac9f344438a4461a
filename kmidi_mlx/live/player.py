"""The player: sends what is planned at its time, and leaves no note sounding, whatever happens.

Its own thread, on absolute deadlines of the monotonic clock, so that lateness never adds up. Every
sink has its own ledger of sounding notes; a note's end is sent if and only if that note still
sounds there.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.lateness import Lateness
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.sinks import Sink
from kmidi_mlx.live.thread_priority import hurry

__all__ = ["Player"]

# The thread wakes at least this often, so that a paused clock or a lost wake-up cannot hold it.
_LONGEST_WAIT = 0.25


@dataclass(eq=False)
class _Voice:
    """A sink with what it is still to be told and what sounds on it."""

    sink: Sink
    keys: bool
    queue: list[tuple[float, int, PlannedEvent]] = field(default_factory=list)
    sounding: dict[int, int] = field(default_factory=dict)


class Player(threading.Thread):
    """Plays a plan on sinks.

    Args:
        ring: the plan; the player takes events out of it when they are due.
        clock: when steps are.
        on_lost: called with a sink that failed and the error; it is no longer played on.
        on_sent: called with the seconds by which each event was late.

    Attributes:
        lateness: how late events were sent, over all sinks.
    """

    def __init__(
        self,
        ring: NoteRing,
        clock: SongClock,
        on_lost: Callable[[Sink, Exception], None] = lambda sink, error: None,
        on_sent: Callable[[float], None] = lambda late: None,
    ) -> None:
        super().__init__(name="kmidi player", daemon=True)
        self.lateness = Lateness()
        self._ring = ring
        self._clock = clock
        self._on_lost = on_lost
        self._on_sent = on_sent
        self._voices: list[_Voice] = []
        self._count = 0
        self._stopping = False
        # guards voices; the ring's condition wakes the thread
        self._lock = threading.RLock()

    @property
    def lead_seconds(self) -> float:
        """Lead of the sink that wants to be told earliest; plans are fixed that long ahead."""
        with self._lock:
            return max((voice.sink.lead_seconds for voice in self._voices), default=0.0)

    @property
    def sounding(self) -> int:
        """Number of notes that sound, on the sink where most do."""
        with self._lock:
            return max((len(voice.sounding) for voice in self._voices), default=0)

    def handed_out(self, sink: Sink) -> list[PlannedEvent]:
        """Events that are no longer planned, but that a sink has still to be told, in order."""
        with self._lock:
            waiting = [item for voice in self._voices if voice.sink is sink for item in voice.queue]
        # a person's keys are nobody's plan
        return [event for _, _, event in sorted(waiting) if event.note >= 0]

    def add(self, sink: Sink, keys: bool = True) -> None:
        """Play on a sink from here on.

        Args:
            sink: what to play on.
            keys: whether it also plays what a person plays, see `play_now`.
        """
        with self._lock:
            self._voices.append(_Voice(sink, keys))
        self.wake()

    def play_now(self, pitch: int, velocity: int) -> None:
        """Play a key of a person's keyboard at once; any thread may call.

        Args:
            pitch: MIDI pitch.
            velocity: 1-127; 0: the key is let go.
        """
        now = time.monotonic()
        # no planned note has such an identity, so none can end it
        event = PlannedEvent(0, pitch, velocity, -1 - pitch)
        with self._lock:
            for voice in self._voices:
                if voice.keys:
                    self._count += 1
                    heapq.heappush(voice.queue, (now, self._count, event))
        self.wake()

    def remove(self, sink: Sink) -> None:
        """End everything on a sink, give it back and play on it no more."""
        with self._lock:
            for voice in [voice for voice in self._voices if voice.sink is sink]:
                self._voices.remove(voice)
                self._end(voice)

    def silence(self) -> None:
        """End every note on every sink now; what is planned stays planned."""
        with self._lock:
            for voice in list(self._voices):
                voice.queue.clear()
                self._guarded(voice, self._hush, voice)

    def wake(self) -> None:
        """Look again at when things are due: the clock was started, or its tempo changed."""
        with self._ring.changed:
            self._ring.changed.notify_all()

    def stop(self) -> None:
        """Silence and close all sinks and end the thread; returns when that is done."""
        self._stopping = True
        self.wake()
        if self.is_alive():
            self.join()
        self._end_all()

    def run(self) -> None:
        """Play until stopped."""
        hurry()
        try:
            while not self._stopping:
                self._turn()
        finally:
            # an exception too: nothing may sound on when nobody plays
            self._end_all()

    def _turn(self) -> None:
        with self._ring.changed:
            wait = self._next_deadline() - time.monotonic()
            if wait > 0 and not self._stopping:
                self._ring.changed.wait(min(wait, _LONGEST_WAIT))
                return
        with self._lock:
            lead = self.lead_seconds
            horizon = self._clock.step_at(time.monotonic() + lead)
            if self._clock.running:
                for event in self._ring.pop_due(horizon):
                    self._hand_out(event)
            self._send_due()

    def _next_deadline(self) -> float:
        """Moment at which something has to be done; infinite when nothing is planned."""
        with self._lock:
            planned = self._clock.time_of(self._ring.next_step()) - self.lead_seconds
            queued = min(
                (voice.queue[0][0] for voice in self._voices if voice.queue), default=math.inf
            )
        return min(planned, queued)

    def _hand_out(self, event: PlannedEvent) -> None:
        at = self._clock.time_of(event.step)
        for voice in self._voices:
            self._count += 1
            heapq.heappush(voice.queue, (at - voice.sink.lead_seconds, self._count, event))

    def _send_due(self) -> None:
        for voice in list(self._voices):
            while voice.queue and voice.queue[0][0] <= time.monotonic():
                deadline, _, event = heapq.heappop(voice.queue)
                if not self._guarded(voice, self._send, voice, event, deadline):
                    break

    def _send(self, voice: _Voice, event: PlannedEvent, deadline: float) -> None:
        sink, at = voice.sink, deadline + voice.sink.lead_seconds
        earlier = voice.sounding.get(event.pitch)
        if event.velocity:
            if earlier is not None:
                sink.note_off(event.pitch, at)
            # in the ledger before it sounds: a failing device is silenced too
            voice.sounding[event.pitch] = event.note
            sink.note_on(event.pitch, event.velocity, at)
        elif earlier == event.note:
            sink.note_off(event.pitch, at)
            del voice.sounding[event.pitch]
        late = time.monotonic() - deadline
        self.lateness.add(late)
        self._on_sent(late)

    def _hush(self, voice: _Voice) -> None:
        now = time.monotonic()
        for pitch in list(voice.sounding):
            voice.sink.note_off(pitch, now)
            del voice.sounding[pitch]
        voice.sink.silence()

    def _guarded(self, voice: _Voice, action: Callable[..., None], *arguments: object) -> bool:
        """Do something with a sink; one that fails is taken out, and the others play on."""
        try:
            action(*arguments)
        except Exception as error:  # a device may fail in any way
            if voice in self._voices:
                self._voices.remove(voice)
                self._end(voice)
                self._on_lost(voice.sink, error)
            return False
        return True

    def _end(self, voice: _Voice) -> None:
        """Leave nothing sounding on a sink, as far as it still listens, and close it."""
        for action in (partial(self._hush, voice), voice.sink.silence, voice.sink.close):
            # it may have failed already; the next attempt may still reach it
            with suppress(Exception):
                action()

    def _end_all(self) -> None:
        with self._lock:
            voices, self._voices = self._voices, []
            for voice in voices:
                self._end(voice)
