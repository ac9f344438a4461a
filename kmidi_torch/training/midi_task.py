"""Training EmotionMIDITransformer on prepared music, in PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.runs.midi_task import HostMidiTask
from kmidi_torch.generation.generator import generate
from kmidi_torch.loading import load_generator
from kmidi_torch.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_torch.training.device_task import DeviceTask
from kmidi_torch.training.first_model import first_model
from kmidi_torch.training.losses import cross_entropy_sum
from kmidi_torch.training.step import Batch


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Logits `(batch, time, 388)` of a batch."""
    conditions = Conditions(batch["emotion"], batch["chords"], batch["keys"])
    return model(batch["inputs"], conditions, batch["chord_index"])


def cross_entropy_of(
    model: nn.Module, batch: Batch, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of a batch in nats, and the number of events that count."""
    weights = batch["weights"]
    loss = cross_entropy_sum(logits_of(model, batch), batch["targets"], weights, label_smoothing)
    return loss, torch.sum(weights)


class MidiTask(DeviceTask, HostMidiTask):
    """The MIDI generator as something `Trainer` can train; arguments as of `DeviceTask`."""

    def build(self) -> EmotionMIDITransformer:
        """Make the network of `config` with its first weights."""
        model = first_model(self.config, EmotionMIDITransformer, load_generator)
        model.checkpoint_blocks = self.config.training.gradient_checkpointing
        return model.to(self.device)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy in nats and number of events."""
        return cross_entropy_of(model, batch, self.config.training.label_smoothing)

    @torch.no_grad()
    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed cross-entropy without smoothing, and number of events."""
        return tuple(value.item() for value in cross_entropy_of(self.model, batch, 0.0))

    def sample(self, seconds: float, seed: int, emotion: Emotion) -> NDArray[Any]:
        """Event ids `(n,)` of a piece that the model writes as it stands."""
        return generate(self.model, self.config.sampling, seconds, seed=seed, emotion=emotion)
