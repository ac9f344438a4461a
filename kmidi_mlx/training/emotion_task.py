"""Training EmotionRecognizer on labelled recordings, in MLX."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx import nn

from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.audio_emotion import Recordings
from kmidi_mlx.data.audio_emotion_batches import AudioEmotionBatches, Clips
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.loading import load_recognizer
from kmidi_mlx.runs.emotion_measures import ClipEstimates
from kmidi_mlx.runs.emotion_task import Heard, HostEmotionTask, collect_estimates
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.training.device_task import DeviceTask
from kmidi_mlx.training.first_model import first_model
from kmidi_mlx.training.losses import cross_entropy_sum
from kmidi_mlx.training.step import Batch


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
    """Let a model listen to every clip of a fixed side, once; see `collect_estimates`."""
    return collect_estimates(lambda clips: _heard(model, clips), batches, on_progress)


def _heard(model: EmotionRecognizer, clips: Clips) -> Heard:
    estimate = model(mx.array(clips.mel), mx.array(clips.frames))
    return np.array(estimate.numbers), np.array(estimate.logits)


class EmotionTask(DeviceTask, HostEmotionTask):
    """The recogniser as something `Trainer` can train; arguments as of `HostEmotionTask`."""

    def __init__(
        self,
        config: EmotionRecognizerConfig,
        recordings: Recordings,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(config, recordings, processes)
        self._held_out_loss = mx.compile(
            lambda batch: losses_of(self.model, batch, self.config, 0.0),
            inputs=[self.model.state],
        )

    def build(self) -> EmotionRecognizer:
        """Make the network of `config` with its first weights."""
        return first_model(self.config, EmotionRecognizer, load_recognizer)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed loss and number of clips of which anything is known."""
        return losses_of(model, batch, self.config, self.config.training.label_smoothing)

    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed loss without smoothing, and number of clips of which anything is known."""
        return tuple(value.item() for value in self._held_out_loss(batch))

    def listen(self, clips: Clips) -> Heard:
        """Numbers and logits that the model finds in clips as it stands."""
        return _heard(self.model, clips)
