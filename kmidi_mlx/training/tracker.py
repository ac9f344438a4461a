"""What a run reports while it trains: JSON lines always, other sinks through the same interface."""

from __future__ import annotations

import json
import math
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
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    step = json.loads(line)["step"]
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a crash
                if step <= resume_step:
                    kept.append(line)
        write_bytes_atomically(path, "".join(f"{line}\n" for line in kept).encode())
        self._path = path

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one line; numbers that JSON cannot hold become null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")
