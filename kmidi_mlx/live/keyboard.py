"""What comes from a MIDI keyboard, as notes that begin and end: pedal, channels, lost cables."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["KeyEvent", "KeyboardInput"]

_NOTE_OFF, _NOTE_ON, _CONTROL_CHANGE = 0x80, 0x90, 0xB0
_SYSTEM, _ACTIVE_SENSING, _SYSTEM_RESET = 0xF0, 0xFE, 0xFF
_SUSTAIN, _PEDAL_DOWN = 64, 64
_ALL_SOUND_OFF, _RESET_CONTROLLERS, _ALL_NOTES_OFF = 120, 121, 123
_DRUM_CHANNEL = 9
# The standard says 0.3 s; a busy machine may hold messages back, and music may not be cut by that.
_SENSING_SECONDS = 1.0
# Events that wait at the most; beyond, notes are not begun, but every end is kept.
_MOST_WAITING = 4096


class KeyEvent(NamedTuple):
    """A note begins, or ends where the velocity is 0.

    Attributes:
        time: moment of `time.monotonic()`.
        pitch: 0-127.
        velocity: 0-127.
    """

    time: float
    pitch: int
    velocity: int


class KeyboardInput:
    """Turns raw messages into notes; any thread may call anything.

    The sustain pedal (controller 64) lengthens the notes of its channel; channels are merged, and
    a pitch that is struck while it sounds ends first, so that beginnings and ends of a pitch
    alternate. Channel 10 (drums) is left out. "All notes off" and "all sound off" end the notes of
    a channel, a system reset ends all. A keyboard that sends Active Sensing and then falls silent
    has lost its cable: what it holds ends.

    Args:
        clock: tells the moment, as `time.monotonic`.

    Attributes:
        last_time: moment of the latest key or pedal movement; minus infinity before any.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_time = -math.inf
        self._clock = clock
        self._lock = threading.Lock()
        self._events: list[KeyEvent] = []
        # (channel, pitch) of keys that are down, and of those that only a pedal keeps sounding
        self._down: set[tuple[int, int]] = set()
        self._kept: set[tuple[int, int]] = set()
        self._pedals: set[int] = set()
        self._sensed: float | None = None
        self._latest = -math.inf

    @property
    def held(self) -> int:
        """Number of pitches that sound: keys that are down or kept by a pedal."""
        with self._lock:
            return len({pitch for _, pitch in self._down | self._kept})

    def receive(self, message: bytes, moment: float) -> None:
        """Take a message from a port; one that is no message, or not for a piano, changes nothing.

        Args:
            message: whole, without running status.
            moment: of `time.monotonic()`; one before an earlier message's becomes that.
        """
        with self._lock:
            moment = self._latest = max(moment, self._latest)
            if self._sensed is not None:
                self._sensed = moment
            if len(message) == 3 and message[0] < _SYSTEM and max(message[1:]) < 128:
                self._read(message[0] & 0xF0, message[0] & 0x0F, message[1], message[2], moment)
            elif message == bytes((_ACTIVE_SENSING,)):
                self._sensed = moment
            elif message == bytes((_SYSTEM_RESET,)):
                self._release_all(moment)

    def release_all(self, moment: float) -> None:
        """End everything and lift all pedals, for when the port is lost or closed."""
        with self._lock:
            self._latest = max(moment, self._latest)
            self._release_all(self._latest)
            self._sensed = None

    def drain(self) -> list[KeyEvent]:
        """Take the events since the last call, in the order of time."""
        with self._lock:
            if self._sensed is not None and self._clock() - self._sensed > _SENSING_SECONDS:
                self._release_all(self._latest)
                self._sensed = None
            events, self._events = self._events, []
            return events

    def _read(self, kind: int, channel: int, number: int, value: int, moment: float) -> None:
        if channel == _DRUM_CHANNEL:
            return
        if kind == _NOTE_ON and value:
            self.last_time = moment
            self._strike(channel, number, value, moment)
        elif kind in (_NOTE_ON, _NOTE_OFF):
            self.last_time = moment
            if (channel, number) in self._down:
                self._down.discard((channel, number))
                self._kept.add((channel, number))
                if channel not in self._pedals:
                    self._let_go(channel, moment)
        elif kind == _CONTROL_CHANGE:
            self._control(channel, number, value, moment)

    def _control(self, channel: int, controller: int, value: int, moment: float) -> None:
        if controller == _SUSTAIN and value >= _PEDAL_DOWN:
            self.last_time = moment
            self._pedals.add(channel)
        elif controller in (_SUSTAIN, _RESET_CONTROLLERS):
            if controller == _SUSTAIN:
                self.last_time = moment
            self._pedals.discard(channel)
            self._let_go(channel, moment)
        elif controller == _ALL_SOUND_OFF or controller >= _ALL_NOTES_OFF:
            # a change of mode, 124 to 127, is all notes off too
            self._kept |= {key for key in self._down if key[0] == channel}
            self._down -= self._kept
            self._let_go(channel, moment)

    def _strike(self, channel: int, pitch: int, velocity: int, moment: float) -> None:
        # the end of the note before and this beginning
        if len(self._events) + 2 > _MOST_WAITING:
            return
        if self._sounds(pitch):
            self._events.append(KeyEvent(moment, pitch, 0))
        self._events.append(KeyEvent(moment, pitch, velocity))
        self._kept.discard((channel, pitch))
        self._down.add((channel, pitch))

    def _let_go(self, channel: int, moment: float) -> None:
        """End what only the pedal of a channel kept."""
        pitches = sorted(pitch for kept, pitch in self._kept if kept == channel)
        for pitch in pitches:
            self._kept.discard((channel, pitch))
            if not self._sounds(pitch):
                self._events.append(KeyEvent(moment, pitch, 0))

    def _release_all(self, moment: float) -> None:
        self._kept |= self._down
        self._down.clear()
        self._pedals.clear()
        for channel in {channel for channel, _ in self._kept}:
            self._let_go(channel, moment)

    def _sounds(self, pitch: int) -> bool:
        return any(sounding == pitch for _, sounding in self._down | self._kept)
