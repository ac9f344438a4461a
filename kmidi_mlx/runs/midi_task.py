"""Training EmotionMIDITransformer on prepared music: all but the network and its loss."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.data.batches import MidiBatches
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import Batches, HostTask, Numbers

# one sample emotion per quadrant, in turn
SAMPLE_EMOTIONS = ((0.7, 0.6), (-0.6, 0.7), (-0.7, -0.5), (0.6, -0.6))


class HostMidiTask(HostTask):
    """The MIDI generator as something `Trainer` can train, without its network.

    Args:
        config: the run.
        reader: prepared music with a train and a val split.
        processes: that share the batches.

    Raises:
        KmidiError: when a split is empty.
    """

    unit = "tokens"
    loss_unit = "nats per event"
    names = ("inputs", "targets", "weights", "emotion", "chords", "keys", "chord_index")

    def __init__(
        self, config: MidiGeneratorConfig, reader: ShardReader, processes: Processes = ALONE
    ) -> None:
        training, data = config.training, config.data
        self.config = config
        self.model = self.build()
        train, val = (
            MidiBatches(reader, split, data, training.batch_size, training.seed, augment)
            for split, augment in (("train", True), ("val", False))
        )
        super().__init__(config, train, val, data.prefetch, processes)
        self.positions = training.batch_size * data.sequence_length
        self.metadata = dataset_metadata(reader)

    @abstractmethod
    def build(self) -> Any:
        """Make the network of `config` with its first weights."""

    @abstractmethod
    def sample(self, seconds: float, seed: int, emotion: Emotion) -> NDArray[Any]:
        """Event ids `(n,)` of a piece that the model writes as it stands."""

    def batches_of(self, path: Path) -> MidiBatches:
        """Held-out windows of other prepared music."""
        training = self.config.training
        reader = ShardReader(path)
        return MidiBatches(
            reader, "val", self.config.data, training.batch_size, training.seed, augment=False
        )

    def evaluate(self, held_out: Batches | None = None) -> Numbers:
        """Nats per event on held-out windows, of other music if it is given."""
        loss, events = self.held_out_totals(held_out)
        return {"val_loss": float(loss / events)}

    def write_sample(self, folder: Path, step: int, turn: int) -> None:
        """Write a piece under one of four emotions, in turn by evaluation."""
        training = self.config.training
        emotion = Emotion.of(*SAMPLE_EMOTIONS[turn % len(SAMPLE_EMOTIONS)])
        ids = self.sample(training.sample_seconds, step, emotion)
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
