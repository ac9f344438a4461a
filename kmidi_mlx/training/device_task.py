"""What every task has in MLX: batches as its arrays, adapters of its network."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmidi_mlx.models import lora
from kmidi_mlx.runs.task import HostTask
from kmidi_mlx.training.step import Batch, to_arrays


class DeviceTask(HostTask):
    """To be put in front of the host part of a task, whose arguments it takes."""

    def to_device(self, staged: Any) -> Batch:
        """Hand numpy arrays to MLX."""
        return to_arrays(staged)

    def draw_dropout(self, rng: np.random.Generator) -> None:
        """Draw which inputs the adapters of the model drop."""
        lora.draw_dropout(self.model, rng)
