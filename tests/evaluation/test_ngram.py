from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.evaluation.ngram import NGram, learn, score_ngram
from kmidi_mlx.evaluation.spans import held_out_pieces, sliding_spans
from kmidi_mlx.music.events import START_TOKEN

PIECES = [np.array([0, 1, 0, 1, 2]), np.array([0, 1])]


def slow_chance(
    pieces: list[np.ndarray], order: int, past: list[int], event: int, strengths: list[float]
) -> float:
    """The formula in the docstring, by counting."""
    chance = 1 / 388
    for length in range(order):
        padded_past = [START_TOKEN] * (order - 1) + past
        context = padded_past[len(padded_past) - length :]
        followers = []
        for piece in pieces:
            padded = [START_TOKEN] * (order - 1) + piece.tolist()
            for at in range(order - 1, len(padded)):
                if padded[at - length : at] == context:
                    followers.append(padded[at])
        if followers:
            kinds = strengths[length] * len(set(followers))
            chance = (followers.count(event) + kinds * chance) / (len(followers) + kinds)
    return chance


def test_a_small_example_by_hand() -> None:
    # 7 events: 0 three times, 1 three times, 2 once; 0 is always followed by 1
    chance = NGram(2, PIECES).probabilities(np.array([0, 1]), 0, 2)
    after_start = 2 / 2, 1  # both pieces begin with 0: count 2 of 2, one kind
    unigram = (3 + 3 / 388) / (7 + 3)
    assert chance[0, 0] == pytest.approx((2 + unigram) / (after_start[0] * 2 + after_start[1]))
    assert chance[1, 1] == pytest.approx((3 + unigram) / (3 + 1))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 4),
    st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=4),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
    st.booleans(),
)
def test_it_equals_counting_and_sums_to_one(
    order: int, lists: list[list[int]], events: list[int], tuned: bool
) -> None:
    pieces = [np.array(piece, np.int64) for piece in lists]
    ngram = NGram(order, pieces)
    if tuned:
        ngram.tune([np.array(events)])
    chance = ngram.probabilities(np.array(events), 0, len(events))
    np.testing.assert_allclose(chance.sum(axis=1), 1.0, rtol=1e-12)
    strengths = ngram.strengths or [1.0] * order
    for at, event in enumerate(events):
        slow = slow_chance(pieces, order, events[:at], event, strengths)
        assert chance[at, event] == pytest.approx(slow)
    middle = len(events) // 2
    np.testing.assert_array_equal(
        ngram.probabilities(np.array(events), middle, len(events)), chance[middle:]
    )


def test_order_zero_is_uniform_and_order_one_knows_no_past() -> None:
    events = np.array([0, 1, 2])
    assert (NGram(0, PIECES).probabilities(events, 0, 3) == 1 / 388).all()
    unigram = NGram(1, PIECES).probabilities(events, 0, 3)
    assert (unigram == unigram[0]).all()


def test_tuning_trusts_counts_less_where_they_do_not_hold() -> None:
    # learnt: 0 is followed by 1 and 2 by 3; the tuning pieces keep no such order
    pieces = [np.array([0, 1] * 50 + [2, 3] * 50)]
    ngram = NGram(2, pieces)
    ngram.tune([np.random.default_rng(0).integers(0, 4, 400)])
    assert ngram.strengths[1] > 16
    same = NGram(2, pieces)
    same.tune(pieces)
    assert same.strengths[1] == 1.0


def test_tuning_finds_the_strength_that_predicts_best(music: ShardReader) -> None:
    ngram = learn(music, 2)
    held_out = [music.tokens(piece) for piece in held_out_pieces(music, "val").tolist()]
    ngram.tune(held_out)

    def nats(strength: float) -> float:
        ngram.strengths[1] = strength
        return -sum(
            np.log(ngram.probabilities(piece, 0, len(piece))[np.arange(len(piece)), piece]).sum()
            for piece in held_out
        )

    tuned = ngram.strengths[1]
    assert nats(tuned) == min(nats(2.0**power) for power in range(8))


def test_scores_cover_the_spans(music: ShardReader) -> None:
    pieces = held_out_pieces(music, "val")
    spans = sliding_spans(music, pieces, 16, 8)
    seen: list[int] = []
    uniform = score_ngram(NGram(0, ()), music, spans, seen.append).score()
    assert sum(seen) == uniform.events == int(music.pieces.length[pieces].sum())
    assert uniform.nats_per_event == pytest.approx(math.log(388))
    assert 0 < uniform.illegal_mass < 1
    # however it is cut, an n-gram sees the same past
    bigram = learn(music, 2)
    whole = score_ngram(bigram, music, sliding_spans(music, pieces, 10_000, 10_000)).score()
    parts = score_ngram(bigram, music, spans).score()
    assert parts.nats_per_event == pytest.approx(whole.nats_per_event)
    assert parts.illegal_mass == pytest.approx(whole.illegal_mass)
    assert parts.nats_per_event < uniform.nats_per_event


def test_the_first_song_of_twenty_is_not_counted_but_tunes(music: ShardReader) -> None:
    pieces = held_out_pieces(music, "train").tolist()
    streams = [music.tokens(piece) for piece in pieces]
    expected = NGram(2, streams[1:])
    expected.tune(streams[:1])
    found = learn(music, 2)
    assert found.strengths == expected.strengths
    chance, wanted = (ngram.probabilities(streams[2], 0, 50) for ngram in (found, expected))
    np.testing.assert_array_equal(chance, wanted)
    assert not np.allclose(chance, NGram(2, streams).probabilities(streams[2], 0, 50))
