from __future__ import annotations

import numpy as np
import pytest

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.evaluation.ngram import NGram
from kmidi_mlx.evaluation.ngram_music import write_with_ngram
from kmidi_mlx.music.events import decode, encode, first_violation
from kmidi_mlx.music.notes import Notes
from tests.evaluation.conftest import random_notes

SCALE = [60, 62, 64, 65, 67]


def scales() -> Notes:
    """One scale over and over, which three events tell all about."""
    onset = np.arange(500) * 0.25
    return Notes.build(SCALE * 100, [81] * 500, onset, onset + 0.25)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_what_is_written_is_valid_music_of_that_length(order: int) -> None:
    ngram = NGram(order, [encode(random_notes(seed, 200)) for seed in range(4)])
    pieces = [write_with_ngram(ngram, SamplingConfig(), 5.0, seed) for seed in range(3)]
    for events in pieces:
        assert first_violation(events) is None
        assert 2 < decode(events).duration_seconds <= 5.0
    assert not np.array_equal(pieces[0], pieces[1])
    again = write_with_ngram(ngram, SamplingConfig(), 5.0, 0)
    np.testing.assert_array_equal(again, pieces[0])


def test_a_trigram_writes_what_it_learnt() -> None:
    notes = decode(write_with_ngram(NGram(3, [encode(scales())]), SamplingConfig(), 30.0, 0))
    steps = list(zip(notes.pitch[:-1].tolist(), notes.pitch[1:].tolist(), strict=True))
    wanted = set(zip(SCALE, [*SCALE[1:], SCALE[0]], strict=True))
    assert len(steps) > 80
    assert np.mean([step in wanted for step in steps]) > 0.9
    unigram = decode(write_with_ngram(NGram(1, [encode(scales())]), SamplingConfig(), 30.0, 0))
    steps = list(zip(unigram.pitch[:-1].tolist(), unigram.pitch[1:].tolist(), strict=True))
    assert np.mean([step in wanted for step in steps]) < 0.6


def test_the_limits_of_sampling_hold() -> None:
    ngram = NGram(2, [encode(random_notes(seed, 200)) for seed in range(4)])
    low = SamplingConfig(lowest_pitch=50, highest_pitch=60, max_polyphony=1)
    notes = decode(write_with_ngram(ngram, low, 10.0, 0))
    assert notes.pitch.min() >= 50
    assert notes.pitch.max() <= 60
    assert (notes.onset_seconds[1:] >= notes.offset_seconds[:-1]).all()
