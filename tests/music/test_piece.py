"""Pieces of a given length out of endless streams: event by event or at once, they are the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import decode, encode, event_steps, first_violation
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.music.piece import PieceWriter, write_piece
from tests.live.dice_stream import DiceStream

PROMPT = encode(Notes.build([60, 64], [80, 90], [0.0, 0.5], [0.4, 1.0]))


def stream(seed: int = 0, **named: object) -> DiceStream:
    return DiceStream(128, seed=seed, sampling=SamplingConfig(max_rest_seconds=0.5), **named)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.0, 6.0), st.integers(0, 5), st.booleans())
def test_a_piece_is_as_long_as_asked_for_and_valid(
    seconds: float, seed: int, prompted: bool
) -> None:
    prompt = PROMPT if prompted else ()
    events = write_piece(stream(seed, prompt=prompt), seconds, prompt)
    assert first_violation(events) is None
    notes = decode(events)
    begin = 1.0 if prompted else 0.0
    assert notes.duration_seconds <= begin + round(seconds, 2) + 1e-9
    if prompted:
        assert notes.pitch.tolist()[:2] == [60, 64]
    # what is longer begins with what is shorter, but for what the end cuts
    longer = decode(write_piece(stream(seed, prompt=prompt), seconds + 1.0, prompt))
    whole = notes.offset_seconds < begin + round(seconds, 2) - 0.02
    kept = {(p, on, off) for p, on, off in zip(
        longer.pitch.tolist(), longer.onset_seconds.round(3).tolist(),
        longer.offset_seconds.round(3).tolist(), strict=True)}  # fmt: skip
    for pitch, on, off in zip(
        notes.pitch[whole].tolist(), notes.onset_seconds[whole].round(3).tolist(),
        notes.offset_seconds[whole].round(3).tolist(), strict=True,
    ):  # fmt: skip
        assert (pitch, on, off) in kept


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 4.0), st.lists(st.floats(0.0, 5.0), max_size=3))
def test_event_by_event_is_the_same_as_at_once(seconds: float, moments: list[float]) -> None:
    changes = [(moment, Emotion.of(0.1 * index, -0.5)) for index, moment in enumerate(moments)]
    whole = write_piece(stream(prompt=PROMPT), seconds, PROMPT, changes)
    writer = PieceWriter(stream(prompt=PROMPT), seconds, PROMPT, changes)
    before, count = writer.seconds, 0
    while not writer.done:
        writer.write()
        count += 1
        assert before <= writer.seconds <= seconds + 1e-9
        before = writer.seconds
    assert writer.seconds == seconds
    writer.write()
    np.testing.assert_array_equal(writer.events(), whole)
    assert count >= 1


def test_emotions_change_at_their_time_in_any_order() -> None:
    asked: list[tuple[float, Emotion | None]] = []

    class Listening(DiceStream):
        def set_emotion(self, emotion: Emotion | None) -> None:
            asked.append((self.seconds, emotion))
            super().set_emotion(emotion)

    sad, happy = Emotion.of(-0.7, -0.4), Emotion.of(0.8, 0.5)
    source = Listening(128, sampling=SamplingConfig(max_rest_seconds=0.1), prompt=PROMPT)
    write_piece(source, 3.0, PROMPT, [(2.0, happy), (1.0, sad), (50.0, sad)])
    assert [emotion for _, emotion in asked] == [sad, happy]
    # times count from the end of the prompt
    assert [at for at, _ in asked] == pytest.approx([2.0, 3.0], abs=0.15)


def test_progress_grows_and_ends_at_the_length() -> None:
    told: list[float] = []
    write_piece(stream(), 2.0, on_time=told.append)
    assert told == sorted(told)
    assert len(told) > 5
    assert told[-1] == 2.0


def test_no_music_at_all() -> None:
    assert len(write_piece(stream(), 0.0)) == 0
    np.testing.assert_array_equal(write_piece(stream(prompt=PROMPT), 0.0, PROMPT), PROMPT)


def test_a_note_under_way_ends_with_the_piece() -> None:
    events = write_piece(stream(3), 1.5)
    assert event_steps(events)[-1] <= 150
    notes = decode(events)
    assert len(notes) > 3
    assert notes.offset_seconds.max() == pytest.approx(1.5)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_lengths_that_are_none(seconds: float) -> None:
    with pytest.raises(KmidiError, match="give a number from 0 on"):
        write_piece(stream(), seconds)
