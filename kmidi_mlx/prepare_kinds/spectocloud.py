"""`kmidi prepare spectocloud`: sound, notes and emotions with the clouds the engine draws."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.data.cloud_prepare import EMOTIONS, CloudReport, prepare_clouds
from kmidi_mlx.prepare_kinds.options import add_options, count, report_share, shown_work, stopped

__all__ = ["add_parser", "describe"]


def add_parser(kinds: Any) -> None:
    """Add the sub-command to those of `kmidi prepare` (what `add_subparsers` returned)."""
    parser = kinds.add_parser(
        "spectocloud",
        help="MIDI and sound files, for the Spectocloud model",
        description="Turn music into samples of sound, MIDI features and emotion with the cloud "
        "that the engine draws. MIDI files are played on the piano of the package. A second run "
        "does only what is new; the folder always ends as a fresh run of the same command would "
        "leave it.",
    )
    parser.set_defaults(command=_prepare)
    add_options(
        parser,
        "folder that is searched for MIDI and sound files (.wav .flac .ogg .mp3 …), such a file, "
        "or .jsonl manifest",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=int,
        default=48,
        help="samples of a song, in pairs of neighbouring video frames; short songs give fewer "
        "(default 48)",
    )
    parser.add_argument(
        "--emotion",
        choices=EMOTIONS,
        default=EMOTIONS[0],
        help="clouds in all emotions, whatever the music says, or in the songs' own (default "
        "varied)",
    )


def _prepare(arguments: Any) -> int:
    with shown_work("samples") as work:
        report = prepare_clouds(
            arguments.sources,
            arguments.out,
            root=arguments.root,
            synthetic=arguments.synthetic,
            workers=arguments.workers,
            seed=arguments.seed,
            val_share=arguments.val_share,
            licence=arguments.licence,
            samples=arguments.samples,
            emotion=arguments.emotion,
            share=arguments.shard,
            on_start=work.on_start,
            on_progress=work.on_progress,
            stop=work.stop,
        )
    if arguments.json:
        figures = {**asdict(report), "samples_per_second": round(report.samples_per_second, 2)}
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


def _work(report: CloudReport) -> list[str]:
    lines = [
        f"{count(report.sources, 'file')}: {report.prepared:,} read, {report.reused:,} as before"
    ]
    if report.prepared_samples:
        lines.append(
            f"{count(report.prepared_samples, 'sample')} in {report.seconds:.1f} s: "
            f"{report.samples_per_second:,.1f} a second with {count(report.workers, 'worker')}"
        )
    if report.worker_deaths:
        lines.append(f"{count(report.worker_deaths, 'file')} killed the process that was reading")
    return lines


def describe(report: CloudReport, out: Path) -> str:
    """Say what a complete data set holds.

    Args:
        report: of the run that completed it.
        out: the data set.
    """
    summary = report.summary
    assert summary is not None
    lines = [f"{'split':<6} {'files':>8} {'songs':>8} {'hours':>8} {'samples':>10}"]
    for name, side in summary.splits.items():
        lines.append(
            f"{name:<6} {side.files:>8,} {side.songs:>8,} {side.hours:>8.1f} {side.samples:>10,}"
        )
    emotions = ", ".join(f"{files:,} {name}" for name, files in summary.emotions.items())
    lines.append(f"the songs' own emotions: {emotions}")
    if summary.moved:
        lines.append(f"{count(summary.moved, 'file')} moved to the side of their equals")
    if summary.rejected:
        lines.append(
            f"{count(summary.rejected, 'file')} rejected: {out / 'rejected.jsonl'} says why"
        )
    lines.append(f"licences: {', '.join(summary.licences) or 'none stated (--licence)'}")
    if report.left_behind:
        verb = "is" if report.left_behind == 1 else "are"
        lines.append(
            f"{count(report.left_behind, 'file')} of the last run {verb} no longer in the data "
            "set: name all sources every time"
        )
    if "val" not in summary.splits:
        lines.append(
            "nothing is held out: training needs a song in val (--val-share, or by a manifest)"
        )
    lines.append(f"ready: {out}")
    return "\n".join(lines)
