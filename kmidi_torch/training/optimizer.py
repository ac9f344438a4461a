"""The optimisers in PyTorch, and their state as MLX keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kmidi_mlx.config import OptimizerConfig
from kmidi_mlx.optimizer_groups import GROUPS, group_of
from kmidi_mlx.torch_file import Arrays

# names of what is remembered, here and in the file
_MEMORIES = {
    torch.optim.AdamW: {"exp_avg": "m", "exp_avg_sq": "v"},
    torch.optim.Muon: {"momentum_buffer": "v"},
}


class GroupedOptimizer:
    """AdamW, or Muon and AdamW; the groups are those of `kmidi_mlx.optimizer_groups`.

    Args:
        weights: what is trained, by name; changed in place.
        config: the run's settings.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: OptimizerConfig) -> None:
        self._weights = weights
        count = len(GROUPS[config.name])
        groups: list[list[str]] = [[] for _ in range(count)]
        for name, weight in weights.items():
            groups[group_of(config.name, name, weight.ndim)].append(name)
        # optimisers in the order of their groups, each with the names in its own groups
        self._parts: list[tuple[torch.optim.Optimizer, list[list[str]]]] = []
        if config.name == "muon":
            muon = torch.optim.Muon(
                [weights[name] for name in groups[0]],
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
            self._parts.append((muon, groups[:1]))
        adamw = torch.optim.AdamW(
            [
                {"params": [weights[name] for name in names], "weight_decay": decay}
                for names, decay in zip(groups[-2:], (config.weight_decay, 0.0), strict=True)
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        self._parts.append((adamw, groups[-2:]))
        self._load(0, {})

    @property
    def _groups(self) -> list[tuple[torch.optim.Optimizer, dict[str, Any], list[str]]]:
        """Of every group its optimiser, its settings there and its names."""
        return [
            (optimizer, settings, names)
            for optimizer, groups in self._parts
            for settings, names in zip(optimizer.param_groups, groups, strict=True)
        ]

    def step(self, learning_rate: float) -> None:
        """Move the weights by their gradients."""
        for _, settings, _ in self._groups:
            settings["lr"] = learning_rate
        for optimizer, _ in self._parts:
            optimizer.step()
        self.steps += 1

    def state_arrays(self) -> Arrays:
        """Everything a resume needs, flat and named as in MLX."""
        arrays: Arrays = {}
        for index, (optimizer, settings, names) in enumerate(self._groups):
            prefix = f"optimizer.states.{index}"
            arrays[f"{prefix}.step"] = np.array(self.steps, np.uint64)
            arrays[f"{prefix}.learning_rate"] = np.array(settings["lr"], np.float32)
            for name in names:
                memory = optimizer.state[self._weights[name]]
                for own, short in _MEMORIES[type(optimizer)].items():
                    arrays[f"{prefix}.{name}.{short}"] = memory[own].cpu().numpy()
        return arrays

    def load_state_arrays(self, arrays: Mapping[str, Any]) -> None:
        """Take over arrays made by `state_arrays` of an equal configuration, in any framework."""
        for _, settings, _ in self._groups:
            settings["lr"] = float(arrays["optimizer.states.0.learning_rate"])
        self._load(int(arrays["optimizer.states.0.step"]), arrays)

    def _load(self, steps: int, arrays: Mapping[str, Any]) -> None:
        """Set the state; what is not among the arrays is zero."""
        self.steps = steps
        index = 0
        for optimizer, groups in self._parts:
            state = optimizer.state_dict()
            number = 0
            for names in groups:
                for name in names:
                    weight = self._weights[name]
                    memory: dict[str, Tensor] = {"step": torch.tensor(float(steps))}
                    for own, short in _MEMORIES[type(optimizer)].items():
                        saved = arrays.get(f"optimizer.states.{index}.{name}.{short}")
                        zeros = torch.zeros_like(weight, memory_format=torch.preserve_format)
                        memory[own] = zeros if saved is None else torch.tensor(saved)
                    state["state"][number] = memory
                    number += 1
                index += 1
            # puts every tensor where the optimiser wants it
            optimizer.load_state_dict(state)
