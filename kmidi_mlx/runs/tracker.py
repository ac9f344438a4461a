"""What a run reports while it trains: JSON lines always, other sinks through the same interface."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

from kmidi_mlx.atomic import write_bytes_atomically


class Tracker(Protocol):
    """Receives what a run reports."""

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Take numbers measured after optimiser step `step`."""


class JsonLinesTracker:
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
