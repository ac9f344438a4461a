"""`python -m kmidi_torch.plan`: hours and dollars of training on rented GPUs, before renting any.

Speeds are measured ones where `bench/results/train_torch.jsonl` has a line of that GPU, otherwise
estimates; each row of the table says which. Prices are those of `configs/cloud/prices.yaml`, as of
the dates that stand there. Nothing is looked up elsewhere and nothing is rented.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kmidi_mlx.command import CommandParser, add_config_arguments, run
from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.console import in_words
from kmidi_mlx.errors import KmidiError, nearest
from kmidi_torch.planning.costs import (
    EXPORT_MINUTES,
    START_MINUTES,
    Cost,
    Job,
    cost_of,
    fitting_steps,
    gpus_of,
    training_seconds,
)
from kmidi_torch.planning.prices import Offer, Price, read_prices
from kmidi_torch.planning.speed import (
    ESTIMATED,
    SHORTEST_PASS,
    UTILISATION,
    Speed,
    given_speed,
    read_measurements,
    speed_of,
)
from kmidi_torch.planning.work import Work, model_of_data, work_of

ROOT = Path(__file__).parent.parent
PRICES = ROOT / "configs" / "cloud" / "prices.yaml"
MEASUREMENTS = ROOT / "bench" / "results" / "train_torch.jsonl"
MODELS = (MidiGeneratorConfig.name, SpectocloudConfig.name)
# What a GPU trains in less is a matter of an hour or so at home.
TINY_SECONDS = 60.0
MS = [1e3 * seconds for seconds in SHORTEST_PASS]
COLUMNS = ("provider", "gpu", "gpus", "model", "speed", "units/s", "hours", "usd/h", "dollars")


@dataclass(frozen=True)
class Line:
    """What a run, or all of them on one machine, costs at an offer."""

    offer: Offer
    price: Price
    jobs: tuple[Job, ...]
    steps: tuple[int, ...]
    slow: Cost
    likely: Cost
    quick: Cost

    @property
    def name(self) -> str:
        """Of the model, or `both`."""
        return self.jobs[0].work.model if len(self.jobs) == 1 else "both"

    @property
    def share(self) -> float:
        """Of the whole run."""
        return self.steps[0] / self.jobs[0].work.steps


def main(argv: list[str]) -> int:
    """Parse the flags, compute, print."""
    args = _parser().parse_args(argv)
    _check(args)
    works = _works(args)
    offers = _offers(args)
    groups = [found for offer in offers if (found := _lines(args, works, offer))]
    if args.budget is not None:
        groups.sort(key=_rank)
    lines = [line for group in groups for line in group]
    if args.json:
        print(json.dumps([_as_json(line) for line in lines]))
        return 0
    _print(args, works, lines)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m kmidi_torch.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--provider", default="all", metavar="NAME", help="of the table; all")
    parser.add_argument("--gpu", metavar="NAME", help="this GPU only, such as RTX4090")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs of one machine")
    parser.add_argument("--spot", action="store_true", help="machines that may be taken away")
    parser.add_argument("--budget", type=float, metavar="USD", help="what so many dollars pay for")
    parser.add_argument("--model", choices=MODELS, help="this model only (default: both)")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="prepared data, for the number of steps; may be given for each model",
    )
    parser.add_argument(
        "--throughput", type=Path, metavar="FILE", help="lines of `bench.train_torch --save`"
    )
    parser.add_argument("--tokens-per-second", type=float, metavar="X", help="of the generator")
    parser.add_argument("--clouds-per-second", type=float, metavar="X", help="of Spectocloud")
    parser.add_argument(
        "--prices", type=Path, default=PRICES, metavar="FILE", help="instead of the table"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_arguments(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if args.gpus < 1:
        raise KmidiError(f"--gpus {args.gpus}: give 1 or more.")
    if args.budget is not None and not 0 < args.budget < 1e9:
        raise KmidiError(f"--budget {args.budget:g}: give dollars above 0.")
    if args.model is None and (args.config_files or args.overrides):
        raise KmidiError("settings are those of one model; name it with --model.")
    if args.throughput is not None and not args.throughput.exists():
        raise KmidiError(f"--throughput {args.throughput} does not exist.")


def _works(args: argparse.Namespace) -> list[Work]:
    data = {model_of_data(folder): folder for folder in args.data}
    names = [args.model] if args.model else list(MODELS)
    unused = next((str(folder) for model, folder in data.items() if model not in names), None)
    if unused is not None:
        raise KmidiError(f"--data {unused} is not for {' or '.join(names)}.")
    return [work_of(_config(args, name), data.get(name)) for name in names]


def _config(args: argparse.Namespace, name: str) -> RunConfig:
    """The run as the tasks of `configs/cloud` train it, unless the flags say otherwise."""
    reference = ROOT / "configs" / f"{name}.yaml"
    files = args.config_files or ([reference] if reference.exists() else [])
    config = load_config(name, files, args.overrides)
    told = any(text.partition("=")[0].strip() == "training.precision" for text in args.overrides)
    if told or args.config_files:
        return config
    return replace(config, training=replace(config.training, precision="bf16"))


def _offers(args: argparse.Namespace) -> list[tuple[Offer, Price]]:
    offers = read_prices(args.prices)
    providers = list(dict.fromkeys(offer.provider for offer in offers))
    if args.provider not in ("all", *providers):
        hint = nearest(args.provider, ["all", *providers], "there are")
        raise KmidiError(f"unknown provider {args.provider!r}{hint or '.'}")
    gpus = list(dict.fromkeys(offer.gpu for offer in offers))
    if args.gpu not in (None, *gpus):
        raise KmidiError(f"{args.prices} has no {args.gpu!r}{nearest(args.gpu, gpus, 'there are')}")
    kind = "spot" if args.spot else "on_demand"
    found = [
        (offer, price)
        for offer in offers
        if args.provider in ("all", offer.provider) and args.gpu in (None, offer.gpu)
        if (price := getattr(offer, kind)) is not None
    ]
    if not found:
        wanted = f"{'spot' if args.spot else 'on-demand'} price"
        where = "" if args.provider == "all" else f" of {args.provider}"
        what = "" if args.gpu is None else f" for {args.gpu}"
        raise KmidiError(f"{args.prices} has no {wanted}{where}{what}; add it, or ask for another.")
    return found


def _lines(
    args: argparse.Namespace, works: Sequence[Work], priced: tuple[Offer, Price]
) -> list[Line]:
    offer, price = priced
    measurements = read_measurements(args.throughput or MEASUREMENTS)
    gpus = gpus_of(args.gpus, offer.machine)
    jobs = [Job(work, _speed(args, work, offer.gpu, measurements)) for work in works]
    groups = [(job,) for job in jobs] + ([tuple(jobs)] if len(jobs) > 1 else [])
    lines = []
    for group in groups:
        steps: Sequence[int] | None = [job.work.steps for job in group]
        if args.budget is not None:
            steps = fitting_steps(group, gpus, price.usd, offer.billing, args.budget)
        if steps is not None:
            costs = [
                cost_of(group, steps, gpus, price.usd, offer.billing, pace)
                for pace in ("slow", "likely", "quick")
            ]
            lines.append(Line(offer, price, group, tuple(steps), *costs))
    return lines


def _rank(group: Sequence[Line]) -> tuple[float, ...]:
    """Sort offers by their last line, which stands for all that is asked for if that is to be had.

    The most models come first, then most of the run, then the cheapest.
    """
    last = group[-1]
    return (-len(last.jobs), -last.share, last.likely.dollars, last.likely.hours)


def _speed(
    args: argparse.Namespace, work: Work, gpu: str, measurements: list[dict[str, Any]]
) -> Speed:
    flag = f"--{work.unit}-per-second"
    given = getattr(args, f"{work.unit}_per_second")
    return given_speed(given, flag) if given is not None else speed_of(work, gpu, measurements)


def _as_json(line: Line) -> dict[str, Any]:
    return {
        "provider": line.offer.provider,
        "gpu": line.offer.gpu,
        "price": asdict(line.price),
        "runs": [
            {
                "model": job.work.model,
                "steps": steps,
                "of_steps": job.work.steps,
                "epochs": job.work.epochs(steps),
                "flop_per_unit": job.work.flop_per_unit,
                f"{job.work.unit}_per_second": asdict(job.speed),
            }
            for job, steps in zip(line.jobs, line.steps, strict=True)
        ],
        **{pace: asdict(getattr(line, pace)) for pace in ("slow", "likely", "quick")},
    }


def _print(args: argparse.Namespace, works: Sequence[Work], lines: Sequence[Line]) -> None:
    for work in works:
        epochs = work.epochs(work.steps)
        known = "give --data DIR for epochs" if epochs is None else f"{epochs:.3g} epochs"
        print(
            f"{work.model}: {work.steps:,} steps at the most ({known}) of {work.units_per_step:,} "
            f"{work.unit}, {work.flop_per_unit / 1e6:,.0f} MFLOP each, {work.precision}"
        )
    print()
    if not lines:
        print(
            f"${args.budget:g} pays for no step anywhere; the start alone is {START_MINUTES:g} min"
        )
        return
    budget = args.budget is not None
    columns = (*COLUMNS, "steps") if budget else COLUMNS
    _print_table(columns, [_cells(line, budget) for line in lines])
    print()
    for note in _notes(args, lines):
        print(note)


def _cells(line: Line, budget: bool) -> list[str]:
    kinds = " + ".join(dict.fromkeys(job.speed.kind for job in line.jobs))
    speeds = ", ".join(f"{job.speed.likely:,.0f}" for job in line.jobs)
    cells = [
        line.offer.provider,
        line.offer.gpu,
        str(line.likely.gpus),
        line.name,
        kinds,
        speeds,
        f"{line.likely.hours:.1f} ({line.quick.hours:.1f}-{line.slow.hours:.1f})",
        f"{line.price.usd:g}",
        f"{line.likely.dollars:.2f} ({line.quick.dollars:.2f}-{line.slow.dollars:.2f})",
    ]
    if budget:
        done = []
        for job, steps in zip(line.jobs, line.steps, strict=True):
            epochs = job.work.epochs(steps)
            passes = "" if epochs is None else f", {epochs:.3g} epochs"
            done.append(f"{steps:,} ({steps / job.work.steps:.0%}{passes})")
        cells.append(" + ".join(done))
    return cells


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())


def _notes(args: argparse.Namespace, lines: Sequence[Line]) -> list[str]:
    exports = ", ".join(f"{EXPORT_MINUTES[name]:g} for {name}" for name in EXPORT_MINUTES)
    notes = ["hours and dollars: likely (quick-slow); usd/h: of one GPU"]
    if args.budget is not None:
        notes.append(
            f"steps: what ${args.budget:g} pays for even at the slow end, best choice first"
        )
    if any(len(line.jobs) > 1 for line in lines):
        notes.append("both: one after the other on one machine, which is rented once")
    notes += _too_short(lines)
    pairs = [(line.offer.gpu, job) for line in lines for job in line.jobs]
    estimated = any(job.speed.kind == ESTIMATED for _, job in pairs)
    if estimated:
        notes.append(
            f"estimated: {_range(UTILISATION)} of the GPU's peak, but {_range(MS)} ms a pass at "
            "least; both are assumed, not measured"
        )
    for gpu, job in pairs:
        about = gpu if job.speed.kind == ESTIMATED else f"{gpu}, {job.work.model}"
        notes.append(f"{job.speed.kind}, {about}: {job.speed.source}")
    notes.append(
        f"counted in: {START_MINUTES:g} min to rent, install and copy (assumed), exports in min "
        f"({exports}), evaluations; not: disk, traffic, tax"
    )
    if any(line.likely.gpus > 1 for line in lines):
        notes.append("several GPUs are assumed to lose nothing by sharing the work")
    if args.spot:
        notes.append("not counted: starts and lost steps after a machine was taken away")
    if estimated:
        notes.append(
            "estimates become measurements once a GPU has run `python -m bench.train_torch --only "
            "MODEL --set training.precision=bf16 --save`"
        )
    for line in lines:
        offer, price = line.offer, line.price
        notes.append(f"price, {offer.provider} {offer.gpu}: {price.date}, {price.source}")
    return list(dict.fromkeys(notes))


def _too_short(lines: Sequence[Line]) -> list[str]:
    """Say of runs that are over at once that they had better stay at home."""
    notes = []
    alone = [line for line in lines if len(line.jobs) == 1]
    for model in dict.fromkeys(line.name for line in alone):
        own = [line for line in alone if line.name == model and line.share == 1]
        taken = [training_seconds(line.jobs[0], line.steps[0], line.likely.gpus) for line in own]
        if taken and max(taken) < TINY_SECONDS:
            notes.append(
                f"{model}: the {own[0].steps[0]:,} steps take {in_words(max(taken))} on the "
                f"slowest of these GPUs, and renting one takes {START_MINUTES:g} minutes: for so "
                "little a rented GPU makes no sense, train at home"
            )
    return notes


def _range(values: Sequence[float]) -> str:
    return f"{values[1]:g} ({min(values):g}-{max(values):g})"


if __name__ == "__main__":
    sys.exit(run(main))
