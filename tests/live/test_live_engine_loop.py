"""The engine's thread: music first, clouds in time, whole or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_concert import GENERATOR, SPECTOCLOUD, Account, save_checkpoint, small_config, wait_for

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.live.clock import BAR_STEPS, SongClock
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.engine_loop import EngineLoop, Piece
from kmidi_mlx.live.planned import NoteRing
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.session import Session
from kmidi_mlx.live.sound import SoundFan
from kmidi_mlx.live.stats import Stats
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.music.events import decode


class Stage:
    """An engine with everything it needs, and nothing else."""

    def __init__(self, config: LiveConfig) -> None:
        self.session = Session(config)
        self.clock = SongClock(config.music.tempo)
        self.ring = NoteRing(config.loop.note_ring)
        self.player = Player(self.ring, self.clock)
        self.account = Account()
        self.player.add(self.account)
        self.played = PlayedLog(self.clock)
        self.sound = SoundFan()
        self.clouds = CloudSlot()
        self.stats = Stats()
        self.on_frame: Callable[[], None] = lambda: None
        self.engine = EngineLoop(
            config, self.session, self.clock, self.ring, self.player, self.played, self.sound,
            self.clouds, self.stats, self.begin_frame,
        )  # fmt: skip

    def begin_frame(self) -> None:
        self.on_frame()

    def start(self) -> Stage:
        self.player.start()
        self.engine.start()
        assert self.engine.ready.wait(30.0)
        return self

    def close(self) -> None:
        self.engine.stop()
        self.player.stop()
        assert self.account.problems == []
        assert not self.account.sounding

    def notices(self, topic: str) -> list[str]:
        return [row["text"] for row in self.session.state()["notices"] if row["topic"] == topic]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "generator", GENERATOR)


@pytest.fixture(scope="module")
def spectocloud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "spectocloud", SPECTOCLOUD)


@pytest.fixture
def stage_of(generator: Path) -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def make(**sections: Any) -> Stage:
        spectocloud = sections.pop("spectocloud", None)
        stages.append(Stage(small_config(generator, spectocloud, **sections)))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


def test_it_draws_from_the_start_and_plays_when_told(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of().start()
    engine = stage.engine
    assert engine.error is None
    assert (engine.draws, engine.has_network) == ("engine", False) or engine.draws == "off"
    wait_for(lambda: stage.clouds.newest is not None)
    first = stage.clouds.get(-1, 1.0)
    assert first is not None
    assert first.points.shape == (200, 10)
    assert first.points.dtype == np.float16
    begun = time.monotonic()
    later = first
    for _ in range(20):
        newer = stage.clouds.get(later.sequence, 2.0)
        assert newer is not None
        assert newer.time_monotonic > later.time_monotonic
        later = newer
    # thirty frames a second were asked for
    assert 0.5 < time.monotonic() - begun < 2.0
    assert stage.account.begun == []
    stage.session.apply("transport", {"action": "play"})
    wait_for(lambda: len(stage.account.begun) > 10)
    assert engine.conductor is not None
    assert stage.stats.snapshot()["tokens_per_second"] > 0
    assert any("The music is written by" in text for text in stage.notices("weights"))
    assert "expect little" in stage.notices("weights")[0]


def test_the_network_draws_where_there_is_one(
    stage_of: Callable[..., Stage], spectocloud: Path
) -> None:
    stage = stage_of(spectocloud=spectocloud).start()
    assert stage.engine.has_network
    wait_for(lambda: stage.clouds.newest is not None)
    assert stage.engine.draws == "network"
    network = stage.clouds.newest
    stage.session.apply("set", {"cloud.source": "engine", "cloud.points": 600})
    wait_for(lambda: stage.engine.draws == "engine")
    wait_for(lambda: stage.clouds.newest is not None and len(stage.clouds.newest.points) == 600)
    stage.session.apply("set", {"cloud.source": "off"})
    wait_for(lambda: stage.engine.draws == "off")
    last = stage.clouds.newest
    time.sleep(0.2)
    assert stage.clouds.newest is last
    assert network is not None
    assert np.isfinite(network.points.astype(np.float32)).all()


def test_stopping_leaves_silence(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of().start()
    for _ in range(3):
        stage.session.apply("transport", {"action": "play"})
        count = len(stage.account.begun)
        wait_for(lambda count=count: len(stage.account.begun) > count + 5)  # type: ignore[misc]
        stage.session.apply("transport", {"action": "stop"})
        wait_for(lambda: not stage.account.sounding and not stage.clock.running)
        count = len(stage.account.begun)
        time.sleep(0.15)
        assert len(stage.account.begun) == count


def test_what_is_wanted_ahead_is_written(stage_of: Callable[..., Stage]) -> None:
    stage = stage_of(music={"tempo": 120.0}, loop={"lookahead_seconds": 6.0}).start()
    stage.session.apply("transport", {"action": "play"})
    conductor = stage.engine.conductor
    assert conductor is not None
    wait_for(
        lambda: (
            stage.clock.running
            and (conductor.lookahead_steps(time.monotonic()) >= 590 or conductor.full)
        )
    )
    assert conductor.lookahead_steps(time.monotonic()) > BAR_STEPS or conductor.full


@pytest.mark.parametrize("playing", [False, True])
def test_a_piece_beside_the_music_is_what_generate_writes(
    stage_of: Callable[..., Stage], generator: Path, playing: bool
) -> None:
    stage = stage_of().start()
    if playing:
        stage.session.apply("transport", {"action": "play"})
    emotion = Emotion.of(-0.4, 0.7)
    piece, other = Piece(3.0, emotion, seed=11), Piece(0.5, emotion, seed=12)
    stage.engine.write(piece)
    stage.engine.write(other)
    notes = piece.written.result(20.0)
    model = load_generator(generator).model
    sampling = stage.session.settings.sampling
    wanted = decode(generate(model, sampling, 3.0, seed=11, emotion=emotion))
    assert len(wanted) > 10
    assert notes.equals(wanted)
    assert notes.duration_seconds <= 3.0
    assert len(other.written.result(20.0)) > 0
    assert stage.engine.error is None


def test_pieces_that_will_not_be_written_keep_nobody_waiting(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of().start()
    under_way, waiting = (Piece(600.0, Emotion.of(0, 0), seed=1) for _ in range(2))
    given_up = Piece(600.0, Emotion.of(0, 0), seed=1)
    given_up.written.cancel()
    for piece in (given_up, under_way, waiting):
        stage.engine.write(piece)
    wait_for(under_way.written.running)
    stage.engine.stop()
    late = Piece(1.0, Emotion.of(0, 0), seed=1)
    stage.engine.write(late)
    for piece in (under_way, waiting, late):
        with pytest.raises(CancelledError):
            piece.written.result(1.0)
    assert stage.engine.error is None


@pytest.mark.parametrize("kind", ["missing", "broken", "wrong"])
def test_weights_that_cannot_be_are_a_sentence(
    tmp_path: Path, spectocloud: Path, kind: str
) -> None:
    folder = tmp_path / "generator"
    if kind == "broken":
        save_checkpoint(folder, GENERATOR, broken=True)
    if kind == "wrong":
        folder = spectocloud
    stage = Stage(small_config(folder)).start()
    assert stage.engine.loaded.is_set()
    assert isinstance(stage.engine.error, KmidiError)
    words = {"missing": "no such checkpoint", "broken": "NaN or Inf", "wrong": "is needed here"}
    assert words[kind] in str(stage.engine.error)
    assert not stage.engine.is_alive()
    assert stage.notices("engine") == []
    stage.close()


def test_a_frame_that_fails_ends_the_music_and_says_so(
    stage_of: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of().start()
    stage.session.apply("transport", {"action": "play"})
    wait_for(lambda: stage.account.sounding)
    piece = Piece(600.0, Emotion.of(0, 0), seed=1)
    stage.engine.write(piece)
    wait_for(piece.written.running)

    def fail(*arguments: object) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(stage.engine.conductor, "obey", fail)
    wait_for(lambda: not stage.engine.is_alive())
    assert isinstance(stage.engine.error, RuntimeError)
    (text,) = stage.notices("engine")
    assert "no more memory" in text
    assert not stage.account.sounding
    assert not stage.clock.running
    count = len(stage.account.begun)
    time.sleep(0.2)
    assert len(stage.account.begun) == count
    with pytest.raises(CancelledError):
        piece.written.result(1.0)


def test_frames_that_come_too_late_are_left_out_and_counted(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of().start()
    wait_for(lambda: stage.clouds.newest is not None)
    stalled = threading.Event()

    def stall() -> None:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.5)

    before = stage.stats.snapshot()["dropped_frames"]
    stage.on_frame = stall
    wait_for(lambda: stage.stats.snapshot()["dropped_frames"] > before)
    dropped = stage.stats.snapshot()["dropped_frames"] - before
    assert 10 <= dropped <= 40  # fifteen, and what a busy machine adds
    # none are made up for
    first = stage.clouds.newest
    assert first is not None
    time.sleep(0.3)
    last = stage.clouds.newest
    assert last is not None
    assert last.sequence - first.sequence <= 11


def test_the_cloud_hears_something_else_and_the_music_again(
    stage_of: Callable[..., Stage],
) -> None:
    stage = stage_of().start()
    other = SoundFan()
    assert len(stage.sound._readers) == 1
    stage.engine.listen(other)
    wait_for(lambda: len(other._readers) == 1)
    assert stage.sound._readers == []
    assert stage.engine.listens is other
    stage.engine.listen(None)
    wait_for(lambda: other._readers == [])
    assert len(stage.sound._readers) == 1


def test_guidance_that_does_not_fit_gives_way_and_the_music_goes_on(
    stage_of: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(sampling={"guidance_scale": 2.0}).start()
    costs = stage.engine._costs
    # a machine on which everything takes fifty times as long, if the measurements are believed
    monkeypatch.setattr(costs, "wrote", lambda guided, seconds: None)
    monkeypatch.setattr(costs, "drew", lambda network, points, seconds: None)
    costs.plain_seconds, costs.guided_seconds = 0.002, 0.5
    stage.session.apply("transport", {"action": "play"})
    conductor = stage.engine.conductor
    assert conductor is not None
    wait_for(lambda: conductor._direction.sampling.guidance_scale == 1.0 and conductor.replans)
    assert stage.stats.snapshot()["quality"] > 0
    assert "no guidance" in stage.stats.snapshot()["quality_text"]
    count = len(stage.account.begun)
    wait_for(lambda: len(stage.account.begun) > count + 5)


def test_stopping_twice_and_before_the_start(generator: Path) -> None:
    stage = Stage(small_config(generator))
    stage.engine.stop()
    stage.close()
    stage.engine.stop()
