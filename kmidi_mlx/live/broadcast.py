"""Tells all clients what happens: reports at their rates, clouds and sound as they come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import protocol
from kmidi_mlx.live.commands import SLOW_COMMANDS
from kmidi_mlx.live.connection import Connection
from kmidi_mlx.live.stage import Stage

__all__ = ["Broadcast"]

_STATS_SECONDS = 1 / 4
_PLAN_SECONDS = 1 / 10
# Changes that come faster than this are told together.
_CHANGE_SECONDS = 1 / 30
_PUMP_SECONDS = 0.2
# Commands that are carried out at the same time, and slow ones that wait, over all clients.
_WORKERS, _MOST_SLOW = 4, 8


class Broadcast:
    """Connections of a stage, and what they are told. Runs in an event loop's thread.

    Args:
        stage: the application.
        on_error: called with errors that are bugs: of the stage, in a command or a report.

    Attributes:
        connections: clients at present.
    """

    def __init__(
        self, stage: Stage, on_error: Callable[[Exception], None] = lambda error: None
    ) -> None:
        self.connections: set[Connection] = set()
        self._stage = stage
        self._on_error = on_error
        self._commands = ThreadPoolExecutor(_WORKERS, "kmidi command")
        self._slow_commands = ThreadPoolExecutor(1, "kmidi slow command")
        self._slow_waiting = 0
        self._reports = ThreadPoolExecutor(1, "kmidi report")
        self._wanted = {"cloud": threading.Event(), "sound": threading.Event()}
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._seen = -1
        self._told_errors: set[str] = set()

    def start(self) -> None:
        """Begin; to be called in the event loop's thread, once."""
        self._loop = asyncio.get_running_loop()
        self._state_changed, self._plan_changed = asyncio.Event(), asyncio.Event()
        for report in (
            self._report("stats", self._stats, None, _STATS_SECONDS),
            self._report("plan", self._stage.plan, self._plan_changed, _PLAN_SECONDS),
            self._report("state", self._stage.state, self._state_changed, None),
        ):
            self._tasks.append(asyncio.create_task(report))
        for name, work in (("cloud", self._pump_cloud), ("sound", self._pump_sound)):
            threading.Thread(
                target=self._pump, args=(name, work), name=f"kmidi {name} pump", daemon=True
            ).start()
        self._stage.subscribe(self.changed)

    async def stop(self) -> None:
        """End; commands that are under way are left to end by themselves."""
        self._stopping.set()
        for wanted in self._wanted.values():
            wanted.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for executor in (self._commands, self._slow_commands, self._reports):
            executor.shutdown(wait=False, cancel_futures=True)

    def add(self, connection: Connection) -> None:
        """Take a client in."""
        self.connections.add(connection)

    def remove(self, connection: Connection) -> None:
        """Forget a client."""
        self.connections.discard(connection)
        self._count_wishes()

    def subscribed(self, connection: Connection) -> None:
        """Take note that a client wants other streams; it is told at once where things are."""
        self._count_wishes()
        self._state_changed.set()
        self._plan_changed.set()

    def changed(self, *_: object) -> None:
        """Tell the clients that state or plan are new; any thread may call."""
        self._call(self._mark_changed)

    def notify(self, level: str, text: str) -> None:
        """Show a notice to every client; any thread may call.

        Args:
            level: info, warning or error.
            text: one sentence.
        """
        self._call(self._spread_notice, protocol.notice(level, text))

    async def carry_out(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command of the application outside the event loop.

        Raises:
            KmidiError: one sentence that says why not.
        """
        slow = command in SLOW_COMMANDS
        if slow and self._slow_waiting >= _MOST_SLOW:
            raise KmidiError("too much is waiting; ask again later.")
        executor = self._slow_commands if slow else self._commands
        self._slow_waiting += slow
        try:
            return await asyncio.get_running_loop().run_in_executor(
                executor, self._stage.apply, command, arguments
            )
        except KmidiError:
            raise
        except Exception as error:
            self._on_error(error)
            raise KmidiError(
                f"{command} failed inside kmidi ({type(error).__name__}: {error}); the music goes "
                "on, please report it."
            ) from error
        finally:
            self._slow_waiting -= slow

    def _call(self, function: Callable[..., None], *arguments: object) -> bool:
        """Have the event loop call something; False when it is gone."""
        if self._loop is None:
            return False
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # closed
            return False
        return True

    def _mark_changed(self) -> None:
        self._state_changed.set()
        self._plan_changed.set()

    def _spread_notice(self, message: str) -> None:
        for connection in self.connections:
            connection.offer_notice(message)

    def _count_wishes(self) -> None:
        for stream, wanted in self._wanted.items():
            if self._is_wanted(stream):
                wanted.set()
            else:
                wanted.clear()

    def _is_wanted(self, stream: str) -> bool:
        return any(stream in connection.streams for connection in self.connections)

    def _stats(self) -> dict[str, Any]:
        return {**self._stage.stats(), "clients": len(self.connections)}

    async def _report(
        self,
        stream: str,
        make: Callable[[], dict[str, Any]],
        changed: asyncio.Event | None,
        seconds: float | None,
    ) -> None:
        """Send a report every so many seconds, and when something has changed."""
        while True:
            if changed is None:
                await asyncio.sleep(seconds or 0.0)
            else:
                try:
                    async with asyncio.timeout(seconds):
                        await changed.wait()
                    # a hand on a slider makes many changes
                    await asyncio.sleep(_CHANGE_SECONDS)
                except TimeoutError:
                    pass
                changed.clear()
            if self._is_wanted(stream):
                try:
                    content = await asyncio.get_running_loop().run_in_executor(self._reports, make)
                    message = protocol.report(stream, content)
                except Exception as error:
                    self._tell_error(stream, error)
                    continue
                for connection in self.connections:
                    connection.offer_report(stream, message)

    def _tell_error(self, stream: str, error: Exception) -> None:
        text = f"{stream} could not be told ({type(error).__name__}: {error})."
        if text not in self._told_errors and len(self._told_errors) < 100:
            self._told_errors.add(text)
            self._on_error(error)
            self._spread_notice(protocol.notice("error", text))

    def _pump(self, stream: str, work: Callable[[], None]) -> None:
        """Do a pump's work whenever somebody wants its stream, until everything ends."""
        while self._wanted[stream].wait() and not self._stopping.is_set():
            try:
                work()
            except Exception as error:
                self._on_error(error)
                self._stopping.wait(_PUMP_SECONDS)

    def _pump_cloud(self) -> None:
        frame = self._stage.clouds.get(self._seen, _PUMP_SECONDS)
        if frame is not None:
            self._seen = frame.sequence
            self._hand_over(self._spread_cloud, protocol.pack_cloud(frame))

    def _pump_sound(self) -> None:
        source = self._stage.sound
        if source is None:
            self._stopping.wait(_PUMP_SECONDS)
            return
        with closing(source.reader()) as reader:
            while self._wanted["sound"].is_set() and not self._stopping.is_set():
                block = reader.read(_PUMP_SECONDS)
                if block is not None:
                    frame = protocol.pack_sound(block, source.sample_rate)
                    self._hand_over(self._spread_sound, frame)
                if self._stage.sound is not source:
                    return

    def _hand_over(self, spread: Callable[[bytes], None], frame: bytes) -> None:
        """Have the event loop spread a frame, and wait until it has: none pile up before it."""
        taken = threading.Event()

        def take() -> None:
            spread(frame)
            taken.set()

        if self._call(take):
            while not taken.wait(_PUMP_SECONDS) and not self._stopping.is_set():
                pass

    def _spread_cloud(self, frame: bytes) -> None:
        now = time.monotonic()
        for connection in self.connections:
            connection.offer_cloud(frame, now)

    def _spread_sound(self, frame: bytes) -> None:
        for connection in self.connections:
            connection.offer_sound(frame)
