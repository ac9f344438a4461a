from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.spans import (
    Span,
    held_out_pieces,
    legal_events,
    note_starts,
    sliding_spans,
)
from kmidi_mlx.music import grammar
from kmidi_mlx.music.events import NOTE_OFF, VELOCITY, encode
from kmidi_mlx.music.notes import Notes


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data())
def test_every_event_counts_once_and_has_the_promised_history(
    music: ShardReader, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    pieces = held_out_pieces(music, "val")
    counted = {piece: np.zeros(music.pieces.length[piece], int) for piece in pieces.tolist()}
    for span in sliding_spans(music, pieces, context, stride):
        counted[span.piece][span.first : span.stop] += 1
        assert span.position <= span.first < span.stop <= span.position + context
        # history: events from the one before the window's first target
        fewest = span.first - max(0, span.position - 1)
        assert fewest == span.first if span.position == 0 else fewest >= context - stride + 1
    assert all((count == 1).all() for count in counted.values())


def test_a_limit_is_met_evenly_and_always_alike(music: ShardReader) -> None:
    pieces = held_out_pieces(music, "val")
    everything = sliding_spans(music, pieces, 8, 4)
    some = sliding_spans(music, pieces, 8, 4, limit=60)
    assert 60 <= sum(map(len, some)) < 60 + 8
    assert some == sliding_spans(music, pieces, 8, 4, limit=60)
    assert some == [span for span in everything if span in set(some)]
    assert {span.piece for span in some} == set(pieces.tolist())
    gaps = np.diff([everything.index(span) for span in some])
    assert gaps.max() <= 3 * len(everything) / len(some)
    assert sliding_spans(music, pieces, 8, 4, limit=10**6) == everything


def test_duplicates_are_left_out_and_versions_stand_together(music: ShardReader) -> None:
    pieces = held_out_pieces(music, "val")
    songs = music.pieces.song[pieces].tolist()
    assert len(pieces) == 4
    assert sorted(songs) == songs
    assert len(set(songs)) == 3


@pytest.mark.parametrize(
    ("context", "stride", "limit", "said"),
    [(8, 0, None, "stride is 0"), (8, 9, None, "from 1 to 8"), (8, 4, 0, "limit is 0")],
)
def test_impossible_numbers_are_refused(
    music: ShardReader, context: int, stride: int, limit: int | None, said: str
) -> None:
    with pytest.raises(KmidiError, match=said):
        sliding_spans(music, held_out_pieces(music, "val"), context, stride, limit)


def test_a_side_without_music_is_refused(music: ShardReader) -> None:
    with pytest.raises(KmidiError, match="no pieces in 'test'"):
        held_out_pieces(music, "test")


def test_note_starts_names_the_note_on_of_what_sounds() -> None:
    # 60 struck twice and sounding, 62 ended, 64 sounding
    events = np.array([VELOCITY, 60, 62, 300, 62 + NOTE_OFF, 60 + NOTE_OFF, 64, 60], np.uint16)
    starts = note_starts(events)
    assert starts[60] == 7
    assert starts[64] == 6
    assert (np.delete(starts, [60, 64]) == -1).all()
    assert (note_starts(events[:0]) == -1).all()


def test_legal_events_equals_replaying_the_whole_piece(music: ShardReader) -> None:
    events = music.tokens(int(held_out_pieces(music, "val")[-1]))
    table, state = grammar.tables(), grammar.initial_state()
    limits = grammar.Limits(128, 10**6, 10**6, 0, 127)
    slow = []
    for event in events:
        slow.append(grammar.allowed(state, limits, table, np)[0])
        state = grammar.advance(state, np.array([event]), table, np)
    expected = np.stack(slow)
    # what was written is allowed, and much is not
    assert expected[np.arange(len(events)), events].all()
    assert expected.mean() < 0.7
    for first in range(0, len(events), 7):
        stop = min(first + 5, len(events))
        np.testing.assert_array_equal(legal_events(events, first, stop), expected[first:stop])


def test_legal_events_knows_a_note_that_began_long_ago() -> None:
    notes = Notes.build(
        [40, *[60] * 30],
        [80, *[40] * 30],
        [0, *np.arange(30) * 0.5],
        [20, *np.arange(30) * 0.5 + 0.2],
    )
    events = encode(notes)
    legal = legal_events(events, 80, 81)[0]
    assert legal[40 + NOTE_OFF]
    assert not legal[40]


def test_the_length_of_a_span_is_what_counts() -> None:
    assert len(Span(piece=0, position=4, first=9, stop=12)) == 3
