"""The live application as people start it: a process, its address, its end; and a MIDI account."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKEN = "a-token-that-stays-the-same"
_START_SECONDS, _END_SECONDS = 60.0, 20.0


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class Program:
    """`python -m kmidi_mlx.live` with some flags, in a folder of its own.

    Args:
        folder: that it runs in; its recordings are in `takes` there.
        flags: besides the port.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.flags = list(flags)
        self.port = free_port()
        self.said: list[str] = []
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The address that it shows."""
        return f"http://127.0.0.1:{self.port}/?token={TOKEN}"

    def start(self, *more: str) -> None:
        """Start the process and wait until it serves its page; port and token stay the same."""
        environment = {**os.environ, "KMIDI_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
        self.said = []
        self._spoke = threading.Event()
        command = [sys.executable, "-m", "kmidi_mlx.live", "--no-browser"]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), *self.flags, *more],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        assert self._spoke.wait(_START_SECONDS), "it says nothing"
        assert self.said[0] == f"kmidi plays at {self.url}\n", "".join(self.said)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line)
            self._spoke.set()
        process.stdout.close()
        self._spoke.set()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the status with which it ends."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(_END_SECONDS)

    def close(self) -> None:
        """Let nothing of it remain."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Carry out a command over HTTP, as a script would."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{command}",
            json.dumps(arguments).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=20.0) as answer:
            return dict(json.load(answer))

    def option(self, name: str) -> Any:
        """Value of an option that is in force."""
        options = self.ask("describe")["options"]
        return next(option["value"] for option in options if option["name"] == name)


def status_of(url: str) -> int:
    """HTTP status of a page that somebody without a cookie opens."""
    try:
        with urllib.request.urlopen(url, timeout=10.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code


class MidiAccount:
    """Another process that a program plays on by a socket, and that knows what sounds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "midi_account.py")],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def report(self) -> dict[str, Any]:
        """What it has heard so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
