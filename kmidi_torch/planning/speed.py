"""How fast a GPU trains a model: measured, given or estimated, and always which of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_torch.planning.gpus import PEAKS, gpu_named, gpu_of_device
from kmidi_torch.planning.work import Work

__all__ = [
    "ESTIMATED",
    "SHORTEST_PASS",
    "UTILISATION",
    "Speed",
    "given_speed",
    "read_measurements",
    "speed_of",
]

#: Share of a GPU's peak that training reaches: ASSUMED, for the slow end, likely, the quick end.
UTILISATION = (0.2, 0.3, 0.4)
#: Seconds that a forward and backward pass takes at least, however little there is to compute, for
#: Python and the launches of kernels: ASSUMED, likewise.
SHORTEST_PASS = (0.030, 0.015, 0.008)
MEASURED, GIVEN, ESTIMATED = "measured", "given", "estimated"

# what a row of a batch is in a line of the benchmark
_ROWS = {"tokens": "sequence", "clouds": "points"}


@dataclass(frozen=True)
class Speed:
    """Tokens or clouds a second on one GPU.

    Attributes:
        slow, likely, quick: units a second; measured: 10th percentile, median and 90th.
        kind: measured, given or estimated.
        source: where the numbers come from, in words.
    """

    slow: float
    likely: float
    quick: float
    kind: str
    source: str


def read_measurements(path: Path) -> list[dict[str, Any]]:
    """Read lines of `python -m bench.train_torch --save` that a GPU has made.

    Args:
        path: JSON lines; a file that is not there holds none.

    Raises:
        KmidiError: names the line of what is no such measurement.
    """
    if not path.exists():
        return []
    measurements = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            unit = "tokens" if "sequence" in row else "clouds"
            for name in ("", "_p10", "_p90"):
                if not float(row[f"{unit}_per_second{name}"]) > 0:
                    raise ValueError(name)
            if not all(isinstance(row[name], str) for name in ("model", "device", "precision")):
                raise TypeError
            row[_ROWS[unit]] = int(row[_ROWS[unit]])
        except (ValueError, KeyError, TypeError) as error:
            raise KmidiError(
                f"{path}, line {number}: not a measurement of `python -m bench.train_torch --save`."
            ) from error
        if gpu_of_device(row["device"]) is not None:
            measurements.append(row)
    return measurements


def given_speed(units_per_second: float, flag: str) -> Speed:
    """Return a speed that a person gives.

    Raises:
        KmidiError: when it is none.
    """
    if not 0 < units_per_second < 1e15:
        raise KmidiError(f"{flag} {units_per_second:g}: give a number above 0.")
    return Speed(units_per_second, units_per_second, units_per_second, GIVEN, flag)


def speed_of(work: Work, gpu: str, measurements: Sequence[dict[str, Any]]) -> Speed:
    """Return the speed of a GPU: the latest measurement that fits, else an estimate.

    Args:
        work: to be done; a measurement fits where model, precision and row are the same.
        gpu: as price lists name it.
        measurements: of `read_measurements`, oldest first.
    """
    key = gpu_named(gpu)
    assert key is not None, gpu
    for row in reversed(measurements):
        same = (row["model"], row["precision"], row.get(_ROWS[work.unit]))
        if gpu_of_device(row["device"]) == key and same == (work.model, work.precision, work.row):
            name = f"{work.unit}_per_second"
            when = f"on {row['device']}, {row.get('date', 'undated')}, batch {row.get('batch')}"
            return Speed(row[f"{name}_p10"], row[name], row[f"{name}_p90"], MEASURED, when)
    peak = PEAKS[key].of(work.precision)
    slow, likely, quick = (
        work.units_per_pass / max(work.units_per_pass * work.flop_per_unit / (share * peak), least)
        for share, least in zip(UTILISATION, SHORTEST_PASS, strict=True)
    )
    source = f"{peak / 1e12:g} TFLOP/s in {work.precision} by the maker's data sheet"
    return Speed(slow, likely, quick, ESTIMATED, source)
