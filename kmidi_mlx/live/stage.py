"""What the interfaces for front ends need from the application, whoever plays and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.live.cloud_slot import CloudSlot

__all__ = ["SoundBlock", "SoundReader", "SoundSource", "Stage"]


class SoundBlock(Protocol):
    """Sound of a moment.

    Attributes:
        sequence: number of the block, ascending by 1 where nothing was lost, 0 or more.
        time_monotonic: moment at which its first sample is to be heard, of `time.monotonic()`.
        samples: int16 (n, 2), left and right.
    """

    @property
    def sequence(self) -> int: ...  # noqa: D102

    @property
    def time_monotonic(self) -> float: ...  # noqa: D102

    @property
    def samples(self) -> NDArray[np.int16]: ...  # noqa: D102


class SoundReader(Protocol):
    """One listener's bounded queue of blocks; the newest win."""

    def read(self, timeout: float) -> SoundBlock | None:
        """Return the next block, or None when there was none within `timeout` seconds."""

    def close(self) -> None:
        """Listen no more."""


class SoundSource(Protocol):
    """Where listeners get the sound.

    Attributes:
        sample_rate: samples a second.
    """

    sample_rate: int

    def reader(self) -> SoundReader:
        """Return a new listener's queue, which starts with the next block."""


class Stage(Protocol):
    """The application as front ends know it. Any thread may call its methods.

    Attributes:
        clouds: the newest cloud.
        sound: the sound, or None where there is none.
    """

    @property
    def clouds(self) -> CloudSlot: ...  # noqa: D102

    @property
    def sound(self) -> SoundSource | None: ...  # noqa: D102

    def apply(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command of `kmidi_mlx.live.commands`; may take its time.

        Raises:
            KmidiError: one sentence that says what is wrong; nothing has changed then.
        """

    def state(self) -> dict[str, Any]:
        """All that a person can change, and what is to be known about it; made for JSON."""

    def stats(self) -> dict[str, Any]:
        """Figures of performance; made for JSON."""

    def plan(self) -> dict[str, Any]:
        """The music around now: what was played, what is planned; made for JSON."""

    def subscribe(self, callback: Callable[..., None]) -> object:
        """Have `callback` called, by any thread, whenever the state or the plan has changed."""
