from __future__ import annotations

from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.data.cloud_shards import CloudPairs
from kmidi_mlx.emotion import encode_many
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.cloud_ladder import NETWORK, RUNGS, Ladder, climb, held_out_pairs
from kmidi_mlx.evaluation.cloud_rungs import EmotionMeans, other_songs, spread_evenly
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

POINTS = 40
#: Names of the rungs whose network is told of another song.
FOREIGN = {
    "windows": "network, other sound",
    "features": "network, other notes",
    "emotion": "network, other emotion",
}
BASE = np.random.default_rng(0).uniform(0.2, 0.6, (POINTS, 10)).astype(np.float32)


def drawn_by(signal: Any) -> Any:
    """Clouds (batch, points, 10) that a number (batch,) alone decides."""
    return BASE + 0.3 * signal[:, None, None]


@dataclass
class Clouds:
    """A data set in memory whose clouds follow one input, `decisive`."""

    decisive: str = "features"
    songs: int = 6
    per_song: int = 4
    train_songs: int = 3
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(1)
        count = self.songs * self.per_song
        self.song = np.repeat(np.arange(self.songs, dtype=np.int32), self.per_song)
        inputs = {
            "windows": rng.uniform(0, 1, (count, 2, 128, 64)),
            "features": rng.uniform(-1, 1, (count, 2, 32)),
            "emotion": rng.uniform(0, 1, (count, 2, 3)),
        }
        arrays = {name: values.astype(np.float32) for name, values in inputs.items()}
        signal = arrays[self.decisive].reshape(2 * count, -1)[:, 0]
        clouds = drawn_by(signal).reshape(count, 2, POINTS, 10).astype(np.float32)
        self.everything = CloudPairs(**arrays, clouds=clouds)

    def split(self, name: str) -> NDArray[np.int64]:
        train = self.song < self.train_songs
        return np.flatnonzero({"train": train, "val": ~train}.get(name, self.song < 0))

    def pairs(self, indices: NDArray[np.int64]) -> CloudPairs:
        self.asked += indices.tolist()
        arrays = vars(self.everything)
        return CloudPairs(**{name: values[indices] for name, values in arrays.items()})


class Knowing:
    """A network that draws what `Clouds` holds, because it knows the decisive input."""

    def __init__(self, decisive: str) -> None:
        self.decisive = decisive

    def constants(self, points: int) -> Any:
        return SimpleNamespace(biases=[], queries=mx.zeros((points, 1)))

    def __call__(
        self, windows: mx.array, features: mx.array, emotion: mx.array, constants: Any
    ) -> mx.array:
        inputs = {"windows": windows, "features": features, "emotion": emotion}
        signal = inputs[self.decisive].reshape(windows.shape[0], -1)[:, 0]
        return mx.array(BASE) + 0.3 * signal[:, None, None]


def climb_with(decisive: str, **options: Any) -> tuple[Ladder, Clouds]:
    data = Clouds(decisive)
    model = cast("SpectocloudViT", Knowing(decisive))
    return climb(model, data, data.split("val"), **options), data


@pytest.mark.parametrize("decisive", list(FOREIGN))
def test_the_ladder_shows_what_the_network_uses(decisive: str) -> None:
    ladder, _ = climb_with(decisive)
    assert list(ladder.rungs) == list(RUNGS)
    assert (ladder.pairs, ladder.songs, ladder.points) == (12, 3, POINTS)
    chamfer = {name: rung.errors.chamfer.mean for name, rung in ladder.rungs.items()}
    assert chamfer[NETWORK] < 1e-9
    for part, name in FOREIGN.items():
        if part == decisive:
            assert chamfer[name] > 1e-3
        else:
            assert chamfer[name] == chamfer[NETWORK]
            assert ladder.rungs[name].over_network.mean == 0
    assert chamfer["mean cloud of the emotion"] > 1e-3
    assert chamfer["teacher, half the points"] > 0
    mean = ladder.rungs["mean cloud of the emotion"].errors
    assert mean.movement is not None
    late = ladder.rungs["teacher, a frame late"]
    assert late.errors.movement is None
    assert late.over_network.mean == pytest.approx(chamfer["teacher, a frame late"])


def test_only_what_computes_is_timed() -> None:
    ladder, _ = climb_with("features")
    timed = [name for name, rung in ladder.rungs.items() if rung.ms_per_frame is not None]
    assert timed == [NETWORK, "teacher, half the points"]
    assert all((ladder.rungs[name].ms_per_frame or 0) > 0 for name in timed)
    assert ladder.teacher_ms_per_frame > 0


def test_batches_and_seeds_change_what_they_should() -> None:
    def chamfer(**options: Any) -> list[float]:
        ladder, _ = climb_with("features", **options)
        return [rung.errors.chamfer.mean for rung in ladder.rungs.values()]

    plain = chamfer()
    np.testing.assert_allclose(chamfer(batch_size=5), plain, rtol=1e-6, atol=1e-12)
    other = chamfer(seed=1)
    changed = [a != b for a, b in zip(plain, other, strict=True)]
    assert changed == [name == FOREIGN["features"] for name in RUNGS]


def test_progress_counts_every_pair() -> None:
    counted: list[int] = []
    climb_with("features", batch_size=5, on_progress=counted.append)
    assert counted == [5, 5, 2]


def test_means_are_learnt_from_the_train_side_alone() -> None:
    data = Clouds()
    data.everything.clouds[data.split("val")] = np.nan
    means = EmotionMeans(data, data.split("train"))
    assert np.isfinite(means.clouds(data.everything.emotion)).all()


def test_mean_clouds_are_means_of_their_cell() -> None:
    data = Clouds()
    emotion, clouds = data.everything.emotion, data.everything.clouds
    emotion[...] = (-0.9, -0.9, 0.5)
    emotion[:8] = (0.9, 0.5, 0.1)
    emotion[8] = (0.9, 0.5, 0.9)  # intensity makes no cell
    emotion[9, 1] = (1.0, 0.4, 0.9)  # the same cell, in one frame of the pair
    means = EmotionMeans(data, np.arange(24))
    here = np.concatenate([clouds[:9].reshape(-1, POINTS, 10), clouds[9, 1:]])
    found = means.clouds(np.array([[0.81, 0.55, 0.3]], np.float32))
    np.testing.assert_allclose(found, here.mean(0)[None], rtol=1e-5)
    # cells without clouds: the nearest that has some
    near = means.clouds(np.array([[0.9, 0.0, 0.3], [-0.5, -1.0, 0.0]], np.float32))
    np.testing.assert_array_equal(near[0], found[0])
    there = np.concatenate([clouds[10:].reshape(-1, POINTS, 10), clouds[9, :1]])
    np.testing.assert_allclose(near[1], there.mean(0), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(song=st.lists(st.integers(0, 5), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_foreign_inputs_are_of_another_song(song: list[int], seed: int) -> None:
    songs = np.array(song)
    if len(set(song)) < 2:
        with pytest.raises(KmidiError, match="one song"):
            other_songs(songs, seed)
        return
    drawn = other_songs(songs, seed)
    assert (songs[drawn] != songs).all()
    np.testing.assert_array_equal(drawn, other_songs(songs, seed))


def test_every_pair_of_other_songs_can_be_drawn() -> None:
    songs = np.array([4, 1, 4, 2, 2, 1])
    seen = {tuple(pair) for seed in range(200) for pair in enumerate(other_songs(songs, seed))}
    wanted = {(i, j) for i in range(6) for j in range(6) if songs[i] != songs[j]}
    assert seen == wanted


@given(count=st.integers(0, 50), limit=st.integers(1, 60))
def test_a_limit_takes_pairs_from_everywhere(count: int, limit: int) -> None:
    chosen = spread_evenly(np.arange(count), limit)
    assert len(chosen) == min(count, limit)
    if limit < count:
        assert chosen[0] == 0
        steps = np.diff(np.append(chosen, count))
        assert steps.max() - steps.min() <= 1


def test_a_side_without_clouds_is_refused() -> None:
    with pytest.raises(KmidiError, match="no clouds in 'test'"):
        held_out_pairs(Clouds(), "test", 10)
    data = Clouds(train_songs=0)
    with pytest.raises(KmidiError, match="no clouds in 'train'"):
        climb(cast("SpectocloudViT", Knowing("features")), data, data.split("val"))


def test_the_network_is_asked_frame_by_frame() -> None:
    model = SpectocloudViT(SpectocloudVitConfig(dims=(64, 64), depths=(1, 1), patch_size=8))
    model.initialise(0)
    data = Clouds()
    own = data.pairs(np.arange(3))
    found = Network(model, POINTS).clouds(own.windows, own.features, own.emotion)
    assert found.shape == (3, 2, POINTS, 10)
    alone = model(
        mx.array(own.windows[1, 1:]),
        mx.array(own.features[1, 1:]),
        mx.array(encode_many(*own.emotion[1, 1:].T)),
        model.constants(POINTS),
    )
    np.testing.assert_allclose(found[1, 1], np.asarray(alone)[0], atol=1e-5)
    assert np.abs(found[1, 1] - found[1, 0]).max() > 1e-4


def test_a_ladder_is_json() -> None:
    ladder, _ = climb_with("windows")
    whole = asdict(ladder)
    assert set(whole["rungs"][NETWORK]) == {"errors", "over_network", "ms_per_frame"}
