from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.augment import (
    exchange_mode,
    scale_velocity,
    slice_notes,
    time_stretch,
    transpose,
)
from kmidi_mlx.music.events import decode, encode, first_violation
from kmidi_mlx.music.notes import Notes

QUICK = settings(max_examples=100, deadline=None)

pieces = st.lists(
    st.tuples(
        st.integers(0, 127),
        st.integers(1, 127),
        st.floats(0, 20, allow_subnormal=False),
        st.floats(0.001, 3),
    ),
    max_size=12,
).map(
    lambda rows: Notes.build(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[2] + row[3] for row in rows],
    )
)


def is_sound(notes: Notes) -> bool:
    """In range, in order, and valid as events."""
    again = Notes.build(notes.pitch, notes.velocity, notes.onset_seconds, notes.offset_seconds)
    return notes.equals(again) and first_violation(encode(notes)) is None


@QUICK
@given(pieces, st.integers(-127, 127))
def test_transposed_notes_keep_their_pitch_class_and_times(notes: Notes, semitones: int) -> None:
    moved = transpose(notes, semitones)
    assert is_sound(moved)

    def classes(piece: Notes, shift: int) -> list[tuple[float, float, int]]:
        pitches = (piece.pitch.astype(int) + shift) % 12
        return sorted(
            zip(
                piece.onset_seconds.tolist(),
                piece.offset_seconds.tolist(),
                pitches.tolist(),
                strict=True,
            )
        )

    assert classes(moved, 0) == classes(notes, semitones)


@QUICK
@given(pieces, st.integers(-24, 24))
def test_transposing_back_is_the_identity_where_nothing_folds(notes: Notes, semitones: int) -> None:
    middle = Notes(
        (notes.pitch % 79 + 24).astype(np.uint8),
        notes.velocity,
        notes.onset_seconds,
        notes.offset_seconds,
    )
    middle = transpose(middle, 0)  # in order again
    moved = transpose(middle, semitones)
    assert np.array_equal(moved.pitch, middle.pitch.astype(int) + semitones)
    assert transpose(moved, -semitones).equals(middle)


def test_notes_that_would_leave_come_back_by_octaves() -> None:
    notes = Notes.build([1, 60, 126], [64, 64, 64], [0, 1, 2], [1, 2, 3])
    assert transpose(notes, 5).pitch.tolist() == [6, 65, 119]
    assert transpose(notes, -5).pitch.tolist() == [8, 55, 121]
    assert transpose(notes, 127).pitch.tolist() == [116, 127, 121]


@QUICK
@given(pieces, st.floats(0.01, 100))
def test_stretched_time_is_proportional_and_in_order(notes: Notes, factor: float) -> None:
    longer = time_stretch(notes, factor)
    assert is_sound(longer)
    assert longer.duration_seconds == pytest.approx(notes.duration_seconds * factor)
    assert np.allclose(longer.onset_seconds, notes.onset_seconds * factor)
    assert sorted(longer.pitch.tolist()) == sorted(notes.pitch.tolist())


@QUICK
@given(pieces, st.integers(-3, 3))
def test_stretching_by_powers_of_two_is_exactly_inverted(notes: Notes, power: int) -> None:
    assert time_stretch(time_stretch(notes, 2.0**power), 2.0**-power).equals(notes)


def test_stretching_neighbouring_floats_leaves_sound_notes() -> None:
    onset = np.array([1.0, np.nextafter(1.0, 2.0)])
    notes = Notes.build([72, 60], [64, 64], onset, np.nextafter(onset, 2.0))
    for factor in (0.3, 0.7, 0.011):
        assert is_sound(time_stretch(notes, factor))


@QUICK
@given(pieces, st.floats(0, 3))
def test_scaled_velocities_stay_in_range_and_in_order(notes: Notes, factor: float) -> None:
    scaled = scale_velocity(notes, factor)
    assert is_sound(scaled)
    expected = [min(127, max(1, math.floor(v * factor + 0.5))) for v in notes.velocity.tolist()]
    assert scaled.velocity.tolist() == expected
    assert scale_velocity(notes, 1.0).equals(notes)


@QUICK
@given(pieces, st.floats(0, 20), st.floats(0, 5))
def test_a_slice_sounds_as_the_piece_does_there(notes: Notes, start: float, length: float) -> None:
    window = slice_notes(notes, start, start + length)
    assert is_sound(window)
    assert window.duration_seconds <= length + 1e-9
    for at in np.linspace(0, length, 7)[:-1] + length / 50:
        in_piece = (notes.onset_seconds <= start + at) & (notes.offset_seconds > start + at)
        near_a_border = np.concatenate(
            (notes.onset_seconds - start - at, notes.offset_seconds - start - at)
        )
        if np.abs(near_a_border).min(initial=1) > 1e-9 and length > 1e-6:
            in_window = (window.onset_seconds <= at) & (window.offset_seconds > at)
            assert sorted(window.pitch[in_window]) == sorted(notes.pitch[in_piece])


def test_a_slice_cuts_at_both_borders_and_starts_at_zero() -> None:
    notes = Notes.build([60, 64, 67, 72], [1, 2, 3, 4], [0, 0.5, 1.5, 2.0], [1.25, 0.75, 9, 3])
    window = slice_notes(notes, 1.0, 2.0)
    assert window.pitch.tolist() == [60, 67]
    assert window.onset_seconds.tolist() == [0.0, 0.5]
    assert window.offset_seconds.tolist() == [0.25, 1.0]
    assert slice_notes(notes, 0, 9).equals(notes)
    assert len(slice_notes(notes, 1.0, 1.0)) == 0
    assert len(slice_notes(Notes.empty(), 0, 1)) == 0


@QUICK
@given(pieces, st.integers(0, 11), st.booleans())
def test_the_parallel_key_moves_three_degrees_by_a_semitone(
    notes: Notes, tonic: int, minor: bool
) -> None:
    """Compared note by note with the words of a book of harmony."""
    scale = {3: 4, 8: 9, 10: 11} if minor else {4: 3, 9: 8, 11: 10}
    moved = exchange_mode(notes, tonic, minor)
    assert is_sound(moved)
    expected = []
    for pitch in notes.pitch.tolist():
        degree = (pitch - tonic) % 12
        changed = pitch + scale.get(degree, degree) - degree
        expected.append(changed if 0 <= changed <= 127 else pitch)
    assert sorted(moved.pitch.tolist()) == sorted(expected)


def test_a_major_scale_becomes_minor_and_comes_back() -> None:
    pitch = [62, 64, 66, 67, 69, 71, 73, 74]
    notes = Notes.build(pitch, [60] * 8, np.arange(8.0), np.arange(8.0) + 1)
    minor = exchange_mode(notes, 2, minor=False)
    assert minor.pitch.tolist() == [62, 64, 65, 67, 69, 70, 72, 74]
    assert exchange_mode(minor, 2, minor=True).equals(notes)
    with pytest.raises(KmidiError, match="no pitch class"):
        exchange_mode(notes, 12, minor=False)


@QUICK
@given(pieces, st.integers(-6, 6), st.floats(0.8, 1.25), st.floats(0.7, 1.3))
def test_everything_together_still_encodes_validly(
    notes: Notes, semitones: int, stretch: float, loudness: float
) -> None:
    changed = scale_velocity(time_stretch(transpose(notes, semitones), stretch), loudness)
    ids = encode(changed)
    assert first_violation(ids) is None
    assert decode(encode(decode(ids))).equals(decode(ids))


@pytest.mark.parametrize(
    "change",
    [
        lambda notes: transpose(notes, 128),
        lambda notes: time_stretch(notes, 0),
        lambda notes: time_stretch(notes, float("nan")),
        lambda notes: time_stretch(notes, 100),
        lambda notes: scale_velocity(notes, -1),
        lambda notes: scale_velocity(notes, float("inf")),
        lambda notes: slice_notes(notes, -1, 1),
        lambda notes: slice_notes(notes, 2, 1),
        lambda notes: slice_notes(notes, float("nan"), 1),
    ],
)
def test_senseless_arguments_are_refused(change: object) -> None:
    with pytest.raises(KmidiError, match=r"^cannot .*\.$"):
        change(Notes.build([60], [64], [0], [1000.0]))  # type: ignore[operator]
