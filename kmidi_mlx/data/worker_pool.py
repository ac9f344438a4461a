"""Worker processes that may die: work goes on, and the item that kills them is named."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from typing import Generic, TypeVar

from kmidi_mlx.errors import KmidiError

__all__ = ["Lost", "map_chunks"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_DEATHS_IN_A_ROW = 8
_POLL_SECONDS = 0.2
# The libraries that numpy may multiply with read these when they are loaded.
_ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


@dataclass(frozen=True)
class Lost(Generic[Item]):
    """An item whose worker died while it worked on nothing else.

    Attributes:
        item: the item.
        exit_code: the process's exit code; negative: the signal that killed it.
    """

    item: Item
    exit_code: int


def map_chunks(
    function: Callable[[list[Item]], Result],
    items: Sequence[Item],
    *,
    workers: int,
    chunk_size: int,
    stop: Callable[[], bool],
    one_thread: bool = False,
) -> Iterator[tuple[list[Item], Result] | Lost[Item]]:
    """Apply a function to chunks of items in processes of their own.

    A chunk whose worker dies is done again item by item; the item that kills its worker a second
    time comes back as `Lost`. Workers end with their parent, however it ends.

    Args:
        function: importable; gets a list of items; must not raise for bad items.
        items: what to work on; items and results are pickled.
        workers: number of processes; 1 works in this process.
        chunk_size: items at a time.
        stop: asked between chunks; once true, nothing new is begun.
        one_thread: whether linear algebra has one thread in each process, so that its results have
            the same bits everywhere; then even one worker is a process of its own.

    Yields:
        `(chunk, result)` as they are done, in any order, and `Lost` items.

    Raises:
        KmidiError: if workers keep dying without doing anything.
    """
    chunks = deque(list(items[i : i + chunk_size]) for i in range(0, len(items), chunk_size))
    if workers == 1 and not one_thread:
        while chunks and not stop():
            chunk = chunks.popleft()
            yield chunk, function(chunk)
        return
    context = multiprocessing.get_context("spawn")
    crew = [_Worker(context, function, one_thread) for _ in range(min(workers, len(chunks)))]
    deaths = 0
    try:
        while True:
            for worker in crew:
                if worker.chunk is None and chunks and not stop():
                    worker.give(chunks.popleft())
            busy = [worker for worker in crew if worker.chunk is not None]
            if not busy:
                return
            ready = wait([worker.pipe for worker in busy], timeout=_POLL_SECONDS)
            for worker in busy:
                if worker.pipe not in ready:
                    continue
                chunk = worker.chunk or []
                try:
                    result = worker.take()
                except (EOFError, OSError):
                    deaths += 1
                    exit_code = worker.bury()
                    if deaths > _MOST_DEATHS_IN_A_ROW:
                        raise KmidiError(
                            f"worker processes die as soon as they start (exit code {exit_code}); "
                            "try again with one worker."
                        ) from None
                    crew[crew.index(worker)] = _Worker(context, function, one_thread)
                    if len(chunk) == 1:
                        yield Lost(chunk[0], exit_code)
                    else:
                        chunks.extendleft([item] for item in reversed(chunk))
                    continue
                deaths = 0
                if isinstance(result, Exception):
                    raise result
                yield chunk, result
    finally:
        for worker in crew:
            worker.dismiss()


class _Worker(Generic[Item, Result]):
    """One process and the chunk it works on."""

    def __init__(
        self, context: SpawnContext, function: Callable[[list[Item]], Result], one_thread: bool
    ) -> None:
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, function), daemon=True)
        with _environment(_ONE_THREAD if one_thread else {}):
            self.process.start()
        # Only the worker holds its end, so a dead worker is an end of file here.
        other.close()
        self.chunk: list[Item] | None = None

    def give(self, chunk: list[Item]) -> None:
        self.chunk = chunk
        # If it died while idle, reading from it will say so.
        with contextlib.suppress(OSError):
            self.pipe.send(chunk)

    def take(self) -> Result | Exception:
        result: Result | Exception = self.pipe.recv()
        self.chunk = None
        return result

    def bury(self) -> int:
        self.pipe.close()
        self.process.join()
        return self.process.exitcode or 0

    def dismiss(self) -> None:
        # Nothing that a worker does outlives it, so it need not be asked.
        self.pipe.close()
        self.process.kill()
        self.process.join()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that start meanwhile."""
    earlier = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, function: Callable[[list[Item]], Result]) -> None:
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            chunk = pipe.recv()
            try:
                result: Result | Exception = function(chunk)
            except Exception as error:
                result = error
            pipe.send(result)
    except (EOFError, OSError):
        return
