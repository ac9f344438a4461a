"""`python -m kmidi_torch.export TARGET`: export a model, prove it equal, keep it."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from kmidi_mlx.adapter_file import add_adapter_argument
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import RUN_CONFIGS
from kmidi_mlx.errors import KmidiError

TARGETS = {
    "onnx": "one .onnx file for ONNX Runtime, on any system and in browsers",
    "coreml": "an .mlpackage for Core ML on macOS 14 and later (the generator: 15)",
    "coreai": "an .aimodel for Core AI, Apple's successor of Core ML",
    "pt2": "a .pt2 file for PyTorch without this package",
}
# what to install where a module is missing; the others need `export`
_EXTRAS = {"coreai": "coreai"}


def main(argv: list[str]) -> int:
    """Parse the flags, export, print how far the export is from the model."""
    parser = CommandParser(
        prog="python -m kmidi_torch.export",
        description="Export a trained model, and keep it only if it computes what the model does.",
    )
    targets = parser.add_subparsers(dest="target", required=True, metavar="TARGET")
    modules = {}
    for name, purpose in TARGETS.items():
        target = targets.add_parser(name, help=purpose, description=f"Make {purpose}.")
        target.add_argument(
            "--model", choices=sorted(RUN_CONFIGS), required=True, help="what to export"
        )
        target.add_argument(
            "--checkpoint", type=Path, required=True, metavar="DIR", help="folder or weights"
        )
        target.add_argument(
            "--out", type=Path, metavar="FILE", help="default: best.* beside the weights"
        )
        add_adapter_argument(target)
        target.add_argument("--json", action="store_true", help="print the result as JSON")
        modules[name] = importlib.import_module(f"kmidi_torch.export.{name}_target")
        modules[name].add_arguments(target)
    args = parser.parse_args(argv)
    return _export(args)


def _export(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"kmidi_torch.export.{args.target}_target")
    try:
        report = module.export(args, lambda line: print(line, file=sys.stderr, flush=True))
    except ImportError as error:
        extra = _EXTRAS.get(args.target, "export")
        raise KmidiError(
            f"{args.target} needs {error.name}: pip install 'kmidi-mlx[{extra}]'."
        ) from error
    if args.json:
        print(json.dumps(report.as_json()))
    else:
        for difference in report.differences:
            sign = "<=" if difference.holds else "> "
            print(f"{difference.what:<44} {difference.largest:9.2e} {sign} {difference.bound:.1e}")
    if not report.holds:
        print(
            f"kmidi export: {report.model} as {report.target} in {report.precision} is further "
            "from the model than it may be; nothing was kept.",
            file=sys.stderr,
        )
        return 1
    if not args.json:
        speed = f", {report.milliseconds:.2f} ms a call here" if report.milliseconds else ""
        print(
            f"wrote {report.path}: {report.megabytes:.1f} MB, {report.precision}, made and "
            f"compared in {report.seconds:.0f} s{speed}"
        )
        for note in report.notes:
            print(note)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
