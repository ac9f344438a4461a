"""Every engine beside the others: `python -m bench.exports --generator DIR --spectocloud DIR ...`.

Exports each given model with the commands of `kmidi_torch.export` in fp32 and fp16, and prints for
MLX, PyTorch, ONNX Runtime, Core ML (by the interpreter of `kmidi_torch.export.mil`) and Core AI:
`differs`, the largest difference from PyTorch in fp32 of any output (of the exports: over the whole
proof, in fp16 over the spread of the output where that is above 1); `mb`; `seconds` to export and
prove; `ms` of one call as a live player makes it, one thread, all fp32 engines in turn (an event
after 512, a cloud, a clip of 8 s). The interpreter is no engine to be timed.

With `--greedy N` the generator's engines write N events each, always the likeliest, and it is told
where the first differs from PyTorch's and how near the two likeliest events ever came.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.export_engines import fp32_calls, greedy_engines, half_differences
from bench.report import Row, add_arguments, publish, spread
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_torch.loading import load_generator, load_recognizer, load_spectocloud

COLUMNS = ("model", "engine", "precision", "differs", "mb", "seconds", "ms")
SUFFIXES = {"onnx": ".onnx", "coreml": ".mlpackage", "coreai": ".aimodel"}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "midi_generator": load_generator,
    "spectocloud": load_spectocloud,
    "emotion_recognizer": load_recognizer,
}


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    parser = CommandParser(prog="python -m bench.exports", description=__doc__)
    for flag, model in (
        ("--generator", "midi_generator"),
        ("--spectocloud", "spectocloud"),
        ("--recognizer", "emotion_recognizer"),
    ):
        parser.add_argument(flag, dest=model, type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each engine")
    parser.add_argument("--greedy", type=int, default=0, metavar="N", help="events to write")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the exports here")
    add_arguments(parser)
    args = parser.parse_args(argv)
    models = {name: getattr(args, name) for name in LOADERS if getattr(args, name) is not None}
    if not models:
        raise KmidiError("name at least one checkpoint, such as --generator DIR.")
    torch.set_num_threads(1)
    rows: list[Row] = []
    with _folder(args.keep) as folder:
        for model, checkpoint in models.items():
            rows += measure(model, checkpoint, folder, args.rounds)
        if args.greedy and "midi_generator" in models:
            rows += write_greedily(models["midi_generator"], folder, args.greedy)
    publish("exports", rows, COLUMNS, args)
    return 0


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def measure(model: str, checkpoint: Path, folder: Path, rounds: int) -> list[Row]:
    """Rows of one model in every engine."""
    loaded = LOADERS[model](checkpoint)
    exports = {
        (target, precision): _export(model, checkpoint, folder, target, precision)
        for target in SUFFIXES
        for precision in ("fp32", "fp16")
    }
    with ExitStack() as held:
        calls = fp32_calls(loaded, checkpoint, _paths(folder, model, "fp32"), held)
        times = in_turn({name: call for name, (call, _) in calls.items()}, rounds)
        differs = {name: largest for name, (_, largest) in calls.items()}
    rows: list[Row] = [
        {
            "model": model,
            "engine": name,
            "precision": "fp32",
            "differs": differs[name],
            **times[name],
        }
        for name in ("PyTorch", "MLX")
    ]
    rows += [
        {"model": model, "engine": name, "precision": "fp16", "differs": largest}
        for name, largest in half_differences(loaded, checkpoint).items()
    ]
    for (target, precision), report in exports.items():
        largest = max(each["largest"] for each in report["differences"].values())
        rows.append(
            {
                "model": model,
                "engine": target,
                "precision": precision,
                "differs": largest,
                "mb": report["megabytes"],
                "seconds": report["seconds"],
                **(times.get(target, {}) if precision == "fp32" else {}),
            }
        )
    return rows


def _paths(folder: Path, model: str, precision: str) -> dict[str, Path]:
    return {target: folder / f"{model}-{precision}{suffix}" for target, suffix in SUFFIXES.items()}


def _export(
    model: str, checkpoint: Path, folder: Path, target: str, precision: str
) -> dict[str, Any]:
    """Run the export command and return what it reports; a file that is there is made anew."""
    out = _paths(folder, model, precision)[target]
    print(f"exporting {model} as {target} in {precision} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "kmidi_torch.export", target, "--model", model, "--json"]
    command += ["--checkpoint", str(checkpoint), "--precision", precision, "--out", str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 2 or not done.stdout:
        raise KmidiError(f"the export of {model} as {target} in {precision} failed, see above.")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Row]:
    """Median milliseconds of each call, all of them once in every round."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 3:
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: spread("ms", values) for name, values in samples.items()}


def write_greedily(checkpoint: Path, folder: Path, count: int) -> list[Row]:
    """Let every engine write the same piece; tell where it leaves PyTorch's."""
    rows: list[Row] = []
    with ExitStack() as held:
        engines = greedy_engines(checkpoint, _paths(folder, "midi_generator", "fp32"), held)
        events: dict[str, NDArray[np.int64]] = {}
        for name, write in engines.items():
            print(f"{name} writes {count} events ...", file=sys.stderr, flush=True)
            events[name], gap = write(count)
            same = events[name] == events["PyTorch"]
            first = count if same.all() else int(np.flatnonzero(~same)[0])
            rows.append(
                {
                    "model": f"greedy {count}",
                    "engine": name,
                    "precision": "fp32",
                    "equal_events": first,
                    "distinct_events": len(np.unique(events[name])),
                    "smallest_gap": gap,
                }
            )
            told = f"equal to PyTorch's for {first} of {count} events"
            print(f"{name}: {told}, smallest gap of two likeliest {gap}", file=sys.stderr)
    return rows


if __name__ == "__main__":
    sys.exit(run(main))
