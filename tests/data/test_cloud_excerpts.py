from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.cloud_excerpts import (
    EXCERPT_SECONDS,
    WARM_UP_SECONDS,
    Excerpt,
    emotion_for,
    plan_excerpts,
)
from kmidi_mlx.spectocloud import FRAMES_PER_SECOND, MEL_FRAMES_PER_SECOND, EmotionCurve


def columns(seconds: float) -> int:
    return int(seconds * MEL_FRAMES_PER_SECOND)


@settings(max_examples=200, deadline=None)
@given(st.floats(3.0, 2000.0), st.integers(1, 60), st.integers(0, 2**32))
def test_excerpts_and_pairs_lie_inside_the_song(seconds: float, pairs: int, seed: int) -> None:
    total = columns(seconds)
    excerpts = plan_excerpts(total, pairs, np.random.default_rng(seed))
    assert 1 <= sum(len(excerpt.frames) for excerpt in excerpts) <= pairs
    assert [e.first_column for e in excerpts] == sorted(e.first_column for e in excerpts)
    for excerpt in excerpts:
        assert excerpt.first_column >= 0
        assert excerpt.first_column + excerpt.columns <= total
        assert excerpt.seconds <= EXCERPT_SECONDS + 0.01
        assert (np.diff(excerpt.frames) >= 2).all(), "frames k and k + 1 are each wanted once"
        if excerpt.first_column:
            assert excerpt.frames[0] >= WARM_UP_SECONDS * FRAMES_PER_SECOND
        # the newest column of the later frame has been heard, and none is missing
        newest = int((excerpt.frames[-1] + 1) / FRAMES_PER_SECOND * MEL_FRAMES_PER_SECOND)
        assert newest < excerpt.columns


def test_a_long_song_gives_all_pairs_spread_over_it() -> None:
    seconds = []
    for seed in range(30):
        excerpts = plan_excerpts(columns(200.0), 24, np.random.default_rng(seed))
        assert [len(excerpt.frames) for excerpt in excerpts] == [4] * 6
        seconds += [e.start_seconds + k / 60.0 for e in excerpts for k in e.frames.tolist()]
    shares = np.histogram(seconds, 8, (0.0, 200.0))[0] / len(seconds)
    assert shares.min() > 0.07
    assert min(seconds) < 3.0
    assert max(seconds) > 195.0


def test_a_short_song_gives_fewer() -> None:
    assert len(plan_excerpts(columns(13.0), 24, np.random.default_rng(0))) == 2
    (only,) = plan_excerpts(columns(3.01), 24, np.random.default_rng(0))
    assert (only.first_column, len(only.frames)) == (0, 4)


def test_emotions_reach_every_corner_and_move() -> None:
    excerpt = Excerpt(0, columns(15.0), np.array([0]))
    curves = [emotion_for(excerpt, None, 0.25, np.random.default_rng(s)) for s in range(400)]
    points = np.concatenate([curve.values for curve in curves])
    for valence in (-1, 1):
        for arousal in (-1, 1):
            near = np.hypot(points[:, 0] - valence, points[:, 1] - arousal) < 0.3
            assert near.mean() > 0.01
    distance = np.minimum(1.0, np.hypot(points[:, 0], points[:, 1]))
    assert 0.15 < (np.abs(points[:, 2] - distance) > 1e-9).mean() < 0.35
    legs = np.concatenate([np.diff(curve.seconds) for curve in curves])
    assert 3.0 <= legs.min() < legs.max() <= 6.0
    assert all(curve.seconds[-1] >= excerpt.seconds for curve in curves)


@pytest.mark.parametrize(
    ("share", "lowest", "highest"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)]
)
def test_the_songs_own_emotion_comes_as_often_as_asked(
    share: float, lowest: int, highest: int
) -> None:
    own = EmotionCurve(np.array([0.0, 100.0]), np.array([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    excerpt = Excerpt(columns(50.0), columns(15.0), np.array([0]))
    drawn = [emotion_for(excerpt, own, share, np.random.default_rng(s)) for s in range(400)]
    mine = [curve for curve in drawn if np.array_equal(curve.values, own.values)]
    assert lowest <= len(mine) <= highest
    # in the time of the excerpt
    assert all(curve.at(0.0)[0] == pytest.approx(0.0, abs=0.01) for curve in mine)
