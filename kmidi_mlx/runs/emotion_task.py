"""Training EmotionRecognizer on labelled recordings: all but the network and its loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from kmidi_mlx.runs.emotion_measures import (
    ClipEstimates,
    fit_temperature,
    label_score,
    number_scores,
    per_recording,
)
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import HostTask, Numbers

# numbers (batch, 3) and logits (batch, labels) of clips
Heard = tuple[NDArray[Any], NDArray[Any]]


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


def collect_estimates(
    listen: Callable[[Clips], Heard],
    batches: AudioEmotionBatches,
    on_progress: Callable[[int], None] = lambda batches: None,
) -> ClipEstimates:
    """Listen to every clip of a fixed side, once.

    Args:
        listen: what a recogniser finds in a batch of clips.
        batches: of `val` or `test`.
        on_progress: called with the number of batches done since the last call.
    """
    found: list[tuple[Any, ...]] = []
    for index in range(batches.steps_per_epoch()):
        clips = batches.batch(index)
        numbers, logits = listen(clips)
        real = clips.recording >= 0
        found.append(
            (
                numbers.astype(np.float64)[real],
                logits.astype(np.float64)[real],
                clips.recording[real].astype(np.int64),
                clips.frames[real].astype(np.int64),
            )
        )
        on_progress(1)
    return ClipEstimates(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


class HostEmotionTask(HostTask):
    """The recogniser as something `Trainer` can train, without its network.

    Args:
        config: the run; labels and cues that it leaves open become those of the recordings.
        recordings: with a train and a val side.
        processes: that share the batches.

    Raises:
        KmidiError: when a side is empty, or a recording cannot be used.
    """

    unit = "clips"
    loss_unit = "loss per clip"
    names = (
        *("mel", "frames", "keep"),
        *("numbers", "number_weights", "labels", "label_weights", "cues", "cue_weights"),
    )

    held_out: AudioEmotionBatches

    def __init__(
        self,
        config: EmotionRecognizerConfig,
        recordings: Recordings,
        processes: Processes = ALONE,
    ) -> None:
        recordings = recordings.standardised_cues()
        config = replace(config, model=_model_of(config, recordings))
        self.config = config
        self.recordings = recordings
        self.model = self.build()
        train, val = (
            open_batches(config, recordings, split, self.model.pooled_dim)
            for split in ("train", "val")
        )
        super().__init__(config, train, val, config.data.prefetch, processes)
        self.positions = config.training.batch_size
        self.metadata = dataset_metadata(recordings)

    @abstractmethod
    def build(self) -> Any:
        """Make the network of `config` with its first weights."""

    @abstractmethod
    def listen(self, clips: Clips) -> Heard:
        """Numbers and logits that the model finds in clips as it stands."""

    def evaluate(self) -> Numbers:
        """Loss per clip and scores by recording on the val side.

        The temperature that fits its labels goes into the metadata, and so into the checkpoint.
        """
        loss, clips = self.held_out_totals()
        measures = {"val_loss": float(loss / max(clips, 1.0))}
        found = collect_estimates(self.listen, self.held_out)
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

    def write_sample(self, folder: Path, step: int, turn: int) -> None:
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
