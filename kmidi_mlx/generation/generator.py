"""A stream of events from the model: endless, steerable, seedable, always valid music."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation import sampler
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
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

NOISE_BLOCK = 64
PREFILL_CHUNK = 256


def _compiled_step(model: EmotionMIDITransformer, table: grammar.Tables) -> Callable[..., Any]:
    """Model, grammar and draw as one compiled graph.

    It must not hold the generator: in a cycle the ring would outlive its reader.
    """

    def step(last, place, keys, values, cross, state, noise, knobs):  # type: ignore[no-untyped-def]
        tokens = mx.broadcast_to(last[:, None], (keys[0].shape[0], 1))
        logits, keys, values = model.step(tokens, place, keys, values, cross)
        event = sampler.draw(logits, noise, state, sampler.unpack(knobs), table)
        return event, keys, values, grammar.advance(state, event, table, mx)

    return mx.compile(step)


class EventGenerator:
    """Writes music event by event under an emotion that may change while it plays.

    Iterating yields event ids for ever, one model step ahead of the reader: while the reader
    handles an event, the next is being computed. A change of emotion, harmony or sampling is heard
    two events after the event last read. Stop whenever you like and take `finish()`, which ends
    every sounding note.

    Args:
        model: weights to use; they are captured when the stream starts.
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
        model: EmotionMIDITransformer,
        sampling: SamplingConfig,
        seed: int = 0,
        emotion: Emotion | None = None,
        chord: int = 0,
        key: int = 0,
        prompt: Sequence[int] | NDArray[np.integer] = (),
    ) -> None:
        self._model = model
        self._dtype = model.embedding.weight.dtype
        table = grammar.Tables(*(mx.array(part) for part in grammar.tables()))
        mx.eval(*table)
        self._rng = np.random.default_rng(seed)
        self._noise = np.empty((0, VOCABULARY_SIZE), np.float32)
        self._history: deque[int] = deque([START_TOKEN], maxlen=model.config.context_length)
        self._pending: mx.array | None = None
        self._emotion, self._chord, self._key = emotion, chord, key
        self._sampling = sampling
        self._knobs = sampler.pack(sampling)
        self._promised_knobs: mx.array | None = None
        self._compiled_step = _compiled_step(model, table)
        self._struck: dict[int, int] = {}
        self.steps = 0
        self._state = self._absorb_prompt(prompt)
        self._fill_cache()

    def _absorb_prompt(self, prompt: Sequence[int] | NDArray[np.integer]) -> mx.array:
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
        return mx.array(state)

    @property
    def _rows(self) -> int:
        return 1 if self._sampling.guidance_scale == 1.0 else 2

    def _fill_cache(self) -> None:
        """Read all events but the last drawn or given one into a fresh cache."""
        self._cache = KVCache(self._model.config, self._rows, self._dtype)
        self._condition()
        tokens = np.array(self._history, dtype=np.int32)
        if self._pending is None:
            self._last, tokens = mx.array(tokens[-1:]), tokens[:-1]
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = mx.array(np.tile(tokens[start : start + PREFILL_CHUNK], (self._rows, 1)))
            self._model.extend(chunk, self._cache, self._cross)
            mx.eval(self._cache.keys, self._cache.values)

    def _condition(self) -> None:
        """Make the cross-attention keys and values of the conditions in force."""
        given = encode_emotion(self._emotion)
        rows = [(given, self._chord, self._key), (np.zeros_like(given), 0, 0)][: self._rows]
        self._cross = self._model.cross_keys_values(
            Conditions(
                emotion=mx.array(np.stack([row[0] for row in rows])),
                chords=mx.array([[row[1]] for row in rows]),
                keys=mx.array([row[2] for row in rows]),
            )
        )
        mx.eval(self._cross)

    def _queue_step(self) -> mx.array:
        """Start computing the next event and return it, not yet evaluated."""
        if not len(self._noise):
            self._noise = sampler.gumbel_noise(self._rng, NOISE_BLOCK)
        noise, self._noise = self._noise[0], self._noise[1:]
        knobs, self._promised_knobs = self._promised_knobs, None
        cache = self._cache
        cache.reserve(1)
        keys, values = cache.keys, cache.values
        # nothing may hold the old ring while it is rewritten, or MLX copies all of it
        cache.keys, cache.values = [], []
        self._last, cache.keys, cache.values, self._state = self._compiled_step(
            self._last,
            cache.next_place(),
            keys,
            values,
            self._cross,
            self._state,
            mx.array(noise if self._sampling.temperature > 0 else 0 * noise),
            self._knobs if knobs is None else knobs,
        )
        cache.offset += 1
        del keys, values
        mx.async_eval(self._last, cache.keys, cache.values, self._state)
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
        self._condition()

    def set_harmony(self, chord: int, key: int) -> None:
        """Change chord and key ids from here on; 0: unknown."""
        self._chord, self._key = chord, key
        self._condition()

    def set_sampling(self, sampling: SamplingConfig) -> None:
        """Change how events are drawn; switching guidance on or off reads the context again."""
        rows = self._rows
        # the new limits may leave no note for a velocity that is already drawn: keep to the old
        if self._promised_knobs is None and self._last.item() >= VELOCITY:
            self._promised_knobs = self._knobs
        self._sampling = sampling
        self._knobs = sampler.pack(sampling)
        if self._rows != rows:
            self._fill_cache()

    def finish(self) -> list[int]:
        """Events that end every sounding note now; a note struck just now sounds for one step."""
        closing = [TIME_SHIFT] if self.steps in self._struck.values() else []
        closing += [pitch + NOTE_OFF for pitch in self._struck]
        for event in closing:
            self._note_read(event)
        return closing


def generate(
    model: EmotionMIDITransformer,
    sampling: SamplingConfig,
    seconds: float,
    *,
    seed: int = 0,
    emotion: Emotion | None = None,
    chord: int = 0,
    key: int = 0,
    prompt: Sequence[int] | NDArray[np.integer] = (),
    changes: Sequence[tuple[float, Emotion]] = (),
    on_time: Callable[[float], None] = lambda seconds: None,
) -> NDArray[np.uint16]:
    """Write a piece of `seconds` seconds (after the prompt, if any) and end all its notes.

    Args:
        model, sampling, seed, emotion, chord, key, prompt: as `EventGenerator`.
        seconds: length of what is written.
        changes: emotions to change to, each with its time in seconds after the prompt.
        on_time: called with the seconds written so far whenever time passes.

    Returns:
        `(n,)` event ids, prompt first; always valid music if the prompt is.

    Raises:
        KmidiError: when `seconds` is negative or no number, or the prompt holds no event ids.
    """
    if not 0 <= seconds < math.inf:
        raise KmidiError(f"cannot write {seconds} seconds of music; give a number from 0 on.")
    stream = EventGenerator(model, sampling, seed, emotion, chord, key, prompt)
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
