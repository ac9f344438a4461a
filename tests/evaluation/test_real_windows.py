from __future__ import annotations

import numpy as np
import pytest

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.real_windows import pieces_cut, real_windows
from kmidi_mlx.evaluation.spans import held_out_pieces
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.notes import Notes


def test_one_of_each_song_comes_first_and_more_keep_the_first(music: ShardReader) -> None:
    # three val songs, one of them in two versions
    four = real_windows(music, "val", 4, 1.0, seed=0)
    songs = [int(music.pieces.song[window.piece]) for window in four]
    assert len(set(songs[:3])) == 3
    assert len({window.piece for window in four}) == 4
    two = real_windows(music, "val", 2, 1.0, seed=0)
    assert [window.piece for window in two] == [window.piece for window in four[:2]]
    orders = {tuple(w.piece for w in real_windows(music, "val", 4, 1.0, k)) for k in range(8)}
    assert len(orders) > 1
    for window in four:
        assert window.group == music.pieces.group[window.piece]


def test_a_window_is_the_beginning_with_its_label(music: ShardReader) -> None:
    for window in real_windows(music, "val", 3, 2.0, seed=1):
        whole = decode(music.tokens(window.piece))
        begun = whole.onset_seconds < 2.0
        np.testing.assert_array_equal(window.notes.pitch, whole.pitch[begun])
        assert window.notes.duration_seconds <= 2.0
        # the label model's first windows of 20 s begin with the piece
        low = int(music.pieces.mood_offset[window.piece])
        assert window.emotion.valence == pytest.approx(float(music.pieces.valence[low]))
        assert window.emotion.arousal == pytest.approx(float(music.pieces.arousal[low]))


def test_too_few_or_too_short_pieces_are_an_error(music: ShardReader) -> None:
    count = len(held_out_pieces(music, "val"))
    with pytest.raises(KmidiError, match=f"has {count} pieces of 0.1 s or more in 'val'"):
        real_windows(music, "val", count + 1, 0.1, seed=0)
    with pytest.raises(KmidiError, match="has 0 pieces of 999 s"):
        real_windows(music, "val", 1, 999.0, seed=0)


def test_stretches_have_the_notes_that_begin_in_them() -> None:
    onset = np.arange(20) * 0.5
    notes = Notes.build(40 + np.arange(20), [80] * 20, onset, onset + 0.9)
    cut = pieces_cut([notes, notes], 3.0, 100)
    assert [part.pitch.tolist() for part in cut[:3]] == [
        list(range(40, 46)), list(range(46, 52)), list(range(52, 58)),
    ]  # fmt: skip
    assert len(cut) == 6
    for part in cut:
        assert part.onset_seconds[0] == 0
        assert part.duration_seconds <= 3.0
    few = pieces_cut([notes, notes], 3.0, 2)
    assert [part.pitch[0] for part in few] == [40, 52]
    assert pieces_cut([notes], 60.0, 5) == []
