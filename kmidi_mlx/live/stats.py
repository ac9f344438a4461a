"""How well it runs: figures of the last seconds, figures of the whole run, a log, and alerts."""

from __future__ import annotations

import csv
import ctypes
import io
import math
import os
import resource
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.lateness import Lateness
from kmidi_mlx.live_config import LiveAlertsConfig

__all__ = ["ALERT_SECONDS", "WINDOW_SECONDS", "Alert", "Stats", "StatsLog", "resident_gb"]

#: What is shown is about that long.
WINDOW_SECONDS = 5.0
#: Frames have to be too few for that long before anybody is told.
ALERT_SECONDS = 3.0
_LOG_SECONDS = 1.0
# the log's thread may hang in a write to a dead disk; nobody waits for it longer than this
_FAREWELL_SECONDS = 2.0

#: Takes topic, level (`info`, `warning`, `error`) and a sentence; None: it no longer holds.
Alert = Callable[[str, str, str | None], None]


class _Window:
    """Measurements of the last seconds, each with its moment."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        self._rows.append((now, value))
        self._forget(now)

    def values(self, now: float) -> list[float]:
        self._forget(now)
        return [value for _, value in self._rows]

    def rate(self, now: float) -> float:
        """Measurements a second; time without any counts as soon as one is overdue."""
        self._forget(now)
        intervals = len(self._rows) - 1
        if intervals < 1:
            return 0.0
        first, last = self._rows[0][0], self._rows[-1][0]
        span = max(last - first, now - first - (last - first) / intervals)
        return intervals / span if span > 0 else 0.0

    def clear(self) -> None:
        self._rows.clear()

    def _forget(self, now: float) -> None:
        while self._rows and self._rows[0][0] < now - WINDOW_SECONDS:
            self._rows.popleft()


class Stats:
    """Counts frames, tokens and what goes wrong; any thread may tell and ask.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._frames, self._tokens, self._ahead = _Window(), _Window(), _Window()
        self._late = _Window()
        self._all_frames, self._all_tokens = Lateness(), Lateness()
        self._quality, self._quality_text = 0, ""
        self._first_frame: float | None = None
        self._least_ahead = math.inf
        self._forget()

    def frame(self, now: float, seconds: float) -> None:
        """Count a cloud that was handed over.

        Args:
            now: moment, of the clock.
            seconds: how long the work on it took.
        """
        with self._lock:
            self._frames.add(now, seconds)
            self._all_frames.add(seconds)
            if self._first_frame is None:
                self._first_frame = now
            self._last_frame = now

    def token(self, seconds: float) -> None:
        """Count a token that was written in so many seconds."""
        with self._lock:
            self._tokens.add(self._clock(), seconds)
            self._all_tokens.add(seconds)

    def late(self, seconds: float) -> None:
        """Count an event that was sent so many seconds after its time."""
        with self._lock:
            self._late.add(self._clock(), seconds)

    def dropped(self, count: int = 1) -> None:
        """Count frames that were left out because their time had passed."""
        with self._lock:
            self._dropped += count

    def underrun(self) -> None:
        """Count a moment at which music was due and none was written."""
        with self._lock:
            self._underruns += 1

    def lookahead(self, seconds: float, bars: float) -> None:
        """Take note of how much music is written ahead; to be told while it plays only."""
        with self._lock:
            self._ahead.add(self._clock(), seconds)
            self._ahead_seconds, self._ahead_bars = seconds, bars
            self._least_ahead = min(self._least_ahead, seconds)

    def quality(self, level: int, text: str) -> None:
        """Take note of the step of the quality ladder; 0 is everything."""
        with self._lock:
            self._close_level()
            self._quality, self._quality_text = level, text

    def clear(self) -> None:
        """Forget all measurements, such as those of the warm-up."""
        with self._lock:
            self._forget()

    def snapshot(self) -> dict[str, Any]:
        """Return figures of the last `WINDOW_SECONDS`; counts are of the whole run."""
        with self._lock:
            now = self._clock()
            frames, tokens = self._frames.values(now), self._tokens.values(now)
            ahead, late = self._ahead.values(now), self._late.values(now)
            return {
                "fps": self._frames.rate(now),
                "frame_ms_p50": _percentile_ms(frames, 50),
                "frame_ms_p95": _percentile_ms(frames, 95),
                "frame_ms_p99": _percentile_ms(frames, 99),
                "token_ms_p50": _percentile_ms(tokens, 50),
                "token_ms_p99": _percentile_ms(tokens, 99),
                "tokens_per_second": self._tokens.rate(now),
                "lookahead_seconds": self._ahead_seconds,
                "lookahead_bars": self._ahead_bars,
                "lookahead_min_seconds": min(ahead, default=self._ahead_seconds),
                "lateness_ms_p50": _percentile_ms(late, 50),
                "lateness_ms_p99": _percentile_ms(late, 99),
                "dropped_frames": self._dropped,
                "underruns": self._underruns,
                "quality": self._quality,
                "quality_text": self._quality_text,
            }

    def report(self) -> dict[str, Any]:
        """Return figures of the whole run; percentiles are right to 12 %.

        `lookahead_min_seconds` is None when nothing was told, `quality_seconds` says how long
        each level of quality held, by its number as text.
        """
        with self._lock:
            self._close_level()
            frames, tokens = self._all_frames, self._all_tokens
            first = self._first_frame
            seconds = 0.0 if first is None else self._last_frame - first
            least = self._least_ahead
            return {
                "frames": frames.count,
                "seconds": seconds,
                "fps": (frames.count - 1) / seconds if seconds > 0 else 0.0,
                "frame_ms_p50": frames.percentile_ms(50),
                "frame_ms_p95": frames.percentile_ms(95),
                "frame_ms_p99": frames.percentile_ms(99),
                "frame_ms_largest": frames.largest_ms,
                "tokens": tokens.count,
                "token_ms_p50": tokens.percentile_ms(50),
                "token_ms_p99": tokens.percentile_ms(99),
                "token_ms_largest": tokens.largest_ms,
                "lookahead_min_seconds": least if math.isfinite(least) else None,
                "dropped_frames": self._dropped,
                "underruns": self._underruns,
                "quality_seconds": {str(level): held for level, held in self._held.items()},
            }

    def _forget(self) -> None:
        for window in (self._frames, self._tokens, self._ahead, self._late):
            window.clear()
        self._all_frames.clear()
        self._all_tokens.clear()
        self._first_frame, self._last_frame = None, 0.0
        self._dropped = self._underruns = 0
        self._ahead_seconds = self._ahead_bars = 0.0
        self._least_ahead = math.inf
        self._held: dict[int, float] = {}
        self._level_since = self._clock()

    def _close_level(self) -> None:
        now = self._clock()
        self._held[self._quality] = self._held.get(self._quality, 0.0) + now - self._level_since
        self._level_since = now


def _percentile_ms(seconds: list[float], percent: float) -> float:
    return 1e3 * float(np.percentile(seconds, percent)) if seconds else 0.0


def resident_gb() -> float:
    """Return the memory that the process takes now, in GB of 1e9 bytes.

    Linux: resident pages, from /proc. macOS: the physical footprint that Activity Monitor shows,
    which counts the memory of Metal too, from `proc_pid_rusage` of the system's library; should
    that fail, and elsewhere, the largest resident size so far, which is all that Python itself
    can tell.
    """
    try:
        if sys.platform == "darwin":
            return _footprint(ctypes.CDLL(None)) / 1e9
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (OSError, AttributeError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


class _ResourceUsage(ctypes.Structure):
    """`struct rusage_info_v0` of <libproc.h>."""

    _fields_ = (
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("idle_wakeups", ctypes.c_uint64),
        ("interrupt_wakeups", ctypes.c_uint64),
        ("page_ins", ctypes.c_uint64),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("physical_footprint", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("exit_time", ctypes.c_uint64),
    )


def _footprint(library: Any) -> int:
    """Return the bytes of physical footprint of this process, asked of macOS's library."""
    usage = _ResourceUsage()
    if library.proc_pid_rusage(os.getpid(), 0, ctypes.byref(usage)) != 0:
        raise OSError("proc_pid_rusage refused")
    return int(usage.physical_footprint)


class StatsLog(threading.Thread):
    """Writes a CSV line a second and says when something is wrong, in a thread of its own.

    A log that exists is continued when it has the same columns. Of a disk that is full people are
    told once; nothing else stops for it.

    Args:
        collect: the figures, with at least `fps` and `memory_gb`; always the same names.
        alert: told of what is wrong and of its end; topics are `fps`, `memory` and `log`.
        config: bounds, and the name of the log.
        memory_gb: memory that the process may take.
        playing: whether frames are wanted now; few of them are an alert only then.

    Raises:
        KmidiError: if the log cannot be written, or is a file with other content.
    """

    def __init__(
        self,
        collect: Callable[[], Mapping[str, Any]],
        alert: Alert,
        config: LiveAlertsConfig,
        memory_gb: float,
        playing: Callable[[], bool],
    ) -> None:
        super().__init__(name="kmidi stats", daemon=True)
        self._collect = collect
        self._alert = alert
        self._config = config
        self._memory_gb = memory_gb
        self._playing = playing
        self._stopping = threading.Event()
        self._slow_since: float | None = None
        self._holding: set[str] = set()
        self._columns = ["time", *collect()]
        self._file = _open_log(Path(config.log), self._columns) if config.log else None

    def run(self) -> None:
        """Work until stopped."""
        due = time.monotonic()
        try:
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                values = self._collect()
                self._watch(values, time.monotonic())
                self._write(values)
                # after a stall the next line is a second away: none is made up
                due = max(due + _LOG_SECONDS, time.monotonic())
        finally:
            self._close()

    def stop(self) -> None:
        """End the thread; a disk that hangs is waited for only for a moment."""
        self._stopping.set()
        if self.is_alive():
            self.join(_FAREWELL_SECONDS)
        if not self.is_alive():
            self._close()

    def _watch(self, values: Mapping[str, Any], now: float) -> None:
        least, fps = self._config.frames_per_second, float(values["fps"])
        if not self._playing() or fps >= least:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = now
        slow = self._slow_since is not None and now - self._slow_since >= ALERT_SECONDS
        self._hold("fps", slow, f"{fps:.0f} clouds a second are drawn, below {least:g}.")
        share, used = self._config.memory_share, float(values["memory_gb"])
        self._hold(
            "memory",
            used > share * self._memory_gb,
            f"{used:.1f} GB of memory are taken, over {share:.0%} of the {self._memory_gb:g} "
            "allowed.",
        )

    def _hold(self, topic: str, wrong: bool, text: str) -> None:
        """Say what is wrong when it begins, and when it ends."""
        if wrong and topic not in self._holding:
            self._holding.add(topic)
            self._alert(topic, "warning", text)
        elif not wrong and topic in self._holding:
            self._holding.remove(topic)
            self._alert(topic, "warning", None)

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **values}
        line = _csv_line([_short(row.get(column, "")) for column in self._columns])
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("the disk is full")
        except OSError as error:
            self._close()
            self._alert(
                "log",
                "warning",
                f"the log {self._config.log} is no longer written: {error.strerror or error}.",
            )

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _csv_line(cells: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _open_log(path: Path, columns: list[str]) -> int:
    """Open a log at its end, with its header in it; a line that a kill cut short is closed."""
    header = _csv_line(list(columns))
    with ExitStack() as undo:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            undo.callback(os.close, descriptor)
            size = os.fstat(descriptor).st_size
            if size == 0:
                os.write(descriptor, header)
            elif os.pread(descriptor, len(header), 0) != header:
                raise KmidiError(f"the log {path} is a file with other columns; give another name.")
            elif os.pread(descriptor, 1, size - 1) != b"\n":
                os.write(descriptor, b"\n")
        except OSError as error:
            raise KmidiError(f"cannot write the log {path}: {error.strerror or error}.") from error
        undo.pop_all()
    return descriptor
