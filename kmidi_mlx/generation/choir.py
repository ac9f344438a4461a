"""Many pieces at once: each is the piece that `generate` writes, in a fraction of the time.

On most machines a step of the model takes little longer for sixteen pieces than for one, since the
weights are read once for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import UNCONDITIONAL, Emotion
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.generation import sampler
from kmidi_mlx.generation.generator import Step
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import NOISE_BLOCK
from kmidi_mlx.music.events import (
    START_TOKEN,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VOCABULARY_SIZE,
)
from kmidi_mlx.music.knobs import gumbel_noise, pack, unpack
from kmidi_mlx.music.piece import PieceWriter

__all__ = ["DEFAULT_ROWS", "Request", "write_pieces"]

DEFAULT_ROWS = 16


@dataclass(frozen=True)
class Request:
    """A piece that is wanted.

    Attributes:
        seconds: its length.
        seed: the same seed, model and request give the same piece.
        emotion: that it begins with; None is the unconditional model.
        changes: emotions to change to, each with its time in seconds.
        chord, key: ids of `kmidi_mlx.music.chords`; 0: unknown.
    """

    seconds: float
    seed: int
    emotion: Emotion | None = None
    changes: tuple[tuple[float, Emotion], ...] = ()
    chord: int = 0
    key: int = 0


class _Voice:
    """One of the pieces that are being written; to its writer it is a stream of its own."""

    def __init__(self, number: int, request: Request, greedy: bool) -> None:
        self.number = number
        self.steps = 0
        self.harmony = request.chord, request.key
        # what is due at once is heard from the first event on
        due = [emotion for time, emotion in sorted(request.changes, key=_time) if time <= 0]
        self.emotion = due[-1] if due else request.emotion
        self._drawn = START_TOKEN
        self._rng = np.random.default_rng(request.seed)
        self._noise: deque[NDArray[np.float32]] = deque()
        self._greedy = greedy
        self._writer = PieceWriter(self, request.seconds, (), request.changes)

    @property
    def seconds(self) -> float:
        """Time reached."""
        return self.steps / STEPS_PER_SECOND

    @property
    def done(self) -> bool:
        """Whether the piece is long enough."""
        return self._writer.done

    def next_event(self) -> int:
        """Return the event that was drawn last."""
        if TIME_SHIFT <= self._drawn < VELOCITY:
            self.steps += self._drawn - TIME_SHIFT + 1
        return self._drawn

    def set_emotion(self, emotion: Emotion | None) -> None:
        """Change the emotion from the event after the next on, as a stream does."""
        self.emotion = emotion

    def noise(self) -> NDArray[np.float32]:
        """Return that of the next event, `(388,)`."""
        if self._greedy:
            return np.zeros(VOCABULARY_SIZE, np.float32)
        if not self._noise:
            self._noise.extend(gumbel_noise(self._rng, NOISE_BLOCK))
        return self._noise.popleft()

    def take(self, event: int) -> bool:
        """Take the next event; return whether the emotion changes for the one after it."""
        before, self._drawn = self.emotion, event
        self._writer.write()
        return self.emotion != before

    def piece(self) -> NDArray[np.uint16]:
        """Return the event ids, all notes ended."""
        return self._writer.events()


def _time(change: tuple[float, Emotion]) -> float:
    return change[0]


def write_pieces(
    model: EmotionMIDITransformer,
    sampling: SamplingConfig,
    requests: Sequence[Request],
    *,
    rows: int = DEFAULT_ROWS,
    on_piece: Callable[[int, NDArray[np.uint16]], None] = lambda number, events: None,
) -> list[NDArray[np.uint16]]:
    """Write pieces side by side.

    Each is what `generate` writes, but where rounding, which differs with the number of rows,
    decides between two events that are all but equally likely.

    Args:
        model: to use.
        sampling: how to draw, the same for all.
        requests: the pieces. Those that come one after another are written together, so the
            time is used best where their lengths in events are about the same.
        rows: pieces at a time, at least 1.
        on_piece: called with number and event ids of each piece soon after it is done.

    Returns:
        `(n,)` event ids of each request; valid music, all notes ended.

    Raises:
        KmidiError: when a length is negative or no number.
    """
    step = _compiled_step(model)
    done: dict[int, NDArray[np.uint16]] = {}
    for first in range(0, len(requests), rows):
        voices = [
            _Voice(number, request, sampling.temperature == 0.0)
            for number, request in enumerate(requests[first : first + rows], start=first)
        ]
        for voice in _sing(model, sampling, voices, step):
            done[voice.number] = voice.piece()
            on_piece(voice.number, done[voice.number])
    return [done[number] for number in range(len(requests))]


def _compiled_step(model: EmotionMIDITransformer) -> Step:
    """Model, grammar and draws of all rows as one graph."""
    table = grammar.Tables(*(mx.array(part) for part in grammar.tables()))
    mx.eval(*table)

    def step(last, place, keys, values, cross, states, noise, knobs):  # type: ignore[no-untyped-def]
        count, rows = noise.shape[0], keys[0].shape[0]
        tokens = mx.tile(last, rows // count)[:, None]
        logits, keys, values = model.step(tokens, place, keys, values, cross)
        settings, drawn, after = unpack(knobs), [], []
        for row in range(count):
            # the piece's own row and, with guidance, the one that is told nothing
            event = sampler.draw(logits[row::count], noise[row], states[row], settings, table)
            drawn.append(event)
            after.append(grammar.advance(states[row], event, table, mx))
        return mx.concatenate(drawn), keys, values, mx.stack(after)

    return mx.compile(step, inputs=model.state)


def _sing(
    model: EmotionMIDITransformer, sampling: SamplingConfig, voices: list[_Voice], step: Step
) -> Iterator[_Voice]:
    """Yield voices as they come to their end."""
    copies = 1 if sampling.guidance_scale == 1.0 else 2
    cache = KVCache(model.config, copies * len(voices), model.embedding.weight.dtype)
    cross = _told(model, voices, copies)
    states = mx.array(np.tile(grammar.initial_state(), (len(voices), 1, 1)))
    last = mx.array([START_TOKEN] * len(voices), dtype=mx.int32)
    knobs = mx.array(pack(sampling))
    while True:
        cache.reserve(1)
        noise = mx.array(np.stack([voice.noise() for voice in voices]))
        place, keys, values = cache.next_place(), cache.keys, cache.values
        # nothing may hold the old ring while it is rewritten, or MLX copies all of it
        cache.keys, cache.values = [], []
        last, cache.keys, cache.values, states = step(
            last, place, keys, values, cross, states, noise, knobs
        )
        cache.offset += 1
        del keys, values
        mx.eval(last, cache.keys, cache.values, states)
        changed = [voice.take(event) for voice, event in zip(voices, last.tolist(), strict=True)]
        left = [row for row, voice in enumerate(voices) if not voice.done]
        # rarely, as every number of rows is compiled anew
        if 2 * len(left) <= len(voices):
            yield from (voice for voice in voices if voice.done)
            if not left:
                return
            cache.keep([copy * len(voices) + row for copy in range(copies) for row in left])
            last, states = last[mx.array(left)], states[mx.array(left)]
            voices = [voices[row] for row in left]
            cross = _told(model, voices, copies)
        elif any(changed):
            cross = _told(model, voices, copies)


def _told(model: EmotionMIDITransformer, voices: Sequence[_Voice], copies: int) -> Any:
    """Tell the model what steers; a second row of each piece is told nothing."""
    told_nothing = len(voices) * (copies - 1)
    emotion = [encode_emotion(voice.emotion) for voice in voices] + [UNCONDITIONAL] * told_nothing
    harmony = np.array([voice.harmony for voice in voices] + [(0, 0)] * told_nothing, np.int32)
    cross = model.cross_keys_values(
        Conditions(mx.array(np.stack(emotion)), mx.array(harmony[:, :1]), mx.array(harmony[:, 1]))
    )
    mx.eval(cross)
    return cross
