"""`kmidi prepare audio-emotion`: labelled MIDI as recordings for the emotion recogniser."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kmidi_mlx.data.audio_emotion_render import RenderReport, render_audio_emotion
from kmidi_mlx.prepare_kinds.options import add_options, count, report_share, shown_work, stopped

__all__ = ["add_parser", "describe"]


def add_parser(kinds: Any) -> None:
    """Add the sub-command to those of `kmidi prepare` (what `add_subparsers` returned)."""
    parser = kinds.add_parser(
        "audio-emotion",
        help="labelled MIDI files as sound, for the emotion recogniser",
        description="Play labelled MIDI files on the piano of the package and write them as FLAC "
        "with a manifest for `train --model emotion_recognizer`. A second run makes only what is "
        "new.",
    )
    parser.set_defaults(command=_prepare)
    add_options(parser, "MIDI manifest (.jsonl) with label, or valence and arousal")
    parser.add_argument(
        "--sample-rate", metavar="HZ", type=int, default=16_000, help="default 16000"
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=float,
        default=60.0,
        help="only the middle S seconds of longer pieces (default 60)",
    )
    parser.add_argument(
        "--variants",
        metavar="K",
        type=int,
        default=0,
        help="K more recordings of each labelled piece, transposed by up to 5 semitones, up to 5 "
        "%% faster or slower and 15 %% louder or softer (default 0)",
    )
    parser.add_argument(
        "--with-unlabelled",
        action="store_true",
        help="render music without labels too; it teaches what to listen to, and nothing is "
        "measured on it",
    )
    parser.add_argument(
        "--label-from-notes",
        action="store_true",
        help="music without labels gets the emotion that the mood model estimates from the notes "
        "played; its variants go up to an octave, much faster, slower, louder, softer and to the "
        "parallel key",
    )


def _prepare(arguments: Any) -> int:
    with shown_work("seconds of sound") as work:
        report = render_audio_emotion(
            arguments.sources,
            arguments.out,
            root=arguments.root,
            synthetic=arguments.synthetic,
            val_share=arguments.val_share,
            licence=arguments.licence,
            sample_rate=arguments.sample_rate,
            seconds=arguments.seconds,
            variants=arguments.variants,
            with_unlabelled=arguments.with_unlabelled,
            label_from_notes=arguments.label_from_notes,
            workers=arguments.workers,
            seed=arguments.seed,
            share=arguments.shard,
            on_start=work.on_start,
            on_progress=work.on_progress,
            stop=work.stop,
        )
    if arguments.json:
        print(json.dumps({**asdict(report), "out": str(arguments.out)}, ensure_ascii=False))
    else:
        print("\n".join(_work(report)))
        if report.splits:
            print(describe(report, arguments.out))
        elif report.complete:
            print(report_share(arguments.shard, arguments.out))
    if not report.complete:
        return stopped(report.composed, arguments.synthetic, report.rendered, report.missing)
    return 0


def _work(report: RenderReport) -> list[str]:
    lines = [
        f"{count(report.sources, 'file')}: {count(report.rendered, 'recording')} made, "
        f"{report.reused:,} as before"
    ]
    if report.rendered:
        lines.append(
            f"{report.audio_seconds:,.0f} s of sound in {report.seconds:.1f} s: "
            f"{report.audio_seconds / report.seconds:,.0f} times as fast as it sounds"
        )
    return lines


def describe(report: RenderReport, out: Path) -> str:
    """Say what a complete data set holds.

    Args:
        report: of the run that completed it.
        out: the data set.
    """
    lines = []
    for split, (recordings, songs) in report.splits.items():
        lines.append(f"{split:<6} {count(recordings, 'recording')} of {count(songs, 'song')}")
    labels = ", ".join(f"{number:,} {label}" for label, number in report.labels.items())
    lines.append(f"labels: {labels or 'none'}")
    if report.unlabelled:
        lines.append(f"without label: {count(report.unlabelled, 'recording')}, all in train")
    if report.rejected:
        lines.append(
            f"{count(report.rejected, 'file')} rejected: {out / 'rejected.jsonl'} says why"
        )
    if "val" not in report.splits:
        lines.append(
            "nothing is held out: training needs a song in val (--val-share, or by a manifest)"
        )
    lines.append(f"ready: {out / 'manifest.jsonl'}")
    return "\n".join(lines)
