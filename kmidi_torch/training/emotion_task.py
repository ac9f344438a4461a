"""Training EmotionRecognizer on labelled recordings, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.audio_emotion_batches import Clips
from kmidi_mlx.runs.emotion_task import Heard, HostEmotionTask
from kmidi_torch.loading import load_recognizer
from kmidi_torch.models.emotion_recognizer import EmotionRecognizer
from kmidi_torch.training.device_task import DeviceTask
from kmidi_torch.training.first_model import first_model
from kmidi_torch.training.losses import cross_entropy_sum
from kmidi_torch.training.step import Batch, stage_arrays, to_device


def losses_of(
    model: nn.Module, batch: Batch, config: EmotionRecognizerConfig, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Summed loss of a batch, and the number of clips of which anything is known, cues included.

    Squared error of the numbers that are known, a third of the sum over the three; cross-entropy of
    the labels that are known; mean squared error of the cues that are known; each times its weight.
    """
    estimate = model(batch["mel"], batch["frames"], batch["keep"])
    squares = torch.square(estimate.numbers - batch["numbers"]) * batch["number_weights"]
    loss = config.loss.numbers / squares.shape[1] * torch.sum(squares)
    if config.model.labels:
        loss = loss + config.loss.labels * cross_entropy_sum(
            estimate.logits, batch["labels"], batch["label_weights"], label_smoothing
        )
    if config.model.num_cues:
        misses = torch.mean(torch.square(estimate.cues - batch["cues"]), dim=1)
        loss = loss + config.loss.cues * torch.sum(misses * batch["cue_weights"])
    known = torch.maximum(torch.amax(batch["number_weights"], dim=1), batch["label_weights"])
    return loss, torch.sum(torch.maximum(known, batch["cue_weights"]))


class EmotionTask(DeviceTask, HostEmotionTask):
    """The recogniser as something `Trainer` can train; arguments as of `DeviceTask`."""

    def build(self) -> EmotionRecognizer:
        """Make the network of `config` with its first weights."""
        model = first_model(self.config, EmotionRecognizer, load_recognizer)
        return model.to(self.device)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of clips of which anything is known."""
        return losses_of(model, batch, self.config, self.config.training.label_smoothing)

    @torch.no_grad()
    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed loss without smoothing, and number of clips of which anything is known."""
        return tuple(value.item() for value in losses_of(self.model, batch, self.config, 0.0))

    @torch.no_grad()
    def listen(self, clips: Clips) -> Heard:
        """Numbers and logits that the model finds in clips as it stands."""
        heard = {"mel": clips.mel, "frames": clips.frames}
        batch = to_device(stage_arrays(heard, self.device), self.device)
        estimate = self.model(batch["mel"], batch["frames"])
        return estimate.numbers.cpu().numpy(), estimate.logits.cpu().numpy()
