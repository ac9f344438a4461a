"""`kmidi prepare midi FOLDER --out DIR`: turn files into a data set."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.command import INTERRUPTED, CommandParser, interruptible, run
from kmidi_mlx.console import Progress
from kmidi_mlx.data.catalogue import Summary
from kmidi_mlx.data.prepare import Report, prepare_midi

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
        epilog="kmidi prepare midi --help explains every option.",
    )
    kinds = parser.add_subparsers(title="what to prepare", required=True, metavar="KIND")
    midi = kinds.add_parser(
        "midi",
        help="MIDI files, for the MIDI generator",
        description="Turn MIDI files into token shards with moods, chords and keys. A second run "
        "does only what is new; the folder always ends as a fresh run of the same command would "
        "leave it.",
    )
    midi.set_defaults(command=_midi)
    midi.add_argument(
        "sources",
        metavar="SRC",
        type=Path,
        nargs="*",
        help="folder that is searched for .mid .midi .kar .rmi, MIDI file, or .jsonl manifest",
    )
    midi.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    midi.add_argument(
        "--root", metavar="DIR", type=Path, help="folder that paths in manifests start from"
    )
    midi.add_argument(
        "--synthetic",
        metavar="N",
        type=int,
        default=0,
        help="write N labelled practice pieces and prepare them too",
    )
    midi.add_argument(
        "--val-share",
        metavar="X",
        type=float,
        default=0.05,
        help="share of songs without a manifest that go to val, at least one song of two or more "
        "unless it is 0 (default 0.05)",
    )
    midi.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    midi.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of val draw and practice music"
    )
    midi.add_argument("--licence", metavar="TEXT", help="licence of the music, kept with the data")
    midi.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.usage = midi.format_usage().removeprefix("usage: ").rstrip()
    return parser


def _midi(arguments: Any) -> int:
    with interruptible() as interruption, ExitStack() as shown:
        progress: Progress | None = None
        tokens = 0

        def on_start(work: str, files: int) -> None:
            nonlocal progress
            shown.close()  # what was shown before has ended
            progress = shown.enter_context(Progress(files, work, "files"))

        def on_progress(files: int, more: int) -> None:
            nonlocal tokens
            tokens += more
            if progress is not None:
                progress.advance(files, **({"tokens": tokens} if tokens else {}))

        report = prepare_midi(
            arguments.sources,
            arguments.out,
            root=arguments.root,
            synthetic=arguments.synthetic,
            workers=arguments.workers,
            seed=arguments.seed,
            val_share=arguments.val_share,
            licence=arguments.licence,
            on_start=on_start,
            on_progress=on_progress,
            stop=lambda: interruption.requested,
        )
    if arguments.json:
        figures = {
            **asdict(report),
            "tokens_per_second": round(report.tokens_per_second),
            "tokens_per_core_second": round(report.tokens_per_core_second),
        }
        print(json.dumps({**figures, "out": str(arguments.out)}, ensure_ascii=False))
    else:
        print(_text(report, arguments.out))
    if not report.complete:
        composing = report.composed < arguments.synthetic
        done, of, what = (
            (report.composed, arguments.synthetic, "practice piece")
            if composing
            else (report.prepared, report.sources - report.reused, "file")
        )
        print(
            f"kmidi prepare: stopped after {done} of {_count(of, what)}; the same command goes on "
            "from there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _text(report: Report, out: Path) -> str:
    lines = [
        f"{_count(report.sources, 'file')}: {report.prepared:,} read, {report.reused:,} as before"
    ]
    if report.prepared_tokens:
        lines.append(
            f"{_count(report.prepared_tokens, 'token')} in {report.seconds:.1f} s: "
            f"{report.tokens_per_second:,.0f} a second with {_count(report.workers, 'worker')}, "
            f"{report.tokens_per_core_second:,.0f} a core"
        )
    if report.worker_deaths:
        lines.append(f"{_count(report.worker_deaths, 'file')} killed the process that was reading")
    summary = report.summary
    if summary is None:
        return "\n".join(lines)
    lines.append(f"{'split':<6} {'pieces':>8} {'songs':>8} {'hours':>8} {'tokens':>13}")
    for name, side in summary.splits.items():
        lines.append(
            f"{name:<6} {side.pieces:>8,} {side.songs:>8,} {side.hours:>8.1f} {side.tokens:>13,}"
        )
    labels = ", ".join(f"{count:,} {name}" for name, count in summary.labels.items())
    lines.append(
        f"moods: {labels}; chords: {_count(summary.with_chords, 'piece')}, "
        f"keys: {summary.with_key:,}"
    )
    lines.append(f"{_count(summary.duplicates, 'exact duplicate')}, left out of batches")
    if summary.moved:
        lines.append(f"{_count(summary.moved, 'piece')} moved to the side of their equals")
    if summary.rejected:
        lines.append(
            f"{_count(summary.rejected, 'file')} rejected: {out / 'rejected.jsonl'} says why"
        )
    lines.append(f"licences: {', '.join(summary.licences) or 'none stated (--licence)'}")
    if report.left_behind:
        verb = "is" if report.left_behind == 1 else "are"
        lines.append(
            f"{_count(report.left_behind, 'piece')} of the last run {verb} no longer in the data "
            "set: name all sources every time"
        )
    if "val" not in summary.splits:
        lines.append(_nothing_held_out(summary))
    lines.append(f"ready: {out}")
    return "\n".join(lines)


def _nothing_held_out(summary: Summary) -> str:
    if summary.largest_group == sum(side.pieces for side in summary.splits.values()):
        return "only one song: nothing is held out; training needs a second one"
    return "nothing is held out: training needs a song in val (--val-share, or by a manifest)"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


if __name__ == "__main__":
    sys.exit(run(main))
