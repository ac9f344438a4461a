"""Training EmotionMIDITransformer on prepared music."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.data.batches import Batch as MidiBatch
from kmidi_mlx.data.batches import MidiBatches
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.generation.generator import generate
from kmidi_mlx.models.midi_transformer import Conditions, EmotionMIDITransformer
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.training.losses import cross_entropy_sum
from kmidi_mlx.training.step import Batch
from kmidi_mlx.training.trainer import Numbers

# one sample emotion per quadrant, in turn
SAMPLE_EMOTIONS = ((0.7, 0.6), (-0.6, 0.7), (-0.7, -0.5), (0.6, -0.6))


def to_arrays(batch: MidiBatch) -> Batch:
    """Hand a numpy batch to MLX."""
    return {
        name: mx.array(getattr(batch, name))
        for name in ("inputs", "targets", "weights", "emotion", "chords", "keys", "chord_index")
    }


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


class MidiTask:
    """The MIDI generator as something `Trainer` can train.

    Args:
        config: the run.
        reader: prepared music with a train and a val split.

    Raises:
        KmidiError: when a split is empty.
    """

    unit = "tokens"
    loss_unit = "nats per event"

    def __init__(self, config: MidiGeneratorConfig, reader: ShardReader) -> None:
        training = config.training
        self.config = config
        self.model = EmotionMIDITransformer(config.model)
        self.model.initialise(training.seed)
        self.model.checkpoint_blocks = training.gradient_checkpointing
        self._batches = MidiBatches(
            reader, "train", config.data, training.batch_size, training.seed, augment=True
        )
        self._held_out = MidiBatches(
            reader, "val", config.data, training.batch_size, training.seed, augment=False
        )
        self.steps_per_epoch = self._batches.steps_per_epoch(training.grad_accum_steps)
        self.positions = training.batch_size * config.data.sequence_length
        self.metadata = dataset_metadata(reader)
        self._held_out_loss = mx.compile(
            lambda batch: cross_entropy_of(self.model, batch, 0.0), inputs=[self.model.state]
        )

    @contextmanager
    def stream(self, first: int) -> Iterator[Iterator[Batch]]:
        """Micro-batches from `first` on, made ahead by a background thread."""
        with self._batches.prefetch(first) as batches:
            yield map(to_arrays, batches)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed cross-entropy in nats and number of events."""
        return cross_entropy_of(model, batch, self.config.training.label_smoothing)

    def evaluate(self) -> Numbers:
        """Nats per event on held-out windows."""
        total, weight = 0.0, 0.0
        count = min(self.config.training.eval_batches, self._held_out.steps_per_epoch())
        for index in range(count):
            loss, events = self._held_out_loss(to_arrays(self._held_out.batch(index)))
            total += loss.item()
            weight += events.item()
        return {"val_loss": total / weight}

    def write_sample(self, folder: Path, step: int) -> None:
        """Write a piece under one of four emotions, in turn by evaluation."""
        turn = step // self.config.training.eval_every % len(SAMPLE_EMOTIONS)
        ids = generate(
            self.model,
            self.config.sampling,
            self.config.training.sample_seconds,
            seed=step,
            emotion=Emotion.of(*SAMPLE_EMOTIONS[turn]),
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_midi(decode(ids), folder / f"step-{step:06d}.mid")


def dataset_metadata(reader: ShardReader) -> dict[str, Any]:
    """What a checkpoint says about the data it learnt from."""
    description = reader.dataset
    return {
        "synthetic": bool(description["synthetic"]),
        "data_licences": description["licences"],
        "data_labels": description["labels_text"],
    }
