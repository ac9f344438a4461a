"""Training EmotionMIDITransformer on prepared music, in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn
from numpy.typing import NDArray

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.runs.midi_task import HostMidiTask
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.training.device_task import DeviceTask
from kmidi_mlx.training.first_model import first_model
from kmidi_mlx.training.losses import cross_entropy_sum
from kmidi_mlx.training.step import Batch


def logits_of(model: nn.Module, batch: Batch) -> mx.array:
    """Logits `(batch, time, 388)` of a batch."""
    conditions = Conditions(batch["emotion"], batch["chords"], batch["keys"])
    return model(batch["inputs"], conditions, batch["chord_index"])


def cross_entropy_of(
    model: nn.Module, batch: Batch, label_smoothing: float
) -> tuple[mx.array, mx.array]:
    """Summed cross-entropy of a batch in nats, and the number of events that count."""
    weights = batch["weights"]
    loss = cross_entropy_sum(logits_of(model, batch), batch["targets"], weights, label_smoothing)
    return loss, mx.sum(weights)


class MidiTask(DeviceTask, HostMidiTask):
    """The MIDI generator as something `Trainer` can train; arguments as of `HostMidiTask`."""

    def __init__(
        self, config: MidiGeneratorConfig, reader: ShardReader, processes: Processes = ALONE
    ) -> None:
        super().__init__(config, reader, processes)
        self._held_out_loss = mx.compile(
            lambda batch: cross_entropy_of(self.model, batch, 0.0), inputs=[self.model.state]
        )

    def build(self) -> EmotionMIDITransformer:
        """Make the network of `config` with its first weights."""
        model = first_model(self.config, EmotionMIDITransformer, load_generator)
        model.checkpoint_blocks = self.config.training.gradient_checkpointing
        return model

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed cross-entropy in nats and number of events."""
        return cross_entropy_of(model, batch, self.config.training.label_smoothing)

    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed cross-entropy without smoothing, and number of events."""
        return tuple(value.item() for value in self._held_out_loss(batch))

    def sample(self, seconds: float, seed: int, emotion: Emotion) -> NDArray[Any]:
        """Event ids `(n,)` of a piece that the model writes as it stands."""
        return generate(self.model, self.config.sampling, seconds, seed=seed, emotion=emotion)
