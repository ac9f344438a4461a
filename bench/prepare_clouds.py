"""How fast clouds are prepared: `python -m bench.prepare_clouds SRC… [--root DIR]`.

The stages are those of one excerpt of 15 s with 8 samples, on one core. `cpu_ms` is processor time,
which other load on the machine changes little; `hours_for_50000` is what 50,000 samples would take
at the rate of the whole run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.report import Row, add_arguments, publish
from kmidi_mlx.audio import compress, mel_spectrogram, piano, render
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.data.cloud_batches import CloudBatches
from kmidi_mlx.data.cloud_excerpts import EXCERPT_SECONDS
from kmidi_mlx.data.cloud_prepare import prepare_clouds
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.synthetic import compose
from kmidi_mlx.emotion import from_label
from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.spectocloud import Song, clouds_at

COLUMNS = ("case", "samples", "cpu_ms_per_sample", "wall_rate", "hours_for_50000", "kb_per_sample")
_SAMPLES = 50_000


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    rows = _stages(args.repeats)
    rows += _whole(args.sources, args.root, args.workers or os.cpu_count() or 1, args.samples)
    publish("prepare_clouds", rows, COLUMNS, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m bench.prepare_clouds", description=__doc__)
    parser.add_argument("sources", metavar="SRC", type=Path, nargs="+", help="as for prepare")
    parser.add_argument("--root", metavar="DIR", type=Path, help="as for prepare")
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    parser.add_argument("--samples", metavar="N", type=int, default=48, help="as for prepare")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many counts")
    add_arguments(parser)
    return parser


def _stages(repeats: int) -> list[Row]:
    """Time each part of sampling an excerpt of a practice piece."""
    notes = slice_notes(
        compose(0.3, 0.5, np.random.default_rng(0)).notes, 3.0, 3.0 + EXCERPT_SECONDS
    )
    instrument = piano()
    sound = render(notes, instrument, seconds=EXCERPT_SECONDS).mean(axis=1)
    mel = compress(mel_spectrogram(sound))
    song = Song(mel, notes, from_label("happy"))
    wanted = [frame for first in (250, 420, 600, 780) for frame in (first, first + 1)]
    parts: dict[str, Callable[[], object]] = {
        "render": lambda: render(notes, instrument, seconds=EXCERPT_SECONDS),
        "mel spectrogram": lambda: compress(mel_spectrogram(sound)),
        "engine": lambda: list(clouds_at(song, wanted)),
    }
    return [
        {"case": name, "samples": 8, "cpu_ms_per_sample": 1000.0 * _best(part, repeats) / 8}
        for name, part in parts.items()
    ]


def _whole(sources: Sequence[Path], root: Path | None, workers: int, samples: int) -> list[Row]:
    """Time a whole run as the command does it, then a run with nothing new, then batches."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        report = prepare_clouds(sources, out, root=root, workers=workers, samples=samples)
        made = report.prepared_samples
        size = sum(path.stat().st_size for path in out.glob("*.np?"))
        started = time.perf_counter()
        prepare_clouds(sources, out, root=root, workers=workers, samples=samples)
        again = time.perf_counter() - started
        batches = CloudBatches(CloudReader(out), "train", 48, 0, 1200)
        seconds = _best(lambda: batches.batch(0), 10)
        return [
            {
                "case": f"whole run, {report.workers} workers",
                "samples": made,
                "wall_rate": report.samples_per_second,
                "hours_for_50000": _SAMPLES / report.samples_per_second / 3600.0,
                "kb_per_sample": size / made / 1000.0,
            },
            {"case": f"nothing new: {again:.2f} s", "wall_seconds": again},
            {"case": "batch of 48", "samples": 48, "cpu_ms_per_sample": 1000.0 * seconds / 48},
        ]


def _best(work: Callable[[], object], repeats: int) -> float:
    """Return the least processor time in seconds of several runs."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


if __name__ == "__main__":
    sys.exit(run(main))
