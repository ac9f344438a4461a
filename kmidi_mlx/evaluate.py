"""`python -m kmidi_mlx.evaluate`: measure a model, or music that is already there."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap

from rich.console import Console

from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.evaluate_kinds import KINDS, Kind, find_kind

FAILED = 1
#: Width of the tables where stdout is no terminal.
_WIDTH = 120
_HELP_WIDTH = 78


def main(argv: list[str]) -> int:
    """Parse the flags, measure, print tables or JSON; 1 if what was measured is not as it must be.

    Which flags there are depends on `--model`.
    """
    name = _model(argv)
    kind = find_kind(name if name in KINDS else KINDS[0])
    args = _parser(name, kind).parse_args(argv)
    kind.check(args)
    result = kind.measure(args)
    if args.json:
        print(json.dumps(result))
    else:
        kind.show(result, Console(width=None if sys.stdout.isatty() else _WIDTH))
    return 0 if kind.passed(result) else FAILED


def _model(argv: list[str]) -> str:
    """What `--model` says, looked for before the other flags are known."""
    parser = CommandParser(prog="kmidi evaluate", add_help=False)
    parser.add_argument("--model", default=KINDS[0])
    name: str = parser.parse_known_args(argv)[0].model
    return name


def _parser(name: str, kind: Kind) -> CommandParser:
    others = [f"kmidi evaluate --model {other} --help" for other in KINDS if other != name]
    parser = CommandParser(
        prog="kmidi evaluate",
        description=textwrap.fill(kind.DESCRIPTION, _HELP_WIDTH),
        epilog="\n".join(["other models have other flags:", *(f"  {line}" for line in others)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", choices=KINDS, default=KINDS[0], help=f"what to measure (default: {KINDS[0]})"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    kind.add_arguments(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
