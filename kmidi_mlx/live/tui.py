"""The terminal view: everything at a glance over a text connection, and the keys to steer it."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.stage import SoundReader, Stage
from kmidi_mlx.live.tui_view import LOWEST_DB, screen

__all__ = ["Keys", "LevelMeter", "run_tui"]

_INTERVAL_SECONDS = 1 / 12
_MESSAGE_SECONDS = 6.0
_EMOTION_STEP = 0.1
_FALL_DB_PER_SECOND = 30.0
# a command that still runs when the view is left is not waited for longer
_FAREWELL_SECONDS = 1.0
_ARROWS = {b"A": "up", b"B": "down", b"C": "right", b"D": "left"}
_EMOTION_KEYS = {
    "left": ("valence", -_EMOTION_STEP),
    "right": ("valence", _EMOTION_STEP),
    "down": ("arousal", -_EMOTION_STEP),
    "up": ("arousal", _EMOTION_STEP),
}


def run_tui(stage: Stage, stop: threading.Event) -> None:
    """Show the stage in the terminal until `q` is pressed, or `stop` is set.

    To be called by the main thread. The terminal is given back as it was, whatever happens;
    SIGTERM and SIGHUP set `stop` unless the program handles them itself.

    Args:
        stage: what is shown and steered.
        stop: ends the view when set; set by the view when a person ends it.

    Raises:
        KmidiError: where there is no terminal.
    """
    console = Console()
    if not sys.stdin.isatty() or not console.is_terminal or console.is_dumb_terminal:
        raise KmidiError(
            "--tui needs a terminal that can move its cursor; leave it out to work without."
        )
    hands = _Hands(stage)
    meter = LevelMeter(stage.sound.reader()) if stage.sound is not None else None
    try:
        with _signals_set(stop), _keys_at_once(sys.stdin.fileno()), suppress(_TerminalGoneError):
            _show(stage, console, stop, hands, meter)
    finally:
        stop.set()
        hands.close()
        if meter is not None:
            meter.close()


def _show(
    stage: Stage,
    console: Console,
    stop: threading.Event,
    hands: _Hands,
    meter: LevelMeter | None,
) -> None:
    keys, descriptor = Keys(), sys.stdin.fileno()
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            due = time.monotonic()
            while not stop.is_set():
                levels = meter.levels(time.monotonic()) if meter is not None else []
                size = console.size
                live.update(
                    screen(
                        stage.state(), stage.stats(), stage.plan(), levels, hands.messages(),
                        (size.width, size.height),
                    ),
                    refresh=True,
                )  # fmt: skip
                due = max(due + _INTERVAL_SECONDS, time.monotonic())
                _press(_wait_for_keys(descriptor, keys, due, stop), hands, stop)
    except OSError as error:
        # the window was closed, or the connection is gone
        raise _TerminalGoneError from error


class _TerminalGoneError(Exception):
    """There is nobody left to show anything to."""


def _wait_for_keys(descriptor: int, keys: Keys, due: float, stop: threading.Event) -> Iterator[str]:
    """Yield the keys that are pressed until it is time for the next picture."""
    while not stop.is_set() and (wait := due - time.monotonic()) > 0:
        readable, _, _ = select.select([descriptor], [], [], wait)
        if readable:
            data = os.read(descriptor, 1024)
            if not data:
                raise _TerminalGoneError
            yield from keys.feed(data)


def _press(pressed: Iterator[str], hands: _Hands, stop: threading.Event) -> None:
    for key in pressed:
        if key == "q":
            stop.set()
            return
        hands.press(key)


class Keys:
    """Turns what a terminal sends into keys: characters, and left, right, up, down."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the keys in `data`; half an arrow waits for its rest.

        Args:
            data: as read.
        """
        data, self._rest = self._rest + data, b""
        found: list[str] = []
        place = 0
        while place < len(data):
            if data[place] != 0x1B:
                found.append(chr(data[place]))
                place += 1
                continue
            end = _end_of_sequence(data, place)
            if end is None:
                # a lone escape is nothing, and must not swallow what comes later
                self._rest = data[place:] if len(data) - place < 16 else b""
                break
            arrow = _ARROWS.get(data[end - 1 : end])
            if arrow is not None and end - place > 2:
                found.append(arrow)
            place = end
        return found


def _end_of_sequence(data: bytes, place: int) -> int | None:
    """Return where an escape sequence ends; None: its rest is still to come."""
    if place + 1 == len(data):
        return None
    kind = data[place + 1 : place + 2]
    if kind == b"O":
        return place + 3 if place + 2 < len(data) else None
    if kind != b"[":
        return place + 1
    for end in range(place + 2, len(data)):
        if 0x40 <= data[end] <= 0x7E:
            return end + 1
    return None


class LevelMeter:
    """Peaks of what is heard, which fall slowly enough to be seen.

    Args:
        reader: of the sound; belongs to the meter.
    """

    def __init__(self, reader: SoundReader) -> None:
        self._reader = reader
        self._levels = [LOWEST_DB, LOWEST_DB]
        self._shown = time.monotonic()

    def levels(self, now: float) -> list[float]:
        """Return left and right in dB below full scale, `LOWEST_DB` at the least."""
        fall = _FALL_DB_PER_SECOND * max(0.0, now - self._shown)
        self._shown = now
        peaks = np.zeros(2)
        while (block := self._reader.read(0.0)) is not None:
            if len(block.samples):
                peaks = np.maximum(peaks, np.abs(block.samples.astype(np.float32)).max(axis=0))
        for side, peak in enumerate(peaks.tolist()):
            level = 20 * math.log10(peak / 32_768) if peak else LOWEST_DB
            self._levels[side] = max(LOWEST_DB, level, self._levels[side] - fall)
        return list(self._levels)

    def close(self) -> None:
        """Listen no more."""
        self._reader.close()


class _Hands:
    """Carries out what keys ask for, in a thread of its own: a command may take its time."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._messages: deque[tuple[float, dict[str, str]]] = deque(maxlen=2)
        self._wanted: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="kmidi keys", daemon=True)
        self._thread.start()

    def press(self, key: str) -> None:
        """Take a key; unknown ones are nothing."""
        if key in _EMOTION_KEYS:
            name, step = _EMOTION_KEYS[key]
            with self._changed:
                music = self._stage.state()["music"]
                # what was asked for and is not done yet counts
                wanted = self._wanted or {axis: music[axis] for axis in ("valence", "arousal")}
                value = round(min(1.0, max(-1.0, wanted[name] + step)), 2)
                self._wanted = {**wanted, name: value}
                self._changed.notify()
        elif key == " ":
            playing = self._stage.state()["transport"] == "playing"
            self._ask("transport", {"action": "pause" if playing else "play"})
        elif key in ("s", "p"):
            self._ask("transport", {"action": "stop" if key == "s" else "panic"})
        elif key == "r":
            recording = bool(self._stage.state().get("recording"))
            self._ask("record", {"action": "stop" if recording else "start"})

    def messages(self) -> list[dict[str, str]]:
        """Return what there is to say about commands, newest first."""
        now = time.monotonic()
        return [said for until, said in reversed(tuple(self._messages)) if until > now]

    def close(self) -> None:
        """Take no more keys."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_FAREWELL_SECONDS)

    def _ask(self, command: str, arguments: dict[str, Any]) -> None:
        with self._changed:
            self._waiting.append((command, arguments))
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._wanted or self._closing)
                if self._waiting:
                    command, arguments = self._waiting.popleft()
                elif self._wanted:
                    # however many arrows were pressed, one change is made of them
                    command, arguments = "update_emotion", dict(self._wanted)
                    self._wanted = {}
                else:
                    return
            try:
                self._say("info", _done(command, self._stage.apply(command, arguments)))
            except KmidiError as error:
                self._say("error", str(error))

    def _say(self, level: str, text: str) -> None:
        if text:
            said = {"level": level, "text": text}
            self._messages.append((time.monotonic() + _MESSAGE_SECONDS, said))


def _done(command: str, result: dict[str, Any]) -> str:
    """What to say of a command that was carried out; nothing where the screen shows it anyway."""
    files = result.get("files") if command == "record" else None
    return f"recorded {Path(files[0]).parent}" if files else ""


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """End the view, not the process, at signals that nobody else handles."""
    taken: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, lambda *_: stop.set())
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _keys_at_once(descriptor: int) -> Iterator[None]:
    """Have the terminal hand over every key at once and show none."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        changed = termios.tcgetattr(descriptor)
        # Ctrl-S would hold the view, and Ctrl-Z leave the music to itself
        changed[0] &= ~termios.IXON
        changed[6][termios.VSUSP] = bytes([os.fpathconf(descriptor, "PC_VDISABLE") & 0xFF])
        termios.tcsetattr(descriptor, termios.TCSANOW, changed)
        yield
    finally:
        # a terminal that is gone has nothing to restore
        with suppress(termios.error, OSError):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
