"""The visualiser: what has been heard by now becomes a cloud that glides."""

from __future__ import annotations

import time

import numpy as np
import pytest
from mlx.utils import tree_flatten
from numpy.typing import NDArray
from small_concert import SPECTOCLOUD

from kmidi_mlx.audio.mel import MelSettings, MelStream, compress
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundFan
from kmidi_mlx.live.visualiser import Visualiser
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.music.features import features
from kmidi_mlx.spectocloud import LEVELS_OF_DETAIL
from kmidi_mlx.spectocloud.song import FEATURE_SECONDS
from tests.stressed_weights import stressed

BLOCK = 882
FRAME = 1 / 60
HAPPY, SAD = Emotion.of(0.9, 0.6), Emotion.of(-0.9, -0.6)


@pytest.fixture(scope="module")
def network() -> SpectocloudViT:
    import mlx.core as mx

    model = SpectocloudViT(SPECTOCLOUD.model)
    rng = np.random.default_rng(0)
    model.load_weights(
        [
            (name, mx.array(stressed(name, tuple(value.shape), rng)))
            for name, value in tree_flatten(model.parameters())
        ]
    )
    return model


def made(model: SpectocloudViT | None = None) -> tuple[SoundFan, PlayedLog, Visualiser]:
    fan, clock = SoundFan(), SongClock()
    clock.start(time.monotonic())
    log = PlayedLog(clock)
    return fan, log, Visualiser(fan, log, model)


def tone(seconds: float, pitch: float = 440.0) -> NDArray[np.int16]:
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = (12_000 * np.sin(2 * np.pi * pitch * times)).astype(np.int16)
    return np.stack([wave, wave // 2], axis=1)


def put(fan: SoundFan, sound: NDArray[np.int16], begin: float) -> None:
    for start in range(0, len(sound), BLOCK):
        fan.put(sound[start : start + BLOCK].copy(), begin + start / SAMPLE_RATE)


@pytest.mark.parametrize("kind", ["network", "engine"])
def test_clouds_of_every_level_of_detail(kind: str, network: SpectocloudViT) -> None:
    _, _, visualiser = made(network if kind == "network" else None)
    now = time.monotonic()
    for index, points in enumerate((*LEVELS_OF_DETAIL, 200)):
        cloud = visualiser.draw(now + index * FRAME, HAPPY, points)
        assert cloud.shape == (points, 10)
        assert cloud.dtype == np.float32
        assert np.isfinite(cloud).all()
        again = visualiser.draw(now + (index + 0.5) * FRAME, HAPPY, points)
        assert again.shape == (points, 10)
    assert visualiser._engine is None or kind == "engine"


def test_the_engine_may_draw_instead_and_the_network_again(network: SpectocloudViT) -> None:
    _, _, visualiser = made(network)
    now = time.monotonic()
    by_network = visualiser.draw(now, HAPPY, 200, network=True)
    by_engine = visualiser.draw(now + FRAME, HAPPY, 200, network=False)
    again = visualiser.draw(now + 2 * FRAME, HAPPY, 200, network=True)
    assert not np.array_equal(by_network, by_engine)
    # from where the points were: nothing jumps farther than in one frame
    assert np.abs(again - by_engine).max() < 0.5


def test_it_hears_what_has_been_heard_by_now_and_nothing_later() -> None:
    fan, _, visualiser = made()
    now = time.monotonic()
    sound = tone(1.0)
    put(fan, sound, now + 0.1)
    visualiser.draw(now + 0.05, HAPPY, 200)
    assert not visualiser._window.any()
    for index in range(40):
        visualiser.draw(now + 0.1 + index / 40, HAPPY, 200)
    # as if it had heard the whole at once
    count = round(39 / 40 * SAMPLE_RATE) // BLOCK * BLOCK + BLOCK
    heard = sound[:count].astype(np.float32).mean(axis=1) / 32_768
    whole = compress(MelStream(MelSettings()).push(heard))
    width = whole.shape[1]
    assert width > 40
    np.testing.assert_allclose(visualiser._window[:, -width:], whole, atol=1e-4)
    assert not visualiser._window[:, :-width].any()


def test_an_hour_of_sound_leaves_a_window_of_the_same_size() -> None:
    fan, _, visualiser = made()
    now, size = time.monotonic(), visualiser._window.shape
    sound = tone(0.5)
    for index in range(60):
        put(fan, sound, now + index / 2)
        visualiser.draw(now + index / 2 + 0.6, HAPPY, 200)
        assert visualiser._window.shape == size
        assert len(visualiser._waiting) <= 64
    assert visualiser._window.any()


def test_listening_to_something_else_begins_anew_and_gives_the_reader_back() -> None:
    fan, _, visualiser = made()
    other = SoundFan()
    now = time.monotonic()
    put(fan, tone(0.5), now)
    visualiser.draw(now + 0.6, HAPPY, 200)
    assert visualiser._window.any()
    visualiser.listen(other)
    assert not visualiser._window.any()
    assert (len(fan._readers), len(other._readers)) == (0, 1)
    put(fan, tone(0.5), now + 0.7)
    visualiser.draw(now + 1.3, HAPPY, 200)
    assert not visualiser._window.any()
    put(other, tone(0.5), now + 1.3)
    visualiser.draw(now + 1.9, HAPPY, 200)
    assert visualiser._window.any()
    visualiser.listen(None)
    assert (len(fan._readers), len(other._readers)) == (1, 0)


def test_it_is_told_of_the_notes_of_the_music_and_guesses_those_of_other_sound() -> None:
    _, log, visualiser = made()
    now = time.monotonic()
    for index in range(6):
        log.note_on(60 + index, 90, now + index / 4)
        log.note_off(60 + index, now + index / 4 + 0.2)
    later = now + 2.0
    told = visualiser._frame(later, HAPPY).features
    wanted = features(log.notes_until(later, FEATURE_SECONDS), (0.0, FEATURE_SECONDS))
    np.testing.assert_array_equal(told, wanted)
    assert told.any()
    visualiser.listen(SoundFan())
    assert not np.array_equal(visualiser._frame(later, HAPPY).features, wanted)


@pytest.mark.parametrize("kind", ["network", "engine"])
def test_points_glide_and_the_feeling_follows(kind: str, network: SpectocloudViT) -> None:
    _, _, visualiser = made(network if kind == "network" else None)
    now = time.monotonic()
    clouds, felt = [], []
    for index in range(240):
        emotion = HAPPY if index < 120 else SAD
        clouds.append(visualiser.draw(now + index * FRAME, emotion, 200).copy())
        felt.append(visualiser.felt[0])
    steps = np.abs(np.diff(np.array(clouds), axis=0)).max(axis=(1, 2))
    # the moment of the change is no jump
    assert steps[119:122].max() < 0.35
    assert np.abs(np.diff(felt)).max() < 0.2
    assert felt[119] > 0.5
    assert felt[-1] < -0.5


def test_half_as_many_frames_feel_as_fast(network: SpectocloudViT) -> None:
    ends = []
    for every in (1, 3):
        _, _, visualiser = made(network)
        begin = visualiser._drawn
        for index in range(0, 60, every):
            visualiser.draw(begin + (index + every) * FRAME, HAPPY, 200)
        ends.append(visualiser.felt)
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


def test_a_stall_throws_points_no_farther_than_half_a_second(network: SpectocloudViT) -> None:
    moved = []
    for stall in (0.5, 3600.0):
        _, _, visualiser = made(network)
        begin = visualiser._drawn
        visualiser.draw(begin + FRAME, SAD, 200)
        visualiser.draw(begin + FRAME + stall, HAPPY, 200)
        moved.append(visualiser.felt[0])
    assert moved[0] == pytest.approx(moved[1], abs=1e-6)


def test_warming_up_tells_what_every_level_costs() -> None:
    _, _, visualiser = made()
    costs = visualiser.warm(network=False, times=1)
    assert sorted(costs) == sorted(LEVELS_OF_DETAIL)
    assert all(0.0 < seconds < 1.0 for seconds in costs.values())
