"""The optimisers in MLX."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import optimizers

from kmidi_mlx.config import OptimizerConfig
from kmidi_mlx.optimizer_groups import GROUPS, group_of, muon_step_size


class Muon(optimizers.Muon):
    """Muon with decoupled weight decay and steps as large as AdamW's."""

    def __init__(self, learning_rate: float, momentum: float, weight_decay: float) -> None:
        super().__init__(learning_rate=learning_rate, momentum=momentum, weight_decay=0.0)
        self._decoupled_decay = weight_decay

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, Any]) -> Any:
        """Return the moved matrix."""
        rows, columns = gradient.shape
        # the library's own scale of a tall matrix is undone
        size = muon_step_size(rows, columns) / max(1.0, rows / columns) ** 0.5
        moved = super().apply_single(gradient, mx.zeros_like(parameter), state)
        return parameter * (1 - self.learning_rate * self._decoupled_decay) + size * moved


def make_optimizer(config: OptimizerConfig) -> optimizers.MultiOptimizer:
    """Make the optimiser of a run; its groups are those of `kmidi_mlx.optimizer_groups`."""

    def adamw(weight_decay: float) -> optimizers.AdamW:
        return optimizers.AdamW(
            learning_rate=config.learning_rate,
            betas=[config.beta1, config.beta2],
            eps=config.eps,
            weight_decay=weight_decay,
            bias_correction=True,
        )

    groups: list[optimizers.Optimizer] = [adamw(config.weight_decay), adamw(0.0)]
    if config.name == "muon":
        groups.insert(0, Muon(config.learning_rate, config.momentum, config.weight_decay))

    def is_in(group: int) -> Any:
        return lambda path, weight: group_of(config.name, path, weight.ndim) == group

    # what no filter takes is in the last group
    return optimizers.MultiOptimizer(
        groups, [is_in(group) for group in range(len(GROUPS[config.name]) - 1)]
    )
