"""`python -m kmidi_mlx.convert`: a checkpoint from MLX to PyTorch, or back, or quantised."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from kmidi_mlx.checkpoint_model import Weights
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.console import Progress
from kmidi_mlx.conversion import (
    DTYPES,
    LOSS,
    Converted,
    ExpectedShapes,
    Order,
    convert,
    prepare,
    write,
)
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import BITS, GROUP_SIZES, Choice

#: Exit status where quantising costs more than `--max-loss`.
TOO_LOSSY = 1
_QUANTIZED_DTYPE = "fp16"
_QUANTIZE_FLAGS = ("group_size", "keep", "layer_bits", "data", "limit", "max_loss")
_WIDTH = 100

_NETWORKS = {
    "midi_generator": ("midi_transformer", "EmotionMIDITransformer"),
    "spectocloud": ("spectocloud_vit", "SpectocloudViT"),
    "emotion_recognizer": ("emotion_recognizer", "EmotionRecognizer"),
}

#: Carries out an order to quantise; returns the exit status.
Quantize = Callable[[argparse.Namespace, Order], int]


def main(argv: list[str]) -> int:
    """Parse the flags, convert, print what was written; MLX tells what a network holds."""
    return convert_with(argv, _expected, _quantize)


def convert_with(argv: list[str], expected: ExpectedShapes, quantize: Quantize | None) -> int:
    """Do the command with one of the frameworks.

    Args:
        argv: the arguments.
        expected: tells what the network of a run has to hold.
        quantize: carries out `--quantize`; None: the framework cannot.
    """
    parser = CommandParser(
        prog="kmidi convert",
        description="Convert a checkpoint between MLX (.safetensors) and PyTorch (.pt), or "
        "quantise it. Names, shapes and numbers stay as they are, bit for bit, and so does what is "
        "known of them; quantised weights become plain ones again unless --quantize is given.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="checkpoint folder, .safetensors or .pt file"
    )
    parser.add_argument(
        "destination",
        type=Path,
        metavar="DST",
        help=".safetensors or .pt file to make; or a folder, which gets best.pt or, from a .pt "
        "file and with --quantize, best.safetensors",
    )
    parser.add_argument(
        "--state",
        action="store_true",
        help="the training state (last/state: weights, averages, optimiser, counters) instead of "
        "the weights to use",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="store the weights as this (default: as they are; with --quantize "
        f"{_QUANTIZED_DTYPE}, for what is not packed)",
    )
    parser.add_argument(
        "--model", choices=RUN_CONFIGS, help="what SRC holds, where it does not say so itself"
    )
    parser.add_argument(
        "--config",
        dest="config_files",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="with --model: YAML configuration that SRC was trained with",
    )
    parser.add_argument("--force", action="store_true", help="replace DST where it is there")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_quantize_arguments(parser)
    args = parser.parse_args(argv)
    _check(args)
    names = ("source", "destination", "state", "dtype", "model", "config_files", "force")
    order = Order(**{name: getattr(args, name) for name in names})
    if args.quantize is None:
        _print(convert(order, expected), args.json)
        return 0
    if quantize is None:
        raise KmidiError("--quantize needs MLX: python -m kmidi_mlx.convert.")
    return quantize(args, order)


def _add_quantize_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("quantise")
    group.add_argument(
        "--quantize",
        type=int,
        choices=BITS,
        metavar="BITS",
        help="keep the weights of linear layers in 8, 6 or 4 bits, and measure what that costs",
    )
    group.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        metavar="N",
        help="weights that share a scale: 32, 64 or 128 (default: 64; less where a layer needs it)",
    )
    group.add_argument(
        "--keep",
        metavar="NAME",
        action="append",
        help="layers that stay plain beside the usual ones, by part of their name: head, blocks.0; "
        "may be given more than once",
    )
    group.add_argument(
        "--layer-bits",
        metavar="NAME=BITS",
        type=_layer_bits,
        action="append",
        help="other bits for some layers, as cross_attention=8, also for those that usually stay "
        "plain; may be given more than once, the last one counts",
    )
    group.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="prepared data to measure the loss on (default: what the run was trained on; for a "
        "generator else the pieces that come with kmidi)",
    )
    group.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only so many held-out windows, clouds or clips (default: 64, 80, 256); 0: do not "
        "measure the loss",
    )
    group.add_argument(
        "--max-loss",
        type=float,
        metavar="X",
        help="write nothing and exit with status 1 when the loss grows by more",
    )


def _layer_bits(text: str) -> tuple[str, int]:
    name, _, bits = text.rpartition("=")
    if not name or bits not in map(str, BITS):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not NAME=BITS, as in head=8")
    return name, int(bits)


def _check(args: argparse.Namespace) -> None:
    if args.state and args.dtype is not None:
        raise KmidiError("--dtype is for weights to use; a training state keeps its numbers.")
    if args.config_files and args.model is None:
        raise KmidiError("--config tells how a --model is built; give --model too.")
    if args.quantize is None:
        for name in _QUANTIZE_FLAGS:
            if getattr(args, name) is not None:
                raise KmidiError(f"--{name.replace('_', '-')} needs --quantize.")
        return
    if args.state:
        raise KmidiError("--quantize is for weights to use; a training state keeps its numbers.")
    if args.limit is not None and args.limit < 0:
        raise KmidiError(f"--limit {args.limit}: give 0 or more.")
    if args.max_loss is not None and not args.max_loss >= 0:
        raise KmidiError(f"--max-loss {args.max_loss:g}: give 0 or more.")
    if args.limit == 0 and (args.max_loss is not None or args.data is not None):
        raise KmidiError("--limit 0 measures no loss; leave it out, or --max-loss and --data.")


def _quantize(args: argparse.Namespace, order: Order) -> int:
    """Quantise with MLX, measure, write if the loss allows it, print."""
    prepared = prepare(replace(order, dtype=None, quantized=True), _expected)
    network = find_network("kmidi_mlx", prepared.config)
    # imported late, so that wrong flags and files answer before the framework loads
    import mlx.core as mx

    from kmidi_mlx.evaluation.compression import costs_of, lines_of, quantized, table_of
    from kmidi_mlx.evaluation.held_out import HeldOut, open_held_out

    dtype = {"fp32": mx.float32, "fp16": mx.float16}[order.dtype or _QUANTIZED_DTYPE]
    choice = Choice(
        args.quantize, args.group_size or 64, args.keep or (), dict(args.layer_bits or ())
    )

    def build(config: RunConfig) -> Any:
        return network(config.model)

    source = Weights(prepared.arrays, prepared.config, prepared.metadata, prepared.source)
    made = quantized(source, build, choice, dtype, prepared.path)
    notices = list(prepared.notices)
    held_out: HeldOut | None = None
    if args.limit != 0:
        try:
            held_out = open_held_out(prepared.config, args.data, args.limit)
        except KmidiError as error:
            if args.data is not None or args.max_loss is not None:
                raise
            notices.append(f"the loss was not measured: {error}")
    with ExitStack() as shown:
        on_progress: Callable[[int], None] = _ignore
        if held_out is not None:
            bar = Progress(2 * len(held_out.batches), "measure", "batches")
            on_progress = shown.enter_context(bar).advance
        costs = costs_of(source, made, build, held_out, on_progress)
    too_lossy = args.max_loss is not None and not costs.losses[0].growth <= args.max_loss
    if not too_lossy:
        losses = {LOSS: {"data": costs.data, "losses": [asdict(loss) for loss in costs.losses]}}
        metadata = made.weights.metadata | (losses if costs.losses else {})
        write(replace(prepared, arrays=made.weights.arrays, metadata=metadata))
    if args.json:
        packed = {name: asdict(packing) for name, packing in made.packed.items()}
        told = {"path": str(prepared.path), "model": prepared.config.name, "written": not too_lossy}
        told |= {"bits": args.quantize, "layers": packed, "plain": made.kept}
        print(json.dumps(told | asdict(costs) | {"notices": notices}))
    else:
        print(f"{prepared.source}, {args.quantize} bits")
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(table_of(costs))
        print("\n".join(lines_of(costs, made)))
        for notice in notices:
            print(f"note: {notice}")
    if too_lossy:
        grown = f"{costs.losses[0].unit} would grow by {costs.losses[0].growth:.3g}"
        print(f"not written: {grown}, more than --max-loss {args.max_loss:g}", file=sys.stderr)
        return TOO_LOSSY
    if not args.json:
        print(f"wrote {prepared.path}")
    return 0


def _ignore(batches: int) -> None:
    """Show nothing."""


def _print(done: Converted, as_json: bool) -> None:
    size = done.path.stat().st_size
    if as_json:
        print(json.dumps({**asdict(done), "path": str(done.path), "bytes": size}))
        return
    print(f"wrote {done.path}: {done.model}, {done.count} arrays, {size / 1e6:.1f} MB")
    for notice in done.notices:
        print(f"note: {notice}")


def find_network(package: str, config: RunConfig) -> Any:
    """Return the class of the network of a run.

    Args:
        package: "kmidi_mlx" or "kmidi_torch", which have the same modules and classes.
        config: of the run.

    Raises:
        KmidiError: when the framework of that package cannot be imported.
    """
    module, name = _NETWORKS[config.name]
    try:
        return getattr(importlib.import_module(f"{package}.models.{module}"), name)
    except ImportError as error:
        other = "kmidi_torch" if package == "kmidi_mlx" else "kmidi_mlx"
        raise KmidiError(
            f"{package} cannot be used here ({error}); `python -m {other}.convert` does the same "
            "with the other framework."
        ) from error


def _expected(config: RunConfig) -> dict[str, tuple[int, ...]]:
    network = find_network("kmidi_mlx", config)
    from mlx.utils import tree_flatten

    # MLX is lazy: no weight is drawn
    model: Any = network(config.model)
    return {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}


if __name__ == "__main__":
    sys.exit(run(main))
