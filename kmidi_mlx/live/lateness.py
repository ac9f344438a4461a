"""A histogram of times, in constant memory, from which percentiles are read."""

from __future__ import annotations

import threading

import numpy as np

__all__ = ["Lateness"]

# Upper edges of the bins: 1 microsecond to 100 seconds, twenty bins a factor of ten.
_EDGES = np.logspace(-6, 2, 161)


class Lateness:
    """Counts seconds by size; percentiles are right to a bin, 12 %. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(len(_EDGES) + 1, np.int64)
        self._largest = 0.0

    def add(self, seconds: float) -> None:
        """Count one measurement; what came early counts as the smallest."""
        index = int(np.searchsorted(_EDGES, seconds))
        with self._lock:
            self._counts[index] += 1
            self._largest = max(self._largest, seconds)

    @property
    def count(self) -> int:
        """Number of measurements."""
        with self._lock:
            return int(self._counts.sum())

    @property
    def largest_ms(self) -> float:
        """Largest measurement in milliseconds; 0 without any."""
        return 1e3 * self._largest

    def percentile_ms(self, percent: float) -> float:
        """Milliseconds below which `percent` of the measurements lie; 0 without any."""
        with self._lock:
            running = self._counts.cumsum()
            if not running[-1]:
                return 0.0
            index = int(np.searchsorted(running, percent / 100.0 * running[-1]))
            edge = _EDGES[index] if index < len(_EDGES) else self._largest
            return 1e3 * float(min(edge, self._largest))

    def clear(self) -> None:
        """Forget all measurements."""
        with self._lock:
            self._counts[:] = 0
            self._largest = 0.0
