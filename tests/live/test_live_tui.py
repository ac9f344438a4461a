"""The terminal view: what it shows, its keys, and the terminal it leaves behind."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_double import Block, Sound, StageDouble

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.tui import Keys, LevelMeter, run_tui
from kmidi_mlx.live.tui_view import LOWEST_DB, SMALLEST_SIZE, screen

NOTE = st.tuples(
    st.integers(-400, 900), st.integers(1, 400), st.integers(0, 127), st.booleans(), st.booleans()
)


def plan(now: float, notes: list[list[Any]]) -> dict[str, Any]:
    return {
        "now_step": now, "steps_per_second": 100.0, "beat_steps": 50, "bar_steps": 200,
        "notes": notes,
    }  # fmt: skip


def draw(now: float, notes: list[list[Any]], size: tuple[int, int] = (80, 24)) -> list[str]:
    stage = StageDouble()
    levels = [-12.0, LOWEST_DB]
    return screen(stage.state(), stage.stats(), plan(now, notes), levels, [], size).plain.split(
        "\n"
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(NOTE, max_size=12), st.floats(0, 1e6), st.integers(60, 200), st.integers(16, 70))
def test_every_screen_fits(
    notes: list[tuple[int, int, int, bool, bool]], now: float, columns: int, lines: int
) -> None:
    rows = [
        [int(now) + start, None if open_ and played else int(now) + start + length, pitch, 80,
         int(played)]
        for start, length, pitch, open_, played in notes
    ]  # fmt: skip
    shown = draw(now, rows, (columns, lines))
    assert len(shown) == lines
    assert max(map(len, shown)) <= columns


def test_the_screen_says_everything() -> None:
    stage = StageDouble()
    stage.recording = "take-7"
    text = screen(
        stage.state(), stage.stats(), stage.plan(), [-12.3, -60.0],
        [{"level": "error", "text": "there is nothing to see."}], (80, 24),
    ).plain  # fmt: skip
    for words in (
        "■ stopped", "tempo 120", "cloud: engine", "● recording take-7", "pleased", "+0.60",
        "+0.20", "-12.3 dB", "quiet", "60.0 fps", "frame 4.0 / 9.0 ms", "token 1.2 / 2.0 ms",
        "ahead 4.0 s", "late 0.1 / 2.0 ms", "memory 0.40 GB", "dropped 0", "everything",
        "! there is nothing to see.", "! A shipped piece is played", "space play", "q quit",
    ):  # fmt: skip
        assert words in text, words
    assert "fps" in draw(0.0, [])[-4]


def test_who_draws_fewer_clouds_on_purpose_alarms_nobody() -> None:
    stage = StageDouble()
    stage.session.notice("fps", "warning", "12 clouds a second are drawn, below 55.")

    def shown() -> str:
        return screen(stage.state(), stage.stats(), stage.plan(), [], [], (160, 24)).plain

    assert "! 12 clouds a second" in shown()
    stage.quality = (1, "a cloud every 6th frame")
    assert "clouds a second" not in shown()
    assert "a cloud every 6th frame" in shown()


def test_notes_are_where_their_time_and_pitch_are() -> None:
    # 76 columns of eight seconds, now after three of them; two pitches a line above C3
    rows = draw(1000.0, [[950, 1100, 60, 80, 1], [1250, 1300, 72, 80, 0]])
    roll = rows[4:-4]
    column = 4 + int(300 / (800 / 76))
    assert all(row[column] in "│▀▄█" for row in roll)
    named = {row[:4].strip(): row for row in roll}
    assert set("▀▄█") & set(named["C4"][4:])
    sounding = re.search("[▀▄█]+", named["C4"])
    assert sounding is not None
    assert sounding.start() < column < sounding.end()
    planned = re.search("[▀▄█]+", named["C5"])
    assert planned is not None
    assert planned.start() > column
    assert planned.end() - planned.start() in (4, 5, 6)
    assert sum(bool(set("▀▄█") & set(row)) for row in roll) == 2


def test_the_roll_stays_while_time_stands_still() -> None:
    stage = StageDouble()
    moving = plan(1000.0, [[950, 1100, 60, 80, 1]])
    still = {**moving, "steps_per_second": 0.0}
    moving_text, still_text = (
        screen(stage.state(), stage.stats(), one, [], [], (80, 24)).plain for one in (moving, still)
    )
    assert still_text == moving_text


def test_small_windows_get_a_word() -> None:
    columns, lines = SMALLEST_SIZE
    for size in ((columns - 1, lines), (columns, lines - 1), (1, 1)):
        (row,) = draw(0.0, [], size)
        assert len(row) <= size[0]
    assert "make this window 60 x 16" in draw(0.0, [], (59, 40))[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_keys_are_the_same_however_they_arrive(data: st.DataObject) -> None:
    kinds = {
        b"\x1b[A": ["up"], b"\x1b[B": ["down"], b"\x1bOC": ["right"], b"\x1b[1;5D": ["left"],
        b" ": [" "], b"q": ["q"], b"\x1b[3~": [], b"\x1b[15~": [],
    }  # fmt: skip
    sent = data.draw(st.lists(st.sampled_from(sorted(kinds)), max_size=8))
    whole = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    keys, found = Keys(), []
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += keys.feed(whole[begin:end])
    assert found == [key for piece in sent for key in kinds[piece]]


def test_levels_rise_at_once_and_fall_slowly() -> None:
    sound = Sound()
    meter = LevelMeter(sound.reader())
    now = time.monotonic()
    assert meter.levels(now) == [LOWEST_DB, LOWEST_DB]
    for peak in (100, 16_384, 50):
        sound.put(Block(0, now, np.array([[peak, -32_768], [0, 0]], np.int16)))
    left, right = meter.levels(now)
    assert left == pytest.approx(-6.02, abs=0.01)
    assert right == 0.0
    assert meter.levels(now + 0.5)[1] == pytest.approx(-15.0)
    assert meter.levels(now + 60.0) == [LOWEST_DB, LOWEST_DB]
    meter.close()
    assert sound.readers == []


def test_without_a_terminal_there_is_a_sentence() -> None:
    with pytest.raises(KmidiError, match="needs a terminal"):
        run_tui(StageDouble(), threading.Event())


CHILD = """
import fcntl, json, sys, termios, threading, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from pathlib import Path
from stage_double import PlayingDouble
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.tui import run_tui

class Stage(PlayingDouble):
    broken = False
    def plan(self):
        if self.broken:
            raise RuntimeError("broken")
        return super().plan()
    def _record(self, action, name=""):
        if action == "start":
            self.broken = "break" in sys.argv
            raise KmidiError("the folder is full.")
        return {}

stage, stop, ended = Stage(10), threading.Event(), "by itself"
stage.start()
try:
    run_tui(stage, stop)
except BaseException as error:
    ended = type(error).__name__
stage.stop()
said = [ended, stop.is_set(), stage.applied, stage.state()["music"]]
Path(sys.argv[1]).write_text(json.dumps(said))
"""


class Terminal:
    """A terminal of 80 x 24 in which the view runs as a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.told = folder / "told.json"
        self.output = ""
        # a read may end within a character
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(slave)
        here = Path(__file__).parent
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            environment.pop(name, None)
        environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parents[1])])
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(self.told), *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=environment,
        )  # fmt: skip
        self.slave = slave

    def read_until(self, condition: Callable[[str], bool]) -> None:
        begun = time.monotonic()
        while not condition(self.output):
            assert time.monotonic() - begun < 20.0, self.output[-3000:]
            self._read(0.05)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> list[Any]:
        begun = time.monotonic()
        while self.process.poll() is None:
            assert time.monotonic() - begun < 20.0, self.output[-3000:]
            self._read(0.05)
        self._read(0.0)
        assert self.process.returncode == 0, self.output[-3000:]
        return json.loads(self.told.read_text())  # type: ignore[no-any-return]

    def frames(self) -> list[list[str]]:
        """Screens that were shown whole, without colours."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.output)
        return [part.replace("\r", "").split("\n") for part in plain.split("\x1b[H")[1:-1]]

    def assert_restored(self) -> None:
        assert termios.tcgetattr(self.slave) == self.before
        assert "\x1b[?1049l" in self.output[-200:]
        assert "\x1b[?25h" in self.output[-200:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)

    def _read(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:
            self.output += self._decoder.decode(os.read(self.master, 65_536))


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: str) -> Terminal:
        opened.append(Terminal(tmp_path, *arguments))
        opened[-1].read_until(lambda output: "quit" in output)
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_keys_steer_and_the_terminal_is_given_back(
    terminal: Callable[..., Terminal],
) -> None:
    view = terminal()
    during = termios.tcgetattr(view.slave)
    assert not during[3] & (termios.ICANON | termios.ECHO)
    assert not during[0] & termios.IXON
    view.press(b" ")
    view.read_until(lambda output: "paused" in output)
    view.press(b"\x1b[A\x1b[A\x1b[D\x13\x1a")  # and Ctrl-S and Ctrl-Z, which do nothing
    view.read_until(lambda output: "+0.40" in output)
    view.press(b"r")
    view.read_until(lambda output: "! the folder is full." in output)
    view.press(b"p")
    view.press(b"s")
    view.read_until(lambda output: "stopped" in output)
    view.press(b"q")
    ended, stop, applied, music = view.end()
    view.assert_restored()
    assert (ended, stop) == ("by itself", True)
    assert (music["valence"], music["arousal"]) == (0.5, 0.4)
    commands = [name for name, _ in applied]
    assert 1 <= commands.count("update_emotion") <= 3
    wanted = [
        ["transport", {"action": "pause"}], ["record", {"action": "start"}],
        ["transport", {"action": "panic"}], ["transport", {"action": "stop"}],
    ]  # fmt: skip
    assert [row for row in applied if row[0] != "update_emotion"] == wanted
    frames = [frame for frame in view.frames() if len(frame) > 1]
    assert len(frames) > 3
    for frame in frames:
        assert len(frame) == 24
        assert max(map(len, frame)) <= 80
        assert frame[0].startswith("KmiDi")
    assert any(set("▀▄█") & set("".join(frame)) for frame in frames)


def test_sigterm_ends_the_view_and_the_program_goes_on_to_its_end(
    terminal: Callable[..., Terminal],
) -> None:
    view = terminal()
    view.process.send_signal(signal.SIGTERM)
    assert view.end()[:2] == ["by itself", True]
    view.assert_restored()


def test_control_c_is_handed_on(terminal: Callable[..., Terminal]) -> None:
    view = terminal()
    view.press(b"\x03")
    assert view.end()[:2] == ["KeyboardInterrupt", True]
    view.assert_restored()


def test_an_error_leaves_a_terminal_that_works(terminal: Callable[..., Terminal]) -> None:
    view = terminal("break")
    view.press(b"r")
    assert view.end()[:2] == ["RuntimeError", True]
    view.assert_restored()


def test_a_window_that_is_closed_ends_the_view(terminal: Callable[..., Terminal]) -> None:
    view = terminal()
    os.close(view.slave)
    os.close(view.master)
    view.master = view.slave = -1
    assert view.process.wait(20.0) == 0
    assert json.loads(view.told.read_text())[:2] == ["by itself", True]
