"""Taking events back and giving events to read, over an engine whose model says nothing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from dice import Dice
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion, encode
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import REWINDABLE, SINGLE_STEPS, Steering
from kmidi_mlx.music.events import NOTE_OFF, START_TOKEN, TIME_SHIFT, VELOCITY, first_violation

TABLE = grammar.tables()
FREE, GUIDED = SamplingConfig(), SamplingConfig(guidance_scale=2.0)
HAPPY, SAD = Emotion.of(0.8, 0.5), Emotion.of(-0.7, -0.4)
SCALE = [
    event
    for pitch in range(60, 66)
    for event in (VELOCITY + pitch % 7, pitch, TIME_SHIFT + 9, NOTE_OFF + pitch)
]


def read(stream: Dice, count: int) -> list[int]:
    return [stream.next_event() for _ in range(count)]


def without_velocities_at_the_end(events: list[int]) -> list[int]:
    while events and events[-1] >= VELOCITY:
        events = events[:-1]
    return events


def state_after(events: list[int]) -> np.ndarray:
    state = grammar.initial_state()
    for event in events:
        state = grammar.advance(state, np.array([event]), TABLE, np)
    return state


@pytest.mark.parametrize("count", [0, 1, 2, 7, 30, 90])
def test_what_is_taken_back_comes_again(count: int) -> None:
    stream, other = Dice(512, FREE, 3), Dice(512, FREE, 3)
    events = read(stream, 90)
    taken = stream.rewind(count)
    kept = without_velocities_at_the_end(events[: 90 - count])
    assert taken == events[len(kept) :]
    assert stream.rewindable == len(kept)
    # as if they had never been written
    assert read(other, len(kept)) == kept
    assert (stream.steps, stream.struck) == (other.steps, other.struck)
    assert read(stream, 150) == read(other, 150)
    assert stream.model_read == other.model_read


def test_no_more_than_is_kept_can_be_taken_back() -> None:
    stream = Dice(2048, FREE, 1)
    assert stream.rewindable == 0
    assert stream.rewind(0) == []
    read(stream, 20)
    for count in (-1, 21):
        with pytest.raises(KmidiError, match=f"take back {count} events; 20 can"):
            stream.rewind(count)
    read(stream, REWINDABLE + 100)
    assert REWINDABLE - 1 <= stream.rewindable <= REWINDABLE
    assert len(stream._moments) == REWINDABLE + 1
    stream.rewind(stream.rewindable)
    assert stream.rewindable == 0
    assert len(stream._noise) < REWINDABLE + 200
    read(stream, 5)
    short = Dice(16, FREE, 1)
    read(short, 100)
    assert 14 <= short.rewindable <= 15
    short.rewind(short.rewindable)
    assert len(short._history) == 1
    read(short, 50)


def test_a_prompt_can_be_taken_back_too() -> None:
    stream = Dice(64, FREE, prompt=SCALE)
    read(stream, 3)
    assert stream.rewind(3 + 5)[:5] == SCALE[-5:]
    assert stream.steps == 50
    assert stream.struck == {64: 40}
    assert stream.model_read == [START_TOKEN, *SCALE[:-6]]


def test_conditions_come_back_and_sampling_stays() -> None:
    stream = Dice(64, FREE, 1, HAPPY, chord=3, key=4)
    read(stream, 10)
    stream.set_emotion(SAD)
    read(stream, 10)
    stream.set_harmony(5, 6)
    stream.set_sampling(GUIDED)
    read(stream, 10)
    assert stream.steering == Steering(SAD, 5, 6)
    stream.told("condition")
    stream.rewind(0)
    assert stream.steering == Steering(SAD, 5, 6)
    stream.rewind(10)  # to after the change, which was made before what is taken back
    assert stream.steering == Steering(SAD, 5, 6)
    stream.rewind(1)
    assert stream.steering == Steering(SAD, 3, 4)
    stream.rewind(stream.rewindable)
    assert stream.steering == Steering(HAPPY, 3, 4)
    assert stream.told("condition") == []
    read(stream, 2)
    ((emotion, chords, _),) = stream.told("condition")
    np.testing.assert_array_equal(emotion, [encode(HAPPY), np.zeros(64)])
    assert chords.tolist() == [[3], [0]]


@pytest.mark.parametrize("count", [1, SINGLE_STEPS, SINGLE_STEPS + 1, 24])
def test_given_events_are_read_as_if_written(count: int) -> None:
    stream = Dice(64, FREE, 5)
    events = without_velocities_at_the_end(read(stream, 12))
    stream.rewind(12 - len(events))
    stream.feed(SCALE[:count])
    given = without_velocities_at_the_end(SCALE[:count])
    assert list(stream._history) == [START_TOKEN, *events, *given]
    following = read(stream, 8)
    assert stream.model_read == [START_TOKEN, *events, *given, *following]
    chunks = stream.told("read")
    assert bool(chunks) == (len(given) > SINGLE_STEPS)


def test_more_than_the_context_can_be_given() -> None:
    stream = Dice(32, FREE, 5)
    read(stream, 5)
    stream.feed(SCALE * 3)
    following = read(stream, 3)
    assert stream.model_read == [*(SCALE * 3)[-32:], *following]
    assert stream.steps >= 180


def test_giving_nothing_or_a_lone_velocity_changes_nothing() -> None:
    stream, other = Dice(64, FREE, 5), Dice(64, FREE, 5)
    for _ in range(20):
        stream.feed([])
        stream.feed([VELOCITY + 3])
        assert read(stream, 1) == read(other, 1)
    with pytest.raises(KmidiError, match="event 1 of those to read is 388; ids go from 0 to 387"):
        stream.feed([60, START_TOKEN])
    assert read(stream, 9) == read(other, 9)


def test_a_new_seed_draws_other_noise_at_once() -> None:
    stream = Dice(64, FREE, 5)
    kept = without_velocities_at_the_end(read(stream, 40))
    stream.rewind(40 - len(kept))
    stream.set_seed(9)
    fresh = Dice(64, FREE, 9)
    read(stream, 30), read(fresh, 30)
    np.testing.assert_array_equal(stream.noises[-31:], fresh.noises)


def without_loose_end(events: list[int]) -> list[int]:
    """Without velocities that lead to no note, and time at the end."""
    kept = [e for e, after in pairwise([*events, TIME_SHIFT]) if e < VELOCITY or after < NOTE_OFF]
    while kept and kept[-1] >= TIME_SHIFT:
        kept.pop()
    return kept


class Storm(RuleBasedStateMachine):
    """Everything that can be asked of a stream, against the list of events that are kept."""

    @staticmethod
    def limits(pitch: int, span: int, voices: int) -> SamplingConfig:
        return SamplingConfig(
            max_polyphony=voices,
            max_note_seconds=0.3 * voices,
            lowest_pitch=pitch,
            highest_pitch=pitch + span,
            guidance_scale=1.0 + voices % 2,
        )

    def __init__(self) -> None:
        super().__init__()
        self.stream = Dice(40, FREE, 7)
        self.kept: list[int] = []
        self.past_limits = 0

    def drop(self, count: int) -> None:
        kept = without_velocities_at_the_end(self.kept[: len(self.kept) - count])
        assert self.stream.rewind(count) == self.kept[len(kept) :]
        self.kept = kept

    @rule(count=st.integers(1, 50))
    def read(self, count: int) -> None:
        for _ in range(count):
            event = self.stream.next_event()
            assert 0 <= event < VELOCITY + 32
            self.kept.append(event)

    @rule(share=st.floats(0, 1))
    def rewind(self, share: float) -> None:
        self.drop(round(share * self.stream.rewindable))

    @rule(share=st.floats(0, 1))
    def give_back_what_was_taken(self, share: float) -> None:
        self.drop(0)
        before = list(self.kept), self.stream.steps, self.stream.struck, self.stream.rewindable
        taken = self.stream.rewind(round(share * self.stream.rewindable))
        self.stream.feed(taken)
        assert (before[1], before[2]) == (self.stream.steps, self.stream.struck)
        assert before[3] == self.stream.rewindable

    @rule(count=st.integers(1, 30), seed=st.integers(0, 9))
    def feed(self, count: int, seed: int) -> None:
        rng, state = np.random.default_rng(seed), state_after(self.kept)
        limits, given = grammar.limits_of(FREE), []
        for _ in range(count):
            open_to = np.flatnonzero(grammar.allowed(state, limits, TABLE, np)[0])
            given.append(int(rng.choice(open_to)))
            state = grammar.advance(state, np.array([given[-1]]), TABLE, np)
        self.stream.feed(given)
        self.kept += without_velocities_at_the_end(given)

    @rule(
        happy=st.booleans(), chord=st.integers(0, 3), seed=st.one_of(st.none(), st.integers(0, 3))
    )
    def steer(self, happy: bool, chord: int, seed: int | None) -> None:
        self.stream.set_emotion(HAPPY if happy else SAD)
        self.stream.set_harmony(chord, 1)
        if seed is not None:
            self.stream.set_seed(seed)

    @rule(pitch=st.integers(21, 100), span=st.integers(0, 8), voices=st.integers(1, 4))
    def sample(self, pitch: int, span: int, voices: int) -> None:
        self.stream.set_sampling(self.limits(pitch, span, voices))

    @rule()
    def finish(self) -> None:
        self.kept += self.stream.finish()
        assert not self.stream.struck

    @invariant()
    def the_account_is_right(self) -> None:
        stream, kept = self.stream, self.kept
        assert stream.steps == sum(e - TIME_SHIFT + 1 for e in kept if e in range(256, 356))
        state = state_after(kept)
        assert set(stream.struck) == set(np.flatnonzero(state[grammar.AGE, :NOTE_OFF] >= 0))
        for pitch, step in stream.struck.items():
            assert stream.steps - step == state[grammar.AGE, pitch]
        account = stream._moments[-1].state
        np.testing.assert_array_equal(account, state)
        unread = [] if stream._pending is None else [stream._last.item()]
        np.testing.assert_array_equal(stream._state, state_after([*kept, *unread]))
        # the model has read what is kept, but for what it forgot, and the last waits to be read
        history = list(stream._history)
        everything = [START_TOKEN, *kept]
        assert history == everything[-len(history) :]
        waiting = everything if unread else everything[:-1]
        length = min(len(stream.model_read), len(waiting), len(history) - 1)
        assert (
            stream.model_read[len(stream.model_read) - length :] == waiting[len(waiting) - length :]
        )
        assert len(stream.model_read) >= len(history) - 1

    @invariant()
    def no_note_hangs(self) -> None:
        closing = [TIME_SHIFT] if self.stream.steps in self.stream.struck.values() else []
        closing += [pitch + NOTE_OFF for pitch in self.stream.struck]
        assert first_violation(without_loose_end([*self.kept, *closing])) is None


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
