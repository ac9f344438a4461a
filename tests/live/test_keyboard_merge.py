"""What a person plays becomes the events that the encoder would have written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.keyboard_merge import GivenNote, Keyboard, PlayedKey, Sounding, merge, rests
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, decode, encode, is_valid
from kmidi_mlx.music.notes import Notes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25))
def test_keys_become_what_the_encoder_writes(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for pitch in range(60, 65):
        time = 0.0
        for _ in range(count // 5 + 1):
            onset = time + rng.uniform(2.5, 300.0)
            time = onset + rng.choice([0.1, rng.uniform(1.5, 200.0)])
            rows.append((pitch, int(rng.integers(1, 128)), onset, time))
    pitch, velocity, onset, offset = zip(*rows, strict=True)
    notes = Notes.build(pitch, velocity, np.array(onset) / 100, np.array(offset) / 100)
    keys = [PlayedKey(on, p, v) for p, v, on, _ in rows]
    keys += [PlayedKey(off, p, 0) for p, _, _, off in rows]
    keys.sort()
    keyboard, read = Keyboard(), []
    # as they come: in handfuls
    while keys:
        read += keyboard.read(keys[:4], 0)
        keys = keys[4:]
    events = [fed.event for fed in merge(read, 0, -1, {})]
    assert is_valid(events)
    assert decode(events).equals(decode(encode(notes)))


def test_two_players_at_one_pitch() -> None:
    mine, theirs = Sounding(5, theirs=False), True
    notes = [
        GivenNote(10, 60, 3, theirs),  # strikes what the composer holds
        GivenNote(12, 60, None, False),  # whose end comes too late
        GivenNote(20, 61, 3, False),
        GivenNote(20, 61, 9, theirs),  # at once: the composer's stays
        GivenNote(25, 61, None, theirs),
        GivenNote(30, 60, None, theirs),
    ]
    fed = merge(notes, 5, 3, {60: mine})
    assert [(event.event, event.step, event.theirs) for event in fed] == [
        (TIME_SHIFT + 4, 10, False), (NOTE_OFF + 60, 10, True), (60, 10, True),
        (TIME_SHIFT + 9, 20, False), (61, 20, False),
        (TIME_SHIFT + 9, 30, False), (NOTE_OFF + 60, 30, True),
    ]  # fmt: skip


def test_rests_are_canonical_and_long_ones_short() -> None:
    assert rests(7, 7) == []
    assert [(e.event, e.step) for e in rests(10, 260)] == [
        (TIME_SHIFT + 99, 110), (TIME_SHIFT + 99, 210), (TIME_SHIFT + 49, 260)
    ]  # fmt: skip
    long = rests(0, 1_000_000)
    assert len(long) == 10
    assert long[-1].step == 1_000_000


def test_keys_are_put_on_the_grid() -> None:
    keyboard = Keyboard()
    keys = [(3.0, 60, 50), (9.5, 60, 60), (9.6, 60, 0), (9.7, 61, 0), (9.8, 60, 1)]
    read = keyboard.read([PlayedKey(*key) for key in keys], 4)
    assert read == [
        GivenNote(4, 60, 12, True), GivenNote(10, 60, None, True), GivenNote(10, 60, 14, True),
        GivenNote(11, 60, None, True), GivenNote(11, 60, 0, True),
    ]  # fmt: skip
    assert keyboard.phrase_steps(30) == 26
    keyboard.begin_phrase()
    assert keyboard.phrase_steps(30) == 0
    with pytest.raises(KmidiError, match="no key can be"):
        keyboard.read([PlayedKey(1.0, -1, 0)], 0)
