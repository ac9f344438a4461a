"""The piano roll in a terminal."""

from __future__ import annotations

import numpy as np

from kmidi_mlx.music.notes import Notes
from kmidi_mlx.music.pianoroll import text_roll


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
