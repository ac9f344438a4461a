"""What every benchmark reports: the machine, the statistics, a table, JSON lines.

A JSON line is one measured case together with the facts of the machine and the commit, so that a
line can be judged on its own; `--save` appends it to `bench/results/<name>.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.blas import blas_name

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("mlx", "mlx-lm", "numpy", "mido", "torch")


@cache
def facts() -> Row:
    """Describe the machine, the code and the libraries that a measurement depends on."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "commit": _commit(),
        "python": platform.python_version(),
        # only meaningful where MLX was loaded
        "blas": blas_name() if "mlx.core" in sys.modules else None,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpu_name() -> str:
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Short commit id, with "+" when the files differ from it; empty outside a repository."""
    commit = _output("git", "rev-parse", "--short", "HEAD")
    return (
        commit + "+"
        if commit and _output("git", "--no-optional-locks", "status", "--porcelain")
        else commit
    )


def _output(*command: str) -> str:
    """What a program prints; empty when it cannot be run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def spread(name: str, samples: Sequence[float]) -> Row:
    """Median and 10th and 90th percentile of samples, as `name`, `name_p10`, `name_p90`."""
    low, middle, high = np.percentile(np.asarray(samples, np.float64), (10, 50, 90))
    return {name: float(middle), f"{name}_p10": float(low), f"{name}_p90": float(high)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark the options that all of them share."""
    parser.add_argument(
        "--json", metavar="FILE", help="also write JSON lines to this file; -: to standard output"
    )
    parser.add_argument(
        "--save", action="store_true", help="append the JSON lines to bench/results/<name>.jsonl"
    )


def publish(
    name: str, rows: Sequence[Row], columns: Sequence[str], args: argparse.Namespace
) -> None:
    """Print `columns` of the rows as a table; write every row as a JSON line where asked to.

    Args:
        name: of the benchmark.
        rows: one measured case each; values that JSON can hold.
        columns: keys of the rows to show, in order.
        args: parsed options of `add_arguments`.
    """
    _print_table(rows, columns)
    lines = [json.dumps({"bench": name, **row, **facts()}) for row in rows]
    text = "".join(line + "\n" for line in lines)
    if args.json == "-":
        sys.stdout.write(text)
    elif args.json:
        Path(args.json).write_text(text, encoding="utf-8")
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)


def _print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    cells = [[_shown(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(text) for text in texts) for texts in zip(columns, *cells, strict=True)]
    for texts in [list(columns), *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True)))


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
