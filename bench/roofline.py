"""How fast a Mac should be: `python -m bench.roofline [--generator DIR] [--spectocloud DIR]
[--context N] [--events-per-frame K] [--repeats N] [--json FILE|-] [--save]`.

Counts the kernels, bytes and products of one event and of one cloud on the real networks (fresh
ones of the default sizes, or checkpoints), and predicts from a dated table of published figures
(`bench/machines.yaml`) what they and a frame of the live application (K events, one cloud, the
hand-over) take on M1 to M4. Ranges go from the quick to the slow set of assumptions, the figure
before them is the likely set's; `binds` names what costs most.

"8 bit" is a supposition: the generator's linear layers quantised by `mlx.nn.quantize`, all else in
fp16. The row "here" is the check of the method: rates measured on this machine, then the prediction
from them and the measured times, in the precision that this machine prefers. Its range goes from
the rates of large products to those of the networks' own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

import kmidi_mlx
from bench.machines import Assumptions, Machine, Times, assumptions, machines, predict, table_date
from bench.passes import PRECISIONS, cloud_network, cloud_pass, event_pass, generator
from bench.rates import hand_over_ms, measure_here
from bench.report import Row, add_arguments, publish
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.loading import default_dtype
from kmidi_mlx.music import encode, read_midi
from kmidi_mlx.spectocloud import FRAMES_PER_SECOND

COLUMNS = (
    "chip",
    "precision",
    "event_ms",
    "event_range",
    "event_binds",
    "events_per_second",
    "cloud_ms",
    "cloud_range",
    "cloud_binds",
    "frame_ms",
    "frame_range",
    "event_measured",
    "cloud_measured",
)
CHECK = """
No Mac was at hand: these are predictions. On a Mac they are checked by
  python -m bench.roofline                     the row "here" against the row of its chip
  python -m bench.decode --dtype fp16          event_ms (--no-peer without mlx-lm)
  python -m bench.live --seconds 60 --paced    frame_ms; paced, because an idle GPU is clocked down
"""
PIECES = Path(kmidi_mlx.__file__).parent / "assets" / "pop909"


def music_events_per_second() -> float:
    """Events a second of the pieces that come with kmidi."""
    events = seconds = 0.0
    for path in sorted(PIECES.glob("*.mid")):
        notes = read_midi(path)
        events += len(encode(notes))
        seconds += notes.duration_seconds
    return events / seconds


def row(
    name: str,
    precision: str,
    events: Sequence[Times],
    clouds: Sequence[Times],
    per_frame: int,
    after_ms: float,
) -> Row:
    """One line of the table.

    Args:
        name, precision: of the chip and the networks.
        events, clouds: times under two or more sets of assumptions, quickest first; the second is
            the likely one.
        per_frame: events of a frame.
        after_ms: the hand-over.
    """
    frames = [
        per_frame * event.total + cloud.total + after_ms
        for event, cloud in zip(events, clouds, strict=True)
    ]
    event, cloud = events[1], clouds[1]
    made: Row = {"chip": name, "precision": precision}
    made |= {"event_ms": event.total, "event_range": _range([t.total for t in events])}
    made |= {"event_binds": event.binds, "events_per_second": round(1e3 / event.total)}
    made |= {"cloud_ms": cloud.total, "cloud_range": _range([t.total for t in clouds])}
    made |= {"cloud_binds": cloud.binds, "frame_ms": frames[1], "frame_range": _range(frames)}
    for what, times in (("event", event), ("cloud", cloud)):
        for part in ("bandwidth", "compute", "launches", "host", "wait"):
            made[f"{what}_{part}_ms"] = getattr(times, part)
    return made


def _range(values: Sequence[float]) -> str:
    return f"{values[0]:.2g}-{values[-1]:.2g}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m bench.roofline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--generator", type=Path, metavar="DIR", help="checkpoint of the generator")
    parser.add_argument("--spectocloud", type=Path, metavar="DIR", help="checkpoint of the network")
    parser.add_argument(
        "--context", type=int, default=2048, metavar="N", help="events held (default: 2048)"
    )
    parser.add_argument(
        "--events-per-frame", type=int, default=1, metavar="K", help="of a frame (default: 1)"
    )
    parser.add_argument(
        "--repeats", type=int, default=24, metavar="N", help="times measured here (default: 24)"
    )
    add_arguments(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    if args.events_per_frame < 0 or args.repeats < 1:
        raise KmidiError("--events-per-frame must be 0 or more, --repeats 1 or more.")
    usual = "fp16" if default_dtype() == mx.float16 else "fp32"
    events, clouds = {}, {}
    for precision in PRECISIONS:
        model = generator(args.generator, precision)
        events[precision] = event_pass(model, args.context)
        print(f"An event, {precision}, {args.context} held: {events[precision]}.")
        network = cloud_network(args.spectocloud, precision)
        clouds[precision] = cloud_pass(network)
        print(f"A cloud beside it: {clouds[precision]}.")
        if precision == usual:
            networks = model, network
    per_frame, after_ms = args.events_per_frame, hand_over_ms()
    print(
        f"Music of the shipped pieces has {music_events_per_second():.0f} events a second; "
        f"{per_frame} a frame at {FRAMES_PER_SECOND} frames a second are "
        f"{per_frame * FRAMES_PER_SECOND}. Handing a cloud over: {after_ms:.3f} ms.\n"
    )
    here = measure_here(*networks, events[usual], clouds[usual], args.context, args.repeats)

    def lined(
        name: str, precision: str, machine: Machine, sets: Sequence[Sequence[Assumptions]]
    ) -> Row:
        event = events[precision].work(here.python_event_ms, overlaps=True)
        cloud = clouds[precision].work(here.python_cloud_ms, overlaps=False)
        event_times = [predict(event, machine, assumed) for assumed in sets[0]]
        cloud_times = [predict(cloud, machine, assumed) for assumed in sets[1]]
        return row(name, precision, event_times, cloud_times, per_frame, after_ms)

    assumed = assumptions()
    rows = [
        lined(machine.name, precision, machine, (assumed, assumed))
        for machine in machines()
        for precision in PRECISIONS
    ]
    ideal = replace(here.event, bandwidth_share=1.0)
    rows.append(
        lined("here", usual, here.machine, ((ideal, here.event), (ideal, here.cloud)))
        | {"event_measured": here.event_ms, "cloud_measured": here.cloud_ms}
    )
    for line in rows:
        line |= {"table_date": table_date(), "context": args.context, "per_frame": per_frame}
    publish("roofline", rows, COLUMNS, args)
    print(CHECK)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
