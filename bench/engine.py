"""How fast clouds are computed on one core: `python -m bench.engine [--piece FILE]`.

`frames_per_second` divides video frames by processor time of this process, which other load on the
machine changes little. "inputs" is the window, the 32 MIDI features and the emotion of a frame,
"cloud" the engine, "both" what a live programme needs for a frame.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import kmidi_mlx
from bench.report import Row, add_arguments, publish, spread
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.spectocloud.engine import Frame, advance, begin
from kmidi_mlx.spectocloud.picture import draw
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_mlx.spectocloud.song import Song

COLUMNS = ("case", "points", "ms", "ms_p10", "ms_p90", "frames_per_second")
_PIECE = Path(kmidi_mlx.__file__).parent / "assets" / "pop909" / "199.mid"


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    notes = read_midi(args.piece)
    song = Song(notes=notes)
    first = len(song) // 3
    if first + args.frames > len(song):
        raise KmidiError(f"{args.piece} is too short for {args.frames} frames; give --frames less.")
    indices = range(first, first + args.frames)
    frames = song[first : first + args.frames]
    rows = [
        _row("song from notes", 0, [_seconds(lambda: Song(notes=notes)) / len(song)]),
        _row("inputs", 0, [_seconds(lambda k=k: song[k]) for k in indices]),  # type: ignore[misc]
    ]
    rows += [_row("cloud", n, _clouds(frames, n)) for n in LEVELS_OF_DETAIL]
    both = zip(*(row["samples"] for row in (rows[1], rows[4])), strict=True)
    rows.append(_row("both", DEFAULT_POINTS, [a + b for a, b in both]))
    cloud = begin(frames[0]).cloud
    rows.append(
        _row("picture 960x540", DEFAULT_POINTS, [_seconds(lambda: draw(cloud, size=(960, 540)))])
    )
    for row in rows:
        del row["samples"]
    publish("engine", rows, COLUMNS, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m bench.engine", description=__doc__)
    parser.add_argument("--piece", metavar="FILE", type=Path, default=_PIECE, help="a MIDI file")
    parser.add_argument("--frames", metavar="N", type=int, default=600, help="video frames")
    add_arguments(parser)
    return parser


def _clouds(frames: Sequence[Frame], n_points: int) -> list[float]:
    state = begin(frames[0], n_points)
    seconds = []
    for frame in frames:
        started = time.process_time()
        state = advance(state, frame)
        seconds.append(time.process_time() - started)
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _row(case: str, points: int, seconds: list[float]) -> Row:
    row: Row = {"case": case, "points": points, "samples": seconds}
    row |= spread("ms", [1000.0 * sample for sample in seconds])
    row["frames_per_second"] = len(seconds) / sum(seconds)
    return row


if __name__ == "__main__":
    sys.exit(run(main))
