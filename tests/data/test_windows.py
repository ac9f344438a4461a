from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.windows import Augmentation, Window, WindowCutter
from kmidi_mlx.music.chords import transpose_chord, transpose_key
from kmidi_mlx.music.events import (
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    TIME_SHIFT,
    VELOCITY,
    event_steps,
    first_violation,
)

LENGTH = 64
changes = st.builds(Augmentation, st.integers(-11, 11), st.floats(0.5, 1.5), st.floats(0.5, 1.5))


def transposed(tokens: NDArray[np.uint16], semitones: int) -> list[int]:
    return [int(event) + semitones * (event < TIME_SHIFT) for event in tokens.tolist()]


def in_force(steps: list[int], ids: list[int], at: int) -> int:
    """The slow way: walk through the changes."""
    current = 0
    for step, value in zip(steps, ids, strict=True):
        if step <= at:
            current = value
    return current


def check_harmony(
    reader: ShardReader, piece: int, window: Window, origin: int, stretch: float, semitones: int
) -> None:
    own = slice(*reader.pieces.chord_offset[piece : piece + 2].tolist())
    steps = [
        int(np.floor((step - origin) * stretch + 0.5))
        for step in reader.pieces.chord_step[own].tolist()
    ]
    ids = [transpose_chord(chord, semitones) for chord in reader.pieces.chord[own].tolist()]
    step = 0
    for event, chord in zip(window.events.tolist(), window.chords.tolist(), strict=True):
        assert chord == in_force(steps, ids, step)
        if TIME_SHIFT <= event < VELOCITY:
            step += event - TIME_SHIFT + 1


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_window_is_the_events_as_they_are(prepared: ShardReader, data: st.DataObject) -> None:
    piece = data.draw(st.integers(0, len(prepared) - 1))
    tokens = prepared.tokens(piece)
    position = data.draw(st.integers(0, len(tokens) - 1))
    window = WindowCutter(prepared, LENGTH).cut(piece, position)
    first = max(0, position - 1)
    count = LENGTH + (position > 0)
    assert window.events.tolist() == tokens[first : first + count].tolist()
    assert window.at_start == (position == 0)
    origin = int(event_steps(tokens)[first - 1]) if first else 0
    check_harmony(prepared, piece, window, origin, 1.0, 0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(-11, 11))
def test_augmenting_by_nothing_but_transposing_moves_pitches_chords_and_key(
    prepared: ShardReader, data: st.DataObject, semitones: int
) -> None:
    piece = data.draw(st.integers(0, len(prepared) - 1))
    tokens = prepared.tokens(piece)
    position = data.draw(st.integers(0, max(0, len(tokens) - LENGTH)))
    cutter = WindowCutter(prepared, LENGTH)
    plain = cutter.cut(piece, position)
    window = cutter.cut(piece, position, Augmentation(semitones, 1.0, 1.0))
    # Pitches 40-89 have room on a piano for any transposition but the widest up.
    pitches = [event % 128 for event in tokens.tolist() if event < TIME_SHIFT]
    assert max(pitches) <= 89
    moved = int(np.clip(semitones, -19, 108 - 89))
    assert window.events.tolist() == transposed(plain.events, moved)
    assert window.chords.tolist() == [transpose_chord(c, moved) for c in plain.chords.tolist()]
    assert window.key == transpose_key(plain.key, moved)
    assert (window.valence, window.arousal) == (plain.valence, plain.arousal)


@settings(max_examples=80, deadline=None)
@given(st.data(), changes)
def test_augmented_windows_at_the_start_keep_the_laws_and_the_harmony(
    prepared: ShardReader, data: st.DataObject, change: Augmentation
) -> None:
    piece = data.draw(st.integers(0, len(prepared) - 1))
    window = WindowCutter(prepared, LENGTH).cut(piece, 0, change)
    assert window.at_start
    assert 0 < len(window.events) <= LENGTH
    problem = first_violation(window.events)
    assert problem is None or problem.startswith("the end")
    check_harmony(prepared, piece, window, 0, change.stretch, change.semitones)


@settings(max_examples=80, deadline=None)
@given(st.data(), changes)
def test_augmented_windows_within_a_piece_keep_the_laws(
    prepared: ShardReader, data: st.DataObject, change: Augmentation
) -> None:
    piece = data.draw(st.integers(0, len(prepared) - 1))
    latest = len(prepared.tokens(piece)) - LENGTH
    position = data.draw(st.integers(1, max(1, latest)))
    window = WindowCutter(prepared, LENGTH).cut(piece, position, change)
    assert not window.at_start
    assert 1 < len(window.events) <= LENGTH + 1
    # What sounded and how loud when the window began, as a beginning of its own.
    events = window.events.tolist()
    velocities = [event for event in events if event >= VELOCITY]
    begin = [VELOCITY + (velocities[0] - VELOCITY + 1) % 32 if velocities else VELOCITY]
    seen = set()
    for event in events:
        if event < TIME_SHIFT and event % 128 not in seen:
            seen.add(event % 128)
            begin += [event - NOTE_OFF] if event >= NOTE_OFF else []
    if len(begin) == 1:
        begin += [0, TIME_SHIFT + MAX_SHIFT_STEPS - 1, NOTE_OFF]
    else:
        begin += [TIME_SHIFT + MAX_SHIFT_STEPS - 1]
    problem = first_violation(begin + events)
    assert problem is None or problem.startswith("the end")


def test_silence_is_left_as_it_is(prepared: ShardReader) -> None:
    class Silent:
        pieces = prepared.pieces
        mood_hop_steps, mood_window_steps = prepared.mood_hop_steps, prepared.mood_window_steps

        def tokens(self, piece: int) -> NDArray[np.uint16]:
            return np.full(int(self.pieces.length[piece]), VELOCITY - 1, np.uint16)

    cutter = WindowCutter(Silent(), LENGTH)  # type: ignore[arg-type]
    assert cutter.cut(0, 9, Augmentation(3, 1.1, 1.1)).events.tolist() == [VELOCITY - 1] * 65


def test_mood_is_the_mean_of_the_rows_within_the_window(prepared: ShardReader) -> None:
    piece = int(np.argmax(prepared.pieces.duration_steps))
    tokens = prepared.tokens(piece)
    steps = event_steps(tokens)
    rows = slice(*prepared.pieces.mood_offset[piece : piece + 2].tolist())
    valence = prepared.pieces.valence[rows].astype(float)
    long = WindowCutter(prepared, len(tokens)).cut(piece, 0)
    last = round((int(steps[-1]) - 2000) / 200)
    assert last > 2
    assert np.isclose(long.valence, valence[: last + 1].mean())
    # A window shorter than a row's takes the row around its middle.
    position = len(tokens) // 2
    short = WindowCutter(prepared, 8).cut(piece, position)
    middle = (int(steps[position - 2]) + int(steps[position + 6])) / 2
    assert np.isclose(short.valence, valence[max(0, round((middle - 1000) / 200))], atol=0.08)
