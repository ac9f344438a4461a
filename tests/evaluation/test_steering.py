from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.evaluation import steering
from kmidi_mlx.evaluation.resampling import Interval
from kmidi_mlx.evaluation.spans import held_out_pieces
from kmidi_mlx.evaluation.steering import (
    PLAIN_MEASURES,
    Steering,
    emotion_grid,
    grid_shape,
    plain_measures,
    quadrant_changes,
    real_music,
    statistics_of,
    steering_of,
)
from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.mood import STATISTICS, mood, mood_curve
from kmidi_mlx.music.notes import Notes

Floats = NDArray[np.float64]
CLASS = STATISTICS.index("pitch_class_0")
NOTES = STATISTICS.index("notes")


def scale(low: int, count: int, gap: float, velocity: int = 80, minor: bool = False) -> Notes:
    steps = np.array([0, 2, 3 if minor else 4, 5, 7, 8 if minor else 9, 11, 12])
    onset = gap * np.arange(count)
    return Notes.build(
        low + np.resize(steps, count), np.full(count, velocity), onset, onset + 0.9 * gap
    )


@pytest.fixture
def spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label model reads the mood out of two columns, weighted by notes."""

    def estimate(statistics: Floats) -> Floats:
        return statistics[:, CLASS : CLASS + 2] / np.maximum(statistics[:, [NOTES]], 1e-9)

    monkeypatch.setattr(steering, "estimate", estimate)


def heard(moods: Floats, silent: tuple[int, ...] = ()) -> Floats:
    """Halves of pieces whose mood is spelt out."""
    halves = np.zeros((len(moods), 2, len(STATISTICS)))
    halves[..., NOTES] = 10.0
    halves[..., CLASS : CLASS + 2] = 10.0 * moods[:, None]
    halves[list(silent)] = 0.0
    return halves


def points(pieces: int) -> Floats:
    return np.array([(e.valence, e.arousal) for e in emotion_grid(pieces)])


@pytest.mark.parametrize(
    ("pieces", "shape"),
    [(4, (2, 2)), (7, (3, 2)), (8, (2, 2)), (80, (5, 4)), (81, (9, 9)), (100, (5, 5))],
)
def test_the_grid_that_most_pieces_fill(pieces: int, shape: tuple[int, int]) -> None:
    assert grid_shape(pieces) == shape


@settings(max_examples=30)
@given(st.integers(4, 400))
def test_each_point_is_asked_equally_often_and_the_grid_is_balanced(pieces: int) -> None:
    asked, (valence, arousal) = points(pieces), grid_shape(pieces)
    found = Counter(map(tuple, asked.tolist()))
    assert len(found) == valence * arousal
    assert len(set(found.values())) == 1
    assert pieces - valence * arousal < len(asked) <= pieces
    assert np.abs(asked).max() == 0.9
    assert {(v, a) for v in (-0.9, 0.9) for a in (-0.9, 0.9)} <= set(found)
    # no axis tells anything of the other
    np.testing.assert_allclose(asked.sum(axis=0), 0, atol=1e-9)
    assert asked[:, 0] @ asked[:, 1] == pytest.approx(0, abs=1e-9)
    if valence % 2 and arousal % 2:
        assert (0.0, 0.0) in found


def test_changes_are_all_ordered_pairs_of_corners() -> None:
    changes = quadrant_changes()
    spots = {(a.valence, a.arousal, b.valence, b.arousal) for a, b in changes}
    assert len(spots) == len(changes) == 12
    assert all(spot[:2] != spot[2:] for spot in spots)
    assert {abs(number) for spot in spots for number in spot} == {0.9}


@pytest.mark.usefixtures("spelt")
def test_a_perfect_follower() -> None:
    asked = points(80)
    found = steering_of(asked, heard(asked), 30.0)
    assert (found.pieces, found.silent) == (80, 0)
    for follow in (found.valence, found.arousal):
        for interval in (follow.r, follow.slope):
            assert [interval.value, interval.low, interval.high] == pytest.approx([1, 1, 1])
    # the middle column of the grid is in no quadrant
    assert found.quadrant_pieces == 64
    assert found.quadrant_hits == Interval(1.0, 1.0, 1.0)
    assert found.quadrant_chance == pytest.approx(0.25)
    assert found.quadrant_chance_limit is not None
    assert 0.3 < found.quadrant_chance_limit < 0.4
    assert found.halves.valence_r.value == pytest.approx(1)
    assert found.halves.valence_ceiling == pytest.approx(1)
    assert found.halves.valence_deviation == pytest.approx(asked[:, 0].std(ddof=1))


@pytest.mark.usefixtures("spelt")
def test_a_weak_and_an_inverted_follower() -> None:
    asked = points(80)
    found = steering_of(asked, heard(asked * [0.3, -0.5] + [0.1, 0.0]), 30.0)
    assert found.valence.r.value == pytest.approx(1)
    assert found.valence.slope.value == pytest.approx(0.3)
    assert found.arousal.r.value == pytest.approx(-1)
    assert found.arousal.slope.value == pytest.approx(-0.5)
    assert found.quadrant_hits.value == 0


@pytest.mark.usefixtures("spelt")
def test_who_does_not_listen_is_near_chance() -> None:
    asked, outside = points(80), 0
    for seed in range(8):
        moods = np.random.default_rng(seed).uniform(-1, 1, asked.shape)
        found = steering_of(asked, heard(moods), 30.0, seed)
        assert found.quadrant_chance == pytest.approx(0.25, abs=0.05)
        for value, limit in (
            (found.valence.r.value, found.valence_r_limit),
            (found.arousal.r.value, found.arousal_r_limit),
            (found.quadrant_hits.value, found.quadrant_chance_limit),
        ):
            assert value is not None
            assert limit is not None
            outside += abs(value) > limit
        # |r| of 80 independent pairs: 2.24 / sqrt(79)
        assert found.valence_r_limit == pytest.approx(0.252, abs=0.025)
    # 24 chances of one in forty
    assert outside <= 4


@pytest.mark.usefixtures("spelt")
def test_the_chance_of_hits_is_that_of_all_permutations() -> None:
    asked = np.array([(0.9, 0.9)] * 3 + [(-0.9, -0.9)])
    moods = np.array([(0.9, 0.9), *[(-0.9, -0.9)] * 3])
    found = steering_of(asked, heard(moods), 30.0)
    assert found.quadrant_hits.value == 0.5
    # the one request for sadness falls on one of three sad pieces, or on the happy one
    assert found.quadrant_chance == pytest.approx(3 / 4 * 2 / 4 + 1 / 4 * 0)
    assert found.quadrant_chance_limit == 0.5


@pytest.mark.usefixtures("spelt")
def test_silent_pieces_are_counted_and_left_out() -> None:
    asked = points(80)
    kept = np.delete(np.arange(80), (3, 70))
    found = steering_of(asked, heard(asked, silent=(3, 70)), 30.0)
    assert (found.pieces, found.silent) == (78, 2)
    without = steering_of(asked[kept], heard(asked[kept]), 30.0)
    assert found == Steering(**{**vars(without), "silent": 2})
    nothing = steering_of(asked, heard(asked, silent=tuple(range(80))), 30.0)
    assert (nothing.pieces, nothing.silent, nothing.quadrant_chance) == (0, 80, None)
    assert nothing.valence.r == Interval(None, None, None)
    assert nothing.means["mode"] is None


@pytest.mark.usefixtures("spelt")
def test_the_ceiling_is_reached_by_an_estimate_of_a_steady_mood() -> None:
    draw = np.random.default_rng(0)
    mood_of, halves = draw.normal(size=(400, 2)) * 0.3, heard(np.zeros((400, 2)))
    halves[..., CLASS : CLASS + 2] += 10 * (mood_of[:, None] + draw.normal(size=(400, 2, 2)) * 0.4)
    found = steering_of(mood_of, halves, 30.0)
    assert found.halves.arousal_r.value == pytest.approx(0.09 / (0.09 + 0.16), abs=0.1)
    assert found.halves.arousal_ceiling == pytest.approx(found.arousal.r.value, abs=0.06)


def test_plain_measures_of_notes() -> None:
    pieces = [scale(60, 24, 0.25), scale(36, 12, 0.5, 40, minor=True), Notes.empty()]
    whole = np.stack([statistics_of(notes, 3.0, 2).sum(axis=0) for notes in pieces])
    rows = plain_measures(whole, 6.0)
    for notes, row in zip(pieces[:2], rows[:2], strict=True):
        expected = [len(notes) / 6, notes.pitch.mean(), notes.velocity.mean()]
        np.testing.assert_allclose(row[:3], expected)
    mode, minor = (PLAIN_MEASURES.index(name) for name in ("mode", "minor"))
    assert rows[0, mode] > 0 > rows[1, mode]
    assert rows[:2, minor].tolist() == [0, 1]
    assert rows[2, 0] == 0
    assert np.isnan(rows[2, 1:]).all()


def test_real_notes_are_judged_by_what_is_heard() -> None:
    """Fast and loud where arousal is asked, major where valence is."""
    asked = points(80)
    pieces = [
        scale(60, 200, 0.6 - 0.4 * arousal, round(80 + 30 * arousal), minor=valence < 0)
        for valence, arousal in asked.tolist()
    ]
    halves = np.stack([statistics_of(notes, 15.0, 2) for notes in pieces])
    found = steering_of(asked, halves, 30.0)
    assert found.arousal.r.value is not None
    assert found.arousal.r.value > 0.8
    assert found.valence.r.value is not None
    assert found.valence.r.value > 0.6
    assert found.measures["mean_velocity"]["arousal"].slope.value == pytest.approx(30, abs=1)
    assert found.measures["mean_velocity"]["valence"].r.value == pytest.approx(0, abs=0.01)
    rates = found.measures["note_rate"]
    assert rates["arousal"].r.low is not None
    assert rates["arousal"].r.low > 0.8
    assert found.measures["minor"]["valence"].slope.value == pytest.approx(-0.62, abs=0.2)


@pytest.mark.parametrize("seconds", [2.0, 5.0])
def test_real_windows_are_cut_as_by_hand(music: ShardReader, seconds: float) -> None:
    found = real_music(music, "val", seconds)
    pieces = held_out_pieces(music, "val").tolist()
    moods = []
    for piece in pieces:
        notes = decode(music.tokens(piece))
        for window in range(int(notes.duration_seconds // seconds)):
            begin = seconds * window
            inside = (notes.onset_seconds >= begin) & (notes.onset_seconds < begin + seconds)
            if inside.any():
                own = Notes(*(getattr(notes, name)[inside] for name in vars(notes)))
                moods.append((len(own) / seconds, float(own.pitch.mean())))
    assert found.songs == 3
    assert sum(found.label_sources.values()) == len(moods)
    assert found.label_sources["estimated"] == len(moods)
    assert found.halves.count <= len(moods)
    expected = np.mean(moods, axis=0)
    assert found.means["note_rate"] == pytest.approx(expected[0])
    assert found.means["mean_pitch"] == pytest.approx(expected[1])
    assert found == real_music(music, "val", seconds)
    fewer = real_music(music, "val", seconds, most=1)
    assert fewer.songs == 1


def test_the_whole_is_the_mood_of_the_piece() -> None:
    notes = scale(50, 100, 0.3)
    halves = statistics_of(notes, 15.0, 2)
    np.testing.assert_allclose(
        steering.estimate(halves.sum(axis=0, keepdims=True))[0], mood(notes), atol=1e-9
    )
    np.testing.assert_allclose(
        steering.estimate(halves[:1])[0], mood(slice_notes(notes, 0.0, 15.0)), atol=0.02
    )


def test_labels_are_those_of_the_window(tmp_path: Path) -> None:
    """Labels of 20 s and windows of 20 s, by the same model, are the same."""
    rng = np.random.default_rng(0)
    onset = 0.25 * np.arange(330)  # 82.5 s, at the end of the fifth window
    pitch, velocity = 40 + np.arange(330) // 8 + rng.integers(0, 9, 330), 40 + np.arange(330) // 5
    notes = Notes.build(pitch, velocity, onset, onset + 0.2)
    write_midi(notes, tmp_path / "a.mid")
    write_manifest(tmp_path / "m.jsonl", [{"path": "a.mid", "song": 0, "split": "val"}])
    prepare_midi([tmp_path / "m.jsonl"], tmp_path / "out", workers=1, licence="test")
    reader = ShardReader(tmp_path / "out")
    expected = mood_curve(notes, 20.0, 20.0)
    assert len(expected) == 4
    assert np.ptp(expected[:, 1]) > 0.1
    found = steering._labels(reader, 0, 20.0, np.arange(4))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # a window before or after all rows takes the first or last of them
    ends = steering._labels(reader, 0, 2.0, np.array([0, 41]))
    np.testing.assert_allclose(ends, mood_curve(notes, 20.0, 2.0)[[0, -1]], atol=1e-3)
    judged = real_music(reader, "val", 20.0)
    assert judged.halves.count == 4
    assert judged.label_arousal_r.value == pytest.approx(1, abs=1e-3)
    assert judged.label_valence_r.value == pytest.approx(1, abs=1e-3)
