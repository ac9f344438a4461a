from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kmidi_mlx.emotion import Emotion, from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.features import FEATURE_NAMES
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import (
    CHANNELS,
    LEVELS_OF_DETAIL,
    Frame,
    Song,
    advance,
    begin,
    clouds,
    clouds_at,
)
from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT, ANCHOR_POSITIONS
from kmidi_mlx.spectocloud.engine import MAX_STEP
from kmidi_mlx.spectocloud.points import point_set

# too calm for the storm, whose flashes would disturb a measurement
PLEASED = Emotion.of(0.5, 0.0)
X, Y, Z, R, G, B, A, SIZE, GLOW, DEPTH = range(10)
BODY = point_set(600).body


def settled(frame: Frame, n_points: int = 600) -> np.ndarray:
    """Return the cloud after two seconds of one frame."""
    state = begin(frame, n_points)
    for _ in range(120):
        state = advance(state, frame)
    return state.cloud


def frame_at(notes: Notes, seconds: float, emotion: Emotion = PLEASED) -> Frame:
    return Song(notes=notes, emotion=emotion)[round(60 * seconds)]


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    squared = ((a[:, None, :3] - b[None, :, :3]) ** 2).sum(axis=2)
    return float(squared.min(axis=0).mean() + squared.min(axis=1).mean())


@pytest.fixture(scope="module")
def film(tune: Notes) -> np.ndarray:
    """Clouds of the tune's first 13 s under a stormy emotion."""
    song = Song(notes=tune, emotion=Emotion.of(-0.7, 1.0))
    return np.array(list(clouds(song[:780], 600)))


def test_bounds(film: np.ndarray) -> None:
    assert film.dtype == np.float32
    assert film.shape == (780, 600, len(CHANNELS))
    assert np.abs(film[..., :3]).max() <= 1.0
    assert film[..., 3:].min() >= 0.0
    assert film[..., 3:].max() <= 1.0


def test_extremes_stay_in_bounds() -> None:
    rng = np.random.default_rng(0)
    for value in (-1.0, 1.0):
        for level in (0.0, 1.0, rng.uniform(size=(128, 64))):
            frame = Frame(
                np.broadcast_to(level, (128, 64)), np.full(32, value), (value, value, 1.0), 1.0
            )
            cloud = settled(frame)
            assert np.abs(cloud[:, :3]).max() <= 1.0
            assert cloud[:, 3:].min() >= 0.0
            assert cloud[:, 3:].max() <= 1.0


def test_points_move_with_bounded_speed(film: np.ndarray) -> None:
    steps = np.abs(np.diff(film[..., :3], axis=0))
    assert steps.max() <= MAX_STEP + 1e-6
    assert steps.mean() < 0.01
    assert steps.max(axis=(1, 2)).mean() > 1e-3
    # a point that moves goes on in its direction more often than it turns back
    along = np.diff(film[..., :2], axis=0)
    assert (along[1:] * along[:-1]).sum() > 0.5 * (along**2).sum()


def test_deterministic(tune: Notes, film: np.ndarray) -> None:
    song = Song(notes=tune, emotion=Emotion.of(-0.7, 1.0))
    np.testing.assert_array_equal(np.array(list(clouds(song[:120], 600))), film[:120])


def test_advanced_as_it_is_heard_equals_the_whole_song(tune: Notes, film: np.ndarray) -> None:
    emotion = Emotion.of(-0.7, 1.0)
    whole = Song(notes=tune, emotion=emotion)
    state = None
    for index in range(200):
        now = index / 60
        known = tune.onset_seconds <= now + 1 / 60
        notes = Notes(*(column[known] for column in vars(tune).values()))
        mel = whole.mel.copy()
        mel[:, int(now * 44_100 / 512) + 1 :] = 0.0
        frame = Song(mel, notes, emotion)[index]
        state = advance(state or begin(frame, 600), frame)
        np.testing.assert_allclose(state.cloud, film[index], atol=1e-6)


def test_less_detail_is_a_prefix(tune: Notes) -> None:
    frames = Song(notes=tune, emotion=Emotion.of(-0.7, 1.0))[600:660]
    full = np.array(list(clouds(frames, 3000)))
    for count in LEVELS_OF_DETAIL[:-1]:
        np.testing.assert_allclose(
            np.array(list(clouds(frames, count))), full[:, :count], atol=1e-6
        )


def test_single_frames_equal_the_song(tune: Notes, film: np.ndarray) -> None:
    song = Song(notes=tune, emotion=Emotion.of(-0.7, 1.0))
    wanted = [0, 1, 250, 251, 300, 700]
    states = list(clouds_at(song, wanted, 600))
    for index, state in zip(wanted, states, strict=True):
        np.testing.assert_allclose(state.cloud, film[index], atol=1e-3)
    assert not list(clouds_at(song, []))


def test_silence_is_calm_and_dim(chords: Callable[..., Notes]) -> None:
    music = frame_at(chords(48, 60, 64, 67), 3.0)
    silence = replace(music, window=np.zeros((128, 64)), features=np.zeros(32))
    quiet, loud = settled(silence), settled(music)
    assert quiet[:, GLOW].max() < 0.2
    assert quiet[:, GLOW].mean() < 0.25 * loud[:, GLOW].mean()
    assert quiet[:, A].mean() < 0.5 * loud[:, A].mean()
    state = begin(silence, 600)
    for _ in range(60):
        following = advance(state, silence)
        assert np.abs(following.cloud - state.cloud).max() < 1e-3
        state = following


@pytest.mark.parametrize("channel", [A, SIZE, GLOW])
def test_loudness_shows(chords: Callable[..., Notes], channel: int) -> None:
    seen = [
        settled(frame_at(chords(48, 60, 64, 67, velocity=velocity), 3.0))[:, channel].mean()
        for velocity in (20, 45, 70, 95, 127)
    ]
    assert (np.diff(seen) > 0.01 * np.mean(seen)).all()


def test_register_shows(chords: Callable[..., Notes]) -> None:
    heights = []
    for octave in range(5):
        cloud = settled(frame_at(chords(*(12 * octave + p for p in (36, 40, 43))), 3.0))[BODY]
        heights.append(np.average(cloud[:, Y], weights=cloud[:, GLOW]))
    assert (np.diff(heights) > 0.1).all()


def test_harmony_shows(chords: Callable[..., Notes]) -> None:
    major, moved = (settled(frame_at(chords(*p), 3.0)) for p in ((48, 52, 55), (54, 58, 61)))
    hearts = point_set(600).anchor[:ANCHOR_COUNT]
    assert set(major[hearts[:12], GLOW].argsort()[-3:].tolist()) == {0, 4, 7}
    assert set(moved[hearts[:12], GLOW].argsort()[-3:].tolist()) == {6, 10, 1}
    assert np.abs(major[BODY, Z] - moved[BODY, Z]).mean() > 0.05


def test_tension_shows(chords: Callable[..., Notes]) -> None:
    frame = frame_at(chords(48, 60, 64, 67), 3.0)
    depth = []
    for tension in (0.0, 0.3, 0.6, 1.0):
        features = frame.features.copy()
        for name in ("tonal_tension", "dissonance"):
            features[FEATURE_NAMES.index(name)] = tension
        depth.append(settled(replace(frame, features=features))[BODY, Z].std())
    assert (np.diff(depth) > 0.005).all()


def test_valence_shows_as_hue(chords: Callable[..., Notes]) -> None:
    frame = frame_at(chords(48, 60, 64, 67), 3.0)
    redness = []
    for valence in np.linspace(-1.0, 1.0, 6):
        cloud = settled(replace(frame, emotion=(float(valence), 0.0, 0.8)))
        redness.append((cloud[BODY, R] - cloud[BODY, B]).mean())
    assert (np.diff(redness) > 0.05).all()
    assert redness[0] < -0.2 < 0.2 < redness[-1]


def test_arousal_shows_as_spread_and_opacity(chords: Callable[..., Notes]) -> None:
    frame = frame_at(chords(48, 60, 64, 67), 3.0)
    seen = []
    for arousal in (-1.0, -0.5, 0.0, 0.5):
        cloud = settled(replace(frame, emotion=(0.3, arousal, 0.8)))[BODY]
        seen.append((cloud[:, A].mean(), cloud[:, Z].std()))
    assert (np.diff(seen, axis=0) > 0.0).all()


def test_other_music_and_other_moods_are_other_clouds(tune: Notes) -> None:
    sad = from_label("sad")
    places = (3.0, 7.5, 14.0, 19.0)
    passages = [settled(frame_at(tune, seconds)) for seconds in places]
    mean = np.mean(passages, axis=0)
    for k, one in enumerate(passages):
        nearby = settled(frame_at(tune, places[k] + 1 / 60))
        for other in passages[:k]:
            assert chamfer(one, other) > 5.0 * chamfer(one, nearby)
            assert chamfer(one, other) > 0.004
        assert chamfer(one, mean) > 0.004
        felt = settled(frame_at(tune, places[k], sad))
        assert np.abs(felt[:, 3:6] - one[:, 3:6]).mean() > 0.15
        assert np.abs(felt[:, A] - one[:, A]).mean() > 0.03


def test_anchors_stand_still_and_lightning_strikes(film: np.ndarray, tune: Notes) -> None:
    hearts = point_set(600).anchor[:ANCHOR_COUNT]
    np.testing.assert_allclose(
        film[:, hearts, :3], np.broadcast_to(ANCHOR_POSITIONS, (780, ANCHOR_COUNT, 3)), atol=1e-5
    )
    song = Song(notes=tune, emotion=Emotion.of(-0.7, 1.0))
    states = list(clouds_at(song, range(500, 760), 600))
    struck = [k for k in range(1, 260) if states[k].storm.strikes > states[k - 1].storm.strikes]
    assert struck
    before, after = states[struck[0] - 1].cloud, states[min(struck[0] + 3, 259)].cloud
    assert (after[BODY, GLOW] - before[BODY, GLOW]).max() > 0.3
    calm = list(clouds_at(Song(notes=tune, emotion=Emotion.of(0.5, -0.6)), [759], 600))
    assert calm[0].storm.strikes == 0


def test_fast_enough(tune: Notes) -> None:
    frames = Song(notes=tune, emotion=PLEASED)[540:600]
    state = begin(frames[0])
    taken = []
    for frame in frames:
        started = time.process_time()
        state = advance(state, frame)
        taken.append(time.process_time() - started)
    assert np.median(taken) < 1 / 200


def good() -> dict[str, object]:
    return {
        "window": np.zeros((128, 64)),
        "features": np.zeros(32),
        "emotion": (0.0, 0.0, 0.0),
        "progress": 0.0,
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"window": np.zeros((128, 63))}, r"\(128, 64\)"),
        ({"window": np.full((128, 64), np.nan)}, "from 0 to 1"),
        ({"features": np.zeros(31)}, r"\(32,\)"),
        ({"features": np.full(32, np.nan)}, "feature"),
        ({"features": np.full(32, 2.0)}, "feature"),
        ({"emotion": (0.0, 0.0)}, "valence, arousal and intensity"),
        ({"emotion": (0.0, float("nan"), 0.0)}, "arousal"),
        ({"emotion": (0.0, 0.0, -0.1)}, "intensity"),
        ({"progress": 1.5}, "progress"),
    ],
)
def test_wrong_frames_are_refused(given: dict[str, object], told: str) -> None:
    Frame(**good())  # type: ignore[arg-type]
    with pytest.raises(KmidiError, match=told):
        Frame(**{**good(), **given})  # type: ignore[arg-type]


def test_wrong_counts_and_indices_are_refused(chords: Callable[..., Notes]) -> None:
    song = Song(notes=chords(60), emotion=PLEASED)
    with pytest.raises(KmidiError, match="0 points"):
        begin(song[0], 0)
    with pytest.raises(KmidiError, match="ascending"):
        list(clouds_at(song, [5, 5]))
    with pytest.raises(KmidiError, match="the song has"):
        list(clouds_at(song, [len(song)]))
    with pytest.raises(ValueError, match="read-only"):
        begin(song[0]).cloud[0] = 0.0
