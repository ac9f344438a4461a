"""Training SpectocloudViT on prepared clouds, in MLX."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx import nn
from numpy.typing import NDArray

from kmidi_mlx.config import SpectocloudConfig
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.models.loading import load_spectocloud
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.runs.cloud_task import HostCloudTask
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.training.cloud_losses import CloudLoss, cloud_losses
from kmidi_mlx.training.device_task import DeviceTask
from kmidi_mlx.training.first_model import first_model
from kmidi_mlx.training.step import Batch


def clouds_of(model: nn.Module, batch: Batch) -> mx.array:
    """Clouds `(batch, points, 10)` of the batch's points in fp32."""
    constants = model.constants(batch["point_indices"])
    return model(batch["windows"], batch["features"], batch["emotion"], constants)


class CloudTask(DeviceTask, HostCloudTask):
    """Spectocloud as something `Trainer` can train; arguments as of `HostCloudTask`."""

    def __init__(
        self, config: SpectocloudConfig, reader: CloudReader, processes: Processes = ALONE
    ) -> None:
        super().__init__(config, reader, processes)
        self._held_out_losses = mx.compile(
            lambda batch: self._weighted(self._losses(self.model, batch), batch["weights"]),
            inputs=[self.model.state],
        )

    def build(self) -> SpectocloudViT:
        """Make the network of `config` with its first weights."""
        model = first_model(self.config, SpectocloudViT, load_spectocloud)
        model.checkpoint_blocks = self.config.training.gradient_checkpointing
        return model

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
        """Summed loss and number of clouds."""
        losses = self._losses(model, batch).total(self.config.loss)
        return mx.sum(losses * batch["weights"]), mx.sum(batch["weights"])

    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed loss, summed Chamfer distance, and number of clouds."""
        return tuple(value.item() for value in self._held_out_losses(batch))

    def drawn(self, batch: Batch) -> NDArray[np.float32]:
        """Clouds `(batch, points, 10)` that the model draws as it stands."""
        return np.array(clouds_of(self.model, batch))

    def _losses(self, model: nn.Module, batch: Batch) -> CloudLoss:
        return cloud_losses(clouds_of(model, batch), batch["clouds"], self.config.loss)

    def _weighted(self, losses: CloudLoss, weights: mx.array) -> tuple[mx.array, ...]:
        total = losses.total(self.config.loss)
        return mx.sum(total * weights), mx.sum(losses.chamfer * weights), mx.sum(weights)
