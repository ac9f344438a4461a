"""Training EmotionRecognizer on labelled recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from kmidi_mlx.config import EmotionRecognizerConfig, EmotionRecognizerModelConfig
from kmidi_mlx.console import Progress
from kmidi_mlx.data.audio_emotion import (
    Recordings,
    cache_folder,
    hearing_of,
    read_recordings,
    spectrograms,
)
from kmidi_mlx.data.audio_emotion_batches import AudioEmotionBatches, Clips
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.emotion_measures import (
    ClipEstimates,
    fit_temperature,
    label_score,
    number_scores,
    per_recording,
)
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.training.losses import cross_entropy_sum
from kmidi_mlx.training.step import Batch
from kmidi_mlx.training.trainer import Numbers

_NAMES = (
    *("mel", "frames", "keep"),
    *("numbers", "number_weights", "labels", "label_weights", "cues", "cue_weights"),
)


def to_arrays(clips: Clips) -> Batch:
    """Hand a numpy batch to MLX."""
    return {name: mx.array(getattr(clips, name)) for name in _NAMES}


def open_recordings(config: EmotionRecognizerConfig) -> Recordings:
    """Read the manifest of a run.

    Raises:
        KmidiError: when it cannot be used.
    """
    data = config.data
    return read_recordings(
        Path(data.manifest),
        config.model.labels,
        val_share=data.val_share,
        seed=config.training.seed,
    )


def open_batches(
    config: EmotionRecognizerConfig, recordings: Recordings, split: str, pooled_dim: int
) -> AudioEmotionBatches:
    """Make the batches of a side; spectrograms that are not in the cache yet are made.

    Args:
        config: the run.
        recordings: of its manifest.
        split: the side.
        pooled_dim: width of the model's pooled features, for dropout.

    Raises:
        KmidiError: when the side is empty, or a recording or the cache cannot be used.
    """
    augment = config.data.augment and split == "train"
    chosen = recordings.on_side(split).tolist()
    with ExitStack() as shown:
        progress: Progress | None = None

        def on_start(files: int) -> None:
            nonlocal progress
            bar = Progress(files, f"spectrograms of {split}", "recordings")
            progress = shown.enter_context(bar)

        def on_progress(files: int) -> None:
            if progress is not None:
                progress.advance(files)

        sounds = spectrograms(
            recordings,
            chosen,
            hearing_of(config),
            cache_folder(config),
            variants=config.data.augment_variants if augment else 0,
            seed=config.training.seed,
            workers=config.data.workers or None,
            on_start=on_start,
            on_progress=on_progress,
        )
    return AudioEmotionBatches(recordings, split, sounds, config, pooled_dim, augment)


def losses_of(
    model: nn.Module, batch: Batch, config: EmotionRecognizerConfig, label_smoothing: float
) -> tuple[mx.array, mx.array]:
    """Summed loss of a batch, and the number of clips of which anything is known, cues included.

    Squared error of the numbers that are known, a third of the sum over the three; cross-entropy of
    the labels that are known; mean squared error of the cues that are known; each times its weight.
    """
    estimate = model(batch["mel"], batch["frames"], batch["keep"])
    squares = mx.square(estimate.numbers - batch["numbers"]) * batch["number_weights"]
    loss = config.loss.numbers / squares.shape[1] * mx.sum(squares)
    if config.model.labels:
        loss = loss + config.loss.labels * cross_entropy_sum(
            estimate.logits, batch["labels"], batch["label_weights"], label_smoothing
        )
    if config.model.num_cues:
        misses = mx.mean(mx.square(estimate.cues - batch["cues"]), axis=1)
        loss = loss + config.loss.cues * mx.sum(misses * batch["cue_weights"])
    known = mx.maximum(mx.max(batch["number_weights"], axis=1), batch["label_weights"])
    return loss, mx.sum(mx.maximum(known, batch["cue_weights"]))


def estimate_clips(
    model: EmotionRecognizer,
    batches: AudioEmotionBatches,
    on_progress: Callable[[int], None] = lambda batches: None,
) -> ClipEstimates:
    """Let a model listen to every clip of a fixed side, once.

    Args:
        model: the recogniser.
        batches: of `val` or `test`.
        on_progress: called with the number of batches done since the last call.
    """
    found: list[tuple[Any, ...]] = []
    for index in range(batches.steps_per_epoch()):
        clips = batches.batch(index)
        estimate = model(mx.array(clips.mel), mx.array(clips.frames))
        real = clips.recording >= 0
        found.append(
            (
                np.array(estimate.numbers, np.float64)[real],
                np.array(estimate.logits, np.float64)[real],
                clips.recording[real].astype(np.int64),
                clips.frames[real].astype(np.int64),
            )
        )
        on_progress(1)
    return ClipEstimates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class EmotionTask:
    """The recogniser as something `Trainer` can train.

    Args:
        config: the run; labels and cues that it leaves open become those of the recordings.
        recordings: with a train and a val side.

    Raises:
        KmidiError: when a side is empty, or a recording cannot be used.
    """

    unit = "clips"
    loss_unit = "loss per clip"

    def __init__(self, config: EmotionRecognizerConfig, recordings: Recordings) -> None:
        recordings = recordings.standardised_cues()
        config = replace(config, model=_model_of(config, recordings))
        training = config.training
        self.config = config
        self.recordings = recordings
        self.model = EmotionRecognizer(config.model)
        self.model.initialise(training.seed)
        self._batches = open_batches(config, recordings, "train", self.model.pooled_dim)
        self.held_out = open_batches(config, recordings, "val", self.model.pooled_dim)
        self.steps_per_epoch = self._batches.steps_per_epoch(training.grad_accum_steps)
        self.positions = training.batch_size
        self.metadata = dataset_metadata(recordings)
        self._held_out_loss = mx.compile(
            lambda batch: losses_of(self.model, batch, config, 0.0), inputs=[self.model.state]
        )

    @contextmanager
    def stream(self, first: int) -> Iterator[Iterator[Batch]]:
        """Micro-batches from `first` on, made ahead by a background thread."""
        with self._batches.prefetch(first) as batches:
            yield map(to_arrays, batches)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed loss and number of clips of which anything is known."""
        return losses_of(model, batch, self.config, self.config.training.label_smoothing)

    def evaluate(self) -> Numbers:
        """Loss per clip and scores by recording on the val side.

        The temperature that fits its labels goes into the metadata, and so into the checkpoint.
        """
        total, weight = 0.0, 0.0
        count = min(self.config.training.eval_batches, self.held_out.steps_per_epoch())
        for index in range(count):
            loss, clips = self._held_out_loss(to_arrays(self.held_out.batch(index)))
            total += loss.item()
            weight += clips.item()
        measures = {"val_loss": total / max(weight, 1.0)}
        found = estimate_clips(self.model, self.held_out)
        whole = per_recording(found)
        means = np.array(self.metadata["train_mean"], np.float64)
        for name, score in number_scores(whole, self.recordings, means).items():
            if score.r2 is not None:
                measures[f"val_{name}_r2"] = score.r2
        labelled = label_score(whole, self.recordings, self.metadata["train_label"])
        if labelled is not None:
            measures["val_accuracy"] = labelled.accuracy
            truth = self.recordings.label[found.recording]
            known = truth >= 0
            self.metadata["temperature"] = fit_temperature(found.logits[known], truth[known])
        return measures

    def write_sample(self, folder: Path, step: int) -> None:
        """Do nothing: a recogniser makes nothing to look at or listen to."""


def _model_of(
    config: EmotionRecognizerConfig, recordings: Recordings
) -> EmotionRecognizerModelConfig:
    wanted, found = config.model.num_cues, recordings.num_cues
    if wanted not in (0, found):
        manifest = recordings.rows[0].manifest
        raise KmidiError(f"{manifest} has {found} cues a line, but model.num_cues is {wanted}.")
    return replace(config.model, labels=recordings.labels, num_cues=found)


def dataset_metadata(recordings: Recordings) -> dict[str, Any]:
    """What a checkpoint says about the data it learnt from."""
    train = recordings.on_side("train")
    values = [row.values for row in recordings.rows]
    known = recordings.known[train].sum(axis=0)
    sums = recordings.numbers[train].sum(axis=0, dtype=np.float64)
    labels = recordings.label[train]
    counts = np.bincount(labels[labels >= 0])
    return {
        "synthetic": any(value.get("dataset") == "synthetic" for value in values),
        "data_licences": sorted({str(v["licence"]) for v in values if v.get("licence")}),
        "train_mean": [
            float(total / count) if count else None
            for total, count in zip(sums, known, strict=True)
        ],
        "train_label": int(counts.argmax()) if len(counts) else None,
        # of labels; 1.0 until an evaluation has fitted it to the val side
        "temperature": 1.0,
    }
