from __future__ import annotations

import math

import numpy as np
import pytest

from kmidi_mlx.evaluation.tally import Tally, gain
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY


def tally_of(*songs: list[float]) -> Tally:
    """Note-ons that cost these nats."""
    tally = Tally(len(songs) + 1)
    for song, nats in enumerate(songs):
        count = len(nats)
        tally.add(
            song, np.zeros(count, int), np.array(nats), np.zeros(count, bool), np.zeros(count)
        )
    return tally


def test_sums_become_means_by_kind() -> None:
    tally = Tally(5)
    targets = np.array([0, 127, NOTE_OFF, TIME_SHIFT - 1, TIME_SHIFT, VELOCITY - 1, VELOCITY, 387])
    correct = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)
    tally.add(3, targets, np.full(8, 2.0), correct, np.full(8, 0.25))
    score = tally.score()
    assert (score.events, score.notes, score.songs) == (8, 2, 1)
    assert score.nats_per_event == 2.0
    assert score.perplexity == pytest.approx(math.exp(2))
    assert score.nats_per_note == 8.0
    assert score.illegal_mass == 0.25
    assert score.accuracy == {"note_on": 0.5, "note_off": 1.0, "time_shift": 0.0, "velocity": 0.5}
    assert score.standard_error is None  # one song says nothing of others


def test_what_did_not_occur_is_none() -> None:
    tally = Tally(1)
    tally.add(0, np.array([VELOCITY]), np.array([1.0]), np.array([True]), np.array([0.0]))
    score = tally.score()
    assert score.nats_per_note is None
    assert score.accuracy["note_on"] is None
    assert score.accuracy["velocity"] == 1.0


def test_songs_of_one_length_have_the_error_of_a_mean() -> None:
    means = [1.0, 2.0, 4.0, 5.0]
    score = tally_of(*([mean] * 10 for mean in means)).score()
    assert score.songs == 4
    assert score.nats_per_event == 3.0
    assert score.standard_error == pytest.approx(np.std(means, ddof=1) / 2)


def test_the_error_matches_the_spread_of_redrawn_songs() -> None:
    rng = np.random.default_rng(0)
    lengths, levels = rng.integers(20, 200, 60), rng.normal(3.0, 0.4, 60)
    score = tally_of(*([m] * n for n, m in zip(lengths, levels, strict=True))).score()
    draws = rng.integers(0, 60, (4000, 60))
    redrawn = (lengths * levels)[draws].sum(axis=1) / lengths[draws].sum(axis=1)
    assert score.standard_error == pytest.approx(redrawn.std(), rel=0.1)


def test_a_gain_that_all_songs_share_is_certain() -> None:
    better, worse = tally_of([1.0] * 5, [4.0] * 7), tally_of([1.5] * 5, [4.5] * 7)
    saved, error = gain(better, worse)
    assert saved == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-12)
    own = better.score().standard_error
    assert own is not None
    assert own > 1
