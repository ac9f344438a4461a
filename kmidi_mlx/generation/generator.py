"""A stream of events from the model: endless, steerable, seedable, always valid music."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation import sampler
from kmidi_mlx.models.kv_cache import CAPACITY_STEP, KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import PREFILL_CHUNK, EventStream
from kmidi_mlx.music.events import TIME_SHIFT
from kmidi_mlx.music.knobs import unpack
from kmidi_mlx.music.piece import write_piece

Step = Callable[..., Any]


def compiled_step(model: EmotionMIDITransformer) -> Step:
    """Model, grammar and draw as one compiled graph, which several generators may share.

    It must not hold a generator: in a cycle the ring would outlive its reader.

    Args:
        model: to use; its weights are inputs of the graph, so that they may change at any time,
            but for types and layers that are quantised: those are compiled anew.
    """
    table = grammar.Tables(*(mx.array(part) for part in grammar.tables()))
    mx.eval(*table)

    def step(last, place, keys, values, cross, state, noise, knobs):  # type: ignore[no-untyped-def]
        tokens = mx.broadcast_to(last[:, None], (keys[0].shape[0], 1))
        logits, keys, values = model.step(tokens, place, keys, values, cross)
        event = sampler.draw(logits, noise, state, unpack(knobs), table)
        return event, keys, values, grammar.advance(state, event, table, mx)

    return mx.compile(step, inputs=model.state)


class StepCosts(NamedTuple):
    """Seconds of an event that is written, by how many are looked back on, and of one read."""

    write: dict[int, float]
    read: float


class EventGenerator(EventStream[mx.array]):
    """Writes music event by event with MLX; what it does for its reader: `EventStream`.

    Args:
        model: to use; call `read_again` where its weights have changed.
        sampling, seed, emotion, chord, key, prompt: as `EventStream`.
        step: of the same model, from `compiled_step`, to be shared; None: one of its own.
        context: events that it looks back on, at most as many as the model; None: those.

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
        step: Step | None = None,
        context: int | None = None,
    ) -> None:
        self._model = model
        self._config = replace(
            model.config, context_length=min(context or sys.maxsize, model.config.context_length)
        )
        self._dtype = model.embedding.weight.dtype
        self._compiled_step = step or compiled_step(model)
        self._newest = mx.array([0])
        super().__init__(self._config.context_length, sampling, seed, emotion, chord, key, prompt)

    def _array(self, values: NDArray[Any]) -> mx.array:
        return mx.array(values)

    def _reset(self, rows: int) -> None:
        self._cache = KVCache(self._config, rows, self._dtype)

    def _condition(
        self, emotion: NDArray[np.float32], chords: NDArray[np.int32], keys: NDArray[np.int32]
    ) -> None:
        conditions = Conditions(mx.array(emotion), mx.array(chords), mx.array(keys))
        self._cross = self._model.cross_keys_values(conditions)
        mx.eval(self._cross)

    def _read(self, tokens: NDArray[np.int32]) -> None:
        self._model.extend(mx.array(tokens), self._cache, self._cross)
        mx.eval(self._cache.keys, self._cache.values)

    def _forget(self, count: int) -> None:
        self._cache.rewind(count)

    def pretend(self, events: int) -> None:
        """Be as if so many events had been read, without a thought about what they were."""
        self._pending = None
        self._cache.offset = events
        self._cache.reserve(1)

    def _keep_first_row(self) -> None:
        self._cache.keep([0])
        mx.eval(self._cache.keys, self._cache.values)

    def _step(self, noise: NDArray[np.float32], knobs: mx.array) -> mx.array:
        cache = self._cache
        cache.reserve(1)
        keys, values = cache.keys, cache.values
        # nothing may hold the old ring while it is rewritten, or MLX copies all of it
        cache.keys, cache.values = [], []
        event, cache.keys, cache.values, self._state = self._compiled_step(
            self._last,
            cache.next_place(),
            keys,
            values,
            self._cross,
            self._state,
            mx.array(noise),
            knobs,
        )
        cache.offset += 1
        del keys, values
        # nor may the step before be on its way: it holds the ring until it is done
        mx.eval(self._newest)
        mx.async_eval(event, cache.keys, cache.values, self._state)
        self._newest = event
        return event


def warm_up(model: EmotionMIDITransformer, step: Step, guidance: bool = False) -> StepCosts:
    """Compile a step for every size that the ring can have, and time it.

    Args:
        model: of the step.
        step: from `compiled_step`.
        guidance: for generators with guidance, which run two rows.
    """
    sampling = SamplingConfig(guidance_scale=2.0 if guidance else 1.0)
    stream = EventGenerator(model, sampling, step=step)
    context = model.config.context_length
    write: dict[int, float] = {}
    for events in range(0, context, CAPACITY_STEP):
        stream.pretend(events)
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            stream.next_event()
            seconds.append(time.perf_counter() - begun)
        # the first compiles, the least is not disturbed
        write[min(events + CAPACITY_STEP, context)] = min(seconds)
    # events that are read at once, as those of a person or a context that is read again
    chunk = min(PREFILL_CHUNK, context // 2)
    read = []
    for _ in range(2):
        begun = time.perf_counter()
        stream.feed([TIME_SHIFT] * chunk)
        read.append(time.perf_counter() - begun)
    return StepCosts(write, min(read) / chunk)


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
        seconds, changes, on_time: as `write_piece`.

    Returns:
        `(n,)` event ids, prompt first; always valid music if the prompt is.

    Raises:
        KmidiError: when `seconds` is negative or no number, or the prompt holds no event ids.
    """
    stream = EventGenerator(model, sampling, seed, emotion, chord, key, prompt)
    return write_piece(stream, seconds, prompt, changes, on_time)
