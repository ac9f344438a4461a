"""Measuring the Spectocloud network: a ladder of rungs from knowing little to the teacher."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from kmidi_mlx.adapter_file import add_adapter_argument, is_synthetic, notices, open_adapters
from kmidi_mlx.command import CommandParser
from kmidi_mlx.config import SpectocloudConfig
from kmidi_mlx.console import Progress
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.shipped import usual_checkpoint

DEFAULT_CHECKPOINT = usual_checkpoint("spectocloud")
DESCRIPTION = (
    "Measure how well a network draws the clouds of held-out songs, on a ladder of rungs: the mean "
    "cloud of the emotion, the network told of another song's sound, notes or emotion, the "
    "network, and the teacher with half of its points, which errs only by having fewer."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the flags of the Spectocloud network."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="DIR",
        help=f"trained network (default: {DEFAULT_CHECKPOINT}, or else that of the package)",
    )
    add_adapter_argument(parser)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder made by kmidi prepare spectocloud"
    )
    parser.add_argument("--split", choices=SPLITS, default="val", help="its side (default: val)")
    parser.add_argument(
        "--limit",
        type=int,
        default=200,
        metavar="N",
        help="only N pairs of neighbouring frames, spread evenly (default: 200)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="pairs at once (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled inputs (default: 0)")


def check(args: argparse.Namespace) -> None:
    """Raise `KmidiError` for flags that cannot be obeyed."""
    if not args.data:
        raise KmidiError("give --data DIR, a folder made by kmidi prepare spectocloud.")
    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value < 1:
            raise KmidiError(f"--{name.replace('_', '-')} {value}: give 1 or more.")
    if args.seed < 0:
        raise KmidiError(f"--seed {args.seed}: give 0 or more.")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every rung."""
    reader = CloudReader(args.data)
    # imported late, so that wrong flags and data answer before the framework loads
    from kmidi_mlx.evaluation.cloud_ladder import climb, held_out_pairs
    from kmidi_mlx.models.adapters import adapt
    from kmidi_mlx.models.loading import load_spectocloud

    indices = held_out_pairs(reader, args.split, args.limit)
    loaded = load_spectocloud(args.checkpoint)
    adapters = open_adapters(args.adapters, loaded.path.parent, SpectocloudConfig.name)
    adapt(loaded.model, adapters)
    said = [loaded.notice, *notices(adapters, loaded.path, SpectocloudConfig.name)]
    for note in filter(None, said):
        print(note, file=sys.stderr)
    with Progress(len(indices), "climb", "pairs") as progress:
        ladder = climb(
            loaded.model,
            reader,
            indices,
            seed=args.seed,
            batch_size=args.batch_size,
            on_progress=progress.advance,
        )
    return {
        "model": args.model,
        "checkpoint": str(loaded.path),
        "adapters": [[adapter.name, scale] for adapter, scale in adapters],
        "step": loaded.metadata.get("step"),
        "synthetic": is_synthetic(loaded.metadata, adapters),
        "data": str(args.data),
        "split": args.split,
        "seed": args.seed,
        **asdict(ladder),
    }


def show(result: dict[str, Any], console: Console) -> None:
    """Print the ladder as one table."""
    from kmidi_mlx.evaluation.cloud_tables import ladder_table

    console.print(
        f"{result['checkpoint']} on {result['data']}, {result['split']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print(ladder_table(result))


def passed(result: dict[str, Any]) -> bool:
    """Every ladder passes: it measures, and judges nothing."""
    return True
