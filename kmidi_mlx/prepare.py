"""`kmidi prepare KIND SRC… --out DIR`: turn files into a data set.

Many jobs may share the work (`--shard I/N`); `kmidi prepare merge DIR` makes one data set of it.
"""

from __future__ import annotations

import sys

from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.prepare_kinds import audio_emotion, merge, midi, spectocloud

__all__ = ["main"]


def main(argv: list[str]) -> int:
    """Run `prepare`.

    Args:
        argv: the arguments, the kind of data first.

    Returns:
        The exit status: 0 done, 130 stopped by Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.command(arguments)
    return status


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="kmidi prepare",
        description="Turn files into a data set.",
        epilog="kmidi prepare KIND --help explains every option.",
    )
    kinds = parser.add_subparsers(title="what to prepare", required=True, metavar="KIND")
    for kind in (midi, spectocloud, audio_emotion, merge):
        kind.add_parser(kinds)
    usages = [each.format_usage().removeprefix("usage: ") for each in kinds.choices.values()]
    parser.usage = "       ".join(usages).rstrip()
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
