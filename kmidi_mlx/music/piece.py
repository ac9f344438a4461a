"""A piece of a given length, taken from an endless stream of events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import STEPS_PER_SECOND, TIME_SHIFT, decode, encode

__all__ = ["PieceWriter", "Source", "write_piece"]


class Source(Protocol):
    """What a piece is taken from: an `EventStream`, or one of many that are written together."""

    @property
    def steps(self) -> int:
        """Time reached by the events read so far, in steps of 10 ms."""

    @property
    def seconds(self) -> float:
        """The same in seconds."""

    def next_event(self) -> int:
        """Return the next event id."""

    def set_emotion(self, emotion: Emotion | None) -> None:
        """Change the emotion from here on."""


class PieceWriter:
    """Writes a piece of `seconds` seconds (after the prompt, if any), event by event.

    Args:
        stream: fresh, nothing read from it.
        seconds: length of what is written.
        prompt: that the stream was given.
        changes: emotions to change to, each with its time in seconds after the prompt.

    Attributes:
        done: whether the piece is long enough.

    Raises:
        KmidiError: when `seconds` is negative or no number.
    """

    def __init__(
        self,
        stream: Source,
        seconds: float,
        prompt: Sequence[int] | NDArray[np.integer] = (),
        changes: Sequence[tuple[float, Emotion]] = (),
    ) -> None:
        if not 0 <= seconds < math.inf:
            raise KmidiError(f"cannot write {seconds} seconds of music; give a number from 0 on.")
        self.done = False
        self._stream = stream
        self._length = seconds
        self._events = [int(event) for event in prompt]
        self._begin = stream.seconds
        self._end = stream.steps + round(seconds * STEPS_PER_SECOND)
        self._waiting = deque(sorted(changes, key=lambda change: change[0]))

    @property
    def seconds(self) -> float:
        """Seconds written so far."""
        if self.done:
            return self._length
        return self._length - (self._end - self._stream.steps) / STEPS_PER_SECOND

    def write(self) -> None:
        """Write the next event; nothing once it is done."""
        if self.done:
            return
        stream, before = self._stream, self._stream.steps
        while self._waiting and stream.seconds - self._begin >= self._waiting[0][0]:
            stream.set_emotion(self._waiting.popleft()[1])
        event = stream.next_event()
        if stream.steps < self._end:
            self._events.append(event)
            return
        self.done = True
        # decoding ends what still sounds at the last event, here the end of the piece
        if self._end > before:
            self._events.append(TIME_SHIFT + self._end - before - 1)

    def events(self) -> NDArray[np.uint16]:
        """Return `(n,)` event ids, prompt first, all notes ended; valid music if the prompt is."""
        return encode(decode(self._events))


def write_piece(
    stream: Source,
    seconds: float,
    prompt: Sequence[int] | NDArray[np.integer] = (),
    changes: Sequence[tuple[float, Emotion]] = (),
    on_time: Callable[[float], None] = lambda seconds: None,
) -> NDArray[np.uint16]:
    """Write a whole piece at once.

    Args:
        stream, seconds, prompt, changes: as `PieceWriter`.
        on_time: called with the seconds written so far whenever time passes.

    Returns:
        `(n,)` event ids, prompt first; always valid music if the prompt is.

    Raises:
        KmidiError: when `seconds` is negative or no number.
    """
    writer = PieceWriter(stream, seconds, prompt, changes)
    told = writer.seconds
    while not writer.done:
        writer.write()
        if writer.seconds > told:
            told = writer.seconds
            on_time(told)
    on_time(seconds)
    return writer.events()
