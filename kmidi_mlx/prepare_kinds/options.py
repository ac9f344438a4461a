"""Options and messages that several kinds of data sets share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kmidi_mlx.command import INTERRUPTED, interruptible
from kmidi_mlx.console import Progress
from kmidi_mlx.data.share import Share

__all__ = ["Work", "add_options", "count", "report_share", "shown_work", "stopped"]


def add_options(parser: argparse.ArgumentParser, searched: str) -> None:
    """Add the sources and the options that every kind made from music has.

    Args:
        parser: of the kind.
        searched: what a source is, for the help.
    """
    parser.add_argument("sources", metavar="SRC", type=Path, nargs="*", help=searched)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="folder that paths in manifests start from"
    )
    parser.add_argument(
        "--synthetic",
        metavar="N",
        type=int,
        default=0,
        help="write N labelled practice pieces and prepare them too",
    )
    parser.add_argument(
        "--val-share",
        metavar="X",
        type=float,
        default=0.05,
        help="share of songs without a manifest that go to val, at least one song of two or more "
        "unless it is 0 (default 0.05)",
    )
    parser.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of everything drawn")
    parser.add_argument(
        "--licence", metavar="TEXT", help="licence of the music, kept with the data"
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=Share.parse,
        help="prepare only every N-th file, beginning with the I-th (from 1), for `kmidi prepare "
        "merge`; every job names the same sources, options and --out",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def report_share(share: Share, out: Path) -> str:
    """Say that a shard is complete and what comes after the last one."""
    return (
        f"shard {share.number} of {share.count} is ready: {share.folder(out)}\n"
        f"when all {share.count} are: kmidi prepare merge {out}"
    )


class Work:
    """What a run of preparing calls to show how far it is, and asks whether to stop.

    Args:
        unit: what is counted beside files, in the plural.
        stop: whether somebody asked to stop.
    """

    def __init__(self, unit: str, stop: Callable[[], bool]) -> None:
        self.stop = stop
        self._unit = unit
        self._made = 0
        self._shown = ExitStack()
        self._progress: Progress | None = None

    def on_start(self, work: str, files: int) -> None:
        """Show that work on so many files begins."""
        self.close()  # what was shown before has ended
        self._progress = self._shown.enter_context(Progress(files, work, "files"))

    def on_progress(self, files: int, more: int) -> None:
        """Count files, and what was made of them."""
        self._made += more
        if self._progress is not None:
            self._progress.advance(files, **({self._unit: self._made} if self._made else {}))

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._shown.close()


@contextmanager
def shown_work(unit: str) -> Iterator[Work]:
    """Show progress, and let Ctrl-C end the block at a good moment.

    Args:
        unit: what is counted beside files, in the plural.
    """
    with interruptible() as interruption:
        work = Work(unit, lambda: interruption.requested)
        try:
            yield work
        finally:
            work.close()


def stopped(composed: int, synthetic: int, prepared: int, todo: int) -> int:
    """Say how far an interrupted run came and how to go on; return the exit status.

    Args:
        composed: practice pieces that are there.
        synthetic: practice pieces that were asked for.
        prepared: files that were done.
        todo: files that were to be done.
    """
    done, of, what = (
        (composed, synthetic, "practice piece")
        if composed < synthetic
        else (prepared, todo, "file")
    )
    print(
        f"kmidi prepare: stopped after {done} of {count(of, what)}; the same command goes on "
        "from there.",
        file=sys.stderr,
    )
    return INTERRUPTED


def count(number: int, what: str) -> str:
    """Return a number with its noun, in the plural unless it is one."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
