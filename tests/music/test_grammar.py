from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import (
    NOTE_OFF,
    PAD_TOKEN,
    START_TOKEN,
    TIME_SHIFT,
    VELOCITY,
    VOCABULARY_SIZE,
    encode,
    first_violation,
)
from kmidi_mlx.music.grammar import Limits
from kmidi_mlx.music.notes import Notes

TABLE = grammar.tables()
seeds = st.integers(0, 2**31)


@st.composite
def all_limits(draw: st.DrawFn) -> Limits:
    """Limits within what `limits_of` gives, the narrow ones often."""
    lowest = draw(st.integers(0, 127))
    highest = draw(st.just(lowest) | st.integers(lowest, min(127, lowest + 3)) | st.just(127))
    width = highest - lowest + 1
    return Limits(
        max_polyphony=draw(st.just(1) | st.integers(1, min(width, 4)) | st.just(width)),
        max_note_steps=draw(st.integers(1, 5) | st.integers(1, 1000)),
        max_rest_steps=draw(st.integers(1, 5) | st.integers(1, 1000)),
        lowest_pitch=lowest,
        highest_pitch=highest,
    )


class SlowGrammar:
    """The law in plain words: what sounds since when, and four rules."""

    def __init__(self) -> None:
        self.now = 0
        self.struck_at: dict[int, int] = {}
        self.velocity: int | None = None
        self.previous: int | None = None
        self.last_change = 0
        self.struck_count = 0
        self.strikes: list[tuple[int, int]] = []

    def allowed(self, limits: Limits) -> set[int]:
        room_for_a_note = len(self.struck_at) < limits.max_polyphony
        notes = {
            pitch
            for pitch in range(limits.lowest_pitch, limits.highest_pitch + 1)
            if room_for_a_note and pitch not in self.struck_at and self.velocity is not None
        }
        if self.previous is not None and self.previous >= VELOCITY:
            return notes
        ends = {p + NOTE_OFF for p, struck in self.struck_at.items() if struck < self.now}
        velocities = {VELOCITY + v for v in range(32) if room_for_a_note and v != self.velocity}
        shifts = set()
        if self.previous is None or not TIME_SHIFT <= self.previous < TIME_SHIFT + 99:
            for steps in range(1, 101):
                later = self.now + steps
                if self.struck_at:
                    fits = later - min(self.struck_at.values()) <= limits.max_note_steps
                else:
                    fits = later - self.last_change <= limits.max_rest_steps
                if fits:
                    shifts.add(TIME_SHIFT + steps - 1)
        return notes | ends | velocities | shifts

    def apply(self, event: int) -> None:
        self.previous = event
        if event < NOTE_OFF:
            self.struck_at[event] = self.last_change = self.now
            self.strikes.append((self.struck_count, event))
            self.struck_count += 1
        elif event < TIME_SHIFT:
            del self.struck_at[event - NOTE_OFF]
            self.last_change = self.now
        elif event < VELOCITY:
            self.now += event - TIME_SHIFT + 1
        else:
            self.velocity = event - VELOCITY

    def state(self) -> NDArray[np.float64]:
        expected = np.zeros((6, VOCABULARY_SIZE))
        expected[grammar.AGE] = -1
        for pitch, struck in self.struck_at.items():
            expected[grammar.AGE, [pitch, pitch + NOTE_OFF]] = self.now - struck
        expected[grammar.SOUNDING] = len(self.struck_at)
        expected[grammar.VELOCITY_BIN] = -1 if self.velocity is None else self.velocity
        if self.previous is not None:
            if self.previous >= VELOCITY:
                expected[grammar.PHASE] = grammar.AFTER_VELOCITY
            elif TIME_SHIFT <= self.previous < TIME_SHIFT + 99:
                expected[grammar.PHASE] = grammar.AFTER_SHORT_SHIFT
        expected[grammar.REST] = self.now - self.last_change
        for index, pitch in self.strikes:
            age = self.struck_count - 1 - index
            expected[grammar.RECENT, pitch] += 0.5 ** (age / 16)
        return expected


def allowed(state: NDArray[np.float32], limits: Limits) -> NDArray[np.int64]:
    return np.flatnonzero(grammar.allowed(state, limits, TABLE, np)[0])


def advance(state: NDArray[np.float32], event: int) -> NDArray[np.float32]:
    return grammar.advance(state, np.array([event]), TABLE, np)


def pick(rng: np.random.Generator, events: NDArray[np.int64]) -> int:
    """An event of a random kind, so that walks strike, end, wait and reach the limits."""
    kind = np.digitize(events, [NOTE_OFF, TIME_SHIFT, VELOCITY])
    events = events[kind == rng.choice(np.unique(kind))]
    # the longest shift and the first and last of anything lead into the corners
    return int(rng.choice([events[0], events[-1], rng.choice(events)]))


def walk(rng: np.random.Generator, limits: Limits, count: int) -> tuple[list[int], SlowGrammar]:
    """Allowed events drawn at random, with the slow account of where they led."""
    events, state, slow = [], grammar.initial_state(), SlowGrammar()
    while len(events) < count or events[-1] >= VELOCITY:
        event = pick(rng, allowed(state, limits))
        state = advance(state, event)
        slow.apply(event)
        events.append(event)
    return events, slow


@settings(max_examples=40, deadline=None)
@given(seeds, all_limits())
def test_the_law_equals_the_slow_law(seed: int, limits: Limits) -> None:
    rng, state, slow = np.random.default_rng(seed), grammar.initial_state(), SlowGrammar()
    for _ in range(80):
        may_come = allowed(state, limits)
        assert set(may_come.tolist()) == slow.allowed(limits)
        assert len(may_come), "dead end"
        event = pick(rng, may_come)
        state = advance(state, event)
        slow.apply(event)
        expected = slow.state()
        exact = slice(0, grammar.RECENT)
        np.testing.assert_array_equal(state[exact], expected[exact])
        np.testing.assert_allclose(state[grammar.RECENT], expected[grammar.RECENT], atol=1e-4)


@mx.compile
def allowed_mlx(state: mx.array, limits: mx.array, table: list[mx.array]) -> mx.array:
    scalars = Limits(*(limits[i : i + 1] for i in range(5)))
    return grammar.allowed(state, scalars, grammar.Tables(*table), mx)


@mx.compile
def advance_mlx(state: mx.array, event: mx.array, table: list[mx.array]) -> mx.array:
    return grammar.advance(state, event, grammar.Tables(*table), mx)


@settings(max_examples=15, deadline=None)
@given(seeds, all_limits())
def test_mlx_equals_numpy(seed: int, limits: Limits) -> None:
    rng, state = np.random.default_rng(seed), grammar.initial_state()
    table = [mx.array(part) for part in TABLE]
    scalars = mx.array(limits, dtype=mx.float32)
    fast = mx.array(state)
    for _ in range(60):
        mask = grammar.allowed(state, limits, TABLE, np)
        np.testing.assert_array_equal(np.array(allowed_mlx(fast, scalars, table)), mask)
        event = pick(rng, np.flatnonzero(mask[0]))
        state = advance(state, event)
        fast = advance_mlx(fast, mx.array([event], dtype=mx.int32), table)
        exact = slice(0, grammar.RECENT)
        np.testing.assert_array_equal(np.array(fast)[exact], state[exact])
        np.testing.assert_allclose(np.array(fast), state, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, all_limits(), st.integers(1, 120))
def test_whatever_is_allowed_is_valid_music(seed: int, limits: Limits, count: int) -> None:
    events, slow = walk(np.random.default_rng(seed), limits, count)
    state = grammar.initial_state()
    for event in events:
        state = advance(state, event)

    def write(event: int) -> None:
        nonlocal state
        assert event in allowed(state, limits)  # closing a piece is always allowed too
        state = advance(state, event)
        slow.apply(event)
        events.append(event)

    def end_all() -> None:
        for pitch in [p for p, struck in slow.struck_at.items() if struck < slow.now]:
            write(pitch + NOTE_OFF)

    end_all()
    if slow.struck_at:
        write(TIME_SHIFT)
        end_all()
    while events and events[-1] >= TIME_SHIFT:
        events.pop()
    assert first_violation(events) is None
    assert not slow.struck_at


@settings(max_examples=40, deadline=None)
@given(seeds, all_limits(), all_limits())
def test_new_limits_never_lead_into_a_dead_end(seed: int, first: Limits, second: Limits) -> None:
    # except right after a velocity, whose note the first limits have to grant
    rng = np.random.default_rng(seed)
    events, _ = walk(rng, first, 40)
    state = grammar.initial_state()
    for event in events:
        state = advance(state, event)
    for _ in range(40):
        may_come = allowed(state, second)
        assert len(may_come)
        state = advance(state, pick(rng, may_come))


def tight_limits(events: NDArray[np.uint16]) -> Limits:
    """The narrowest limits that a piece keeps."""
    slow, polyphony, longest_note, longest_rest = SlowGrammar(), 1, 1, 1
    for event in events.tolist():
        silent, since = not slow.struck_at, slow.last_change
        struck = dict(slow.struck_at)
        slow.apply(event)
        polyphony = max(polyphony, len(slow.struck_at))
        if NOTE_OFF <= event < TIME_SHIFT:
            longest_note = max(longest_note, slow.now - struck[event - NOTE_OFF])
        elif event < NOTE_OFF and silent:
            longest_rest = max(longest_rest, slow.now - since)
    pitches = events[events < NOTE_OFF]
    return Limits(polyphony, longest_note, longest_rest, int(pitches.min()), int(pitches.max()))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 40), st.sampled_from([0.3, 3.0, 30.0]))
def test_no_canonical_piece_is_forbidden(seed: int, count: int, seconds: float) -> None:
    rng = np.random.default_rng(seed)
    onset = rng.uniform(0, seconds, count)
    notes = Notes.build(
        rng.integers(60, 60 + rng.integers(1, 12), count),
        rng.integers(1, 128, count),
        onset,
        onset + rng.uniform(0.001, 3.0, count),
    )
    events = encode(notes)
    limits = tight_limits(events)
    state = grammar.initial_state()
    for index, event in enumerate(events.tolist()):
        mask = grammar.allowed(state, limits, TABLE, np)[0]
        assert mask[event], f"event {index} of {events.tolist()} under {limits}"
        state = advance(state, event)
    # one step or note less would forbid some of it
    for field in ("max_polyphony", "max_note_steps", "max_rest_steps"):
        value = getattr(limits, field)
        if value > 1:
            narrower = limits._replace(**{field: value - 1})
            assert breaks(events, narrower), field


def breaks(events: NDArray[np.uint16], limits: Limits) -> bool:
    state = grammar.initial_state()
    for event in events.tolist():
        if not grammar.allowed(state, limits, TABLE, np)[0, event]:
            return True
        state = advance(state, event)
    return False


@pytest.mark.parametrize("event", [START_TOKEN, PAD_TOKEN])
def test_input_only_ids_change_nothing(event: int) -> None:
    events, _ = walk(np.random.default_rng(0), Limits(4, 100, 100, 60, 72), 30)
    state = grammar.initial_state()
    for past in [*events, VELOCITY + 3 if events[-1] < VELOCITY else 60]:
        state = advance(state, past)
    np.testing.assert_array_equal(advance(state, event), state)


def test_the_first_event_is_a_velocity_or_a_rest() -> None:
    limits = grammar.limits_of(SamplingConfig(max_rest_seconds=0.5))
    first = allowed(grammar.initial_state(), limits)
    assert first.tolist() == [*range(TIME_SHIFT, TIME_SHIFT + 50), *range(VELOCITY, 388)]


def test_limits_come_from_the_sampling_settings() -> None:
    config = SamplingConfig(
        max_polyphony=8, max_note_seconds=1.25, max_rest_seconds=0.5, lowest_pitch=40
    )
    assert grammar.limits_of(config) == Limits(8, 125, 50, 40, 108)
    narrow = SamplingConfig(max_polyphony=8, lowest_pitch=60, highest_pitch=62)
    assert grammar.limits_of(narrow).max_polyphony == 3


def test_hours_of_music_stay_exact() -> None:
    # ages and rests are bounded by the limits, so float32 never loses a step
    limits, state = Limits(2, 6000, 6000, 60, 61), grammar.initial_state()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        state = advance(state, pick(rng, allowed(state, limits)))
        assert state[: grammar.RECENT].max() <= 6000
        assert state[grammar.RECENT].max() < 1 / (1 - 0.5 ** (1 / 16))
    assert state.dtype == np.float32
