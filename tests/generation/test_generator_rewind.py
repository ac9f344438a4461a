"""Taking events back and giving events to read, with the model: what it remembers."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from kmidi_mlx import emotion as em
from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation import sampler
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.kv_cache import KVCache, Place
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import SINGLE_STEPS
from kmidi_mlx.music.events import NOTE_OFF, START_TOKEN, TIME_SHIFT, VELOCITY
from kmidi_mlx.music.knobs import gumbel_noise, pack, unpack

CONTEXT = 32
SIZES = {
    "hidden_dim": 64, "num_layers": 2, "num_heads": 2, "ffn_dim": 96, "cross_attention_layers": (0,)
}  # fmt: skip
TINY = MidiTransformerConfig(**SIZES, context_length=CONTEXT)
TABLE = grammar.tables()
HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
LIVELY = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
GUIDED = SamplingConfig(temperature=1.0, top_p=0.95, guidance_scale=2.5)
TUNE = [VELOCITY + 9, 60, TIME_SHIFT + 14, 64, TIME_SHIFT + 30, NOTE_OFF + 60, TIME_SHIFT + 9, 67]


@cache
def model_of(config: MidiTransformerConfig = TINY) -> EmotionMIDITransformer:
    model = EmotionMIDITransformer(config)
    model.initialise(0)
    model.load_weights(
        [
            (name, value * 10.0 if value.ndim == 2 else value)
            for name, value in tree_flatten(model.parameters())
        ]
    )
    mx.eval(model.parameters())
    return model


def read(stream: EventGenerator, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


class Reference:
    """Keeps every event's keys and values where they are, and hides by hand what is lost.

    Nothing wraps, nothing is moved back, nothing is compiled, and one event is computed at a time.
    """

    def __init__(self, sampling: SamplingConfig, seed: int, emotion: Emotion | None) -> None:
        self.model, self.sampling = model_of(), sampling
        self.rows = 1 if sampling.guidance_scale == 1 else 2
        self.ring = KVCache(MidiTransformerConfig(**SIZES, context_length=2048), self.rows)
        self.ring.reserve(512)
        self.position, self.lost = 0, 0
        self.events, self.emotion = [START_TOKEN], emotion
        rng = np.random.default_rng(seed)
        self.noise = list(np.concatenate([gumbel_noise(rng, 64) for _ in range(8)]))
        self.drawn: list[np.ndarray] = []
        self.states = [grammar.initial_state()]

    def model_reads(self, event: int) -> mx.array:
        slots = np.arange(self.ring.capacity)
        mask = (slots <= self.position) & (slots > self.position - CONTEXT) & (slots >= self.lost)
        place = Place(mx.array([self.position]), mx.array([self.position]), mx.array(mask))
        conditions = Conditions(
            mx.array(np.stack([em.encode(self.emotion), em.UNCONDITIONAL])[: self.rows]),
            mx.zeros((self.rows, 1), mx.int32),
            mx.zeros(self.rows, mx.int32),
        )
        logits, self.ring.keys, self.ring.values = self.model.step(
            mx.array([[event]] * self.rows),
            place,
            self.ring.keys,
            self.ring.values,
            self.model.cross_keys_values(conditions),
        )
        self.position += 1
        return logits

    def next_event(self) -> int:
        self.drawn.append(self.noise.pop(0))
        event = sampler.draw(
            self.model_reads(self.events[-1]),
            mx.array(self.drawn[-1]),
            mx.array(self.states[-1]),
            unpack(mx.array(pack(self.sampling))),
            grammar.Tables(*(mx.array(part) for part in TABLE)),
        ).item()
        self.append(event)
        return event

    def append(self, event: int) -> None:
        self.events.append(event)
        state = grammar.advance(self.states[-1], np.array([event]), TABLE, np)
        state[grammar.SOUNDING] = (state[grammar.AGE, :NOTE_OFF] >= 0).sum()
        self.states.append(state)

    def feed(self, events: list[int]) -> None:
        for event in events:
            self.model_reads(self.events[-1])
            self.append(event)
            self.drawn.append(self.noise.pop(0))

    def rewind(self, count: int) -> None:
        # the stream had computed one event more, whose reading cost one old event
        while self.events[-1 - count] >= VELOCITY and self.events[-1 - count] != START_TOKEN:
            count += 1
        self.lost = max(self.lost, self.position + 1 - CONTEXT)
        self.noise[:0] = self.drawn[len(self.drawn) - count :]
        del self.drawn[len(self.drawn) - count :]
        del self.events[len(self.events) - count :], self.states[len(self.states) - count :]
        self.position -= count


@pytest.mark.parametrize("sampling", [LIVELY, GUIDED])
def test_what_is_taken_back_comes_again_while_the_ring_has_not_wrapped(
    sampling: SamplingConfig,
) -> None:
    stream = EventGenerator(model_of(), sampling, 3, HAPPY)
    written = read(stream, 28)
    for count in (0, 1, 5, 17, 28, 3):
        taken = stream.rewind(count)
        assert written[28 - len(taken) :] == taken
        assert read(stream, len(taken)) == taken
    stream.rewind(10)
    fresh = EventGenerator(model_of(), sampling, 3, HAPPY)
    read(fresh, 28 - 10)
    np.testing.assert_array_equal(
        np.array(stream._moments[-1].state), np.array(fresh._moments[-1].state)
    )


@pytest.mark.parametrize("sampling", [LIVELY, GUIDED])
def test_behind_a_full_ring_what_was_overwritten_is_hidden(sampling: SamplingConfig) -> None:
    stream, reference = (
        EventGenerator(model_of(), sampling, 1, HAPPY),
        Reference(sampling, 1, HAPPY),
    )
    # past the wrap at 32 and the moving back of positions at 128
    for count, back in ((20, 5), (30, 12), (90, 30), (25, 0), (40, 7), (31, 20), (60, 1), (50, 9)):
        assert read(stream, count) == [reference.next_event() for _ in range(count)]
        back = min(back, stream.rewindable)
        stream.rewind(back)
        reference.rewind(back)
    assert read(stream, 40) == [reference.next_event() for _ in range(40)]


@pytest.mark.parametrize("sampling", [LIVELY, GUIDED])
def test_given_events_are_read_behind_a_full_ring_too(sampling: SamplingConfig) -> None:
    stream, reference = EventGenerator(model_of(), sampling, 4, SAD), Reference(sampling, 4, SAD)
    for count, back, given in ((10, 3, TUNE), (40, 12, TUNE[:4]), (9, 0, 2 * TUNE), (70, 9, TUNE)):
        assert read(stream, count) == [reference.next_event() for _ in range(count)]
        stream.rewind(back)
        reference.rewind(back)
        stream.feed(given)
        reference.feed(given)
    assert read(stream, 60) == [reference.next_event() for _ in range(60)]


@pytest.mark.parametrize("count", [1, 4, SINGLE_STEPS, 20])
def test_giving_back_what_was_taken_changes_nothing(count: int) -> None:
    stream, other = (EventGenerator(model_of(), LIVELY, 6, HAPPY) for _ in range(2))
    assert read(stream, 24) == read(other, 24)
    stream.feed(stream.rewind(count))
    assert read(stream, 60) == read(other, 60)


def test_guidance_after_taking_back_reads_what_is_left() -> None:
    stream = EventGenerator(model_of(), LIVELY, 2, SAD)
    written = read(stream, 60)
    taken = stream.rewind(14)
    stream.set_sampling(SamplingConfig(temperature=0.0, guidance_scale=3.0))
    kept = written[: 60 - len(taken)]
    assert list(stream._history) == kept[len(kept) - len(stream._history) :]
    assert len(stream._history) == CONTEXT - len(taken)
    fresh = EventGenerator(model_of(), stream._sampling, 2, SAD, prompt=kept)
    fresh._history.clear()
    fresh._history.extend(stream._history)
    fresh._fill_cache()
    assert read(stream, 12) == read(fresh, 12)


def test_guidance_is_dropped_without_reading_anything_again() -> None:
    # the music so far came from the two rows; from here on it is the first that goes on
    stream, reference = EventGenerator(model_of(), GUIDED, 5, SAD), Reference(LIVELY, 5, SAD)
    stream._read = None  # type: ignore[assignment]
    reference.feed(read(stream, 50))
    stream.set_sampling(LIVELY)
    assert stream._cache.keys[0].shape[0] == stream._cache.values[1].shape[0] == 1
    stream.rewind(9)
    reference.rewind(9)
    assert read(stream, 60) == [reference.next_event() for _ in range(60)]


def test_a_change_after_taking_back_is_heard_with_the_next_event() -> None:
    stream = EventGenerator(model_of(), LIVELY, 8, HAPPY)
    reference = Reference(LIVELY, 8, HAPPY)
    for emotion in (SAD, None, HAPPY, SAD):
        assert read(stream, 20) == [reference.next_event() for _ in range(20)]
        stream.rewind(8)
        reference.rewind(8)
        stream.set_emotion(emotion)
        reference.emotion = emotion
    assert read(stream, 30) == [reference.next_event() for _ in range(30)]


def test_taking_back_copies_nothing() -> None:
    config = MidiTransformerConfig(**SIZES, context_length=2048)
    stream = EventGenerator(model_of(config), LIVELY, 1)
    stream.feed(TUNE * 300)  # the ring is full
    read(stream, 40)

    def peak() -> int:
        mx.eval(stream._cache.keys, stream._cache.values)
        at_rest = mx.get_active_memory()
        mx.reset_peak_memory()
        stream.rewind(9)
        stream.feed([TIME_SHIFT + 20])
        read(stream, 10)
        mx.eval(stream._cache.keys, stream._cache.values)
        return mx.get_peak_memory() - at_rest

    # twelve states of the grammar and what a step needs; a copy is two layers at once
    assert max(peak() for _ in range(9)) < stream._cache.keys[0].nbytes


def test_a_storm_needs_no_more_memory() -> None:
    stream = EventGenerator(model_of(), GUIDED, 1)
    rng = np.random.default_rng(0)

    def storm() -> None:
        for _ in range(30):
            read(stream, int(rng.integers(1, 12)))
            stream.rewind(int(rng.integers(0, min(9, stream.rewindable + 1))))
            stream.set_emotion(HAPPY if rng.integers(2) else SAD)
            stream.feed(TUNE[: int(rng.integers(0, 8))])
        mx.eval(stream._cache.keys, stream._cache.values, stream._state)

    storm()
    before = mx.get_active_memory()
    for _ in range(3):
        storm()
    assert mx.get_active_memory() <= before + 64 * 1024
