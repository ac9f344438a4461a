"""Training SpectocloudViT on prepared clouds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from kmidi_mlx.config import SpectocloudConfig
from kmidi_mlx.data.batches import ADVICE
from kmidi_mlx.data.cloud_batches import CloudBatch, CloudBatches
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud.picture import draw, write_png
from kmidi_mlx.training.cloud_losses import CloudLoss, cloud_losses
from kmidi_mlx.training.step import Batch
from kmidi_mlx.training.trainer import Numbers

_SAMPLE_SIZE = (640, 480)


def to_arrays(batch: CloudBatch) -> Batch:
    """Hand a numpy batch to MLX."""
    names = ("windows", "features", "emotion", "clouds", "point_indices", "weights")
    return {name: mx.array(getattr(batch, name)) for name in names}


def clouds_of(model: nn.Module, batch: Batch) -> mx.array:
    """Clouds `(batch, points, 10)` of the batch's points in fp32."""
    constants = model.constants(batch["point_indices"])
    return model(batch["windows"], batch["features"], batch["emotion"], constants)


class CloudTask:
    """Spectocloud as something `Trainer` can train.

    Args:
        config: the run.
        reader: prepared clouds with a train and a val split.

    Raises:
        KmidiError: when a split is empty.
    """

    unit = "clouds"
    loss_unit = "loss per cloud"

    def __init__(self, config: SpectocloudConfig, reader: CloudReader) -> None:
        training = config.training
        for split in ("train", "val"):
            if not len(reader.split(split)):
                raise KmidiError(f"{reader.folder} has no clouds in {split!r}; {ADVICE[split]}.")
        self.config = config
        self.model = SpectocloudViT(config.model)
        self.model.initialise(training.seed)
        self.model.checkpoint_blocks = training.gradient_checkpointing
        points = config.data.points
        self._batches = CloudBatches(reader, "train", training.batch_size, training.seed, points)
        self._held_out = CloudBatches(reader, "val", training.batch_size, training.seed, points)
        self.steps_per_epoch = self._batches.steps_per_epoch(training.grad_accum_steps)
        self.positions = training.batch_size
        self.metadata: dict[str, Any] = {
            "synthetic": bool(reader.dataset["synthetic"]),
            "data_licences": reader.dataset["licences"],
        }
        self._held_out_losses = mx.compile(
            lambda batch: self._weighted(self._losses(self.model, batch), batch["weights"]),
            inputs=[self.model.state],
        )

    @contextmanager
    def stream(self, first: int) -> Iterator[Iterator[Batch]]:
        """Micro-batches from `first` on, made ahead by a background thread."""
        with self._batches.prefetch(first, self.config.data.prefetch) as batches:
            yield map(to_arrays, batches)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed loss and number of clouds."""
        losses = self._losses(model, batch).total(self.config.loss)
        return mx.sum(losses * batch["weights"]), mx.sum(batch["weights"])

    def evaluate(self) -> Numbers:
        """Loss and Chamfer distance per cloud on held-out songs."""
        sums, weight = np.zeros(2), 0.0
        count = min(self.config.training.eval_batches, self._held_out.steps_per_epoch())
        for index in range(count):
            loss, chamfer, clouds = self._held_out_losses(to_arrays(self._held_out.batch(index)))
            sums += loss.item(), chamfer.item()
            weight += clouds.item()
        loss, chamfer = sums / weight
        return {"val_loss": float(loss), "val_chamfer": float(chamfer)}

    def write_sample(self, folder: Path, step: int) -> None:
        """Draw a held-out frame, the teacher's cloud left and the network's right."""
        turn = step // self.config.training.eval_every
        batch = self._held_out.batch(turn % self._held_out.steps_per_epoch())
        arrays = to_arrays(batch)
        made = np.array(
            clouds_of(
                self.model,
                {
                    name: value[:2] if name != "point_indices" else value
                    for name, value in arrays.items()
                },
            )
        )
        pictures = [draw(cloud, size=_SAMPLE_SIZE) for cloud in (batch.clouds[0], made[0])]
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"step-{step:06d}.png", np.concatenate(pictures, axis=1))

    def _losses(self, model: nn.Module, batch: Batch) -> CloudLoss:
        return cloud_losses(clouds_of(model, batch), batch["clouds"], self.config.loss)

    def _weighted(self, losses: CloudLoss, weights: mx.array) -> tuple[mx.array, ...]:
        total = losses.total(self.config.loss)
        return mx.sum(total * weights), mx.sum(losses.chamfer * weights), mx.sum(weights)
