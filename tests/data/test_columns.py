from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.data.columns import Content

piece = st.tuples(
    st.integers(1, 9),
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=3),
    st.lists(st.integers(0, 99), max_size=4),
    st.lists(st.integers(0, 24), max_size=2),
)
Piece = tuple[int, list[float], list[int], list[int]]


def one(value: Piece) -> Content:
    length, mood, chords, keys = value
    return Content(
        length=np.array([length], np.int32),
        duration_steps=np.array([length * 7], np.int32),
        mood_source=np.array([1], np.uint8),
        intensity=np.array([0.5], np.float16),
        mood_offset=np.array([0, len(mood)], np.int64),
        valence=np.array(mood, np.float16),
        arousal=-np.array(mood, np.float16),
        chord_offset=np.array([0, len(chords)], np.int64),
        chord_step=np.arange(len(chords), dtype=np.int32),
        chord=np.array(chords, np.uint8),
        key_offset=np.array([0, len(keys)], np.int64),
        key_step=np.arange(len(keys), dtype=np.int32),
        key=np.array(keys, np.uint8),
    )


def pieces(content: Content) -> list[Piece]:
    return [
        (
            int(content.length[i]),
            content.valence[content.mood_offset[i] : content.mood_offset[i + 1]].tolist(),
            content.chord[content.chord_offset[i] : content.chord_offset[i + 1]].tolist(),
            content.key[content.key_offset[i] : content.key_offset[i + 1]].tolist(),
        )
        for i in range(len(content.length))
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(piece, max_size=6), st.data())
def test_join_and_pick_keep_every_piece_whole(values: list[Piece], data: st.DataObject) -> None:
    joined = Content.join([one(value) for value in values])
    assert pieces(joined) == values
    if values:
        order = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=8))
        picked = joined.pick(np.array(order, np.int64))
        assert pieces(picked) == [values[i] for i in order]


def test_no_pieces_have_the_dtypes_of_some() -> None:
    some, none = one((1, [0.5], [1], [2])), Content.empty()
    for item in dataclasses.fields(Content):
        assert getattr(none, item.name).dtype == getattr(some, item.name).dtype
    assert pieces(Content.join([none, some, none])) == pieces(some)
