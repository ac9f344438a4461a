"""The reader's side of an endless, steerable, seedable stream of events, whatever computes it.

An engine (`kmidi_mlx.generation.generator`, `kmidi_torch.generation.generator`) only maps events to
the next one; what was read, what sounds, what steers and when a change is heard is decided here,
so that every engine writes the same music.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import UNCONDITIONAL, Emotion
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import (
    NOTE_OFF,
    START_TOKEN,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VOCABULARY_SIZE,
    decode,
    encode,
)
from kmidi_mlx.music.knobs import gumbel_noise, pack

NOISE_BLOCK = 64
PREFILL_CHUNK = 256


class Scalar(Protocol):
    """Any framework's array of one element."""

    def item(self) -> Any:
        """Wait for the element and return it."""


Array = TypeVar("Array", bound=Scalar)


class EventStream(ABC, Generic[Array]):
    """Writes music event by event under an emotion that may change while it plays.

    Iterating yields event ids for ever, one model step ahead of the reader: while the reader
    handles an event, the next is being computed. A change of emotion, harmony or sampling is heard
    two events after the event last read. Stop whenever you like and take `finish()`, which ends
    every sounding note.

    An engine implements `_array`, `_reset`, `_condition`, `_read` and `_step` over arrays of its
    framework, and is ready to be called before it calls this constructor.

    Args:
        context_length: events that the model looks back on.
        sampling: how to draw; see `SamplingConfig`.
        seed: the same seed, model and calls give the same events.
        emotion: None is the unconditional model.
        chord, key: ids of `kmidi_mlx.music.chords`; 0: unknown.
        prompt: event ids to continue from; the model reads the last context of them. Velocities
            at its very end are left out: no note had them yet.

    Raises:
        KmidiError: when the prompt holds an id outside the vocabulary.
    """

    def __init__(
        self,
        context_length: int,
        sampling: SamplingConfig,
        seed: int = 0,
        emotion: Emotion | None = None,
        chord: int = 0,
        key: int = 0,
        prompt: Sequence[int] | NDArray[np.integer] = (),
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise = np.empty((0, VOCABULARY_SIZE), np.float32)
        self._history: deque[int] = deque([START_TOKEN], maxlen=context_length)
        self._pending: Array | None = None
        self._emotion, self._chord, self._key = emotion, chord, key
        self._sampling = sampling
        self._knobs = self._array(pack(sampling))
        self._promised_knobs: Array | None = None
        self._struck: dict[int, int] = {}
        self.steps = 0
        self._state = self._array(self._absorb_prompt(prompt))
        self._fill_cache()

    @abstractmethod
    def _array(self, values: NDArray[Any]) -> Array:
        """Hand numbers of the host to the framework, type kept."""

    @abstractmethod
    def _reset(self, rows: int) -> None:
        """Forget every event; from now on the model is run on `rows` copies of the piece."""

    @abstractmethod
    def _condition(
        self, emotion: NDArray[np.float32], chords: NDArray[np.int32], keys: NDArray[np.int32]
    ) -> None:
        """Take what steers from here on: `(rows, 64)`, `(rows, 1)`, `(rows,)`."""

    @abstractmethod
    def _read(self, tokens: NDArray[np.int32]) -> None:
        """Let the model read input ids `(rows, n)`, n at most `PREFILL_CHUNK`."""

    @abstractmethod
    def _step(self, noise: NDArray[np.float32], knobs: Array) -> Array:
        """Let the model read `_last`, draw with noise `(388,)`, bring `_state` up to date.

        Returns:
            The event `(1,)`, which may still be on its way.
        """

    def _absorb_prompt(self, prompt: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        events = [int(event) for event in prompt]
        for index, event in enumerate(events):
            if not 0 <= event < VOCABULARY_SIZE:
                raise KmidiError(
                    f"event {index} of the prompt is {event}; ids go from 0 to "
                    f"{VOCABULARY_SIZE - 1}."
                )
        # the limits may forbid the note that such a velocity calls for
        while events and events[-1] >= VELOCITY:
            events.pop()
        table, state = grammar.tables(), grammar.initial_state()
        for event in events:
            state = grammar.advance(state, np.array([event]), table, np)
            self._note_read(event)
        # a prompt cut from the middle of a piece may end notes that it never struck
        state[grammar.SOUNDING] = len(self._struck)
        return state

    @property
    def _rows(self) -> int:
        return 1 if self._sampling.guidance_scale == 1.0 else 2

    def _fill_cache(self) -> None:
        """Let the model read all events but the last drawn or given one, from the beginning."""
        self._reset(self._rows)
        self._apply_conditions()
        tokens = np.array(self._history, dtype=np.int32)
        if self._pending is None:
            self._last, tokens = self._array(tokens[-1:]), tokens[:-1]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            self._read(np.tile(tokens[start : start + PREFILL_CHUNK], (self._rows, 1)))

    def _apply_conditions(self) -> None:
        """Steer by the emotion and harmony in force; a second row is the unconditional model."""
        rows = self._rows
        self._condition(
            np.stack([encode_emotion(self._emotion), UNCONDITIONAL][:rows]),
            np.array([[self._chord], [0]][:rows], np.int32),
            np.array([self._key, 0][:rows], np.int32),
        )

    def _queue_step(self) -> Array:
        """Start computing the next event and return it, not yet waited for."""
        if not len(self._noise):
            self._noise = gumbel_noise(self._rng, NOISE_BLOCK)
        noise, self._noise = self._noise[0], self._noise[1:]
        knobs, self._promised_knobs = self._promised_knobs, None
        self._last = self._step(
            noise if self._sampling.temperature > 0 else 0 * noise,
            self._knobs if knobs is None else knobs,
        )
        return self._last

    def __iter__(self) -> Iterator[int]:
        """Yield event ids without end."""
        while True:
            yield self.next_event()

    def next_event(self) -> int:
        """Return the next event id; the one after it is already being computed."""
        current = self._pending if self._pending is not None else self._queue_step()
        self._pending = self._queue_step()
        event = int(current.item())
        self._note_read(event)
        return event

    def _note_read(self, event: int) -> None:
        """Keep the reader's own account: history, time, what sounds."""
        self._history.append(event)
        if event < NOTE_OFF:
            self._struck[event] = self.steps
        elif event < TIME_SHIFT:
            self._struck.pop(event - NOTE_OFF, None)
        elif event < VELOCITY:
            self.steps += event - TIME_SHIFT + 1

    @property
    def seconds(self) -> float:
        """Time reached by the events read so far, the prompt included."""
        return self.steps / STEPS_PER_SECOND

    def set_emotion(self, emotion: Emotion | None) -> None:
        """Change the emotion from here on; None: unconditional."""
        self._emotion = emotion
        self._apply_conditions()

    def set_harmony(self, chord: int, key: int) -> None:
        """Change chord and key ids from here on; 0: unknown."""
        self._chord, self._key = chord, key
        self._apply_conditions()

    def set_sampling(self, sampling: SamplingConfig) -> None:
        """Change how events are drawn; switching guidance on or off reads the context again."""
        rows = self._rows
        # the new limits may leave no note for a velocity that is already drawn: keep to the old
        if self._promised_knobs is None and self._last.item() >= VELOCITY:
            self._promised_knobs = self._knobs
        self._sampling = sampling
        self._knobs = self._array(pack(sampling))
        if self._rows != rows:
            self._fill_cache()

    def finish(self) -> list[int]:
        """Events that end every sounding note now; a note struck just now sounds for one step."""
        closing = [TIME_SHIFT] if self.steps in self._struck.values() else []
        closing += [pitch + NOTE_OFF for pitch in self._struck]
        for event in closing:
            self._note_read(event)
        return closing


def write_piece(
    stream: EventStream[Any],
    seconds: float,
    prompt: Sequence[int] | NDArray[np.integer] = (),
    changes: Sequence[tuple[float, Emotion]] = (),
    on_time: Callable[[float], None] = lambda seconds: None,
) -> NDArray[np.uint16]:
    """Write a piece of `seconds` seconds (after the prompt, if any) and end all its notes.

    Args:
        stream: fresh, nothing read from it.
        seconds: length of what is written.
        prompt: that the stream was given.
        changes: emotions to change to, each with its time in seconds after the prompt.
        on_time: called with the seconds written so far whenever time passes.

    Returns:
        `(n,)` event ids, prompt first; always valid music if the prompt is.

    Raises:
        KmidiError: when `seconds` is negative or no number.
    """
    if not 0 <= seconds < math.inf:
        raise KmidiError(f"cannot write {seconds} seconds of music; give a number from 0 on.")
    events = [int(event) for event in prompt]
    begin = stream.seconds
    end = stream.steps + round(seconds * STEPS_PER_SECOND)
    waiting = deque(sorted(changes, key=lambda change: change[0]))
    while True:
        before = stream.steps
        while waiting and stream.seconds - begin >= waiting[0][0]:
            stream.set_emotion(waiting.popleft()[1])
        event = stream.next_event()
        if stream.steps >= end:
            break
        events.append(event)
        if stream.steps > before:
            on_time(seconds - (end - stream.steps) / STEPS_PER_SECOND)
    on_time(seconds)
    # decoding ends what still sounds at the last event, here the end of the piece
    if end > before:
        events.append(TIME_SHIFT + end - before - 1)
    return encode(decode(events))
