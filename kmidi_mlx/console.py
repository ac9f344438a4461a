"""Progress of long work: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

__all__ = ["Progress", "in_words"]

_LIVE_INTERVAL_SECONDS = 0.125
_RATE_WINDOW_SECONDS = 60.0
_RATE_SAMPLE_SECONDS = 0.5

Field = int | float | str


class Progress:
    """Reports how far work is: `with Progress(total=100, label="prepare", unit="files") as p:`.

    Everything goes to stderr, so that stdout stays for results. It belongs to the thread that made
    it, starts none of its own, and costs a clock reading per `advance`.

    Args:
        total: amount of work in `unit`s; None: unknown.
        label: what is being done, one word.
        unit: what is counted, in the plural.
        initial: units that were done before (a resumed run); they do not count in the rate.
        interval_seconds: shortest time between two plain lines.
        stream: where to write; None: stderr.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        unit: str = "steps",
        *,
        initial: int = 0,
        interval_seconds: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.completed = initial
        self._initial = initial
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._fields: dict[str, Field] = {}
        self._bar: Bar | None = None
        self._interval_seconds = interval_seconds
        if self._stream.isatty():
            console = Console(file=self._stream, force_terminal=True)
            if console.is_interactive:
                self._bar = self._make_bar(console)
                self._interval_seconds = _LIVE_INTERVAL_SECONDS
        self._started_seconds = self._shown_seconds = clock()
        self._samples = deque([(self._started_seconds, initial)])

    def _make_bar(self, console: Console) -> Bar:
        bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,  # results on stdout are not ours to move to stderr
            expand=True,
        )
        bar.add_task(self.label, total=self.total, completed=self.completed, status="")
        return bar

    def __enter__(self) -> Self:
        """Show the bar."""
        self._started_seconds = self._shown_seconds = self._clock()
        self._samples = deque([(self._started_seconds, self._initial)])
        if self._bar is not None:
            self._bar.start()
            self._show_bar(self._bar)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen, also when the work was cut short."""
        if self._bar is not None:
            self._show_bar(self._bar)
            self._bar.stop()
        else:
            self._write(self._plain(finished=True))

    def advance(self, count: int = 1, **fields: Field) -> None:
        """Count work that was done.

        Args:
            count: units since the last call, >= 0.
            fields: values to show from now on, such as loss=2.1; names that end in `_per_second`
                and `_gb` have a unit: tokens_per_second=9000.0 is `9,000 tokens/s`, peak_gb=0.1 is
                `peak 0.10 GB`.
        """
        self.completed += count
        self._fields |= fields
        now = self._clock()
        if now - self._samples[-1][0] >= _RATE_SAMPLE_SECONDS:
            self._samples.append((now, self.completed))
            while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
                self._samples.popleft()
        if now - self._shown_seconds >= self._interval_seconds:
            self._shown_seconds = now
            if self._bar is not None:
                self._show_bar(self._bar)
            else:
                self._write(self._plain())

    def note(self, text: str) -> None:
        """Write a line of its own at once; a bar stays below it."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._write(text)

    @property
    def rate(self) -> float:
        """Units per second over the last minute; 0.0 before anything is known."""
        seconds, completed = self._samples[0]
        elapsed = self._clock() - seconds
        return (self.completed - completed) / elapsed if elapsed > 0 else 0.0

    def _show_bar(self, bar: Bar) -> None:
        status = ", ".join([self._count(), *self._tail()])
        bar.update(bar.task_ids[0], completed=self.completed, status=status, refresh=True)

    def _plain(self, *, finished: bool = False) -> str:
        amount = self.completed if self.total is None else self.total
        unit = self.unit.removesuffix("s") if amount == 1 else self.unit
        text = f"{self.label}: {self._count()} {unit}"
        if finished:
            elapsed = self._clock() - self._started_seconds
            text += f" in {_duration(elapsed)}"
        return ", ".join([text, *self._tail(finished=finished)])

    def _count(self) -> str:
        return f"{self.completed}" if self.total is None else f"{self.completed}/{self.total}"

    def _tail(self, *, finished: bool = False) -> list[str]:
        rate = self.rate
        if finished:
            elapsed = self._clock() - self._started_seconds
            rate = (self.completed - self._initial) / elapsed if elapsed > 0 else 0.0
        parts = [f"{_number(rate)} {self.unit}/s"] if rate > 0 else []
        if rate > 0 and self.total is not None and self.completed < self.total and not finished:
            parts.append(f"{_duration((self.total - self.completed) / rate)} left")
        return parts + [_field(name, value) for name, value in self._fields.items()]

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def in_words(seconds: float) -> str:
    """Return how long something takes, roughly: `40 seconds`, `25 minutes`, `3.2 hours`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} second{'s' if round(seconds) > 1 else ''}"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def _field(name: str, value: Field) -> str:
    rate_of, size_of = name.removesuffix("_per_second"), name.removesuffix("_gb")
    if rate_of != name:
        return f"{_number(value)} {rate_of.replace('_', ' ')}/s"
    if size_of != name and not isinstance(value, str):
        return f"{size_of.replace('_', ' ')} {value:.2f} GB"
    return f"{name.replace('_', ' ')} {_number(value)}"


def _number(value: Field) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
