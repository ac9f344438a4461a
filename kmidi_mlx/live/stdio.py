"""The same commands as JSON lines over stdin and stdout, for a program that starts this one.

The first line says that everything is ready. A line that comes in is a client's message, a line
that goes out a server's; binary frames, where they are asked for, are lines with base64. When
stdin closes, the program that started this one has gone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from kmidi_mlx.live import protocol
from kmidi_mlx.live.broadcast import Broadcast
from kmidi_mlx.live.connection import Connection, LostClientError
from kmidi_mlx.live.protocol import LARGEST_MESSAGE
from kmidi_mlx.live.stage import Stage

__all__ = ["Stdio"]

_CHUNK = 65_536


class Stdio:
    """Serves a stage to the program at the other end of two pipes.

    Nothing else may be written to the output, or the lines are no JSON.

    Args:
        stage: the application.
        source: file descriptor that is read; by default stdin.
        target: file descriptor that is written; by default stdout.
        about: what the ready line says besides, such as the address of the page.
        on_error: called, by any thread, with errors that are bugs.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        source: int = 0,
        target: int = 1,
        about: dict[str, Any] | None = None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._source = source
        self._target = target
        self._about = about or {}
        self._broadcast = Broadcast(stage, on_error)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def run(self) -> None:
        """Serve until the source closes, nobody reads the target, or `stop` is called."""
        asyncio.run(self._serve())

    def stop(self) -> None:
        """Have `run` return; any thread may call, once it runs."""
        if self._loop is not None and self._stopping is not None:
            with suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._stopping.set)

    def notify(self, level: str, text: str) -> None:
        """Send a notice; any thread may call.

        Args:
            level: info, warning or error.
            text: one sentence.
        """
        self._broadcast.notify(level, text)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        writer = _LineWriter(self._target, self._loop)
        connection = Connection(self._broadcast, writer.send, base64=True, patient=True)
        lines = _LineReader(self._source, self._loop)
        self._broadcast.start()
        self._broadcast.add(connection)
        ready = protocol.hello(**self._about, type="ready")
        serving = asyncio.create_task(connection.run(lines.lines(), ready))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (serving, stopping):
                task.cancel()
            with suppress(asyncio.CancelledError, LostClientError, BrokenPipeError):
                await serving
            self._broadcast.remove(connection)
            await self._broadcast.stop()


class _LineWriter:
    """Writes lines in a thread, one at a time: a pipe that is full must not hold the loop.

    The thread is a daemon and holds no lock of Python's streams, so that a reader that sleeps for
    ever does not keep the process from ending.
    """

    def __init__(self, target: int, loop: asyncio.AbstractEventLoop) -> None:
        self._target = target
        self._loop = loop
        self._data = b""
        self._given = threading.Semaphore(0)
        self._written: asyncio.Future[None] | None = None
        threading.Thread(target=self._work, name="kmidi stdout", daemon=True).start()

    async def send(self, message: str | bytes) -> None:
        """Write a message as a line; returns when it is written.

        Raises:
            BrokenPipeError: when nobody reads any more.
        """
        if isinstance(message, bytes):
            frame = {"type": "binary", "data": base64.b64encode(message).decode("ascii")}
            message = json.dumps(frame, separators=(",", ":"))
        self._data = message.encode() + b"\n"
        self._written = self._loop.create_future()
        self._given.release()
        await self._written

    def _work(self) -> None:
        while True:
            self._given.acquire()
            error = None
            try:
                data = memoryview(self._data)
                while data:
                    data = data[os.write(self._target, data) :]
            except OSError as failed:
                error = BrokenPipeError(failed.errno, failed.strerror)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._tell, error)
            if error is not None:
                return

    def _tell(self, error: BrokenPipeError | None) -> None:
        if self._written is None or self._written.done():
            return
        if error is None:
            self._written.set_result(None)
        else:
            self._written.set_exception(error)


class _LineReader:
    """Reads lines in a thread, for the same reasons; a few lines ahead."""

    def __init__(self, source: int, loop: asyncio.AbstractEventLoop) -> None:
        self._source = source
        self._loop = loop
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(64)
        threading.Thread(target=self._work, name="kmidi stdin", daemon=True).start()

    async def lines(self) -> AsyncIterator[str | bytes]:
        """Yield the lines until the source closes; empty ones are left out."""
        while (line := await self._queue.get()) is not None:
            self._room.release()
            # what is not UTF-8 is refused by who reads the message
            yield line.decode(errors="surrogateescape")

    def _work(self) -> None:
        rest = b""
        with suppress(OSError):
            while chunk := os.read(self._source, _CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._put(line)
                # enough of it to be refused as too long; the end of the line is still looked for
                rest = rest[: LARGEST_MESSAGE + 1]
        self._put(rest)
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        if line is not None and not line.strip():
            return
        self._room.acquire()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._queue.put_nowait, line)
