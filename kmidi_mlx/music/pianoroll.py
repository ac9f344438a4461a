"""A piano roll as text, for a look at music in a terminal, and as a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.notes import Notes

__all__ = ["draw_roll", "text_roll"]

_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
# upper and lower half of a character cell: empty, lower, upper, both
_CELLS = np.array([" ", "▄", "▀", "█"])
# of the picture: paper, its rows of black keys, soft and loud notes
_PAPER, _BLACK_ROWS = (252, 252, 250), (238, 238, 236)
_SOFT, _LOUD = np.array((158, 188, 218)), np.array((77, 0, 75))
_BLACK_KEYS = (1, 3, 6, 8, 10)
_ROW_PIXELS = 4
_LOWEST, _HIGHEST = 21, 108


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


def draw_roll(notes: Notes, width: int = 960, seconds: float | None = None) -> NDArray[np.uint8]:
    """Draw the 88 keys of a piano, low ones at the bottom; louder notes are darker.

    Args:
        notes: what to draw; those outside the piano are left out.
        width: pixels of time, at least 1.
        seconds: time across; None: the duration of the notes.

    Returns:
        uint8 (352, width, 3).
    """
    keys = np.arange(_LOWEST, _HIGHEST + 1)
    rows = np.where(np.isin(keys % 12, _BLACK_KEYS)[:, None], _BLACK_ROWS, _PAPER)
    picture = np.repeat(rows[:, None], width, axis=1).astype(np.uint8)
    span = seconds or notes.duration_seconds or 1.0
    first = np.floor(notes.onset_seconds / span * width).astype(int)
    last = np.maximum(np.ceil(notes.offset_seconds / span * width).astype(int), first + 1)
    for pitch, velocity, start, end in zip(
        notes.pitch.tolist(), notes.velocity.tolist(), first, last, strict=True
    ):
        if _LOWEST <= pitch <= _HIGHEST and start < width:
            colour = _SOFT + (_LOUD - _SOFT) * velocity / 127
            picture[pitch - _LOWEST, start:end] = colour.astype(np.uint8)
            # a key that is struck again at once is seen to be
            picture[pitch - _LOWEST, start] = 0
    return np.repeat(picture[::-1], _ROW_PIXELS, axis=0)
