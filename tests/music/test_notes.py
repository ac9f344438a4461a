from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import MAX_DURATION_SECONDS, Notes, separate_repeats


def test_build_sorts_by_onset_then_pitch_and_casts() -> None:
    notes = Notes.build([64, 60, 72], [100, 90, 1], [1.0, 1.0, 0.5], [2, 1.5, 3])
    assert notes.pitch.tolist() == [72, 60, 64]
    assert notes.velocity.tolist() == [1, 90, 100]
    assert notes.onset_seconds.tolist() == [0.5, 1.0, 1.0]
    assert notes.offset_seconds.tolist() == [3.0, 1.5, 2.0]
    assert notes.pitch.dtype == notes.velocity.dtype == np.uint8
    assert notes.onset_seconds.dtype == notes.offset_seconds.dtype == np.float64
    assert len(notes) == 3
    assert notes.duration_seconds == 3.0


def test_build_does_not_keep_the_callers_arrays() -> None:
    pitch = np.array([60, 61], np.uint8)
    notes = Notes.build(pitch, [1, 1], [0, 0], [1, 1])
    pitch[:] = 0
    assert notes.pitch.tolist() == [60, 61]


def test_empty() -> None:
    notes = Notes.empty()
    assert len(notes) == 0
    assert notes.duration_seconds == 0.0
    assert notes.equals(Notes.build([], [], [], []))


def test_equals_sees_every_field() -> None:
    notes = Notes.build([60], [64], [0.0], [1.0])
    assert notes.equals(Notes.build([60], [64], [0.0], [1.0]))
    assert not notes.equals(Notes.build([61], [64], [0.0], [1.0]))
    assert not notes.equals(Notes.build([60], [65], [0.0], [1.0]))
    assert not notes.equals(Notes.build([60], [64], [0.1], [1.0]))
    assert not notes.equals(Notes.build([60], [64], [0.0], [np.nextafter(1.0, 2.0)]))
    assert not notes.equals(Notes.empty())


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (([128], [64], [0], [1]), "pitch of note 0 is 128"),
        (([-1], [64], [0], [1]), "pitch of note 0 is -1"),
        (([60.5], [64], [0], [1]), "pitch of note 0 is 60.5"),
        (([60, 60], [64, 0], [0, 0], [1, 1]), "velocity of note 1 is 0"),
        (([60], [128], [0], [1]), "velocity of note 0 is 128"),
        ((np.array([200], np.uint8), [64], [0], [1]), "pitch of note 0 is 200"),
        (([60], [64], [-0.1], [1]), "onset_seconds of note 0 is -0.1"),
        (([60], [64], [np.nan], [1]), "onset_seconds of note 0 is nan"),
        (([60], [64], [0], [np.inf]), "offset_seconds of note 0 is inf"),
        (([60], [64], [1], [1]), "note 0 ends at 1 s but starts at 1 s"),
        (([60], [64], [0], [MAX_DURATION_SECONDS + 1]), "24 hours"),
        (([60], [64], [0, 1], [1]), "four arrays of one length"),
        (([[60]], [64], [0], [1]), "one dimension"),
        ((["C"], [64], [0], [1]), "pitch of notes has to be a list of numbers"),
    ],
)
def test_build_refuses(columns: tuple[object, ...], words: str) -> None:
    with pytest.raises(KmidiError, match=words):
        Notes.build(*columns)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(60, 62), st.integers(1, 127), st.integers(0, 12), st.integers(1, 8)),
        max_size=14,
    )
)
def test_separate_repeats_equals_one_key_after_the_other(
    rows: list[tuple[int, int, int, int]],
) -> None:
    rows.sort(key=lambda row: (row[2], row[0]))
    expected: list[list[int]] = []
    for pitch, velocity, onset, length in rows:
        earlier = [row for row in expected if row[0] == pitch]
        if earlier and earlier[-1][2] == onset:
            earlier[-1][1] = max(earlier[-1][1], velocity)
            earlier[-1][3] = max(earlier[-1][3], onset + length)
        else:
            expected.append([pitch, velocity, onset, onset + length])
    for index, row in enumerate(expected):
        later = [other[2] for other in expected[index + 1 :] if other[0] == row[0]]
        row[3] = min([row[3], *later])

    table = np.array(rows, np.int64).reshape(-1, 4)
    pitch_in, velocity_in = table[:, 0].astype(np.uint8), table[:, 1].astype(np.uint8)
    untouched = velocity_in.copy()
    columns = separate_repeats(pitch_in, velocity_in, table[:, 2], table[:, 2] + table[:, 3])
    assert [list(row) for row in zip(*(x.tolist() for x in columns), strict=True)] == expected
    assert np.array_equal(velocity_in, untouched)
