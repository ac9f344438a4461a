"""`kmidi NAME …` and `python -m kmidi_mlx NAME …`: find the command and hand over."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from kmidi_mlx import __version__
from kmidi_mlx.command import run
from kmidi_mlx.errors import KmidiError, nearest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "hello": "the whole way once, small: prepare, train a minute, write a piece",
    "prepare": "turn music into a data set",
    "train": "train a model on a data set",
    "finetune": "teach a trained model your own music",
    "live": "play and draw in real time, steered by feeling",
    "generate": "write piano music for an emotion",
    "picture": "show a song as a cloud of light: a picture or a film",
    "evaluate": "measure a model or the music it writes",
    "convert": "move a checkpoint between MLX and PyTorch, or quantise it",
    "push": "share a checkpoint on the Hugging Face hub",
    "pull": "get a shared checkpoint",
    "workflow": "the whole life cycle in one go, from files to a report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kmidi`.

    Args:
        argv: the arguments after `kmidi`; None: those of the process.

    Returns:
        The exit status: 0 done, 1 a check failed, 2 wrong use or input, 130 interrupted.
    """
    return run(_dispatch, argv)


def _dispatch(argv: list[str]) -> int:
    name, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"kmidi {__version__}")
        return 0
    if name not in COMMANDS:
        raise KmidiError(f"unknown command {name[:100]!r}{nearest(name, COMMANDS, 'there are')}")
    # imported only now: the help needs no framework, and preparing data needs no MLX
    # a command that is a whole package starts where `python -m` would
    inside = ".__main__" if (Path(__file__).parent / name).is_dir() else ""
    return run(importlib.import_module(f"kmidi_mlx.{name}{inside}").main, arguments)


def _overview() -> str:
    lines = ["usage: kmidi COMMAND [arguments]", "", "commands:"]
    lines += [f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items()]
    lines += ["", "kmidi COMMAND --help tells more; kmidi --version tells the version."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
