"""`kmidi prepare midi`: token shards for the MIDI generator."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.data.piece_index import Summary
from kmidi_mlx.data.prepare import Report, prepare_midi
from kmidi_mlx.prepare_kinds.options import add_options, count, report_share, shown_work, stopped

__all__ = ["add_parser", "describe"]


def add_parser(kinds: Any) -> None:
    """Add the sub-command to those of `kmidi prepare` (what `add_subparsers` returned)."""
    parser = kinds.add_parser(
        "midi",
        help="MIDI files, for the MIDI generator",
        description="Turn MIDI files into token shards with moods, chords and keys. A second run "
        "does only what is new; the folder always ends as a fresh run of the same command would "
        "leave it.",
    )
    parser.set_defaults(command=_prepare)
    add_options(
        parser,
        "folder that is searched for .mid .midi .kar .rmi, MIDI file, or .jsonl manifest",
    )


def _prepare(arguments: Any) -> int:
    with shown_work("tokens") as work:
        report = prepare_midi(
            arguments.sources,
            arguments.out,
            root=arguments.root,
            synthetic=arguments.synthetic,
            workers=arguments.workers,
            seed=arguments.seed,
            val_share=arguments.val_share,
            licence=arguments.licence,
            share=arguments.shard,
            on_start=work.on_start,
            on_progress=work.on_progress,
            stop=work.stop,
        )
    if arguments.json:
        figures = {
            **asdict(report),
            "tokens_per_second": round(report.tokens_per_second),
            "tokens_per_core_second": round(report.tokens_per_core_second),
        }
        print(json.dumps({**figures, "out": str(arguments.out)}, ensure_ascii=False))
    else:
        print("\n".join(_work(report)))
        if report.summary is not None:
            print(describe(report, arguments.out))
        elif report.complete:
            print(report_share(arguments.shard, arguments.out))
    if not report.complete:
        return stopped(
            report.composed, arguments.synthetic, report.prepared, report.sources - report.reused
        )
    return 0


def _work(report: Report) -> list[str]:
    lines = [
        f"{count(report.sources, 'file')}: {report.prepared:,} read, {report.reused:,} as before"
    ]
    if report.prepared_tokens:
        lines.append(
            f"{count(report.prepared_tokens, 'token')} in {report.seconds:.1f} s: "
            f"{report.tokens_per_second:,.0f} a second with {count(report.workers, 'worker')}, "
            f"{report.tokens_per_core_second:,.0f} a core"
        )
    if report.worker_deaths:
        lines.append(f"{count(report.worker_deaths, 'file')} killed the process that was reading")
    return lines


def describe(report: Report, out: Path) -> str:
    """Say what a complete data set holds.

    Args:
        report: of the run that completed it.
        out: the data set.
    """
    summary = report.summary
    assert summary is not None
    lines = [f"{'split':<6} {'pieces':>8} {'songs':>8} {'hours':>8} {'tokens':>13}"]
    for name, side in summary.splits.items():
        lines.append(
            f"{name:<6} {side.pieces:>8,} {side.songs:>8,} {side.hours:>8.1f} {side.tokens:>13,}"
        )
    labels = ", ".join(f"{pieces:,} {name}" for name, pieces in summary.labels.items())
    lines.append(
        f"moods: {labels}; chords: {count(summary.with_chords, 'piece')}, "
        f"keys: {summary.with_key:,}"
    )
    lines.append(f"{count(summary.duplicates, 'exact duplicate')}, left out of batches")
    if summary.moved:
        lines.append(f"{count(summary.moved, 'piece')} moved to the side of their equals")
    if summary.rejected:
        lines.append(
            f"{count(summary.rejected, 'file')} rejected: {out / 'rejected.jsonl'} says why"
        )
    lines.append(f"licences: {', '.join(summary.licences) or 'none stated (--licence)'}")
    if report.left_behind:
        verb = "is" if report.left_behind == 1 else "are"
        lines.append(
            f"{count(report.left_behind, 'piece')} of the last run {verb} no longer in the data "
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
