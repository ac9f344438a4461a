"""The piano roll in a terminal."""

from __future__ import annotations

import numpy as np

from kmidi_mlx.music.notes import Notes
from kmidi_mlx.music.pianoroll import draw_roll, text_roll


def test_notes_are_where_they_sound() -> None:
    notes = Notes.build(
        np.array([60, 61, 64]), np.array([80, 80, 80]), np.array([0.0, 1.0, 3.0]),
        np.array([1.0, 2.0, 4.0]),
    )  # fmt: skip
    lines = text_roll(notes, columns=8).splitlines()
    assert lines[0] == "     │      ▄▄"
    assert lines[1] == "     │"
    assert lines[2] == "  C4 │▄▄▀▀"
    assert lines[-1].strip().startswith("0 s")
    assert lines[-1].endswith("4 s")


def test_a_short_note_is_still_seen() -> None:
    notes = Notes.build(np.array([60]), np.array([80]), np.array([0.0]), np.array([0.01]))
    assert "▄" in text_roll(notes, columns=10, seconds=10.0)


def test_nothing_gives_nothing() -> None:
    assert text_roll(Notes.empty()) == ""


def test_a_picture_shows_every_note_at_its_place() -> None:
    notes = Notes.build([21, 60, 60, 120], [1, 127, 64, 64], [0.0, 2.0, 3.0, 0.0], [1, 3, 4, 4])
    picture = draw_roll(notes, width=400)
    assert picture.shape == (352, 400, 3)
    rows = picture[::4]
    lowest, middle = rows[87], rows[87 - (60 - 21)]
    empty = draw_roll(Notes.empty(), width=400)[::4]
    assert (lowest[:100] != empty[87, :100]).any(axis=1).all()
    assert (lowest[100:] == empty[87, 100:]).all()
    assert (middle[:200] == empty[48, :200]).all()
    assert (middle[200:] != empty[48, 200:]).any(axis=1).all()
    assert (middle[[200, 300]] == 0).all()  # a key struck again
    assert middle[250].sum() < middle[350].sum()  # the louder is darker
    # what lies beyond the time or the keys shown is left out
    assert (draw_roll(notes, width=10, seconds=1.5)[::4][48] == empty[48, :10]).all()
