"""One front end: its commands in their order, its streams at the rate that it can take.

The same for every transport: a transport hands in the messages that arrive and takes those that
are to be sent, one at a time, waiting while the client cannot take more. Nothing here grows with a
client that does not read: of reports and clouds the newest wins, sound is cut, and a client that
wants no answers cannot go on asking.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import protocol
from kmidi_mlx.live.commands import AT_ONCE, SLOW_COMMANDS
from kmidi_mlx.live.protocol import ProtocolError, Request
from kmidi_mlx.live.security import TokenBucket

__all__ = ["SEND_SECONDS", "Connection", "LostClientError", "Office"]

#: A client that takes nothing for so long is given up.
SEND_SECONDS = 10.0
# Answers that a client may owe us reading before we read on.
_MOST_UNREAD = 64
_MOST_NOTICES = 16
# Slow commands of one client that may wait.
_MOST_SLOW = 4
_MOST_SOUND_BLOCKS = 10
# Frames in flight at the start, and the most credits that are kept.
_CREDITS = {"cloud": (3, 3), "sound": (8, 16)}
# Time to answer what a client asked before it said that no more will come.
_LAST_SECONDS = 1.0
# A hand on a slider, credits for sixty clouds and fifty blocks of sound, and room to spare.
_MESSAGES_PER_SECOND, _MESSAGES_AT_ONCE = 400.0, 800.0
# Messages above that rate that are refused before the client is given up.
_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE = 20.0, 200.0


class LostClientError(Exception):
    """The client went away, takes nothing, or floods us; the text is for its close frame."""


class Office(Protocol):
    """What a connection needs from the server that it belongs to."""

    async def carry_out(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command of the application outside the event loop; KmidiError: refused."""

    def subscribed(self, connection: Connection) -> None:
        """Take note that the streams of a connection have changed."""


@dataclass
class _Credit:
    """Frames of a stream that a client is ready to take."""

    left: int
    most: int


class Connection:
    """A client, between its transport and the application.

    Belongs to the event loop's thread.

    Args:
        office: carries commands out.
        send: sends a message, text or binary frame; returns when there is room for the next.
        base64: whether binary frames have to be asked for, as base64.
        patient: wait for ever for a client that does not read, and answer what it has asked when
            its messages have ended: a pipe has two ends, a lost connection none.

    Attributes:
        streams: that the client wants.
    """

    def __init__(
        self,
        office: Office,
        send: Callable[[str | bytes], Awaitable[None]],
        *,
        base64: bool = False,
        patient: bool = False,
    ) -> None:
        self.streams: frozenset[str] = frozenset()
        self._office = office
        self._send = send
        self._base64 = base64
        self._patient = patient
        self._rate = TokenBucket(_MESSAGES_PER_SECOND, _MESSAGES_AT_ONCE)
        self._patience = TokenBucket(_REFUSALS_PER_SECOND, _REFUSALS_AT_ONCE)
        self._unread = asyncio.Semaphore(_MOST_UNREAD)
        self._quick: asyncio.Queue[Request] = asyncio.Queue(_MOST_UNREAD)
        self._slow: asyncio.Queue[Request] = asyncio.Queue(_MOST_SLOW)
        self._replies: deque[str] = deque()
        self._notices: deque[str] = deque(maxlen=_MOST_NOTICES)
        self._reports: dict[str, str] = {}
        self._cloud: bytes | None = None
        self._sound: deque[bytes] = deque(maxlen=_MOST_SOUND_BLOCKS)
        self._credits = {name: _Credit(*limits) for name, limits in _CREDITS.items()}
        self._cloud_rate = 0.0
        self._next_cloud = 0.0
        self._sending = True
        self._wake = asyncio.Event()

    async def run(self, messages: AsyncIterator[str | bytes], greeting: str) -> None:
        """Serve the client until its messages end.

        Args:
            messages: that arrive; texts, or bytes where the client sent a binary frame.
            greeting: the first message that it gets.

        Raises:
            LostClientError: when it was given up.
        """
        lanes = (self._work(self._quick), self._work(self._slow))
        both_ways = (self._read(messages), self._write(greeting))
        tasks = [asyncio.create_task(work) for work in (*both_ways, *lanes)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def offer_report(self, stream: str, message: str) -> None:
        """Send a report as soon as possible if it is wanted; it replaces an older one."""
        if stream in self.streams:
            self._reports[stream] = message
            self._wake.set()

    def offer_notice(self, message: str) -> None:
        """Send a notice as soon as possible."""
        self._notices.append(message)
        self._wake.set()

    def offer_cloud(self, frame: bytes, now: float) -> None:
        """Send a cloud when the client is ready for one; it replaces an older one.

        Args:
            frame: as packed.
            now: moment of `time.monotonic()`.
        """
        if "cloud" not in self.streams:
            return
        if self._cloud_rate:
            # frames do not come on the dot; a quarter of a frame early is on time
            if now < self._next_cloud - 0.004:
                return
            self._next_cloud = max(self._next_cloud + 1.0 / self._cloud_rate, now)
        self._cloud = frame
        self._wake.set()

    def offer_sound(self, block: bytes) -> None:
        """Send a block of sound when the client is ready; what has waited too long is left out."""
        if "sound" in self.streams:
            self._sound.append(block)
            self._wake.set()

    async def _read(self, messages: AsyncIterator[str | bytes]) -> None:
        async for message in messages:
            if not self._rate.take():
                if not self._patience.take():
                    raise LostClientError("too many messages")
                await self._refuse(None, "too many messages; send fewer a second.")
                continue
            if isinstance(message, bytes):
                await self._refuse(None, "messages are JSON text; this was a binary frame.")
                continue
            try:
                request = protocol.parse_message(message)
            except ProtocolError as error:
                await self._refuse(error.id, str(error))
            else:
                await self._accept(request)
        if self._patient:
            await self._finish()

    async def _finish(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._quick.join()
                await self._slow.join()
                while self._replies or self._sending:
                    await asyncio.sleep(0.005)

    async def _accept(self, request: Request) -> None:
        if request.command == "credit":
            self._add_credit(**request.arguments)
            if request.id is None:
                return
        await self._unread.acquire()
        if request.command in AT_ONCE:
            result = {"time": time.monotonic()} if request.command == "ping" else {}
            self._answer(protocol.reply(request.id, result))
        elif request.command not in SLOW_COMMANDS:
            await self._quick.put(request)
        elif self._slow.full():
            self._answer(protocol.failure(request.id, "too much is waiting; ask again later."))
        else:
            self._slow.put_nowait(request)

    async def _refuse(self, number: int | None, reason: str) -> None:
        await self._unread.acquire()
        self._answer(protocol.failure(number, reason))

    async def _work(self, queue: asyncio.Queue[Request]) -> None:
        while True:
            request = await queue.get()
            try:
                result = await self._carry_out(request)
                self._answer(protocol.reply(request.id, result))
            except KmidiError as error:
                self._answer(protocol.failure(request.id, str(error)))
            queue.task_done()

    async def _carry_out(self, request: Request) -> dict[str, Any]:
        if request.command == "subscribe":
            return self._subscribe(**request.arguments)
        return await self._office.carry_out(request.command, request.arguments)

    def _subscribe(
        self, streams: list[str], cloud_rate: float = 0.0, base64: bool = False
    ) -> dict[str, Any]:
        binary = [name for name in streams if name in _CREDITS]
        if binary and base64 != self._base64:
            wish = 'with "base64": true' if self._base64 else "without base64"
            raise KmidiError(f"here {' and '.join(binary)} can be had {wish} only.")
        for name in set(binary) - self.streams:
            # frames of an earlier subscription need not have been given back
            self._credits[name].left = max(self._credits[name].left, _CREDITS[name][0])
        if "cloud" not in streams:
            self._cloud = None
        if "sound" not in streams:
            self._sound.clear()
        self._cloud_rate, self._next_cloud = cloud_rate, 0.0
        self.streams = frozenset(streams)
        self._office.subscribed(self)
        return {"streams": streams, "credits": {name: self._credits[name].left for name in binary}}

    def _add_credit(self, stream: str, count: int = 1) -> None:
        credit = self._credits[stream]
        credit.left = min(credit.most, credit.left + int(count))
        self._wake.set()

    def _answer(self, message: str) -> None:
        self._replies.append(message)
        self._wake.set()

    async def _write(self, greeting: str) -> None:
        message: str | bytes | None = greeting
        while True:
            self._sending = message is not None
            if message is None:
                self._wake.clear()
                await self._wake.wait()
            else:
                try:
                    async with asyncio.timeout(None if self._patient else SEND_SECONDS):
                        await self._send(message)
                except TimeoutError as error:
                    raise LostClientError("too slow") from error
            message = self._next()

    def _next(self) -> str | bytes | None:
        """Take what is most urgent; None when there is nothing that may be sent."""
        if self._replies:
            self._unread.release()
            return self._replies.popleft()
        if self._notices:
            return self._notices.popleft()
        if self._sound and self._credits["sound"].left:
            self._credits["sound"].left -= 1
            return self._sound.popleft()
        for stream in ("state", "plan"):
            if stream in self._reports:
                return self._reports.pop(stream)
        if self._cloud is not None and self._credits["cloud"].left:
            self._credits["cloud"].left -= 1
            frame, self._cloud = self._cloud, None
            return frame
        return self._reports.pop("stats", None)
