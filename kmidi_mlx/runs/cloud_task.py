"""Training SpectocloudViT on prepared clouds: all but the network and its loss."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SpectocloudConfig
from kmidi_mlx.data.batches import ADVICE
from kmidi_mlx.data.cloud_batches import CloudBatches
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import Batches, HostTask, Numbers
from kmidi_mlx.spectocloud.picture import draw, write_png

_SAMPLE_SIZE = (640, 480)


class HostCloudTask(HostTask):
    """Spectocloud as something `Trainer` can train, without its network.

    Args:
        config: the run.
        reader: prepared clouds with a train and a val split.
        processes: that share the batches.

    Raises:
        KmidiError: when a split is empty.
    """

    unit = "clouds"
    loss_unit = "loss per cloud"
    names = ("windows", "features", "emotion", "clouds", "point_indices", "weights")

    def __init__(
        self, config: SpectocloudConfig, reader: CloudReader, processes: Processes = ALONE
    ) -> None:
        training, data = config.training, config.data
        for split in ("train", "val"):
            if not len(reader.split(split)):
                raise KmidiError(f"{reader.folder} has no clouds in {split!r}; {ADVICE[split]}.")
        self.config = config
        self.model = self.build()
        train, val = (
            CloudBatches(reader, split, training.batch_size, training.seed, data.points)
            for split in ("train", "val")
        )
        super().__init__(config, train, val, data.prefetch, processes)
        self.positions = training.batch_size
        self.metadata = {
            "synthetic": bool(reader.dataset["synthetic"]),
            "data_licences": reader.dataset["licences"],
        }

    @abstractmethod
    def build(self) -> Any:
        """Make the network of `config` with its first weights."""

    @abstractmethod
    def drawn(self, batch: Any) -> NDArray[np.float32]:
        """Clouds `(batch, points, 10)` that the model draws as it stands."""

    def batches_of(self, path: Path) -> CloudBatches:
        """Held-out clouds of other prepared songs."""
        training, reader = self.config.training, CloudReader(path)
        if not len(reader.split("val")):
            raise KmidiError(f"{path} has no clouds in 'val'; {ADVICE['val']}.")
        return CloudBatches(
            reader, "val", training.batch_size, training.seed, self.config.data.points
        )

    def evaluate(self, held_out: Batches | None = None) -> Numbers:
        """Loss and Chamfer distance per cloud on held-out songs, others if they are given."""
        loss, chamfer, clouds = self.held_out_totals(held_out)
        return {"val_loss": float(loss / clouds), "val_chamfer": float(chamfer / clouds)}

    def write_sample(self, folder: Path, step: int, turn: int) -> None:
        """Draw a held-out frame, the teacher's cloud left and the network's right."""
        batch = self.held_out.batch(turn % self.held_out.steps_per_epoch())
        first_pair = {
            name: value[:2] if name != "point_indices" else value
            for name, value in self.to_device(self.stage(batch)).items()
        }
        made = self.drawn(first_pair)
        pictures = [draw(cloud, size=_SAMPLE_SIZE) for cloud in (batch.clouds[0], made[0])]
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"step-{step:06d}.png", np.concatenate(pictures, axis=1))
