"""Ports of the machine's MIDI systems, each served by a process of its own; see `port_host`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.port_host import HEADER, PORT_NAME
from kmidi_mlx.live.sinks import PortLostError

__all__ = ["SystemInput", "SystemOutput", "list_system_ports"]

_HOST = Path(__file__).with_name("port_host.py")
_START_SECONDS = 6.0
# beats come four times a second; a machine under load may hold one back
_SILENCE_SECONDS = 2.0
_END_SECONDS = 4.0


class _Host:
    """The process that serves a port.

    Args:
        arguments: of the process.

    Attributes:
        answer: the line that it began with.

    Raises:
        KmidiError: when the port cannot be opened, or nothing answers in some seconds.
    """

    def __init__(self, *arguments: str) -> None:
        # a session of its own: Ctrl-C is for us, and the notes end after us
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_HOST), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._waiting = b""
        self._writing = threading.Lock()
        os.set_blocking(self._to.fileno(), False)
        try:
            self.answer = self._first_line()
        except BaseException:
            self.end(at_once=True)
            raise
        if "error" in self.answer:
            self.end()
            raise KmidiError(self.answer["error"])

    def write(self, data: bytes) -> None:
        """Send without ever waiting; OSError when it is not taken."""
        with self._writing:
            if self._to.closed:
                raise BrokenPipeError
            # as short as this it goes whole or not at all
            if os.write(self._to.fileno(), data) != len(data):
                raise BlockingIOError

    def close(self) -> None:
        """Let the process end the notes and go; does not wait for it."""
        with self._writing, contextlib.suppress(OSError):
            self._to.close()

    def read(self, timeout: float) -> bytes | None:
        """Wait for what it writes: empty when it is gone, None when nothing came."""
        if not select.select([self._from], [], [], timeout)[0]:
            return None
        return os.read(self._from.fileno(), 65_536)

    def end(self, at_once: bool = False) -> bool:
        """Wait for the end of the process; one that hangs is killed.

        Returns:
            Whether it ended by itself, so that no note was left sounding.
        """
        self.close()
        if at_once:
            self._process.kill()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()
        return self._process.returncode == 0

    def frames(self) -> list[tuple[float, bytes]] | None:
        """Wait for frames, (moment, message), beats among them; None when the port is lost."""
        data = self.read(_SILENCE_SECONDS)
        if not data:
            return None
        self._waiting += data
        frames = []
        while len(self._waiting) >= HEADER.size:
            moment, length = HEADER.unpack_from(self._waiting)
            end = HEADER.size + length
            if len(self._waiting) < end:
                break
            frames.append((moment, self._waiting[HEADER.size : end]))
            self._waiting = self._waiting[end:]
        return frames

    def _first_line(self) -> dict[str, Any]:
        deadline = time.monotonic() + _START_SECONDS
        while b"\n" not in self._waiting:
            data = self.read(max(0.0, deadline - time.monotonic()))
            if not data:
                raise KmidiError(
                    "the machine's MIDI system does not answer; start it anew "
                    "(Core MIDI, JACK), or use socket:HOST:PORT."
                )
            self._waiting += data
        line, self._waiting = self._waiting.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer


def list_system_ports() -> dict[str, list[str]]:
    """Name the ports of the machine's MIDI systems; takes a tenth of a second or more.

    Returns:
        `inputs` and `outputs`, each with `virtual` last where one can be made.

    Raises:
        KmidiError: when no library is installed or the system does not answer.
    """
    host = _Host("list")
    host.end()
    return host.answer


class SystemOutput:
    """Plays on a port of the machine: a `sinks.MidiOutput`.

    Sending takes microseconds, whatever the device does. When the port is unplugged, its system
    dies or hangs, the next message after at most two seconds raises.

    Args:
        name: a port's name or a part of it; `virtual`: a new port named KmiDi.

    Raises:
        KmidiError: when it cannot be opened; the sentence lists the ports there are.
    """

    def __init__(self, name: str) -> None:
        self._host = _Host("output", name)
        self.name = str(self._host.answer["name"])
        self._lost = False
        threading.Thread(target=self._watch, name="kmidi port", daemon=True).start()

    def send(self, message: bytes) -> None:
        """Hand a message to the port's process.

        Args:
            message: 1-255 bytes.

        Raises:
            PortLostError: when the port is gone.
        """
        try:
            if self._lost:
                raise BrokenPipeError
            self._host.write(bytes((len(message),)) + message)
        except OSError as error:
            self._lost = True
            raise _lost(self.name) from error

    def close(self) -> None:
        """End what sounds and close the port."""
        self._host.close()

    def _watch(self) -> None:
        while self._host.frames() is not None:
            pass
        self._lost = True
        if not self._host.end() and self.name != PORT_NAME:
            # the process died, perhaps amid a chord, and the device may still be there
            with contextlib.suppress(KmidiError):
                _Host("silence", self.name).end()


class SystemInput:
    """Listens to a port of the machine.

    Args:
        name: as for `SystemOutput`.
        on_message: called with each message and its moment of `time.monotonic()`, in a thread of
            this port.
        on_lost: called once, in that thread, if the port goes away or `on_message` raises.

    Raises:
        KmidiError: when it cannot be opened.
    """

    def __init__(
        self,
        name: str,
        on_message: Callable[[bytes, float], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._host = _Host("input", name)
        self.name = str(self._host.answer["name"])
        self._on_message, self._on_lost = on_message, on_lost
        self._closed = False
        threading.Thread(target=self._listen, name="kmidi port", daemon=True).start()

    def close(self) -> None:
        """Close the port; after some milliseconds nothing is called any more."""
        self._closed = True
        self._host.close()

    def _listen(self) -> None:
        error: Exception = _lost(self.name)
        try:
            while (frames := self._host.frames()) is not None:
                for moment, message in frames:
                    if message and not self._closed:
                        self._on_message(message, moment)
        except Exception as raised:  # whoever listens is told, and the process is not left over
            error = raised
        if not self._closed:
            self._on_lost(error)
        self._host.end()


def _lost(name: str) -> PortLostError:
    return PortLostError(f"the MIDI port {name!r} went away; plug it in or choose another.")
