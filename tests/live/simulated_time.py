"""A performance in simulated time: an hour takes seconds, and the same things always happen."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dice_stream import DiceStream
from numpy.typing import NDArray

from kmidi_mlx.live import conductor as conductor_module
from kmidi_mlx.live import played as played_module
from kmidi_mlx.live import player as player_module
from kmidi_mlx.live.clock import BAR_STEPS, BEAT_STEPS, SongClock
from kmidi_mlx.live.composer import Direction
from kmidi_mlx.live.conductor import Conductor
from kmidi_mlx.live.keyboard import KeyboardInput
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.session import Settings

FRAME = 1 / 60


class StrictSink:
    """Keeps the account of what sounds, and complains about every call that makes no sense."""

    def __init__(self, world: World, name: str, lead_seconds: float) -> None:
        self.name = name
        self.lead_seconds = lead_seconds
        self.world = world
        self.sounding: set[int] = set()
        self.heard: list[tuple[float, int, int]] = []
        self.closed = False

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        assert 1 <= velocity <= 127
        assert pitch not in self.sounding, f"{self.name}: {pitch} begins twice"
        assert at >= self.world.now - 1e-6 or self.world.slow, f"{self.name}: too late"
        self.sounding.add(pitch)
        self.heard.append((at, pitch, velocity))

    def note_off(self, pitch: int, at: float) -> None:
        assert pitch in self.sounding, f"{self.name}: {pitch} ends without having begun"
        self.sounding.discard(pitch)
        self.heard.append((at, pitch, 0))

    def silence(self) -> None:
        assert not self.sounding, "ends are sent before all is silenced"

    def close(self) -> None:
        self.closed = True


class SlowStream(DiceStream):
    """A stream whose steps take time, in which the player plays on."""

    def __init__(self, world: World, direction: Direction) -> None:
        self.world = world
        super().__init__(
            256, sampling=direction.sampling, seed=direction.seed, emotion=direction.emotion
        )

    def _step(self, noise: NDArray[np.float32], knobs: NDArray[Any]) -> NDArray[Any]:
        self.world.pass_time(self.world.token_seconds)
        return super()._step(noise, knobs)

    def read_again(self, most: int | None = None) -> None:
        super().read_again(most)
        self.world.pass_time(self.remembered * self.world.reading_seconds)


class World:
    """Conductor, player and two sinks, whose `time` is ours.

    Attributes:
        now: moment.
        token_seconds: that a token takes.
        reading_seconds: that it takes to read an event of the context again.
        style: that is wanted.
        worn: moments at which the model got another.
        slow: whether it was ever too slow for the player to be in time.
        underruns: what the conductor counted.
    """

    def __init__(self, patch: pytest.MonkeyPatch, capacity: int = 128, lead: float = 0.055) -> None:
        self.now = 100.0
        self.token_seconds = 0.0005
        self.reading_seconds = 0.0
        self.style = 0
        self.worn: list[float] = []
        self.slow = False
        self.underruns = 0
        self.tokens = 0
        self.cuts: list[float] = []
        for module in (conductor_module, player_module, played_module):
            patch.setattr(module, "time", self)
        self.clock = SongClock()
        self.ring = NoteRing(capacity)
        cut = self.ring.cut
        patch.setattr(self.ring, "cut", lambda step: (self.cuts.append(step), cut(step))[1])
        self.lost: list[Exception] = []
        self.player = Player(self.ring, self.clock, lambda sink, error: self.lost.append(error))
        self.played = PlayedLog(self.clock)
        self.sinks = [StrictSink(self, "port", 0.0), StrictSink(self, "piano", lead)]
        self.player.add(self.played)
        for sink in self.sinks:
            self.player.add(sink, keys=sink.name == "piano")
        self.streams: list[SlowStream] = []
        self.keyboard = KeyboardInput(lambda: self.now)
        self.conductor = Conductor(
            self.make_stream, self.clock, self.ring, self.player, self.played,
            self.count_underrun, self.count_token, lambda: self.worn.append(self.now),
        )  # fmt: skip
        self.conductor.hands = self.keyboard
        self.settings = Settings()
        self.transport = "stopped"
        self.guidance = True
        self.pace = 1.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def make_stream(self, direction: Direction) -> SlowStream:
        self.streams.append(SlowStream(self, direction))
        return self.streams[-1]

    def count_underrun(self) -> None:
        composer = self.conductor._composer
        assert self.clock.running
        assert composer is not None
        assert composer.written_step < self.clock.step_at(self.now + self.player.lead_seconds)
        self.underruns += 1

    def count_token(self, seconds: float) -> None:
        assert seconds >= 0.0
        self.tokens += 1

    def pass_time(self, seconds: float) -> None:
        """Let the player do what its thread would do in so many seconds."""
        end = self.now + seconds
        while (due := self.player._next_deadline()) <= end:
            # the thread wakes a little after its deadline, never before
            self.now = max(self.now, due) + 1e-7
            self.player._turn()
        self.now = max(self.now, end)
        assert not self.lost, self.lost

    def frame(self) -> None:
        """What the engine does in a frame."""
        begun = self.now
        self.pass_keys()
        self.conductor.obey(self.settings, self.transport, self.guidance, self.pace, self.style)
        self.conductor.write(BEAT_STEPS, begun + 0.25)
        self.conductor.write(BAR_STEPS, begun + max(0.005, 4 * self.token_seconds))
        wanted = max(2 * BAR_STEPS, self.conductor.needed_steps)
        self.conductor.write(wanted, begun + FRAME - self.token_seconds)
        assert len(self.ring) <= self.ring.capacity
        self.pass_time(max(0.0, begun + FRAME - self.now))

    def run(self, seconds: float) -> None:
        for _ in range(math.ceil(seconds / FRAME)):
            self.frame()

    def change(self, section: str, **values: Any) -> None:
        part = replace(getattr(self.settings, section), **values)
        self.settings = replace(self.settings, **{section: part})

    def play(self, seconds: float = 0.0) -> None:
        self.transport = "playing"
        self.run(seconds)

    def key(self, pitch: int, velocity: int) -> None:
        self.keyboard.receive(bytes((0x90, pitch, velocity)), self.now)

    def pass_keys(self) -> None:
        for key in self.keyboard.drain():
            self.player.play_now(key.pitch, key.velocity)
            self.conductor.hear(key)

    def plan(self) -> list[PlannedEvent]:
        return list(self.ring.snapshot())
