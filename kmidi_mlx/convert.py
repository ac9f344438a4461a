"""`python -m kmidi_mlx.convert`: a checkpoint from MLX to PyTorch, or back."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.conversion import DTYPES, Converted, ExpectedShapes, Order, convert
from kmidi_mlx.errors import KmidiError

_NETWORKS = {
    "midi_generator": ("midi_transformer", "EmotionMIDITransformer"),
    "spectocloud": ("spectocloud_vit", "SpectocloudViT"),
    "emotion_recognizer": ("emotion_recognizer", "EmotionRecognizer"),
}


def main(argv: list[str]) -> int:
    """Parse the flags, convert, print what was written; MLX tells what a network holds."""
    return convert_with(argv, _expected)


def convert_with(argv: list[str], expected: ExpectedShapes) -> int:
    """Do the command with the shapes that one of the frameworks tells."""
    parser = CommandParser(
        prog="kmidi convert",
        description="Convert a checkpoint between MLX (.safetensors) and PyTorch (.pt). Names, "
        "shapes and numbers stay as they are, bit for bit, and so does what is known of them.",
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="checkpoint folder, .safetensors or .pt file"
    )
    parser.add_argument(
        "destination",
        type=Path,
        metavar="DST",
        help=".safetensors or .pt file to make; or a folder, which gets best.pt or, from a .pt "
        "file, best.safetensors",
    )
    parser.add_argument(
        "--state",
        action="store_true",
        help="the training state (last/state: weights, averages, optimiser, counters) instead of "
        "the weights to use",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="store the weights as this (default: as they are)"
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
    args = parser.parse_args(argv)
    if args.state and args.dtype is not None:
        raise KmidiError("--dtype is for weights to use; a training state keeps its numbers.")
    if args.config_files and args.model is None:
        raise KmidiError("--config tells how a --model is built; give --model too.")
    order = {name: value for name, value in vars(args).items() if name != "json"}
    _print(convert(Order(**order), expected), args.json)
    return 0


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
