"""`python -m kmidi_mlx.prepare midi SRC… --out DIR`: turn files into a data set."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.command import INTERRUPTED, CommandParser, interruptible, run
from kmidi_mlx.console import Progress
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
    parser = CommandParser(prog="kmidi prepare", description="Turn files into a data set.")
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
        help="share of songs without a manifest that go to val (default 0.05)",
    )
    midi.add_argument("--workers", metavar="N", type=int, help="processes (default: all cores)")
    midi.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of val draw and practice music"
    )
    midi.add_argument("--licence", metavar="TEXT", help="licence of the music, kept with the data")
    midi.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _midi(arguments: Any) -> int:
    with interruptible() as interruption, Progress(None, "prepare", "files") as progress:
        tokens = 0

        def on_progress(files: int, more: int) -> None:
            nonlocal tokens
            tokens += more
            progress.advance(files, tokens=tokens)

        def on_start(files: int) -> None:
            progress.total = files

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
        print(
            f"kmidi prepare: stopped after {report.prepared} of "
            f"{report.sources - report.reused} files; the same command goes on from there.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return 0


def _text(report: Report, out: Path) -> str:
    lines = [f"{report.sources} files: {report.prepared} read, {report.reused} as before"]
    if report.prepared_tokens:
        lines.append(
            f"{report.prepared_tokens:,} tokens in {report.seconds:.1f} s: "
            f"{report.tokens_per_second:,.0f} a second with {report.workers} workers, "
            f"{report.tokens_per_core_second:,.0f} a core"
        )
    if report.worker_deaths:
        lines.append(f"{report.worker_deaths} files killed the process that read them")
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
        f"moods: {labels}; chords: {summary.with_chords:,} pieces, keys: {summary.with_key:,}"
    )
    lines.append(f"{summary.duplicates:,} exact duplicates, left out of batches")
    if summary.moved:
        lines.append(f"{summary.moved:,} pieces moved to the side where their equals are")
    if summary.rejected:
        lines.append(f"{summary.rejected:,} files rejected: {out / 'rejected.jsonl'} says why")
    lines.append(f"licences: {', '.join(summary.licences) or 'none stated (--licence)'}")
    lines.append(f"ready: {out}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
