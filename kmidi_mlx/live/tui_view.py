"""What the terminal view shows, as text of a given size; nothing here touches a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

__all__ = ["LOWEST_DB", "SMALLEST_SIZE", "screen"]

#: Columns and lines below which there is only a word about it.
SMALLEST_SIZE = (60, 16)
#: Left end of the level meters.
LOWEST_DB = -54.0

_MODEL_STEPS_PER_SECOND = 100.0
_PAST_SECONDS, _COMING_SECONDS = 3.0, 5.0
_LABEL_COLUMNS = 4
# lines that are not the roll: title, emotion, two meters, two of figures, keys
_OTHER_LINES = 7
_MOST_NOTICES = 2
_NONE, _PLAYED, _PLANNED, _SOUNDING = range(4)
_COLOURS = {_PLAYED: "cyan", _PLANNED: "bright_black", _SOUNDING: "bright_yellow"}
_TRANSPORT = {"playing": ("►", "green"), "paused": ("‖", "yellow"), "stopped": ("■", "red")}
_LEVELS = {"error": "red", "warning": "yellow", "info": "cyan"}
_KEYS = (
    ("space", "play"), ("s", "stop"), ("p", "panic"), ("←→", "valence"), ("↑↓", "arousal"),
    ("r", "record"), ("q", "quit"),
)  # fmt: skip


def screen(
    state: Mapping[str, Any],
    stats: Mapping[str, Any],
    plan: Mapping[str, Any],
    levels_db: Sequence[float],
    messages: Sequence[Mapping[str, str]],
    size: tuple[int, int],
) -> Text:
    """Return the whole screen.

    Args:
        state: of the stage.
        stats: of the stage; figures that are missing are a dash.
        plan: of the stage.
        levels_db: of left and right, 0 is full scale; empty: there is no sound.
        messages: {"level", "text"} to show before the stage's notices.
        size: columns and lines.

    Returns:
        As many lines as the screen has, none longer than it is wide.
    """
    columns, lines = size
    if columns < SMALLEST_SIZE[0] or lines < SMALLEST_SIZE[1]:
        small = f"make this window {SMALLEST_SIZE[0]} x {SMALLEST_SIZE[1]} or larger; q quits"
        return Text(small[: max(1, columns)], "yellow")
    # who draws fewer clouds on purpose says so among the figures
    standing = [
        note
        for note in state.get("notices", ())
        if note.get("topic") != "fps" or not stats.get("quality")
    ]
    notices = [*messages, *standing][:_MOST_NOTICES]
    rows = [_title(state), _emotion(state), *_meters(levels_db, columns)]
    rows += _roll(plan, columns, lines - _OTHER_LINES - len(notices))
    rows += _figures(stats)
    rows += [Text(f"! {note['text']}", _LEVELS.get(note["level"], "")) for note in notices]
    rows.append(_keys())
    for row in rows:
        row.truncate(columns, overflow="ellipsis")
    whole = Text("\n", no_wrap=True).join(rows)
    whole.no_wrap = True
    return whole


def _title(state: Mapping[str, Any]) -> Text:
    transport = str(state["transport"])
    sign, colour = _TRANSPORT.get(transport, ("?", ""))
    row = Text.assemble(("KmiDi ", "bold magenta"), (f"{sign} {transport}", f"bold {colour}"))
    row.append(f"  tempo {state['music']['tempo']:g}")
    if state.get("draws"):
        row.append(f"  cloud: {state['draws']}")
    if state.get("recording"):
        row.append(f"  ● recording {state['recording']}", "bold red")
    return row


def _emotion(state: Mapping[str, Any]) -> Text:
    music = state["music"]
    row = Text(f"{state['label']:<12}", "bold")
    for name in ("valence", "arousal"):
        value = float(music[name])
        row.append(f" {name} ", "bright_black")
        row.append(_slider(value), "magenta")
        row.append(f" {value:+.2f} ")
    return row


def _slider(value: float, cells: int = 11) -> str:
    place = round((value + 1.0) / 2.0 * (cells - 1))
    return "─" * place + "●" + "─" * (cells - 1 - place)


def _meters(levels_db: Sequence[float], columns: int) -> list[Text]:
    rows = []
    cells = columns - 12
    for index, side in enumerate("LR"):
        row = Text(f"{side} ")
        if not levels_db:
            row.append("no sound" if side == "L" else "", "bright_black")
        else:
            level = levels_db[index]
            filled = round(cells * min(1.0, max(0.0, 1.0 - level / LOWEST_DB)))
            # the last 6 dB below full scale are warm
            warm = max(0, filled - round(cells * (1.0 + 6.0 / LOWEST_DB)))
            row.append("■" * (filled - warm), "green")
            row.append("■" * warm, "yellow")
            row.append("·" * (cells - filled), "bright_black")
            row.append(f" {level:6.1f} dB" if level > LOWEST_DB else "  quiet")
        rows.append(row)
    return rows


def _figures(stats: Mapping[str, Any]) -> list[Text]:
    def figure(name: str, form: str) -> str:
        value = stats.get(name)
        return "–" if value is None else format(value, form)

    first = (
        f"{figure('fps', '.1f')} fps   frame {figure('frame_ms_p50', '.1f')} / "
        f"{figure('frame_ms_p99', '.1f')} ms   token {figure('token_ms_p50', '.1f')} / "
        f"{figure('token_ms_p99', '.1f')} ms   ahead {figure('lookahead_seconds', '.1f')} s"
    )
    second = (
        f"late {figure('lateness_ms_p50', '.1f')} / {figure('lateness_ms_p99', '.1f')} ms   "
        f"notes {figure('sounding', 'd')}   memory {figure('memory_gb', '.2f')} GB   "
        f"dropped {figure('dropped_frames', 'd')}   {stats.get('quality_text', '')}"
    )
    return [Text(first), Text(second)]


def _keys() -> Text:
    row = Text()
    for key, meaning in _KEYS:
        row.append(key, "reverse")
        row.append(f" {meaning}  ", "bright_black")
    return row


def _roll(plan: Mapping[str, Any], columns: int, lines: int) -> list[Text]:
    """The piano roll: time to the right, pitch upward, two of its rows in a line."""
    cells = columns - _LABEL_COLUMNS
    # 0 while time stands still, when the roll keeps its scale
    pace = float(plan["steps_per_second"]) or _MODEL_STEPS_PER_SECOND
    now = float(plan["now_step"])
    steps_a_cell = (_PAST_SECONDS + _COMING_SECONDS) * pace / cells
    first = now - _PAST_SECONDS * pace
    low, pitches_a_row = _pitch_range(plan["notes"], 2 * lines)
    grid = np.zeros((2 * lines, cells), np.int8)
    for start, end, pitch, _, played in plan["notes"]:
        begin = math.floor((start - first) / steps_a_cell)
        last = cells if end is None else math.ceil((end - first) / steps_a_cell)
        row = 2 * lines - 1 - (pitch - low) // pitches_a_row
        if not 0 <= row < 2 * lines:
            continue
        kind = _PLANNED if not played else _PLAYED
        if played and start <= now and (end is None or end > now):
            kind = _SOUNDING
            last = min(last, math.ceil((now - first) / steps_a_cell) + 1) if end is None else last
        grid[row, max(0, begin) : max(0, begin + 1, last)] = kind
    now_cell = int((now - first) / steps_a_cell)
    bar = float(plan["bar_steps"])
    bars = np.zeros(cells, bool)
    edges = np.arange(math.ceil(first / bar), math.ceil((first + cells * steps_a_cell) / bar))
    places = ((edges * bar - first) / steps_a_cell).astype(int)
    bars[places[(places >= 0) & (places < cells)]] = True
    empty = np.where(bars, "┊", " ")
    empty[now_cell] = "│"
    rows = []
    for line in range(lines):
        bottom_pitch = low + (2 * lines - 2 - 2 * line) * pitches_a_row
        rows.append(
            _roll_line(grid[2 * line], grid[2 * line + 1], empty, bottom_pitch, pitches_a_row)
        )
    return rows


def _roll_line(
    upper: NDArray[np.int8],
    lower: NDArray[np.int8],
    empty: NDArray[np.str_],
    bottom_pitch: int,
    pitches_a_row: int,
) -> Text:
    # a C among the pitches of the line names it
    octave = -(-bottom_pitch // 12)
    named = 12 * octave < bottom_pitch + 2 * pitches_a_row
    row = Text(f"{f'C{octave - 1}':<{_LABEL_COLUMNS}}" if named else " " * _LABEL_COLUMNS)
    row.stylize("bright_black")
    cells = zip(upper.tolist(), lower.tolist(), empty.tolist(), strict=True)
    for (above, below, blank), run in groupby(cells):
        count = len(list(run))
        if above == below == _NONE:
            row.append(blank * count, "bright_white" if blank == "│" else "bright_black")
        elif above == below:
            row.append("█" * count, _COLOURS[above])
        elif below == _NONE:
            row.append("▀" * count, _COLOURS[above])
        elif above == _NONE:
            row.append("▄" * count, _COLOURS[below])
        else:
            row.append("▀" * count, f"{_COLOURS[above]} on {_COLOURS[below]}")
    return row


def _pitch_range(notes: Sequence[Sequence[Any]], rows: int) -> tuple[int, int]:
    """Lowest pitch of a roll and pitches a row, in whole octaves, so that it seldom changes."""
    pitches = [int(note[2]) for note in notes] or [60]
    low = 12 * (min(pitches) // 12)
    high = 12 * (max(pitches) // 12 + 1)
    # two octaves at least, or a few notes would fill the screen
    low, high = min(low, 60), max(high, 84)
    pitches_a_row = max(1, math.ceil((high - low) / rows))
    return low, pitches_a_row
