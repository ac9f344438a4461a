"""The reader's side of an endless, steerable, seedable stream of events, whatever computes it.

An engine (`kmidi_mlx.generation.generator`, `kmidi_torch.generation.generator`) only maps events to
the next one; what was read, what sounds, what steers and when a change is heard is decided here,
so that every engine writes the same music.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

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
)
from kmidi_mlx.music.knobs import gumbel_noise, pack

NOISE_BLOCK = 64
PREFILL_CHUNK = 256
# Events that can be taken back, if the model looks back as far: of each a grammar state of 9 kB and
# noise of 1.5 kB are kept.
REWINDABLE = 1024
# Up to here given events are read by the step that writes: it is compiled, warm and in place.
SINGLE_STEPS = 8


class HostReadable(Protocol):
    """Any framework's array."""

    def item(self) -> Any:
        """Wait for the only element and return it."""

    def tolist(self) -> Any:
        """Wait for the elements and return them as lists."""


Array = TypeVar("Array", bound=HostReadable)
_VELOCITIES = range(VELOCITY, VOCABULARY_SIZE)


class Steering(NamedTuple):
    """What the model is told beside the events: emotion (None: none), chord id, key id."""

    emotion: Emotion | None
    chord: int
    key: int


class _Drawn(NamedTuple, Generic[Array]):
    """An event that is being computed, the grammar state after it, the noise that it hangs on."""

    event: Array
    state: Array
    noise: NDArray[np.float32]


class _Moment(NamedTuple, Generic[Array]):
    """All that is so after an event, but for what the model remembers; nothing in it changes.

    `noise` is None for events of a prompt, `steering` what the next event is to be drawn under.
    """

    event: int
    steps: int
    struck: Mapping[int, int]
    state: Array | NDArray[np.float32]
    noise: NDArray[np.float32] | None
    steering: Steering


class EventStream(ABC, Generic[Array]):
    """Writes music event by event under an emotion that may change while it plays.

    Iterating yields event ids for ever, one model step ahead of the reader: while the reader
    handles an event, the next is being computed. A change of emotion, harmony or sampling is heard
    two events after the event last read, or with the next event after `rewind` or `feed`. Stop
    whenever you like and take `finish()`, which ends every sounding note.

    An engine implements the methods `_array` to `_step` over arrays of its framework, and is ready
    to be called before it calls this constructor.

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
        self._noise: deque[NDArray[np.float32]] = deque()
        self._laws = grammar.tables()
        self._history: deque[int] = deque([START_TOKEN], maxlen=context_length)
        self._pending: _Drawn[Array] | None = None
        self._steering = Steering(emotion, chord, key)
        self._told: Steering | None = None
        self._sampling = sampling
        self._knobs = self._array(pack(sampling))
        self._promised_knobs: Array | None = None
        start = _Moment[Array](
            START_TOKEN, 0, {}, grammar.initial_state(), None, self._steering
        )  # fmt: skip
        self._moments = deque([start], maxlen=min(REWINDABLE + 1, context_length))
        self._absorb(self._given(prompt, "the prompt"))
        self._go_on_from(self._moments[-1])
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
    def _forget(self, count: int) -> None:
        """Let the model forget the last `count` input ids that it read, at most the context."""

    @abstractmethod
    def _keep_first_row(self) -> None:
        """Go on with the first of two rows alone; what steers is told again."""

    @abstractmethod
    def _step(self, noise: NDArray[np.float32], knobs: Array) -> Array:
        """Let the model read `_last`, draw with noise `(388,)`, bring `_state` up to date.

        Returns:
            The event `(1,)`, which may still be on its way.
        """

    @staticmethod
    def _given(given: Sequence[int] | NDArray[np.integer], where: str) -> list[int]:
        """Given event ids, checked; velocities at the very end are left out."""
        events = [int(event) for event in given]
        for index, event in enumerate(events):
            if not 0 <= event < VOCABULARY_SIZE:
                raise KmidiError(
                    f"event {index} of {where} is {event}; ids go from 0 to {VOCABULARY_SIZE - 1}."
                )
        # the limits may forbid the note that such a velocity calls for
        while events and events[-1] >= VELOCITY:
            events.pop()
        return events

    def _absorb(
        self, events: list[int], noises: Iterable[NDArray[np.float32] | None] = repeat(None)
    ) -> None:
        """Keep the reader's account of given events."""
        state = np.asarray(self._moments[-1].state.tolist(), np.float32)
        for event, noise in zip(events, noises, strict=False):
            state = grammar.advance(state, np.array([event]), self._laws, np)
            self._note_read(event, state, noise)
            # events cut from the middle of a piece may end notes that they never struck
            state[grammar.SOUNDING] = len(self._moments[-1].struck)

    def _go_on_from(self, moment: _Moment[Array]) -> None:
        """Make the last event read the one that the model reads next."""
        self._pending, self._promised_knobs = None, None
        self._last = self._array(np.array([moment.event], np.int32))
        state = moment.state
        self._state = self._array(state) if isinstance(state, np.ndarray) else state
        self._steering = moment.steering

    @property
    def _rows(self) -> int:
        return 1 if self._sampling.guidance_scale == 1.0 else 2

    def _fill_cache(self) -> None:
        """Let the model read all events but the last drawn or given one, from the beginning."""
        self._reset(self._rows)
        self._told = None
        tokens = list(self._history)
        self._let_read(tokens if self._pending else tokens[:-1])

    def _let_read(self, tokens: list[int]) -> None:
        self._tell()
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = np.array(tokens[start : start + PREFILL_CHUNK], np.int32)
            self._read(np.tile(chunk, (self._rows, 1)))

    def _tell(self) -> None:
        """Tell the model what steers, if it does not know; a second row is told nothing."""
        if self._told != self._steering:
            emotion, chord, key = self._told = self._steering
            rows = self._rows
            self._condition(
                np.stack([encode_emotion(emotion), UNCONDITIONAL][:rows]),
                np.array([[chord], [0]][:rows], np.int32),
                np.array([key, 0][:rows], np.int32),
            )

    def _next_noise(self) -> NDArray[np.float32]:
        if not self._noise:
            self._noise.extend(gumbel_noise(self._rng, NOISE_BLOCK))
        return self._noise.popleft()

    def _queue_step(self) -> _Drawn[Array]:
        """Start computing the next event and return it, not yet waited for."""
        noise = self._next_noise()
        knobs, self._promised_knobs = self._promised_knobs, None
        self._tell()
        self._last = self._step(
            noise if self._sampling.temperature > 0 else 0 * noise,
            self._knobs if knobs is None else knobs,
        )
        return _Drawn(self._last, self._state, noise)

    def __iter__(self) -> Iterator[int]:
        """Yield event ids without end."""
        while True:
            yield self.next_event()

    def next_event(self) -> int:
        """Return the next event id; the one after it is already being computed."""
        current = self._pending or self._queue_step()
        self._pending = self._queue_step()
        event = int(current.event.item())
        self._note_read(event, current.state, current.noise)
        return event

    def _note_read(
        self,
        event: int,
        state: Array | NDArray[np.float32],
        noise: NDArray[np.float32] | None,
    ) -> None:
        """Keep the reader's own account: history, time, what sounds."""
        steps, struck = self.steps, self.struck
        if event < NOTE_OFF:
            struck = {**struck, event: steps}
        elif event < TIME_SHIFT:
            struck = {pitch: step for pitch, step in struck.items() if pitch != event - NOTE_OFF}
        elif event < VELOCITY:
            steps += event - TIME_SHIFT + 1
        self._history.append(event)
        self._moments.append(_Moment(event, steps, struck, state, noise, self._steering))

    def rewind(self, events: int) -> list[int]:
        """Take back the last events that were read or fed, and the one that is being computed.

        All is as it was before they were written: history, time, sounding notes, noise, emotion and
        harmony; with the same settings the same events come again. Only sampling and seed stay as
        they are now. Once the piece is longer than the context, the model's past ends where it
        ended when they had been written, so it is shorter by as many events until it has grown
        again. A velocity that would be left at the very end is taken back too: no note has it.

        Args:
            events: how many, 0 to `rewindable`; 0: only the event that is being computed.

        Returns:
            The events taken back, oldest first; `feed` would bring them again.

        Raises:
            KmidiError: when so many cannot be taken back.
        """
        if not 0 <= events <= self.rewindable:
            raise KmidiError(
                f"cannot take back {events} events; {self.rewindable} can be taken back now."
            )
        while self._moments[-1 - events].event in _VELOCITIES:
            events += 1
        unread = self._pending
        noises = [unread.noise] if unread else []
        taken = []
        for _ in range(events):
            moment = self._moments.pop()
            taken.append(self._history.pop())
            if moment.noise is not None:
                noises.append(moment.noise)
        self._forget(events + (unread is not None))
        self._noise.extendleft(noises)
        self._go_on_from(self._moments[-1])
        return taken[::-1]

    @property
    def remembered(self) -> int:
        """Number of events that the model looks back on now, the beginning among them."""
        return len(self._history)

    @property
    def rewindable(self) -> int:
        """Number of events that can be taken back now, up to `REWINDABLE`."""
        first = 0
        while first < len(self._moments) - 1 and self._moments[first].event in _VELOCITIES:
            first += 1
        return len(self._moments) - 1 - first

    def feed(self, events: Sequence[int] | NDArray[np.integer]) -> None:
        """Let the model read given events, such as a person's playing, as if it had written them.

        The event that is being computed is taken back; the next one follows these.

        Args:
            events: event ids. Velocities at the very end are left out: no note has them yet.

        Raises:
            KmidiError: for an id outside the vocabulary.
        """
        given = self._given(events, "those to read")
        if not given:
            return
        if self._pending:
            self._noise.appendleft(self._pending.noise)
            self._forget(1)
        unread = [self._history[-1], *given[:-1]]
        # as much noise goes by as if they had been drawn, so that taking back brings it again
        self._absorb(given, [self._next_noise() for _ in given])
        moment = self._moments[-1]
        if len(given) > SINGLE_STEPS:
            self._go_on_from(moment)
            if len(given) < (self._history.maxlen or 0):
                self._let_read(unread)
            else:
                self._fill_cache()
            return
        self._tell()
        silence = np.zeros(VOCABULARY_SIZE, np.float32)
        for event in unread:
            self._last = self._array(np.array([event], np.int32))
            self._step(silence, self._knobs)  # nobody takes what it draws
        self._go_on_from(moment)

    @property
    def seconds(self) -> float:
        """Time reached by the events read so far, the prompt included."""
        return self.steps / STEPS_PER_SECOND

    @property
    def steps(self) -> int:
        """Time reached by the events read so far, the prompt included, in steps of 10 ms."""
        return self._moments[-1].steps

    @property
    def struck(self) -> Mapping[int, int]:
        """Pitches that sound after the events read so far, with the step that each began at.

        Never changed, but replaced: keep it as long as you like.
        """
        return self._moments[-1].struck

    @property
    def steering(self) -> Steering:
        """Emotion and harmony in force."""
        return self._steering

    def set_emotion(self, emotion: Emotion | None) -> None:
        """Change the emotion from here on; None: unconditional."""
        self._steer(self._steering._replace(emotion=emotion))

    def set_harmony(self, chord: int, key: int) -> None:
        """Change chord and key ids from here on; 0: unknown."""
        self._steer(self._steering._replace(chord=chord, key=key))

    def _steer(self, steering: Steering) -> None:
        self._steering = steering
        # whoever comes back to here comes back to this
        self._moments[-1] = self._moments[-1]._replace(steering=steering)

    def set_sampling(self, sampling: SamplingConfig) -> None:
        """Change how events are drawn; switching guidance on reads the context again."""
        rows = self._rows
        # the new limits may leave no note for a velocity that is already drawn: keep to the old
        if self._promised_knobs is None and self._last.item() in _VELOCITIES:
            self._promised_knobs = self._knobs
        self._sampling = sampling
        self._knobs = self._array(pack(sampling))
        if self._rows > rows:
            self._fill_cache()
        elif self._rows < rows:
            self._keep_first_row()
            self._told = None

    def read_again(self, most: int | None = None) -> None:
        """Let the model read the context again, as its weights have changed.

        The event that is being computed stays as it is; `rewind(0)` takes it back.

        Args:
            most: events that it reads, at least 1; older ones it forgets. None: all.
        """
        for kept in (self._history, self._moments):
            while most is not None and len(kept) > most:
                kept.popleft()
        self._fill_cache()

    def set_seed(self, seed: int) -> None:
        """Draw from here on as this seed says; an event that is being computed stays."""
        self._rng = np.random.default_rng(seed)
        self._noise.clear()

    def finish(self) -> list[int]:
        """End every sounding note now; a note struck just now sounds for one step.

        Returns:
            The events that do so. The stream can be read on.
        """
        closing = [TIME_SHIFT] if self.steps in self.struck.values() else []
        closing += [pitch + NOTE_OFF for pitch in self.struck]
        self.feed(closing)
        return closing
