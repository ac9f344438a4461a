"""A tracker in a process of its own: it may fail, hang or crash, and the run goes on.

A server that does not answer keeps wandb from ending, and with it any process that has imported it.
So each tracker gets a process, which is told by a pipe that nobody waits for and is ended when its
time is up. Sounds and pictures of samples are made there too, at low priority.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.tracker import Tracker

__all__ = ["FINISH_SECONDS", "INTERRUPTED_SECONDS", "ProcessTracker", "child_command"]

#: How long the end of a run waits for what a tracker has not written or sent yet.
FINISH_SECONDS = 60.0
#: The same where a person has asked the run to stop, and is waiting.
INTERRUPTED_SECONDS = 10.0
#: Reports that a tracker is behind with, in bytes, before more are dropped; a day of a usual run.
MOST_WAITING_BYTES = 4 << 20
_PIPE_BYTES = 1 << 16


def child_command(name: str) -> list[str]:
    """Return the command line of the process that serves a tracker, without its arguments."""
    return [sys.executable, "-P", str(Path(__file__).with_name("tracker_host.py")), name]


class ProcessTracker(Tracker):
    """Hands reports to a tracker in another process, without ever waiting for it.

    What went wrong there is raised here by one of the next reports.

    Args:
        kind: of `trackers.TRACKERS`.
        folder: checkpoint folder.
        project: that the run belongs to.
        finish_seconds: how long `finish` waits, of an interrupted run no longer than
            `INTERRUPTED_SECONDS`.
        command: that serves it; None: `tracker_host`.
        kept: says, where that is not enough, what becomes of what was not sent; empty: nothing.

    Attributes:
        dropped: reports that found no room.
    """

    def __init__(
        self,
        kind: str,
        folder: Path,
        project: str,
        finish_seconds: float = FINISH_SECONDS,
        command: Sequence[str] | None = None,
        kept: str = "",
    ) -> None:
        self._kind = kind
        self._command = list(command or [*child_command(kind), str(folder.resolve()), project])
        self._finish_seconds = finish_seconds
        self._kept = kept
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = bytearray()
        self._heard = b""
        self._failure: str | None = None
        self._finished = False
        self.dropped = 0

    @property
    def name(self) -> str:
        """The word after `--tracker`."""
        return self._kind

    def start(self, about: dict[str, Any], step: int) -> None:
        """Start the process.

        Raises:
            OSError: when the system refuses.
        """
        # a session of its own: Ctrl-C is for the run, and what is left is reported after it
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._tell("start", about, step)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Hand on numbers.

        Raises:
            KmidiError: when the tracker has failed, has ended or is too far behind.
        """
        self._tell("log", step, values)

    def add_samples(self, step: int, files: Sequence[Path]) -> None:
        """Hand on the names of files; raises as `log` does."""
        self._tell("add_samples", step, [str(file.resolve()) for file in files])

    def finish(self, reason: str) -> None:
        """Wait until everything is written or the time is up, and end the process.

        Raises:
            KmidiError: when the tracker did not end well, or reports were dropped.
        """
        process = self._process
        if process is None:
            return
        seconds = self._finish_seconds
        if reason == "interrupted":
            seconds = min(seconds, INTERRUPTED_SECONDS)
        try:
            self._waiting += _line("finish", reason)
            self._exchange()
            deadline = time.monotonic() + seconds
            while not self._finished and process.poll() is None and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
                self._exchange()
            self._listen()
        finally:
            self._end(process)
        dropped = f"{self.dropped} reports were dropped" if self.dropped else ""
        if self._failure is not None:
            raise KmidiError("; ".join(filter(None, (self._failure, dropped))))
        if not self._finished:
            how = (
                f"did not finish within {seconds:g} s"
                if process.returncode is None or process.returncode < 0
                else f"its process ended with status {process.returncode}"
            )
            raise KmidiError("; ".join(filter(None, (how, dropped, self._kept))))
        if dropped:
            raise KmidiError(dropped)

    def _tell(self, method: str, *arguments: Any) -> None:
        if self._process is None:
            return  # it could not be started, which has been told
        line = _line(method, *arguments)
        full = len(self._waiting) + len(line) > MOST_WAITING_BYTES
        if full:
            self.dropped += 1
        else:
            self._waiting += line
        self._exchange()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise KmidiError(failure)
        if full:
            raise KmidiError("it is too far behind, and reports are dropped")

    def _exchange(self) -> None:
        """Write what the pipe takes at once and read what there is."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while self._waiting:
                sent = os.write(self._process.stdin.fileno(), self._waiting[:_PIPE_BYTES])
                del self._waiting[:sent]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._waiting.clear()
            self._listen()
            if self._failure is None and not self._finished:
                self._failure = "its process has ended"
            return
        self._listen()

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), _PIPE_BYTES):
                self._heard += data
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            kind, text = json.loads(line)
            if kind == "finished":
                self._finished = True
            else:
                self._failure = self._failure or text

    def _wait(self, seconds: float) -> None:
        """Wait until there is something to read or room to write."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        writing = [self._process.stdin] if self._waiting else []
        # an answer may be lost when the process dies: look at it from time to time
        select.select([self._process.stdout], writing, [], min(max(seconds, 0.0), 0.5))

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            # one that has said that it is done only has to leave
            process.wait(5.0 if self._finished else 0.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None


def _line(method: str, *arguments: Any) -> bytes:
    return (json.dumps([method, *arguments]) + "\n").encode()
