"""How well the generator follows the emotion asked for: `python -m bench.emotion_control`.

For each `--guidance-scale` it writes `--minutes` of music as `kmidi generate` does, many pieces at
a time: over a grid of valence and arousal from -0.9 to 0.9, each point equally often. What was
asked is compared with what the label model (`kmidi_mlx.music.mood`) and plain measures find, beside

    chance   the same with the requests dealt out at random
    real     windows of the val side of `--data`: the first half against the second says how far
             the label model agrees with itself, and so what can be hoped for
    change   streams whose request jumps from one quadrant's corner to another's in the middle, all
             twelve jumps, `--changes` times each: when half (and 90 %) of the way to the new level
             is reached, where there is a change beyond doubt (95 % interval)

Intervals are of 95 % and over pieces (real: over songs). With `--work FILE` every finished piece is
kept there, and a bench that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.report import Row, add_arguments, publish
from kmidi_mlx.command import CommandParser, make_room, run
from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.config_section import ConfigError
from kmidi_mlx.console import Progress
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.resampling import Interval
from kmidi_mlx.evaluation.steering import (
    AXES,
    PLAIN_MEASURES,
    Follow,
    Halves,
    RealMusic,
    Steering,
    emotion_grid,
    grid_shape,
    quadrant_changes,
    real_music,
    statistics_of,
    steering_of,
)
from kmidi_mlx.evaluation.step_response import BIN_SECONDS, Response, responses_of
from kmidi_mlx.generation import choir
from kmidi_mlx.generation.choir import write_pieces
from kmidi_mlx.models.loading import LoadedGenerator, load_generator
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.notes import Notes

COLUMNS = (
    "section",
    "guidance_scale",
    "pieces",
    "valence_r_value",
    "arousal_r_value",
    "quadrant_hits_value",
    "quadrant_chance",
)
#: A generator that answers later than this does not follow.
PROMISED_SECONDS = 4.0
#: Seeds of streams that change begin here, far from those of the pieces.
CHANGE_SEED = 1_000_000
# seconds around the change that the table shows
_CURVE = (-3, 8)
_SPARK = "▁▂▃▄▅▆▇█"
_SHORTEST_SECONDS = 12
_FEW_PIECES = 20


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    pieces, changes = _checked(args)
    reader = ShardReader(args.data)
    loaded = load_generator(args.checkpoint)
    samplings = _samplings(loaded.config.sampling, args.guidance_scale)
    grid = [
        Request(args.seconds, args.seed + number, emotion)
        for number, emotion in enumerate(emotion_grid(pieces))
    ]
    jumps = [
        Request(args.seconds, args.seed + CHANGE_SEED + number, before, after)
        for number, (before, after) in enumerate(quadrant_changes() * changes)
    ]
    work = Work(args.work, _origin(loaded))
    music = write_all(loaded.model, samplings, [*grid, *jumps], work)
    real = real_music(reader, "val", args.seconds, seed=args.seed)
    rows: list[Row] = []
    steerings, responses = [], []
    for sampling in samplings:
        written = music[sampling.guidance_scale]
        steerings.append(judge(grid, written[: len(grid)], args.seed))
        responses.append(follow(jumps, written[len(grid) :], args.seed) if jumps else [])
        scale = {"guidance_scale": sampling.guidance_scale, "seconds": args.seconds}
        scale |= {"seed": args.seed, "checkpoint": str(loaded.path)}
        asked = {"grid": list(grid_shape(pieces)), "minutes": len(grid) * args.seconds / 60}
        row = {"section": "steering", **scale, **asked, **flat(asdict(steerings[-1]))}
        rows.append(row | {"changes": [response_row(found) for found in responses[-1]]})
    halves = {"pieces": real.halves.count, "seconds": args.seconds, "data": str(args.data)}
    rows.append({"section": "real", **halves, **flat(asdict(real))})
    console = Console()
    scales = [sampling.guidance_scale for sampling in samplings]
    console.print(steering_table(scales, steerings, real, grid_shape(pieces)))
    console.print(measures_table(scales, steerings, real))
    for number, found in zip(scales, responses, strict=True):
        if found:
            console.print(change_table(number, found))
    publish("emotion_control", rows, COLUMNS, args)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m bench.emotion_control",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="generator")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="prepared music")
    parser.add_argument("--minutes", type=float, default=40.0, help="for each scale (default: 40)")
    parser.add_argument(
        "--guidance-scale", type=float, nargs="+", metavar="G", help="default: the checkpoint's"
    )
    parser.add_argument("--seconds", type=int, default=30, help="of a piece, even (default: 30)")
    parser.add_argument(
        "--changes", type=int, metavar="N", help="default: one for every 20 minutes; 0: none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the music and of all resampling")
    parser.add_argument("--work", type=Path, metavar="FILE", help="keep finished pieces here")
    add_arguments(parser)
    return parser


def _checked(args: argparse.Namespace) -> tuple[int, int]:
    """Return how many pieces and how often each change are asked for by sound flags."""
    if args.seconds < _SHORTEST_SECONDS or args.seconds % 2:
        raise KmidiError(f"--seconds {args.seconds}: give an even number from 12 on.")
    pieces = int(args.minutes * 60 / args.seconds + 1e-6) if 0 < args.minutes <= 1e5 else 0
    if pieces < 4:
        raise KmidiError(
            f"--minutes {args.minutes:g}: give enough for 4 pieces of {args.seconds} s, one for "
            "each quadrant."
        )
    changes = max(1, round(args.minutes / 20)) if args.changes is None else args.changes
    for name, value in (("changes", changes), ("seed", args.seed)):
        if value < 0:
            raise KmidiError(f"--{name} {value}: give 0 or more.")
    if args.work:
        make_room("--work", args.work)
    return pieces, changes


def _samplings(sampling: SamplingConfig, scales: Sequence[float] | None) -> list[SamplingConfig]:
    try:
        chosen = dict.fromkeys(scales or [sampling.guidance_scale])
        return [replace(sampling, guidance_scale=scale) for scale in chosen]
    except ConfigError as error:
        raise KmidiError(f"--guidance-scale: {error.problem}.") from error


def _origin(loaded: LoadedGenerator) -> Row:
    """What a piece hangs on beside its request: weights and sampling."""
    with loaded.path.open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    dtype = str(loaded.model.embedding.weight.dtype)
    sampling = {**asdict(loaded.config.sampling), "guidance_scale": None}
    return {"weights": weights, "dtype": dtype, "sampling": sampling}


@dataclass(frozen=True)
class Request:
    """What is asked of a piece: length, seed, emotion, and one to change to in its middle."""

    seconds: int
    seed: int
    emotion: Emotion
    then: Emotion | None = None

    def key(self, guidance_scale: float) -> str:
        """Name it in a work file."""
        asked = [[e.valence, e.arousal] for e in (self.emotion, self.then) if e]
        return json.dumps([guidance_scale, self.seconds, self.seed, asked])

    def piece(self) -> choir.Request:
        """Return what is to be written."""
        changes = ((self.seconds / 2, self.then),) if self.then else ()
        return choir.Request(self.seconds, self.seed, self.emotion, changes)


class Work:
    """Finished pieces by their request, kept in a file of JSON lines, so that work can go on.

    The first line says what they were written with. A line that was cut off when the bench was
    ended is dropped.

    Args:
        path: None: nothing is kept.
        origin: what the pieces hang on.

    Raises:
        KmidiError: if the file is damaged or holds pieces of another origin.
    """

    def __init__(self, path: Path | None, origin: Row) -> None:
        self._path = path
        self._pieces: dict[str, list[int]] = {}
        if path is None:
            return
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if whole:
            self._read(path, whole.decode("utf-8", "replace").splitlines(), origin)
        if len(whole) < len(text):
            path.write_bytes(whole)
        if not whole:
            self._append(origin)

    def _read(self, path: Path, lines: list[str], origin: Row) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if number > 1:
                    self._pieces[row["key"]] = row["events"]
            except (ValueError, KeyError, TypeError) as error:
                raise KmidiError(
                    f"{path}, line {number}: this is no piece of this bench; name another --work."
                ) from error
            if number == 1 and row != origin:
                raise KmidiError(
                    f"{path} holds pieces of another checkpoint or sampling; name another --work."
                )

    def __contains__(self, key: str) -> bool:
        return key in self._pieces

    def __getitem__(self, key: str) -> Notes:
        return decode(self._pieces[key])

    def add(self, key: str, events: NDArray[np.uint16]) -> None:
        """Keep a finished piece."""
        self._pieces[key] = events.tolist()
        if self._path:
            self._append({"key": key, "events": self._pieces[key]})

    def _append(self, row: Row) -> None:
        assert self._path is not None
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def write_all(
    model: EmotionMIDITransformer,
    samplings: Sequence[SamplingConfig],
    requests: Sequence[Request],
    work: Work,
) -> dict[float, list[Notes]]:
    """Write what is not there yet, and return all of it by guidance scale.

    Args:
        model: the generator.
        samplings: how to draw, one for each scale.
        requests: pieces, the same for each scale.
        work: finished pieces.
    """
    keys = {s.guidance_scale: [r.key(s.guidance_scale) for r in requests] for s in samplings}
    done = sum(key in work for column in keys.values() for key in column)
    with Progress(len(samplings) * len(requests), "write", "pieces", initial=done) as progress:
        for sampling in samplings:
            # lively pieces have more events: pieces of about the same length are written together
            missing = sorted(
                (request.emotion.arousal, key, request)
                for key, request in zip(keys[sampling.guidance_scale], requests, strict=True)
                if key not in work
            )

            def keep(number: int, events: NDArray[np.uint16]) -> None:
                work.add(missing[number][1], events)  # noqa: B023
                scale = sampling.guidance_scale  # noqa: B023
                progress.advance(guidance=scale, events=len(events))

            wanted = [request.piece() for _, _, request in missing]
            write_pieces(model, sampling, wanted, on_piece=keep)
    return {scale: [work[key] for key in column] for scale, column in keys.items()}


def judge(requests: Sequence[Request], pieces: Sequence[Notes], seed: int) -> Steering:
    """Compare pieces with what was asked of them."""
    seconds = requests[0].seconds
    asked = np.array([(r.emotion.valence, r.emotion.arousal) for r in requests])
    halves = np.stack([statistics_of(notes, seconds / 2, 2) for notes in pieces])
    return steering_of(asked, halves, seconds, seed)


def follow(requests: Sequence[Request], pieces: Sequence[Notes], seed: int) -> list[Response]:
    """Measure how streams answer the change in their middle."""
    asked = np.array(
        [[(e.valence, e.arousal) for e in (r.emotion, r.then) if e is not None] for r in requests]
    )
    count = round(requests[0].seconds / BIN_SECONDS)
    bins = np.stack([statistics_of(notes, BIN_SECONDS, count) for notes in pieces])
    return responses_of(asked, bins, seed)


def flat(values: dict[str, Any]) -> Row:
    """Join the names of nested values: {"r": {"low": 1}} is {"r_low": 1}."""
    row: Row = {}
    for name, value in values.items():
        if isinstance(value, dict):
            row |= {f"{name}_{inner}": deep for inner, deep in flat(value).items()}
        else:
            row[name] = value
    return row


def response_row(response: Response) -> Row:
    """A response as a row, with the verdict on its half-way and 90 % times."""
    times = {"half": response.half_seconds.value, "ninety": response.ninety_seconds.value}
    verdict = {
        f"{name}_within_{PROMISED_SECONDS:g}s": seconds is not None and seconds <= PROMISED_SECONDS
        if response.change.excludes_zero
        else None
        for name, seconds in times.items()
    }
    return {**flat(asdict(response)), **verdict}


def steering_table(
    scales: Sequence[float], found: Sequence[Steering], real: RealMusic, shape: tuple[int, int]
) -> Table:
    """How estimates follow requests, beside chance and real music."""
    # resampling a handful of pieces does not show all that could have been written
    few = "; so few pieces are a first look only" if found[0].pieces < _FEW_PIECES else ""
    table = Table(
        title=f"emotion asked for ({shape[0]} x {shape[1]} points) and estimated",
        caption="in brackets: 95 % interval; real music: r and quadrant of one half of a window "
        f"against the other{few}",
    )
    table.add_column("")
    for scale in scales:
        table.add_column(f"guidance {scale:g}", justify="right")
    table.add_column("real music", justify="right")

    def row(name: str, cells: Iterator[str], own: str = "") -> None:
        table.add_row(name, *cells, own)

    row("pieces", (str(s.pieces) for s in found), str(real.halves.count))
    row("  silent", (str(s.silent) for s in found))
    for axis in AXES:
        half_r = getattr(real.halves, f"{axis}_r")
        row(f"{axis} r", (_interval(_of(s, axis).r) for s in found), _interval(half_r))
        row("  by chance below", (_number(getattr(s, f"{axis}_r_limit")) for s in found))
        row("  slope", (_interval(_of(s, axis).slope) for s in found))
        row("  most that r can be", iter([""] * len(found)), _ceiling(real.halves, axis))
        spread = f"{axis}_deviation"
        row(
            "  deviation of estimates",
            (_number(getattr(s.halves, spread)) for s in found),
            _number(getattr(real.halves, spread)),
        )
        row(
            "  r of the halves",
            (_interval(getattr(s.halves, f"{axis}_r")) for s in found),
            _interval(half_r),
        )
        row(
            "  r with the data's labels",
            iter([""] * len(found)),
            _interval(getattr(real, f"label_{axis}_r")),
        )
    row(
        "quadrant hit",
        (_interval(s.quadrant_hits, "{:.0%}") for s in found),
        _interval(real.halves.same_quadrant, "{:.0%}"),
    )
    row(
        "  by chance, and below",
        (
            f"{_number(s.quadrant_chance, '{:.0%}')}, {_number(s.quadrant_chance_limit, '{:.0%}')}"
            for s in found
        ),
    )
    return table


def measures_table(scales: Sequence[float], found: Sequence[Steering], real: RealMusic) -> Table:
    """How plain measures follow requests."""
    table = Table(
        title="plain measures: mean; r with the request, and change for a request higher by 1"
    )
    for name in ("", "mean", "valence r", "slope", "arousal r", "slope"):
        table.add_column(name, justify="right" if name else "left")
    for name in PLAIN_MEASURES:
        table.add_row(name.replace("_", " "))
        for scale, steering in zip(scales, found, strict=True):
            cells = [f"  guidance {scale:g}", _number(steering.means[name])]
            for axis in AXES:
                follows = steering.measures[name][axis]
                cells += [_interval(follows.r), _number(follows.slope.value, "{:+.2f}")]
            table.add_row(*cells)
        table.add_row("  real music", _number(real.means[name]))
    return table


def change_table(scale: float, responses: Sequence[Response]) -> Table:
    """How fast a change is answered."""
    table = Table(
        title=f"a change in the middle, guidance {scale:g}",
        caption="streams asked up less streams asked down; times in seconds; curve: from "
        f"{_CURVE[0]} s to {_CURVE[1]} s around the change; -: no change beyond doubt",
    )
    for name in ("", "level", "half way", "90 %", "within", "curve"):
        table.add_column(name, justify="left" if name in ("", "curve") else "right", no_wrap=True)
    for axis in AXES:
        chosen = [r for r in responses if (r.axis, r.direction) == (axis, "difference")]
        if not chosen:
            continue
        table.add_row(f"{axis} asked", f"{chosen[0].streams} streams")
        for found in chosen:
            verdict = response_row(found)[f"half_within_{PROMISED_SECONDS:g}s"]
            points = zip(found.seconds, found.curve, strict=True)
            table.add_row(
                "  " + found.measure.removeprefix("mean_").replace("_", " "),
                f"{_number(found.before, '{:.2g}')} to {_number(found.after, '{:.2g}')}",
                _interval(found.half_seconds, "{:.1f}"),
                _number(found.ninety_seconds.value, "{:.1f}"),
                "-" if verdict is None else f"{PROMISED_SECONDS:g} s" if verdict else "no",
                _spark([value for t, value in points if _CURVE[0] < t < _CURVE[1]]),
            )
    return table


def _of(steering: Steering, axis: str) -> Follow:
    found: Follow = getattr(steering, axis)
    return found


def _ceiling(halves: Halves, axis: str) -> str:
    return _number(getattr(halves, f"{axis}_ceiling"))


def _number(value: float | None, pattern: str = "{:.2f}") -> str:
    return "-" if value is None else pattern.format(value)


def _interval(found: Interval, pattern: str = "{:.2f}") -> str:
    if found.value is None:
        return "-"
    ends = ("?" if end is None else pattern.format(end) for end in (found.low, found.high))
    return f"{pattern.format(found.value)} ({'…'.join(ends)})"


def _spark(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, way = min(known), max(max(known) - min(known), 1e-12)
    top = len(_SPARK) - 1
    return "".join(
        " " if value is None else _SPARK[round((value - low) / way * top)] for value in values
    )


if __name__ == "__main__":
    sys.exit(run(main))
