"""A piano roll as text, for a look at music in a terminal."""

from __future__ import annotations

import numpy as np

from kmidi_mlx.music.notes import Notes

__all__ = ["text_roll"]

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# upper and lower half of a character cell: empty, lower, upper, both
_CELLS = np.array([" ", "▄", "▀", "█"])


def text_roll(notes: Notes, columns: int = 72, seconds: float | None = None) -> str:
    """Draw notes with two pitches to a line, high pitches on top.

    Args:
        notes: what to draw; nothing gives an empty string.
        columns: characters of time, at least 1.
        seconds: time across; None: the duration of the notes.
    """
    if not len(notes):
        return ""
    span = seconds or notes.duration_seconds
    low = int(notes.pitch.min()) // 2 * 2
    height = (int(notes.pitch.max()) - low) // 2 + 1
    grid = np.zeros((2 * height, columns), dtype=np.int64)
    first = np.floor(notes.onset_seconds / span * columns).astype(int)
    last = np.ceil(notes.offset_seconds / span * columns).astype(int)
    for pitch, start, end in zip(notes.pitch, first, last, strict=True):
        grid[int(pitch) - low, max(0, start) : min(columns, max(start + 1, end))] = 1
    lines = []
    for row in reversed(range(height)):
        pitch = low + 2 * row
        label = f"{_NAMES[pitch % 12]}{pitch // 12 - 1}" if pitch % 12 == 0 else ""
        cells = _CELLS[grid[2 * row] + 2 * grid[2 * row + 1]]
        lines.append(f"{label:>4} │{''.join(cells).rstrip()}")
    scale = f"     └{'─' * columns}\n      0 s{f'{span:.0f} s':>{columns - 3}}"
    return "\n".join([*lines, scale])
