"""A stream of events from the model: endless, steerable, seedable, always valid music."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation import sampler
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import EventStream, write_piece
from kmidi_mlx.music.knobs import unpack


def _compiled_step(model: EmotionMIDITransformer, table: grammar.Tables) -> Callable[..., Any]:
    """Model, grammar and draw as one compiled graph.

    It must not hold the generator: in a cycle the ring would outlive its reader.
    """

    def step(last, place, keys, values, cross, state, noise, knobs):  # type: ignore[no-untyped-def]
        tokens = mx.broadcast_to(last[:, None], (keys[0].shape[0], 1))
        logits, keys, values = model.step(tokens, place, keys, values, cross)
        event = sampler.draw(logits, noise, state, unpack(knobs), table)
        return event, keys, values, grammar.advance(state, event, table, mx)

    return mx.compile(step)


class EventGenerator(EventStream[mx.array]):
    """Writes music event by event with MLX; what it does for its reader: `EventStream`.

    Args:
        model: weights to use; they are captured when the stream starts.
        sampling, seed, emotion, chord, key, prompt: as `EventStream`.

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
        self._compiled_step = _compiled_step(model, table)
        self._newest = mx.array([0])
        super().__init__(model.config.context_length, sampling, seed, emotion, chord, key, prompt)

    def _array(self, values: NDArray[Any]) -> mx.array:
        return mx.array(values)

    def _reset(self, rows: int) -> None:
        self._cache = KVCache(self._model.config, rows, self._dtype)

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

    def _keep_first_row(self) -> None:
        self._cache.keep_first()
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
