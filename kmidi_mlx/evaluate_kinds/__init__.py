"""What `kmidi evaluate` does for each kind of model: one module a model, named as in `--model`.

A module `kmidi_mlx/evaluate_kinds/NAME.py` is chosen by being listed in `KINDS`, and has the face
of `Kind`:

    DESCRIPTION: str                                    what is measured, for --help
    def add_arguments(parser: CommandParser) -> None    its flags; --model and --json are there
    def check(args: argparse.Namespace) -> None         raises KmidiError for flags that do not go
                                                        together or are out of range
    def measure(args: argparse.Namespace) -> dict       the result, as JSON can hold it
    def show(result: dict, console: Console) -> None    the same result as tables
    def passed(result: dict) -> bool                    False: the command ends with status 1

Importing a module must load no framework: `--help` and wrong flags answer at once. MLX and what
imports it (`kmidi_mlx.evaluation`, `kmidi_mlx.models`) are imported inside `measure`.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Protocol, cast

from rich.console import Console

from kmidi_mlx.command import CommandParser

__all__ = ["KINDS", "Kind", "find_kind"]

#: Models that can be measured; the first is the default of `--model`.
KINDS = ("midi_generator", "spectocloud", "emotion_recognizer")


class Kind(Protocol):
    """The face of a module of this package."""

    DESCRIPTION: str

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the flags of this kind of model."""

    def check(self, args: argparse.Namespace) -> None:
        """Raise `KmidiError` for flags that cannot be obeyed."""

    def measure(self, args: argparse.Namespace) -> dict[str, Any]:
        """Measure, and return what JSON can hold."""

    def show(self, result: dict[str, Any], console: Console) -> None:
        """Print what `measure` returned as tables."""

    def passed(self, result: dict[str, Any]) -> bool:
        """Tell whether what was measured is as it has to be."""


def find_kind(name: str) -> Kind:
    """Return the module of a model.

    Args:
        name: one of `KINDS`.
    """
    return cast("Kind", importlib.import_module(f"kmidi_mlx.evaluate_kinds.{name}"))
