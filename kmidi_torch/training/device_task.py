"""What every task has in PyTorch: a device, and batches that go there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import HostTask
from kmidi_torch.models import lora
from kmidi_torch.training.step import Batch, stage_arrays, to_device


class DeviceTask(HostTask):
    """To be put in front of the host part of a task, whose arguments it takes.

    Args:
        config: the run.
        source: of its data, as the host part takes it.
        device: where the network is and batches go.
        processes: that share the batches.
    """

    def __init__(
        self, config: Any, source: Any, device: torch.device, processes: Processes = ALONE
    ) -> None:
        self.device = device
        # the next class in line is the host part of one model
        super().__init__(config, source, processes)  # type: ignore[arg-type, call-arg]

    def stage(self, batch: Any) -> Batch:
        """Make a batch ready for the device."""
        return stage_arrays(super().stage(batch), self.device)

    def to_device(self, staged: Any) -> Batch:
        """Hand a batch to the device."""
        return to_device(staged, self.device)

    def draw_dropout(self, rng: np.random.Generator) -> None:
        """Draw which inputs the adapters of the model drop."""
        lora.draw_dropout(self.model, rng)
