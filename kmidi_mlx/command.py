"""What every command shares: exit codes, one-line errors, flags for configuration, Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kmidi_mlx.errors import KmidiError, nearest

__all__ = [
    "CommandParser",
    "Interruption",
    "add_config_arguments",
    "interruptible",
    "make_room",
    "run",
]

WRONG_USE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141  # what a shell reports for a program that SIGPIPE ended

# what a command says where the framework it computes with is not installed
_FRAMEWORKS = {
    "mlx": "this needs MLX, which is not installed: pip install mlx, or use PyTorch "
    "(python -m kmidi_torch.train, .generate, .convert).",
    "torch": "this needs PyTorch, which is not installed: pip install torch.",
}


def run(main: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command and turn what goes wrong for the person into one line and an exit status.

    A `KmidiError`, an error of the operating system such as a full disk, and a framework that is
    not installed become `kmidi NAME: sentence` on stderr; a reader of stdout that went away ends
    the command without a word. Every other exception is a bug and keeps its traceback.

    Args:
        main: the command; gets the arguments after its name, returns an exit status (None: 0).
        argv: the arguments; None: those of the process.

    Returns:
        The exit status: what `main` returned, 2 for wrong use or input, 130 when interrupted,
        141 when stdout was closed.
    """
    try:
        try:
            status = main(list(sys.argv[1:] if argv is None else argv))
        finally:
            # a full disk or a closed pipe shows here, not in the interpreter's last breath
            sys.stdout.flush()
    except KmidiError as error:
        _complain(main, str(error))
        return WRONG_USE
    except KeyboardInterrupt:
        _complain(main, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _discard_stdout()
        return PIPE_CLOSED
    except ModuleNotFoundError as error:
        missing = _FRAMEWORKS.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        _complain(main, missing)
        return WRONG_USE
    except OSError as error:
        _discard_stdout()
        where = f" ({error.filename})" if error.filename is not None else ""
        _complain(main, f"{error.strerror or error}{where}.")
        return WRONG_USE
    return status or 0


def _complain(main: Callable[[list[str]], int | None], sentence: str) -> None:
    print(f"{_title(main)}: {' '.join(sentence.split())}", file=sys.stderr)


def _title(main: Callable[[list[str]], int | None]) -> str:
    module = main.__module__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec is not None else Path(sys.argv[0]).stem
    names = [name for name in module.split(".")[1:] if name != "__main__"]
    return " ".join(["kmidi", *names])


def _discard_stdout() -> None:
    # what is left in the buffer would raise once more when the interpreter ends
    try:
        descriptor = sys.stdout.fileno()
    except OSError:
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


class CommandParser(argparse.ArgumentParser):
    """argparse without abbreviations, whose complaints are `KmidiError`s naming the nearest flag.

    Takes the arguments of `argparse.ArgumentParser`; parsers made by `add_subparsers` are of this
    class too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but look for unknown flags before anything else.

        Args:
            args: the arguments; None: those of the process.
            namespace: as in argparse.

        Raises:
            KmidiError: for wrong use.
        """
        arguments = [str(item) for item in (sys.argv[1:] if args is None else args)]
        # argparse would speak of missing arguments first, even where a flag is only misspelt
        flags = self.flags()
        for argument in arguments:
            if argument == "--":
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in flags:
                self.error(f"unknown option {name}{nearest(name, flags)}")
        return super().parse_args(arguments, namespace)

    def flags(self) -> list[str]:
        """Return every option string of this parser and of its sub-commands, sorted."""
        found: set[str] = set()
        for action in self._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    found.update(parser.flags())
        return sorted(found)

    def error(self, message: str) -> Any:
        """Raise the complaint as a one-line `KmidiError` that points at the help."""
        text = message.replace("unrecognized arguments:", "unknown arguments:")
        text = text.removeprefix("argument ").rstrip(".")
        ending = "" if text.endswith("?") else ";"
        raise KmidiError(f"{text}{ending} see {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            hint = nearest(str(value), names) or f"; choose from {', '.join(names)}"
            raise argparse.ArgumentError(action, f"unknown choice {value!r}{hint}")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config FILE` and `--set SECTION.OPTION=VALUE`, both repeatable.

    They land in `config_files` (list of Path) and `overrides` (list of str), which are the second
    and third argument of `kmidi_mlx.config_file.load_config`.
    """
    parser.add_argument(
        "--config",
        dest="config_files",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="YAML configuration; may be given more than once, later files win",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.OPTION=VALUE",
        action="append",
        default=[],
        help="one option, wins over files; may be given more than once",
    )


def make_room(flag: str, file: Path) -> None:
    """Make the folder of a file to write, before minutes go into what could not be kept.

    Args:
        flag: that named the file.
        file: to write.

    Raises:
        KmidiError: if the file is a folder, or its folder cannot be made.
    """
    if file.is_dir():
        raise KmidiError(f"{flag} {file} is a folder; add the name of a file.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KmidiError(f"cannot make the folder {file.parent}: {error.strerror}.") from error


@dataclass
class Interruption:
    """Whether somebody asked the process to stop.

    Attributes:
        requested: True after the first SIGINT or SIGTERM.
    """

    requested: bool = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Let the block end by itself at a good moment instead of anywhere.

    Inside the block the first SIGINT (Ctrl-C) or SIGTERM only sets `requested`; a second SIGINT
    raises KeyboardInterrupt. A signal that the process was started to ignore stays ignored, and
    outside the main thread nothing is changed. The old handlers come back at the end.

    Yields:
        The object to look at between two steps.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        interruption.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    earlier = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            earlier[number] = handler
            signal.signal(number, handle)
    try:
        yield interruption
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
