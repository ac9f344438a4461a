"""Whatever people do, and however slow the machine is: nothing hangs, nothing is wronged."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from dice_stream import DiceStream
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from simulated_time import World
from small_concert import Account

from kmidi_mlx.live.clock import BAR_STEPS, SongClock
from kmidi_mlx.live.conductor import Conductor
from kmidi_mlx.live.planned import NoteRing
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.session import Settings

directions = st.sampled_from(
    [
        ("music", {"valence": -0.8}),
        ("music", {"valence": 0.8, "arousal": 0.5}),
        ("music", {"tempo": 40.0}),
        ("music", {"tempo": 120.0}),
        ("music", {"tempo": 300.0}),
        ("music", {"chords": "C Am F G"}),
        ("music", {"chords": "", "key": "A:min"}),
        ("music", {"seed": 3}),
        ("music", {"mode": "compose"}),
        ("music", {"mode": "duet"}),
        ("music", {"mode": "accompany"}),
        ("music", {"mode": "continue"}),
        ("sampling", {"temperature": 0.0}),
        ("sampling", {"temperature": 1.2}),
        ("sampling", {"max_polyphony": 1}),
        ("sampling", {"max_polyphony": 128}),
        ("sampling", {"guidance_scale": 2.0}),
        ("sampling", {"guidance_scale": 1.0}),
        ("sampling", {"lowest_pitch": 60, "highest_pitch": 62}),
        ("sampling", {"lowest_pitch": 21, "highest_pitch": 108}),
        ("sampling", {"max_note_seconds": 0.1, "max_rest_seconds": 0.02}),
        ("sampling", {"max_note_seconds": 8.0, "max_rest_seconds": 4.0}),
    ]
)


class Storm(RuleBasedStateMachine):
    """Whatever a person does, and however slow the machine is."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world = World(self.patch, capacity=128)
        self.world.slow = True

    @rule(change=directions)
    def change(self, change: tuple[str, dict[str, object]]) -> None:
        section, values = change
        self.world.change(section, **values)

    @rule(transport=st.sampled_from(["playing", "playing", "playing", "paused", "stopped"]))
    def transport(self, transport: str) -> None:
        self.world.transport = transport
        self.world.frame()

    @rule(frames=st.integers(1, 90))
    def play(self, frames: int) -> None:
        for _ in range(frames):
            self.world.frame()

    @rule(pitch=st.integers(58, 64), velocity=st.sampled_from([0, 0, 60, 127]))
    def press(self, pitch: int, velocity: int) -> None:
        self.world.key(pitch, velocity)
        self.world.frame()

    @rule(seconds=st.sampled_from([0.0, 0.0005, 0.003, 0.02, 0.2]))
    def machine(self, seconds: float) -> None:
        self.world.token_seconds = seconds

    @rule(seconds=st.floats(0.05, 6.0))
    def stall(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @rule()
    def panic(self) -> None:
        self.world.player.silence()
        assert all(not sink.sounding for sink in self.world.sinks)

    @rule(guidance=st.booleans(), pace=st.sampled_from([1.0, 0.85, 0.7]))
    def quality(self, guidance: bool, pace: float) -> None:
        self.world.guidance = guidance
        self.world.pace = pace

    @invariant()
    def the_ledger_is_true(self) -> None:
        # the log is told of ends later than a sink that wants to know early
        voices = (self.world.played, *self.world.sinks)
        assert self.world.player.sounding == max(len(voice.sounding) for voice in voices)
        assert self.world.conductor.playing in ("stopped", "playing", "paused")

    def teardown(self) -> None:
        world = self.world
        for pitch in range(128):
            world.key(pitch, 0)
        world.transport = "stopped"
        world.frame()
        # what the person holds ends too, and then nothing begins any more
        world.run(0.2)
        assert all(not sink.sounding for sink in world.sinks)
        counts = [len(sink.heard) for sink in world.sinks]
        world.pass_time(10.0)
        assert [len(sink.heard) for sink in world.sinks] == counts
        # whatever happened before, it plays when it is told to
        world.token_seconds = 0.0
        world.pace = 1.0
        world.change("music", mode="compose", tempo=120.0)
        world.change("sampling", lowest_pitch=21, highest_pitch=108, max_polyphony=16,
                     max_note_seconds=8.0, max_rest_seconds=4.0, temperature=1.0)  # fmt: skip
        world.play(3.0)
        assert len(world.sinks[0].heard) > counts[0]
        world.player.stop()
        assert all(not sink.sounding and sink.closed for sink in world.sinks)
        self.patch.undo()


TestStorm = Storm.TestCase
TestStorm.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_storm_in_real_time_with_the_real_thread() -> None:
    """Three threads at once: the player's, the engine's, and people's."""

    clock, ring, sink = SongClock(300.0), NoteRing(), Account(0.02)
    lost: list[Exception] = []
    player = Player(ring, clock, lambda sink, error: lost.append(error))
    player.add(sink)
    player.start()
    conductor = Conductor(
        lambda direction: DiceStream(256, sampling=direction.sampling, seed=direction.seed),
        clock, ring, player, PlayedLog(clock),
    )  # fmt: skip
    state = {"settings": Settings(), "transport": "playing"}
    done, errors = threading.Event(), []

    def people() -> None:
        rng = np.random.default_rng(1)
        music = Settings().music
        while not done.wait(0.004):
            music = replace(
                music, valence=float(rng.uniform(-1, 1)), tempo=float(rng.uniform(40, 300))
            )
            state["settings"] = replace(Settings(), music=music)
            if rng.random() < 0.05:
                state["transport"] = str(rng.choice(["paused", "stopped"]))
            elif rng.random() < 0.2:
                state["transport"] = "playing"
            if rng.random() < 0.02:
                player.silence()
            if rng.random() < 0.05:
                player.play_now(60, 80)
                player.play_now(60, 0)

    def engine() -> None:
        try:
            while not done.is_set():
                conductor.obey(state["settings"], state["transport"])  # type: ignore[arg-type]
                conductor.write(2 * BAR_STEPS, time.monotonic() + 0.01)
                time.sleep(0.002)
            conductor.obey(Settings(), "stopped")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for work in (people, engine)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    done.set()
    for thread in threads:
        thread.join(5.0)
    assert errors == []
    assert lost == []
    assert sink.sounding == set()
    count = len(sink.begun)
    assert count > 5
    time.sleep(0.15)
    assert len(sink.begun) == count
    player.stop()
    assert sink.problems == []
