"""What a run reports while it trains: JSON lines always, other sinks through the same interface.

Sinks that look at runs (`trackers.py`) each live in a process of their own (`tracker_process.py`).
"""

from __future__ import annotations

import errno
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmidi_mlx.atomic import write_bytes_atomically


class Tracker(ABC):
    """Receives what a run reports. What a method raises is told once and never stops the run."""

    @property
    def name(self) -> str:
        """What it is called where it has failed."""
        return type(self).__name__

    def start(self, about: dict[str, Any], step: int) -> None:  # noqa: B027 - not all care
        """Take what is known of a run before its first step.

        Args:
            about: JSON values: the configuration by section, and what is known of the data.
            step: after which the run goes on; 0 for a new one. What was reported of later steps
                will be reported once more.
        """

    @abstractmethod
    def log(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers measured after optimiser step `step`; names of judgements begin `val_`."""

    def add_samples(self, step: int, files: Sequence[Path]) -> None:  # noqa: B027 - not all care
        """Take files that show what the model made at an evaluation; they stay where they are."""

    def finish(self, reason: str) -> None:  # noqa: B027 - not all have something open
        """Take how the run ended, as in `Outcome`, or `failed`; nothing is reported after it."""


def grouped(name: str) -> str:
    """Return the name of a number in sinks that group names: `train/loss`, `val/loss`."""
    return f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"


class JsonLinesTracker(Tracker):
    """Appends one JSON object per report to a file.

    On a resume the lines after the resumed step are dropped, so that the file reads as if the run
    had never been interrupted.

    Args:
        path: the file.
        resume_step: keep earlier lines up to this step; None starts the file anew.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        kept: list[str] = []
        if resume_step is not None and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= resume_step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a crash
        write_bytes_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one line, whole or not at all; numbers that JSON cannot hold become null.

        Raises:
            OSError: when the system refuses, for example because the disk is full.
        """
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = (json.dumps({"step": step, **clean}) + "\n").encode()
        with self._path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(before)
                raise
