from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import events
from kmidi_mlx.music.events import decode, describe, encode, event_steps, first_violation, is_valid
from kmidi_mlx.music.notes import Notes

QUICK = settings(max_examples=150, deadline=None)

# Few pitches and times in thirds of a step: many notes meet, at one step and in order of the
# unrounded times. A few long pauses make shifts of more than a second.
crowded_notes = st.lists(
    st.tuples(
        st.integers(60, 63),
        st.integers(1, 127),
        st.one_of(st.integers(0, 60), st.integers(0, 3000)),
        st.integers(1, 40),
    ),
    max_size=16,
).map(
    lambda rows: Notes.build(
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] / 300 for row in rows],
        [(row[2] + row[3]) / 300 for row in rows],
    )
)
any_ids = st.lists(
    st.one_of(
        st.integers(60, 62),
        st.integers(188, 190),
        st.integers(256, 258),
        st.integers(354, 358),
        st.integers(0, 387),
    ),
    max_size=30,
)


def steps_of(seconds: float) -> int:
    return math.floor(seconds * 100 + 0.5)


def reference_encode(notes: Notes) -> list[int]:
    """One event after another, as `BasePerformance` of note-seq goes about it."""
    rows: list[list[int]] = []
    for pitch, velocity, onset, offset in zip(
        notes.pitch.tolist(),
        notes.velocity.tolist(),
        notes.onset_seconds.tolist(),
        notes.offset_seconds.tolist(),
        strict=True,
    ):
        start = steps_of(onset)
        end = max(steps_of(offset), start + 1)
        same = [row for row in rows if row[0] == pitch]
        if same and same[-1][2] == start:
            same[-1][1] = max(same[-1][1], velocity)
            same[-1][3] = max(same[-1][3], end)
        else:
            rows.append([pitch, velocity, start, end])
    for index, row in enumerate(rows):
        row[3] = min([row[3], *[o[2] for o in rows[index + 1 :] if o[0] == row[0]]])

    onsets = [(row[2], index, False) for index, row in enumerate(rows)]
    offsets = [(row[3], index, True) for index, row in enumerate(rows)]
    ids: list[int] = []
    step, velocity_bin = 0, None
    for at, index, is_offset in sorted(onsets + offsets):
        while at > step:
            shift = min(at - step, 100)
            ids.append(256 + shift - 1)
            step += shift
        pitch, velocity = rows[index][:2]
        if not is_offset:
            if (velocity - 1) // 4 != velocity_bin:
                velocity_bin = (velocity - 1) // 4
                ids.append(356 + velocity_bin)
            ids.append(pitch)
        else:
            ids.append(128 + pitch)
    return ids


def reference_decode(ids: list[int]) -> list[tuple[int, int, int, int]]:
    """Sounding notes in a table, one event after another."""
    notes: list[list[int]] = []
    sounding: dict[int, list[int]] = {}
    step, velocity = 0, 65

    def stop(pitch: int) -> None:
        note = sounding.pop(pitch, None)
        if note is not None:
            note[3] = max(step, note[2] + 1)

    for event in ids:
        if event < 128:
            stop(event)
            notes = [n for n in notes if not (n[0] == event and n[2] == step)]
            sounding[event] = [event, velocity, step, -1]
            notes.append(sounding[event])
        elif event < 256:
            stop(event - 128)
        elif event < 356:
            step += event - 255
        else:
            velocity = (event - 356) * 4 + 1
    for pitch in list(sounding):
        stop(pitch)
    return sorted((tuple(n) for n in notes), key=lambda n: (n[2], n[0]))  # type: ignore[misc]


def rows_of(notes: Notes) -> list[tuple[int, int, int, int]]:
    return [
        (pitch, velocity, round(onset * 100), round(offset * 100))
        for pitch, velocity, onset, offset in zip(
            notes.pitch.tolist(),
            notes.velocity.tolist(),
            notes.onset_seconds.tolist(),
            notes.offset_seconds.tolist(),
            strict=True,
        )
    ]


def test_the_vocabulary_is_the_published_one() -> None:
    assert (events.NOTE_ON, events.NOTE_OFF, events.TIME_SHIFT, events.VELOCITY) == (
        0,
        128,
        256,
        356,
    )
    assert events.VOCABULARY_SIZE == 388
    assert describe(60) == "NOTE_ON 60"
    assert describe(128 + 60) == "NOTE_OFF 60"
    assert describe(256) == "TIME_SHIFT 10 ms"
    assert describe(355) == "TIME_SHIFT 1000 ms"
    assert describe(356) == "VELOCITY 1"
    assert describe(387) == "VELOCITY 125"
    for outside in (-1, 388):
        with pytest.raises(KmidiError, match="ids go from 0 to 387"):
            describe(outside)


def test_a_small_piece_by_hand() -> None:
    # two notes of a chord, a pause of 2.5 s, a softer note
    notes = Notes.build([64, 60, 72], [80, 80, 20], [0.5, 0.5, 3.5], [1.0, 1.0, 3.51])
    velocity_80, velocity_20 = 356 + 79 // 4, 356 + 19 // 4
    assert encode(notes).tolist() == [
        *(256 + 49, velocity_80, 60, 64),
        *(256 + 49, 128 + 60, 128 + 64),
        *(355, 355, 256 + 49, velocity_20, 72),
        *(256, 128 + 72),
    ]
    assert encode(notes).dtype == np.uint16


def test_the_end_of_a_note_comes_before_the_next_start_of_its_pitch() -> None:
    notes = Notes.build([60, 60], [64, 64], [0.0, 0.5], [0.5, 1.0])
    assert encode(notes).tolist() == [371, 60, 305, 188, 60, 305, 188]


def test_short_notes_last_one_step() -> None:
    notes = Notes.build([60], [64], [0.1], [0.1001])
    assert rows_of(decode(encode(notes))) == [(60, 61, 10, 11)]


def test_a_pitch_that_overlaps_itself_is_cut_and_equal_starts_are_joined() -> None:
    notes = Notes.build([60, 60, 60], [10, 90, 50], [0, 0, 0.5], [0.2, 0.9, 0.7])
    assert rows_of(decode(encode(notes))) == [(60, 89, 0, 50), (60, 49, 50, 70)]


def test_silence_has_no_events() -> None:
    assert encode(Notes.empty()).tolist() == []
    assert len(decode([])) == 0
    assert is_valid([])
    assert event_steps([]).tolist() == []


def test_too_long_a_piece_is_refused_before_it_becomes_endless_shifts() -> None:
    endless = Notes(
        *(np.array([x], t) for x, t in ((60, "u1"), (9, "u1"), (0, "f8"), (1e12, "f8")))
    )
    with pytest.raises(KmidiError, match="24 hours"):
        encode(endless)
    with pytest.raises(KmidiError, match="24 hours"):
        decode(np.full(86_401, 355, np.uint16))


@QUICK
@given(crowded_notes)
def test_encode_equals_the_slow_reference(notes: Notes) -> None:
    assert encode(notes).tolist() == reference_encode(notes)


@QUICK
@given(any_ids)
def test_decode_equals_the_slow_reference(ids: list[int]) -> None:
    assert rows_of(decode(ids)) == reference_decode(ids)


@QUICK
@given(any_ids)
def test_decode_makes_sound_notes_of_anything(ids: list[int]) -> None:
    notes = decode(np.array(ids, np.int32))
    again = Notes.build(notes.pitch, notes.velocity, notes.onset_seconds, notes.offset_seconds)
    assert notes.equals(again)


@QUICK
@given(crowded_notes)
def test_notes_on_the_grid_survive_the_round_trip_bit_for_bit(notes: Notes) -> None:
    # what decode makes is on the grid of 10 ms and 32 velocities and never overlaps itself
    on_grid = decode(encode(notes))
    assert decode(encode(on_grid)).equals(on_grid)


@QUICK
@given(any_ids)
def test_canonical_events_survive_the_round_trip(ids: list[int]) -> None:
    canonical = encode(decode(ids))
    assert encode(decode(canonical)).tolist() == canonical.tolist()


@QUICK
@given(crowded_notes)
def test_encoding_moves_no_time_by_more_than_half_a_step(notes: Notes) -> None:
    lonely = Notes.build(
        np.arange(len(notes)), notes.velocity, notes.onset_seconds, notes.offset_seconds
    )
    decoded = decode(encode(lonely))
    order = np.argsort(decoded.pitch)
    assert decoded.pitch[order].tolist() == lonely.pitch[np.argsort(lonely.pitch)].tolist()
    by_pitch = np.argsort(lonely.pitch)
    moved = np.abs(decoded.onset_seconds[order] - lonely.onset_seconds[by_pitch])
    assert moved.max(initial=0) <= 0.005 + 1e-9
    bins = (lonely.velocity[by_pitch].astype(int) - 1) // 4
    assert ((decoded.velocity[order].astype(int) - 1) // 4).tolist() == bins.tolist()


@QUICK
@given(crowded_notes)
def test_encode_keeps_every_law(notes: Notes) -> None:
    assert first_violation(encode(notes)) is None


@QUICK
@given(crowded_notes, st.data())
def test_what_keeps_every_law_is_the_encoding_of_its_notes(
    notes: Notes, data: st.DataObject
) -> None:
    ids = encode(notes).tolist()
    place = data.draw(st.integers(0, len(ids)))
    match data.draw(st.sampled_from(["nothing", "drop", "insert", "swap"])):
        case "drop":
            ids = ids[:place] + ids[place + 1 :]
        case "insert":
            ids.insert(place, data.draw(st.sampled_from([60, 61, 188, 189, 256, 355, 370])))
        case "swap":
            ids[place : place + 2] = ids[place : place + 2][::-1]
    again = encode(decode(ids)).tolist()
    if is_valid(ids):
        # up to the order of the events of one step, which is not part of the law
        assert decode(again).equals(decode(ids))
        assert sorted(e for e in again if e < 356) == sorted(e for e in ids if e < 356)
    else:
        assert again != ids


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([388], "event 0: 388 is outside"),
        ([-1], "event 0: -1 is outside"),
        ([60], "event 0: NOTE_ON 60 before any VELOCITY"),
        ([188], "event 0: NOTE_OFF 60 of a silent pitch"),
        ([370, 60, 60], "event 2: NOTE_ON 60 while that pitch sounds"),
        ([370, 60, 188], "event 2: NOTE_OFF 60 in the step of its NOTE_ON"),
        ([370, 60, 256, 188, 188], "event 4: NOTE_OFF 60 of a silent pitch"),
        ([370, 371, 60, 256, 188], "event 1: VELOCITY 61 after a VELOCITY"),
        ([370, 256, 60, 256, 188], "event 1: TIME_SHIFT 10 ms after a VELOCITY"),
        ([370, 60, 370, 61, 256, 188, 189], "event 2: VELOCITY 57 although"),
        ([370, 60, 256, 355, 188], "event 3: TIME_SHIFT 1000 ms after a TIME_SHIFT shorter"),
        ([370, 60, 256], "the end: pitch 60 still sounds"),
        ([370, 60, 256, 188, 256], "the end: TIME_SHIFT 10 ms leads to nothing"),
        ([370, 60, 256, 188, 371], "the end: VELOCITY 61 leads to nothing"),
    ],
)
def test_each_law_is_noticed(ids: list[int], words: str) -> None:
    violation = first_violation(ids)
    assert violation is not None
    assert violation.startswith(words)
    assert not is_valid(ids)


def test_shifts_after_a_full_second_are_valid() -> None:
    assert first_violation([370, 60, 355, 355, 256, 188]) is None


def test_event_steps_counts_shifts_only() -> None:
    ids = [265, 370, 60, 355, 256, 188]
    assert event_steps(ids).tolist() == [10, 10, 10, 110, 111, 111]
    assert event_steps(np.array(ids, np.uint16)).dtype == np.int64


def test_dangling_events_are_read_leniently() -> None:
    # an end of silence, a start of a sounding pitch, a note without an end, no velocity
    assert rows_of(decode([188, 60, 265, 60, 265])) == [(60, 65, 0, 10), (60, 65, 10, 20)]
    assert rows_of(decode([60])) == [(60, 65, 0, 1)]


@pytest.mark.parametrize("ids", [[388], [-1], [0.5], [[60]], "no"])
def test_decode_refuses_what_is_no_event(ids: object) -> None:
    with pytest.raises(KmidiError):
        decode(ids)  # type: ignore[arg-type]
