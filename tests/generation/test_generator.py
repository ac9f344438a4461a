from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from kmidi_mlx import emotion as em
from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation import sampler
from kmidi_mlx.generation.generator import EventGenerator, compiled_step, generate
from kmidi_mlx.models import kv_cache
from kmidi_mlx.models.kv_cache import KVCache
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import (
    NOTE_OFF,
    PAD_TOKEN,
    START_TOKEN,
    TIME_SHIFT,
    VELOCITY,
    VOCABULARY_SIZE,
    decode,
    encode,
    first_violation,
)
from kmidi_mlx.music.knobs import gumbel_noise, pack, unpack
from kmidi_mlx.music.notes import Notes

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=2,
    ffn_dim=96,
    context_length=32,
    cross_attention_layers=(0,),
)
TABLE = grammar.tables()
HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
LIVELY = SamplingConfig(temperature=1.0, top_k=0, top_p=1.0)
GREEDY = SamplingConfig(temperature=0.0)
TIGHT = SamplingConfig(
    temperature=1.2,
    top_k=0,
    top_p=1.0,
    max_polyphony=3,
    max_note_seconds=0.7,
    max_rest_seconds=0.2,
    lowest_pitch=50,
    highest_pitch=70,
)


@cache
def model_of(seed: int = 0, scale: float = 10.0) -> EmotionMIDITransformer:
    """Random weights; at 10 times their size the model has strong and odd opinions."""
    model = EmotionMIDITransformer(TINY)
    model.initialise(seed)
    model.load_weights(
        [
            (name, value * scale if value.ndim == 2 else value)
            for name, value in tree_flatten(model.parameters())
        ]
    )
    mx.eval(model.parameters())
    return model


def read(stream: EventGenerator, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


def piece(seed: int, count: int = 20) -> np.ndarray:
    """Canonical events of random notes between pitch 55 and 65."""
    rng = np.random.default_rng(seed)
    onset = rng.uniform(0, 3, count)
    length = rng.uniform(0.05, 0.5, count)
    velocity = rng.integers(1, 128, count)
    events = encode(Notes.build(rng.integers(55, 66, count), velocity, onset, onset + length))
    return encode(decode(events))  # on the grid, notes of one step stand in the order of pitch


class PlainLoop:
    """The generator without its tricks: nothing compiled, nothing ahead, grammar in numpy."""

    def __init__(
        self,
        model: EmotionMIDITransformer,
        sampling: SamplingConfig,
        seed: int,
        emotion: Emotion | None,
        harmony: tuple[int, int] = (0, 0),
    ) -> None:
        self.model, self.sampling = model, sampling
        self.rows = 1 if sampling.guidance_scale == 1 else 2
        self.cache = KVCache(model.config, self.rows)
        self.rng = np.random.default_rng(seed)
        self.state, self.last = grammar.initial_state(), START_TOKEN
        self.emotion, self.harmony = emotion, harmony

    def next_event(self) -> int:
        conditions = Conditions(
            mx.array(np.stack([em.encode(self.emotion), em.UNCONDITIONAL])[: self.rows]),
            mx.array([[self.harmony[0]], [0]][: self.rows]),
            mx.array([self.harmony[1], 0][: self.rows]),
        )
        cross = self.model.cross_keys_values(conditions)
        logits = self.model.extend(mx.array([[self.last]] * self.rows), self.cache, cross)[:, 0]
        noise = gumbel_noise(self.rng, 1)[0]
        self.last = sampler.draw(
            logits,
            mx.array(noise if self.sampling.temperature > 0 else np.zeros_like(noise)),
            mx.array(self.state),
            unpack(mx.array(pack(self.sampling))),
            grammar.Tables(*(mx.array(part) for part in TABLE)),
        ).item()
        self.state = grammar.advance(self.state, np.array([self.last]), TABLE, np)
        return self.last


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("capacity_step", [8, 256])
def test_the_stream_equals_the_plain_loop_past_the_ring(
    monkeypatch: pytest.MonkeyPatch, capacity_step: int, guidance_scale: float
) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", capacity_step)
    sampling = SamplingConfig(temperature=1.0, top_p=0.95, guidance_scale=guidance_scale)
    stream = EventGenerator(model_of(), sampling, 3, HAPPY, chord=5, key=2)
    plain = PlainLoop(model_of(), sampling, 3, HAPPY, (5, 2))
    expected = [plain.next_event() for _ in range(150)]  # the ring holds 32
    assert read(stream, 150) == expected
    assert len(set(expected)) > 30


def test_a_change_is_heard_two_events_later() -> None:
    stream = EventGenerator(model_of(), LIVELY, 4, HAPPY)
    plain = PlainLoop(model_of(), LIVELY, 4, HAPPY)
    changes: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (lambda: stream.set_emotion(SAD), lambda: setattr(plain, "emotion", SAD)),
        (lambda: stream.set_harmony(7, 3), lambda: setattr(plain, "harmony", (7, 3))),
        (lambda: stream.set_sampling(TIGHT), lambda: setattr(plain, "sampling", TIGHT)),
        (lambda: stream.set_emotion(None), lambda: setattr(plain, "emotion", None)),
    ]
    heard: list[int] = []
    expected: list[int] = []
    for change, change_plainly in changes:
        heard += read(stream, 25)
        change()
        expected += [plain.next_event() for _ in range(len(heard) + 1 - len(expected))]
        change_plainly()
    heard += read(stream, 25)
    expected += [plain.next_event() for _ in range(len(heard) - len(expected))]
    assert heard == expected


def test_every_condition_changes_the_music() -> None:
    def events(*arguments: object) -> tuple[int, ...]:
        return tuple(read(EventGenerator(model_of(), LIVELY, 5, *arguments), 60))  # type: ignore[arg-type]

    heard = [events(None), events(Emotion.of(0.0, 0.0)), events(HAPPY), events(SAD)]
    heard += [events(HAPPY, 5, 0), events(HAPPY, 0, 5)]
    assert len(set(heard)) == len(heard)


def test_guidance_switched_on_and_off_continues_like_a_fresh_stream() -> None:
    guided = SamplingConfig(temperature=0.0, guidance_scale=3.0)
    for before, after in ((GREEDY, guided), (guided, GREEDY)):
        stream = EventGenerator(model_of(), before, 0, SAD)
        past = read(stream, 14)
        stream.set_sampling(after)
        past += read(stream, 1)  # was drawn before the change
        assert past[-1] < VELOCITY
        fresh = EventGenerator(model_of(), after, 0, SAD, prompt=past)
        assert read(stream, 12) == read(fresh, 12)
        # past the ring both go on
        assert len(read(stream, 60)) == 60


def test_guidance_before_the_first_event_equals_guidance_from_the_start() -> None:
    guided = SamplingConfig(temperature=1.0, guidance_scale=2.0)
    stream = EventGenerator(model_of(), LIVELY, 8, HAPPY)
    stream.set_sampling(guided)
    assert read(stream, 40) == read(EventGenerator(model_of(), guided, 8, HAPPY), 40)


@pytest.mark.parametrize(
    ("scale", "seconds"),
    [(1.0, 5.0), (10.0, 5.0), (100.0, 5.0), (1e20, 0.1)],  # the last overflows to NaN
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_weights_can_write_invalid_music(scale: float, seconds: float, seed: int) -> None:
    for sampling in (SamplingConfig(), TIGHT, SamplingConfig(guidance_scale=4.0)):
        events = generate(model_of(seed, scale), sampling, seconds, seed=seed, emotion=SAD)
        assert events.dtype == np.uint16
        assert first_violation(events) is None
        assert decode(events).duration_seconds <= seconds + 1e-9


def test_broken_weights_still_write_valid_music() -> None:
    model = EmotionMIDITransformer(TINY)
    model.load_weights(
        [(name, mx.full(value.shape, np.nan)) for name, value in tree_flatten(model.parameters())]
    )
    events = generate(model, LIVELY, 0.1)
    assert len(events) > 10
    assert first_violation(events) is None


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0, 7.53])
def test_a_piece_has_the_length_asked_for(seconds: float) -> None:
    restless = SamplingConfig(temperature=1.0, top_p=1.0, max_rest_seconds=0.01)
    for seed in range(3):
        events = generate(model_of(seed), restless, seconds, seed=seed)
        length = decode(events).duration_seconds
        # a rest of one step at the very end is no event
        assert seconds - 0.0101 <= length <= seconds + 1e-9
    assert decode(generate(model_of(), LIVELY, seconds)).duration_seconds <= seconds + 1e-9


def test_the_limits_hold() -> None:
    for seed in range(4):
        notes = decode(generate(model_of(seed), TIGHT, 12.0, seed=seed))
        assert len(notes) > 20
        assert 50 <= notes.pitch.min() <= notes.pitch.max() <= 70
        assert (notes.offset_seconds - notes.onset_seconds).max() <= 0.7 + 1e-9
        sounding = (notes.onset_seconds <= notes.onset_seconds[:, None]) & (
            notes.offset_seconds > notes.onset_seconds[:, None] + 1e-9
        )
        assert sounding.sum(axis=1).max() <= 3
        latest_end = np.maximum.accumulate(notes.offset_seconds)
        rests = notes.onset_seconds[1:] - latest_end[:-1]
        assert max(rests.max(initial=0.0), notes.onset_seconds[0]) <= 0.2 + 1e-9


def test_the_seed_decides() -> None:
    first = generate(model_of(), LIVELY, 5.0, seed=1, emotion=HAPPY)
    np.testing.assert_array_equal(first, generate(model_of(), LIVELY, 5.0, seed=1, emotion=HAPPY))
    other = generate(model_of(), LIVELY, 5.0, seed=2, emotion=HAPPY)
    assert not np.array_equal(first, other)
    greedy = [generate(model_of(), GREEDY, 2.0, seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*greedy)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(1, 80))
def test_a_prompt_is_kept_and_continued(seed: int, count: int) -> None:
    prompt = piece(seed, count)
    events = generate(model_of(), LIVELY, 2.0, seed=seed, prompt=prompt)
    np.testing.assert_array_equal(events[: len(prompt)], prompt)
    assert len(events) > len(prompt)
    assert first_violation(events) is None
    end = decode(prompt).duration_seconds
    assert decode(events).duration_seconds <= end + 2.0 + 1e-9


def test_only_the_last_context_of_a_prompt_is_read() -> None:
    tail = piece(1, 40)[-60:]
    # the laws of music remember more than the model: pitch, velocity and time are given anew
    settled = [VELOCITY + 9, 60, TIME_SHIFT + 4, 60 + NOTE_OFF]
    long = [*piece(2, 60), *settled, *([TIME_SHIFT + 99] * 40)]
    other = [*piece(3, 60), *settled, *([TIME_SHIFT + 99] * 40)]
    sampling = SamplingConfig(temperature=1.0, max_rest_seconds=60.0)
    assert long[:50] != other[:50]
    assert len(tail) > TINY.context_length
    streams = [EventGenerator(model_of(), sampling, 1, prompt=given) for given in (long, other)]
    assert read(streams[0], 40) == read(streams[1], 40)


def test_a_prompt_equals_having_written_it() -> None:
    written = read(EventGenerator(model_of(), GREEDY, 0, HAPPY), 25)
    for cut in (1, 7, 20):
        if written[cut - 1] < VELOCITY:
            stream = EventGenerator(model_of(), GREEDY, 0, HAPPY, prompt=written[:cut])
            assert read(stream, 25 - cut) == written[cut:]


@pytest.mark.parametrize("event", [-1, START_TOKEN, PAD_TOKEN, 70000])
def test_a_prompt_outside_the_vocabulary_is_refused(event: int) -> None:
    with pytest.raises(
        KmidiError, match=rf"event 2 of the prompt is {event}; ids go from 0 to 387"
    ):
        EventGenerator(model_of(), LIVELY, prompt=[VELOCITY + 3, 60, event])


ODD_PROMPTS = {
    "ends in velocities": [VELOCITY + 3, 60, VELOCITY + 4, VELOCITY + 5],
    "only a velocity": [VELOCITY + 3],
    "notes out of range": [VELOCITY + 3, 1, 2, 3, 126, 127],
    "more notes than allowed": [VELOCITY + 3, *range(50, 70)],
    "older notes than allowed": [VELOCITY + 3, 60, 61, *([TIME_SHIFT + 99] * 15)],
    "longer rest than allowed": [TIME_SHIFT + 99] * 40,
    "ends notes never struck": [60 + NOTE_OFF, 61 + NOTE_OFF, 62 + NOTE_OFF, TIME_SHIFT + 3],
    "strikes without a velocity": [60, 62, TIME_SHIFT + 3, 62 + NOTE_OFF],
    "strikes a sounding pitch": [VELOCITY + 3, 60, TIME_SHIFT + 3, 60, TIME_SHIFT + 3],
}


@pytest.mark.parametrize("name", ODD_PROMPTS)
@pytest.mark.parametrize("sampling", [TIGHT, SamplingConfig(lowest_pitch=60, highest_pitch=60)])
def test_odd_prompts_are_continued_lawfully(name: str, sampling: SamplingConfig) -> None:
    prompt = ODD_PROMPTS[name]
    stream, limits = EventGenerator(model_of(), sampling, 6, prompt=prompt), None
    limits = grammar.limits_of(sampling)
    kept = list(prompt)
    while kept and kept[-1] >= VELOCITY:
        kept.pop()
    state = grammar.initial_state()
    for event in kept:
        state = grammar.advance(state, np.array([event]), TABLE, np)
    # what really sounds, whatever the prompt claimed
    state[grammar.SOUNDING] = (state[grammar.AGE, :NOTE_OFF] >= 0).sum()
    for event in read(stream, 80):
        assert grammar.allowed(state, limits, TABLE, np)[0, event]
        state = grammar.advance(state, np.array([event]), TABLE, np)
    assert state[grammar.SOUNDING, 0] == (state[grammar.AGE, :NOTE_OFF] >= 0).sum()


@pytest.mark.parametrize("seed", range(5))
def test_changing_limits_never_breaks_the_music(seed: int) -> None:
    # every change may take away the only note that a drawn velocity could have had
    rng = np.random.default_rng(seed)
    stream, events = EventGenerator(model_of(seed), LIVELY, seed), []
    for _ in range(120):
        events.append(stream.next_event())
        for _ in range(rng.integers(0, 3)):
            pitch = int(rng.integers(0, 128))
            stream.set_sampling(
                SamplingConfig(
                    temperature=float(rng.choice([0.0, 1.0, 3.0])),
                    top_k=0,
                    max_polyphony=int(rng.integers(1, 4)),
                    max_note_seconds=float(rng.choice([0.05, 1.0])),
                    max_rest_seconds=float(rng.choice([0.01, 1.0])),
                    lowest_pitch=pitch,
                    highest_pitch=min(127, pitch + int(rng.integers(0, 3))),
                )
            )
    assert without_loose_end([*events, *stream.finish()]) is None


def without_loose_end(events: list[int]) -> str | None:
    """First violation of a finished stream, but for a velocity or rest that leads to nothing."""
    ends = [event for event in events if event < NOTE_OFF + 128]
    last_note = max((i for i, e in enumerate(events) if e < TIME_SHIFT), default=-1)
    kept = events[: last_note + 1]
    cleaned = [e for i, e in enumerate(kept) if e < VELOCITY or kept[i + 1] < NOTE_OFF]
    assert len(kept) - len(cleaned) <= 1
    assert len(ends) == sum(e < TIME_SHIFT for e in cleaned)
    return first_violation(cleaned)


def test_finish_ends_all_that_sounds_and_nothing_else() -> None:
    for count in (1, 2, 5, 17, 40, 90):
        stream = EventGenerator(model_of(1), TIGHT, 7)
        events = read(stream, count)
        steps = stream.steps
        closing = stream.finish()
        struck = sum(e < NOTE_OFF for e in events) - sum(NOTE_OFF <= e < TIME_SHIFT for e in events)
        assert sum(NOTE_OFF <= e < TIME_SHIFT for e in closing) == struck
        assert stream.steps - steps <= 1
        assert without_loose_end(events + closing) is None
        assert stream.finish() == []
        before, after = decode(events), decode(events + closing)
        np.testing.assert_array_equal(before.pitch, after.pitch)


def test_time_counts_what_was_read() -> None:
    prompt = piece(4)
    stream = EventGenerator(model_of(), LIVELY, 0, prompt=prompt)
    events = list(prompt)
    for _ in range(40):
        events.append(stream.next_event())
        shifts = [e - TIME_SHIFT + 1 for e in map(int, events) if TIME_SHIFT <= e < VELOCITY]
        assert stream.steps == sum(shifts)
        assert stream.seconds == sum(shifts) / 100


def test_iterating_is_reading() -> None:
    stream = EventGenerator(model_of(), LIVELY, 9)
    iterated = [event for event, _ in zip(stream, range(20), strict=False)]
    assert iterated == read(EventGenerator(model_of(), LIVELY, 9), 20)


def test_half_precision_writes_music() -> None:
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    model.set_dtype(mx.float16)
    assert EventGenerator(model, LIVELY)._cache.keys[0].dtype == mx.float16
    assert first_violation(generate(model, LIVELY, 0.3, emotion=HAPPY)) is None


def test_the_ring_goes_with_its_reader() -> None:
    stream = EventGenerator(model_of(), LIVELY)
    read(stream, 3)
    gone = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert gone() is None
    finally:
        gc.enable()


def test_an_event_is_one_of_the_vocabulary() -> None:
    assert set(read(EventGenerator(model_of(2), LIVELY, 2), 200)) <= set(range(VOCABULARY_SIZE))


# --- steps that several generators share ---------------------------------------------------------


def test_a_shared_step_writes_what_ones_own_writes() -> None:
    model = model_of()
    step = compiled_step(model)
    guided = SamplingConfig(temperature=1.0, guidance_scale=2.0)
    alone = [
        read(EventGenerator(model, sampling, seed, HAPPY), 60)
        for sampling, seed in ((LIVELY, 1), (guided, 2), (TIGHT, 3))
    ]
    streams = [
        EventGenerator(model, sampling, seed, HAPPY, step=step)
        for sampling, seed in ((LIVELY, 1), (guided, 2), (TIGHT, 3))
    ]
    # in turns, as the live music and a piece beside it
    together: list[list[int]] = [[], [], []]
    for _ in range(60):
        for stream, events in zip(streams, together, strict=True):
            events.append(stream.next_event())
    assert together == alone
    assert alone[0] != alone[1]


def test_a_shared_step_keeps_no_generator_alive() -> None:
    step = compiled_step(model_of())
    stream = EventGenerator(model_of(), LIVELY, step=step)
    read(stream, 5)
    gone = weakref.ref(stream)
    del stream
    assert gone() is None
