"""Whatever is asked of the composer, and whenever: nothing hangs, nothing goes backwards."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from dice_stream import DiceStream
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from listener import Listener, sounding_at_the_end

from kmidi_mlx.config import MidiTransformerConfig, SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.live.composer import Composer, Direction
from kmidi_mlx.live.keyboard_merge import PlayedKey
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer

CALM = Direction(Emotion.of(0.2, -0.5))
WILD = Direction(
    Emotion.of(-0.5, 0.9), chords=(11, 38, 56), key=1, sampling=SamplingConfig(temperature=1.0)
)


@st.composite
def directions(draw: st.DrawFn) -> Direction:
    lowest = draw(st.sampled_from([21, 60]))
    sampling = SamplingConfig(
        temperature=draw(st.sampled_from([0.0, 1.0])),
        max_polyphony=draw(st.integers(1, 8)),
        max_note_seconds=draw(st.sampled_from([0.1, 1.0, 8.0])),
        max_rest_seconds=draw(st.sampled_from([0.01, 4.0])),
        guidance_scale=draw(st.sampled_from([1.0, 1.0, 1.0, 2.0])),
        lowest_pitch=lowest,
        highest_pitch=draw(st.sampled_from([lowest, lowest + 2, 108])),
    )
    return Direction(
        Emotion.of(draw(st.sampled_from([-0.5, 0.5])), 0.0),
        draw(st.sampled_from([(), (11, 38), (56,)])),
        draw(st.integers(0, 24)),
        sampling,
        draw(st.integers(0, 2)),
        draw(st.sampled_from(["compose", "duet", "accompany", "accompany", "continue"])),
    )


class Performance(RuleBasedStateMachine):
    """Whatever is asked for and whenever: the player is never wronged."""

    def make_stream(self) -> Any:
        return DiceStream(96)

    def __init__(self) -> None:
        super().__init__()
        self.stream = self.make_stream()
        self.composer = Composer(self.stream, CALM)
        self.listener = Listener()
        self.down: set[int] = set()

    def next_step(self, ahead: int) -> int:
        return max(self.listener.now + 1 + ahead, self.composer.earliest_step)

    @rule(count=st.integers(1, 60))
    def write(self, count: int) -> None:
        for _ in range(count):
            # as far as the window of what can be taken back allows, as the loop does
            if self.composer.written_step < self.listener.now + 400:
                self.listener.push(self.composer.write())

    @rule(steps=st.integers(1, 150))
    def play(self, steps: int) -> None:
        self.listener.play_to(self.listener.now + steps)
        self.composer.skip_to(self.listener.now + 1)

    @rule(ahead=st.integers(0, 120), direction=directions())
    def replan(self, ahead: int, direction: Direction) -> None:
        step = self.next_step(ahead)
        self.listener.cut(step)
        self.listener.push(self.composer.replan(step, direction))

    @rule(
        ahead=st.integers(0, 60),
        pressed=st.lists(
            st.tuples(st.integers(0, 40), st.integers(58, 66), st.sampled_from([0, 1, 64, 127])),
            max_size=4,
        ),
        around=st.booleans(),
    )
    def press(self, ahead: int, pressed: list[tuple[int, int, int]], around: bool) -> None:
        now = max(self.listener.now, 0)
        sounding = list(self.listener.sounding)
        rows = []
        for ago, pitch, velocity in sorted(pressed, reverse=True):
            pitch = sounding[pitch % len(sounding)] if around and sounding else pitch
            rows.append((now - ago + 0.3, pitch, velocity))
        step = self.next_step(ahead)
        self.listener.cut(step)
        self.listener.push(self.composer.feed_notes([PlayedKey(*row) for row in rows], step))

    @rule(ahead=st.integers(0, 120))
    def listen(self, ahead: int) -> None:
        step = self.next_step(ahead)
        self.listener.cut(step)
        self.listener.push(self.composer.listen(step))
        assert sounding_at_the_end(self.listener) == set()

    @precondition(lambda self: not self.composer.composing)
    @rule(ahead=st.integers(0, 120))
    def answer(self, ahead: int) -> None:
        self.composer.answer(self.next_step(ahead))

    @invariant()
    def the_plan_and_the_stream_agree(self) -> None:
        mine = {
            note.onset * 128 + pitch
            for pitch, note in self.composer._log[-1].sounding.items()
            if not note.theirs
        }
        assert sounding_at_the_end(self.listener) == mine
        assert set(self.composer._log[-1].sounding) == set(self.stream.struck)
        assert not self.listener.plan or self.listener.plan[-1].step <= self.composer.written_step

    def teardown(self) -> None:
        # left alone, everything ends by itself or on demand
        step = self.next_step(0)
        self.listener.cut(step)
        self.listener.push(self.composer.listen(step))
        self.listener.play_to(step)
        assert self.listener.sounding == {}


class NetworkPerformance(Performance):
    """The same over a model, whose ring wraps and whose positions are moved back."""

    def make_stream(self) -> Any:
        return EventGenerator(network(), SamplingConfig())


def network() -> EmotionMIDITransformer:
    config = MidiTransformerConfig(
        hidden_dim=64, num_layers=1, num_heads=1, ffn_dim=64, context_length=48,
        cross_attention_layers=(0,),
    )  # fmt: skip
    model = EmotionMIDITransformer(config)
    model.initialise(0)
    mx.eval(model.parameters())
    return model


TestPerformance = Performance.TestCase
TestPerformance.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestNetworkPerformance = NetworkPerformance.TestCase
TestNetworkPerformance.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)


def test_the_network_plays_for_a_while_under_a_storm_of_changes() -> None:
    composer, listener = Composer(EventGenerator(network(), SamplingConfig()), CALM), Listener()
    rng = np.random.default_rng(0)
    for turn in range(40):
        while composer.written_step < listener.now + 300:
            listener.push(composer.write())
        listener.play_to(listener.now + int(rng.integers(1, 120)))
        step = max(listener.now + int(rng.integers(1, 50)), composer.earliest_step)
        listener.cut(step)
        listener.push(composer.replan(step, WILD if turn % 2 else CALM))
    assert len(listener.played) > 100
