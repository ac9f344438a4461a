"""The newest cloud, handed from the thread that draws to everybody who shows it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CloudFrame", "CloudSlot"]


@dataclass(frozen=True, eq=False)
class CloudFrame:
    """One cloud.

    Attributes:
        sequence: number of the cloud, ascending, 0 or more.
        time_monotonic: moment that it shows, of `time.monotonic()`.
        points: float16 (n, 10), columns as in `kmidi_mlx.spectocloud.CHANNELS`; not written to
            once it has been put.
        valence: emotion that it feels, -1 to 1.
        arousal: likewise.
    """

    sequence: int
    time_monotonic: float
    points: NDArray[np.float16]
    valence: float
    arousal: float


class CloudSlot:
    """Holds one cloud: the newest wins, nobody waits to put and nothing piles up.

    Any number of threads may get; each says which cloud it has seen last.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: CloudFrame | None = None

    @property
    def newest(self) -> CloudFrame | None:
        """The newest cloud; None before the first."""
        return self._frame

    def put(self, frame: CloudFrame) -> None:
        """Replace the cloud.

        Raises:
            ValueError: when its number does not ascend.
        """
        with self._changed:
            if self._frame is not None and frame.sequence <= self._frame.sequence:
                raise ValueError(f"cloud {frame.sequence} comes after cloud {self._frame.sequence}")
            self._frame = frame
            self._changed.notify_all()

    def get(self, after: int = -1, timeout: float = 0.0) -> CloudFrame | None:
        """Return the newest cloud that has not been seen.

        Args:
            after: number of the cloud that was seen last; -1: none.
            timeout: longest wait for it in seconds.

        Returns:
            The cloud, or None when there was no newer one in time.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newer(after), timeout)
            return self._frame if self._newer(after) else None

    def _newer(self, after: int) -> bool:
        return self._frame is not None and self._frame.sequence > after
