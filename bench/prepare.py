"""How fast music is prepared and batched: `python -m bench.prepare SRC… [--root DIR]`.

Rates are tokens a second. `cpu` divides by processor time of all processes, which other load on
the machine changes little; `wall` divides by the time that passed, and is what a person waits for.
"""

from __future__ import annotations

import argparse
import functools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.report import Row, add_arguments, publish
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import MidiDataConfig
from kmidi_mlx.data.batches import MidiBatches
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.sources import Source, list_sources
from kmidi_mlx.data.tokenise import tokenise
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import encode
from kmidi_mlx.music.midi_file import parse_midi
from kmidi_mlx.music.mood import mood_curve
from kmidi_mlx.music.notes import Notes

COLUMNS = ("case", "files", "tokens", "cpu_ms_per_file", "cpu_rate", "wall_rate", "wall_per_core")


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    sources = list_sources(args.sources, root=args.root)
    rows = _stages(sources[:: max(1, len(sources) // args.files)], args.repeats)
    rows += _whole(args.sources, args.root, args.workers or os.cpu_count() or 1)
    publish("prepare", rows, COLUMNS, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m bench.prepare", description=__doc__)
    parser.add_argument("sources", metavar="SRC", type=Path, nargs="+", help="as for prepare midi")
    parser.add_argument("--root", metavar="DIR", type=Path, help="as for prepare midi")
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    parser.add_argument("--files", type=int, default=200, help="files for the stages, about")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many counts")
    add_arguments(parser)
    return parser


def _stages(sources: Sequence[Source], repeats: int) -> list[Row]:
    """Time each part of preparing on one core, files warm in memory."""
    files = [Path(source.path).read_bytes() for source in sources]
    music: list[Notes] = []
    for data in files:
        try:
            music.append(parse_midi(data))
        except KmidiError:
            music.append(Notes.empty())
    tokens = sum(len(encode(notes)) for notes in music)

    def everything() -> None:
        tokenise(sources)

    parts: dict[str, Callable[[], object]] = {
        "parse": lambda: [parse_midi(data) for data in files],
        "encode": lambda: [encode(notes) for notes in music],
        "label": lambda: [mood_curve(notes) for notes in music],
        "all, with labels": everything,
    }
    rows = [_row(name, len(files), tokens, *_best(part, repeats)) for name, part in parts.items()]
    label, total = rows[2], rows[3]
    cpu = total["cpu_seconds"] - label["cpu_seconds"]
    wall = total["wall_seconds"] - label["wall_seconds"]
    return [*rows, _row("all, without labels", len(files), tokens, cpu, wall)]


def _whole(sources: Sequence[Path], root: Path | None, workers: int) -> list[Row]:
    """Time a whole run as the command does it, then a run with nothing new, then batches."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        cpu, wall = _cpu_seconds(), time.perf_counter()
        report = prepare_midi(sources, out, root=root, workers=workers)
        cpu, wall = _cpu_seconds() - cpu, time.perf_counter() - wall
        rows = [
            _row("whole run", report.prepared, report.prepared_tokens, cpu, wall, report.workers)
        ]
        started = time.perf_counter()
        prepare_midi(sources, out, root=root, workers=workers)
        seconds = time.perf_counter() - started
        rows.append({"case": f"nothing new: {seconds:.2f} s", "wall_seconds": seconds})
        config = MidiDataConfig()
        for augment in (True, False):
            batches = MidiBatches(ShardReader(out), "train", config, 64, 0, augment)
            cpu, wall = _best(functools.partial(_ten_batches, batches), 3)
            name = "batches, augmented" if augment else "batches, plain"
            rows.append(_row(name, 640, 640 * config.sequence_length, cpu, wall))
        return rows


def _ten_batches(batches: MidiBatches) -> None:
    for step in range(10):
        batches.batch(step)


def _row(case: str, files: int, tokens: int, cpu: float, wall: float, workers: int = 1) -> Row:
    return {
        "case": case,
        "files": files,
        "tokens": tokens,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "workers": workers,
        "cpu_ms_per_file": 1000.0 * cpu / files,
        "cpu_rate": tokens / cpu,
        "wall_rate": tokens / wall,
        "wall_per_core": tokens / wall / workers,
    }


def _best(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the least processor and wall time in seconds of several runs."""
    cpus, walls = [], []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        cpus.append(time.process_time() - cpu)
        walls.append(time.perf_counter() - wall)
    return min(cpus), min(walls)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


if __name__ == "__main__":
    sys.exit(run(main))
