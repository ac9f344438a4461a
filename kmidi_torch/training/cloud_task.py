"""Training SpectocloudViT on prepared clouds, in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kmidi_mlx.runs.cloud_task import HostCloudTask
from kmidi_torch.loading import load_spectocloud
from kmidi_torch.models.spectocloud_vit import SpectocloudViT
from kmidi_torch.training.cloud_losses import CloudLoss, cloud_losses
from kmidi_torch.training.device_task import DeviceTask
from kmidi_torch.training.first_model import first_model
from kmidi_torch.training.step import Batch


def clouds_of(model: nn.Module, batch: Batch) -> Tensor:
    """Clouds `(batch, points, 10)` of the batch's points in fp32."""
    constants = model.constants(batch["point_indices"])
    return model(batch["windows"], batch["features"], batch["emotion"], constants)


class CloudTask(DeviceTask, HostCloudTask):
    """Spectocloud as something `Trainer` can train; arguments as of `DeviceTask`."""

    def build(self) -> SpectocloudViT:
        """Make the network of `config` with its first weights."""
        model = first_model(self.config, SpectocloudViT, load_spectocloud)
        model.checkpoint_blocks = self.config.training.gradient_checkpointing
        return model.to(self.device)

    def loss_sum(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and number of clouds."""
        losses = self._losses(model, batch).total(self.config.loss)
        return torch.sum(losses * batch["weights"]), torch.sum(batch["weights"])

    @torch.no_grad()
    def held_out_sums(self, batch: Batch) -> tuple[float, ...]:
        """Summed loss, summed Chamfer distance, and number of clouds."""
        sums = self._weighted(self._losses(self.model, batch), batch["weights"])
        return tuple(value.item() for value in sums)

    @torch.no_grad()
    def drawn(self, batch: Batch) -> NDArray[np.float32]:
        """Clouds `(batch, points, 10)` that the model draws as it stands."""
        return clouds_of(self.model, batch).cpu().numpy()

    def _losses(self, model: nn.Module, batch: Batch) -> CloudLoss:
        return cloud_losses(clouds_of(model, batch), batch["clouds"], self.config.loss)

    def _weighted(self, losses: CloudLoss, weights: Tensor) -> tuple[Tensor, ...]:
        total = losses.total(self.config.loss)
        return torch.sum(total * weights), torch.sum(losses.chamfer * weights), torch.sum(weights)
