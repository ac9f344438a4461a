"""Measuring the emotion recogniser: numbers, labels, calibration."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from kmidi_mlx.command import CommandParser
from kmidi_mlx.console import Progress
from kmidi_mlx.data.audio_emotion import Recordings, read_recordings
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.shipped import usual_checkpoint

DEFAULT_CHECKPOINT = usual_checkpoint("emotion_recognizer")
ALL = "all"
DESCRIPTION = (
    "Measure how well a recogniser finds the emotion of held-out recordings (the mean over the "
    "clips of each), beside saying the mean or the most frequent label of its training data every "
    "time, and whether its probabilities are calibrated."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the flags of the emotion recogniser."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="DIR",
        help=f"trained recogniser (default: {DEFAULT_CHECKPOINT}, or else that of the package)",
    )
    parser.add_argument(
        "--audio-manifest",
        type=Path,
        metavar="FILE",
        help="labelled recordings (default: those it was trained with)",
    )
    parser.add_argument(
        "--split",
        choices=(*SPLITS, ALL),
        help=f"their side (default: val; {ALL} for other recordings whose manifest names no sides)",
    )


def check(args: argparse.Namespace) -> None:
    """Raise `KmidiError` for flags that cannot be obeyed."""
    if args.audio_manifest is not None and not args.audio_manifest.is_file():
        raise KmidiError(f"--audio-manifest {args.audio_manifest}: there is no such file.")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a recogniser on the recordings of a side."""
    from kmidi_mlx.checkpoint_model import label_temperature
    from kmidi_mlx.models.loading import load_recognizer
    from kmidi_mlx.runs.emotion_measures import (
        calibration_of,
        label_score,
        number_scores,
        per_recording,
    )
    from kmidi_mlx.runs.emotion_task import open_batches
    from kmidi_mlx.training.emotion_task import estimate_clips

    loaded = load_recognizer(args.checkpoint)
    if loaded.notice:
        print(loaded.notice, file=sys.stderr)
    config = loaded.config
    manifest = Path(args.audio_manifest or config.data.manifest)
    config = replace(config, data=replace(config.data, manifest=str(manifest)))
    recordings = _recordings(manifest, config.model.labels, config.data.val_share, config.training)
    own = str(manifest.absolute()) == str(Path(loaded.config.data.manifest).absolute())
    declared = any("split" in row.values for row in recordings.rows)
    split = args.split or ("val" if own or declared else ALL)
    side = "val" if split == ALL else split
    # what has no emotion is not listened to
    if split == ALL:
        chosen = np.where(recordings.unlabelled, SPLITS.index("train"), SPLITS.index("val"))
        recordings = recordings.with_split(chosen.astype(np.uint8))
    elif split == "train":
        aside = np.where(recordings.unlabelled, SPLITS.index("val"), recordings.split)
        recordings = recordings.with_split(aside.astype(np.uint8))
    batches = open_batches(config, recordings, side, loaded.model.pooled_dim)
    with Progress(batches.steps_per_epoch(), "listen", "batches") as progress:
        clips = estimate_clips(loaded.model, batches, progress.advance)
    whole = per_recording(clips)
    means = np.array(loaded.metadata.get("train_mean") or [None] * 3, np.float64)
    labelled = label_score(whole, recordings, loaded.metadata.get("train_label"))
    # The checkpoint's temperature was fitted to the val side of its manifest, and another manifest
    # may hold the same songs.
    fitted_here = split in ("val", ALL) or not own
    calibration = calibration_of(
        clips, recordings, None if fitted_here else label_temperature(loaded)
    )
    return {
        "model": args.model,
        "checkpoint": str(loaded.path),
        "step": loaded.metadata.get("step"),
        "synthetic": bool(loaded.metadata.get("synthetic")),
        "audio_manifest": str(manifest),
        "split": split,
        "recordings": len(whole.recording),
        "clips": len(clips.recording),
        "labels_known": list(config.model.labels),
        "numbers": {
            name: asdict(score) for name, score in number_scores(whole, recordings, means).items()
        },
        "labels": asdict(labelled) if labelled else None,
        "calibration": asdict(calibration) if calibration else None,
    }


def _recordings(manifest: Path, labels: tuple[str, ...], share: float, training: Any) -> Recordings:
    if not labels:
        # a recogniser of numbers alone: what labels the manifest has are not asked for
        recordings = read_recordings(manifest, val_share=share, seed=training.seed)
        return replace(recordings, labels=(), label=np.full(len(recordings), -1, np.int32))
    return read_recordings(manifest, labels, val_share=share, seed=training.seed)


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table."""
    console.print(
        f"{result['checkpoint']} on {result['audio_manifest']}, {result['split']}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    table = Table(
        title=f"emotion of {result['recordings']} recordings in {result['clips']} clips",
        caption=_caption(result),
    )
    for name in ("", "known", "R²", "r", "mean error", "error of the mean"):
        table.add_column(name, justify="right" if name else "left")
    for name, score in result["numbers"].items():
        shown = [_number(score[key]) for key in ("r2", "r", "error", "mean_error")]
        table.add_row(name, str(score["count"]), *shown)
    console.print(table)


def _caption(result: dict[str, Any]) -> str | None:
    lines = []
    labels, calibration = result["labels"], result["calibration"]
    if labels:
        lines.append(
            f"labels of {labels['count']} recordings: accuracy {labels['accuracy']:.0%} (the most "
            f"frequent one: {labels['largest_share']:.0%}), macro F1 {labels['macro_f1']:.2f}"
        )
    if calibration:
        lines.append(
            f"calibration error of {calibration['clips']} clips: {calibration['before']:.3f}, with "
            f"temperature {calibration['temperature']:.2f}: {calibration['after']:.3f} "
            f"({calibration['method']})"
        )
    return "\n".join(lines) or None


def passed(result: dict[str, Any]) -> bool:
    """Every result is a result."""
    return True


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
