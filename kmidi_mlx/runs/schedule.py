"""The learning-rate schedule: linear warm-up, then a cosine down to a share of the peak."""

from __future__ import annotations

import math

from kmidi_mlx.config import OptimizerConfig


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of one optimiser step (Loshchilov and Hutter 2017, arXiv 1608.03983).

    Args:
        step: index of the step, from 0.
        total_steps: steps of the whole run; past them the final rate holds.
        config: peak, warm-up steps and final share.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    share = config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine
    return config.learning_rate * share
