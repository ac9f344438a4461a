from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.evaluation import control
from kmidi_mlx.evaluation.control import (
    Control,
    Written,
    asked_emotions,
    control_of,
    write_piece,
    write_set,
)
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY
from kmidi_mlx.music.notes import Notes

NOTE = Notes.build([60], [80], [0.0], [1.0])


def written(valence: float, arousal: float, notes: Notes = NOTE) -> Written:
    return Written(Emotion.of(valence, arousal), 0, notes, 4, None, 0)


def control_with(
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[float, float]],
    estimated: list[tuple[float, float]],
) -> Control:
    moods: Iterator[tuple[float, float]] = iter(estimated)
    monkeypatch.setattr(control, "mood", lambda notes: next(moods))
    return control_of([written(*point) for point in asked])


@pytest.mark.parametrize("count", [0, 1, 4, 16, 21])
def test_any_four_emotions_are_one_of_each_quadrant(count: int) -> None:
    emotions = asked_emotions(count)
    assert len(emotions) == count
    for start in range(count - 3):
        signs = {(e.valence > 0, e.arousal > 0) for e in emotions[start : start + 4]}
        assert len(signs) == 4


def test_the_grid_has_sixteen_points_and_starts_over() -> None:
    emotions = asked_emotions(17)
    assert len({(e.valence, e.arousal) for e in emotions}) == 16
    assert emotions[16] == emotions[0]


def test_perfect_control(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(e.valence, e.arousal) for e in asked_emotions(16)]
    found = control_with(monkeypatch, points, points)
    assert found.pieces == 16
    assert found.valence_correlation == pytest.approx(1)
    assert found.arousal_correlation == pytest.approx(1)
    assert (found.valence_error, found.arousal_error) == (0, 0)
    assert found.quadrant_hits == 1
    assert found.quadrant_chance == 0.25


def test_a_model_that_does_not_listen_is_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [(e.valence, e.arousal) for e in asked_emotions(16)]
    found = control_with(monkeypatch, points, [(0.5, 0.3)] * 16)
    assert found.valence_correlation is None
    assert found.quadrant_hits == found.quadrant_chance == 0.25
    assert found.valence_error == pytest.approx(np.mean([abs(v - 0.5) for v, _ in points]))


def test_half_control_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [(0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)]
    # valence is turned round, arousal heard at half strength
    found = control_with(monkeypatch, asked, [(-v, a / 2) for v, a in asked])
    assert found.valence_correlation == pytest.approx(-1)
    assert found.arousal_correlation == pytest.approx(1)
    assert found.valence_error == pytest.approx(1.6)
    assert found.arousal_error == pytest.approx(0.4)
    assert found.quadrant_hits == 0


def test_chance_is_of_the_same_estimates_dealt_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    up, down = (0.8, 0.8), (-0.8, -0.8)
    found = control_with(monkeypatch, [up, up, up, down], [up, down, down, down])
    assert found.quadrant_hits == 0.5
    assert found.quadrant_chance == pytest.approx(3 / 4 * 1 / 4 + 1 / 4 * 3 / 4)


def test_silent_pieces_have_no_mood() -> None:
    assert control_of([]).pieces == 0
    found = control_of([written(0.8, 0.8, Notes.empty())])
    assert found == Control(0, None, None, None, None, None, None)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_random_model_writes_valid_music(
    model: EmotionMIDITransformer, guidance_scale: float
) -> None:
    seen: list[Written] = []
    pieces = write_set(
        model,
        SamplingConfig(max_note_seconds=0.5, max_rest_seconds=0.3),
        4,
        2.0,
        seed=5,
        guidance_scale=guidance_scale,
        on_piece=seen.append,
    )
    assert seen == pieces
    assert [piece.seed for piece in pieces] == [5, 6, 7, 8]
    for piece in pieces:
        assert piece.violation is None
        assert piece.hanging_notes == 0
        assert len(piece.notes) > 0
        assert piece.events > 2 * len(piece.notes)
        assert piece.notes.duration_seconds <= 3.0
    assert control_of(pieces).pieces == 4


def test_the_same_seed_writes_the_same_piece(model: EmotionMIDITransformer) -> None:
    def piece(seed: int, valence: float = 0.5) -> Notes:
        emotion = Emotion.of(valence, 0.0)
        return write_piece(model, SamplingConfig(), 1.0, seed, emotion).notes

    assert piece(1).equals(piece(1))
    assert not piece(1).equals(piece(2))
    assert not piece(1).equals(piece(1, -0.9))


class BadStream:
    """A generator that strikes a sounding pitch and never ends it."""

    steps = 0

    def __init__(self, *arguments: object) -> None:
        self._events = iter([VELOCITY, 60, TIME_SHIFT, 60, 64, TIME_SHIFT + 99])

    def next_event(self) -> int:
        event = next(self._events)
        if event >= TIME_SHIFT and event < VELOCITY:
            self.steps += event - TIME_SHIFT + 1
        return event

    def finish(self) -> list[int]:
        return [64 + NOTE_OFF]


def test_bad_music_is_found_as_it_was_written(
    monkeypatch: pytest.MonkeyPatch, model: EmotionMIDITransformer
) -> None:
    monkeypatch.setattr(control, "EventGenerator", BadStream)
    piece = write_piece(model, SamplingConfig(), 0.5, 0, Emotion.of(0.0, 0.0))
    assert piece.violation == "event 3: NOTE_ON 60 while that pitch sounds"
    assert piece.hanging_notes == 1
