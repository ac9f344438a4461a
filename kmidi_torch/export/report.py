"""What is known of an export: how far it is from the model, how large it is, how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Report", "compare", "median_milliseconds", "size_of", "unchanged"]

_TIMED_CALLS = 30


@dataclass(frozen=True)
class Difference:
    """How far an output is from the model's.

    Attributes:
        what: the output, and under which circumstances, such as `logits, past the wrap`.
        largest: largest absolute difference, or the measure that a precision calls for.
        bound: what it may be at most.
    """

    what: str
    largest: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the bound is kept; NaN keeps none."""
        return self.largest <= self.bound


@dataclass(frozen=True)
class Report:
    """An export that was made and compared.

    Attributes:
        model, target, precision: what was exported to what.
        path: the file or folder.
        megabytes: its size.
        seconds: it took to make, comparison included.
        differences: against the PyTorch model in fp32.
        milliseconds: median time of one call of what a live player calls, here; None: not run.
        notes: sentences for the person.
    """

    model: str
    target: str
    precision: str
    path: Path
    megabytes: float
    seconds: float
    differences: list[Difference]
    milliseconds: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every bound is kept."""
        return all(difference.holds for difference in self.differences)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return {
            "model": self.model,
            "target": self.target,
            "precision": self.precision,
            "path": str(self.path),
            "megabytes": round(self.megabytes, 2),
            "seconds": round(self.seconds, 1),
            "milliseconds": self.milliseconds,
            "differences": {
                d.what: {"largest": d.largest, "bound": d.bound} for d in self.differences
            },
            "notes": self.notes,
        }


def compare(
    expected: Mapping[str, NDArray[Any]],
    found: Mapping[str, NDArray[Any]],
    bounds: Mapping[str, float] | float,
    when: str = "",
) -> list[Difference]:
    """Compare outputs by name.

    Args:
        expected: of the model.
        found: of the export, at least the same names and shapes.
        bounds: of each output, or of all.
        when: circumstances, for `Difference.what`.
    """
    differences = []
    for name, value in expected.items():
        bound = bounds if isinstance(bounds, float) else bounds[name]
        other = found[name]
        if other.shape != value.shape:
            largest = float("inf")
        else:
            largest = float(np.abs(value.astype(np.float64) - other.astype(np.float64)).max())
        differences.append(Difference(f"{name}, {when}" if when else name, largest, bound))
    return differences


def unchanged(before: Mapping[str, NDArray[Any]], after: Mapping[str, NDArray[Any]]) -> Difference:
    """Compare what a file computed before and after its description was written into it."""
    apart = [each.largest for each in compare(before, after, 0.0)]
    return Difference("any output, once described", max(apart), 0.0)


def size_of(path: Path) -> float:
    """Megabytes (10^6 bytes) of a file or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def median_milliseconds(run: Callable[[Any], Any], inputs: Any) -> float:
    """Median time of a call of `run` with `inputs`, after some that are not counted."""
    times = []
    for _ in range(_TIMED_CALLS + 3):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:])) * 1000.0
