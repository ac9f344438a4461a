from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.evaluation.memorisation import (
    Found,
    TrainingIndex,
    chord_order,
    interval_symbols,
    reach_of,
)
from kmidi_mlx.music.augment import scale_velocity, slice_notes, time_stretch, transpose
from kmidi_mlx.music.events import decode, encode
from kmidi_mlx.music.notes import Notes


def piece(seed: int, count: int = 200) -> Notes:
    """Chords and single notes on the 10 ms grid, of all pitches so that nothing is shared."""
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.0, 0.1, 0.2, 0.4, 0.8], count, p=[0.3, 0.2, 0.2, 0.2, 0.1]))
    length = rng.integers(5, 60, count) / 100
    notes = Notes.build(
        rng.integers(40, 90, count), 4 * rng.integers(5, 30, count) + 1, onset, onset + length
    )
    return decode(encode(notes))


def index_of(pieces: list[Notes]) -> TrainingIndex:
    return TrainingIndex([encode(one) for one in pieces], pieces)


def joined(first: Notes, second: Notes, gap: float) -> Notes:
    start = first.duration_seconds + gap
    return Notes.build(
        np.concatenate((first.pitch, second.pitch)),
        np.concatenate((first.velocity, second.velocity)),
        np.concatenate((first.onset_seconds, second.onset_seconds + start)),
        np.concatenate((first.offset_seconds, second.offset_seconds + start)),
    )


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(-20, 20), st.sampled_from([0.5, 2.0, 3.0]))
def test_symbols_do_not_tell_key_tempo_loudness_and_articulation(
    seed: int, semitones: int, factor: float
) -> None:
    notes = piece(seed)
    changed = scale_velocity(time_stretch(transpose(notes, semitones), factor), 0.7)
    changed = Notes(
        changed.pitch,
        changed.velocity,
        changed.onset_seconds,
        changed.onset_seconds + 0.5 * (changed.offset_seconds - changed.onset_seconds),
    )
    np.testing.assert_array_equal(interval_symbols(changed), interval_symbols(notes))
    assert len(interval_symbols(notes)) == len(notes) - 1
    other = interval_symbols(piece(seed + 1, len(notes)))
    assert not np.array_equal(interval_symbols(notes)[: len(other)], other)


def test_a_chord_stands_from_low_to_high_whatever_came_first() -> None:
    loose = Notes.build([64, 60, 67, 72], [80] * 4, [0, 0.01, 0.02, 0.5], [0.4, 0.4, 0.4, 0.6])
    order, starts = chord_order(loose)
    assert loose.pitch[order].tolist() == [60, 64, 67, 72]
    assert starts.tolist() == [True, False, False, True]
    exact = Notes.build([60, 64, 67, 72], [80] * 4, [0, 0, 0, 0.5], [0.4, 0.4, 0.4, 0.6])
    np.testing.assert_array_equal(interval_symbols(loose), interval_symbols(exact))
    broken = Notes.build([60, 64, 67, 72], [80] * 4, [0, 0.1, 0.2, 0.5], [0.4, 0.4, 0.4, 0.6])
    assert not np.array_equal(interval_symbols(broken), interval_symbols(exact))


def test_a_rhythm_that_changes_is_another() -> None:
    pitch, even = [60, 62, 64, 65], np.array([0, 0.4, 0.8, 1.2])
    long_short = np.array([0, 0.6, 0.8, 1.2])
    a, b = (
        interval_symbols(Notes.build(pitch, [80] * 4, at, at + 0.1)) for at in (even, long_short)
    )
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("count", [0, 1])
def test_short_pieces_have_no_symbols_and_share_nothing(count: int) -> None:
    short = Notes.build([60] * count, [81] * count, [0.0] * count, [1.0] * count)
    assert not len(interval_symbols(short))
    found = index_of([piece(0)]).look_up([short])[0]
    assert (found.notes, found.note_seconds, found.windows) == (count, 0.0, 0)


def slow_run(a: np.ndarray, b: np.ndarray) -> int:
    """The longest common run, by the table of all pairs."""
    longest = np.zeros(len(b) + 1, int)
    most = 0
    for symbol in a:
        longest[1:] = np.where(b == symbol, longest[:-1] + 1, 0)
        most = max(most, int(longest.max()))
    return most


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_longest_runs_equal_those_of_all_pairs(seed: int) -> None:
    train = [piece(seed + k, 80) for k in range(3)]
    # few pitches and times, so that runs of some length are shared
    rng = np.random.default_rng(seed)
    onset = np.cumsum(rng.choice([0.2, 0.4], 120))
    train.append(Notes.build(rng.integers(60, 63, 120), [81] * 120, onset, onset + 0.1))
    asked = Notes.build(rng.integers(60, 63, 120), [81] * 120, onset, onset + 0.1)
    found = index_of(train).look_up([asked, train[1]])
    for one, notes in zip(found, (asked, train[1]), strict=True):
        runs = [slow_run(interval_symbols(notes), interval_symbols(other)) for other in train]
        assert one.notes == max(runs) + 1
        assert max(runs) == runs[one.part]
        assert one.events == max(slow_run(encode(notes), encode(other)) for other in train)
    # a training piece itself is there from end to end
    assert found[1].events == len(encode(train[1]))
    assert found[1].event_seconds == pytest.approx(train[1].duration_seconds)
    assert found[1].notes == len(train[1])
    onsets = train[1].onset_seconds
    assert found[1].note_seconds == pytest.approx(onsets[-1] - onsets[0])


def test_planted_windows_are_found_transposed_and_faster() -> None:
    train = [piece(k) for k in range(4)]
    index = index_of(train)
    own = piece(100)
    assert index.look_up([own])[0].windows > 5
    assert index.look_up([own])[0].windows_found == 0
    stolen = time_stretch(transpose(train[2], 5), 0.8)
    part = slice_notes(stolen, 4.0, 26.0)
    found = index.look_up([joined(own, part, 0.5)])[0]
    assert found.part == 2
    assert found.notes >= len(part) - 8  # but those that sounded on at the cut
    # windows of 16 s every 2 s that lie in the 22 s that were planted
    assert 2 <= found.windows_found <= 4
    whole = index.look_up([stolen])[0]
    assert whole.windows_found == whole.windows > 5
    # of the events, which are as they are, next to nothing
    assert whole.events < 20


def found(notes: int, windows_found: int = 0) -> Found:
    return Found(notes, 1.0, notes, notes / 4, 3, 2, windows_found)


def test_reach_tells_copies_from_chance() -> None:
    real = [found(k % 20 + 1) for k in range(400)]
    alike = reach_of([found(k % 20 + 1) for k in range(40)], real)
    assert not alike.copies
    assert alike.beyond_notes == 0
    assert alike.notes == pytest.approx((10.5, 18.1, 20, 20), abs=0.2)
    assert alike.found_share == 0
    one = reach_of([found(5)] * 39 + [found(90, 2)], real)
    assert one.beyond_notes == 1
    assert not one.copies  # one in forty happens
    three = reach_of([found(5)] * 37 + [found(90, 1)] * 3, real)
    assert three.copies
    assert (three.note_seconds, three.part) == (22.5, 3)
    assert three.found_share == pytest.approx(3 / 80)
    # by definition real pieces are not beyond themselves more often than one in a hundred
    assert not reach_of(real, real).copies
