"""When things happen in a run: learning rates, evaluations, saves, the earliest end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kmidi_mlx.config import OptimizerConfig, RunConfig


@dataclass(frozen=True)
class Pace:
    """A run's settings in steps, once it is known how many make an epoch.

    Attributes:
        total_steps: of the whole run.
        least_steps: before which patience does not stop it.
        eval_every, save_every: steps between evaluations and saves.
        optimizer: with the warm-up in steps.
    """

    total_steps: int
    least_steps: int
    eval_every: int
    save_every: int
    optimizer: OptimizerConfig


def pace_of(config: RunConfig, steps_per_epoch: int) -> Pace:
    """Return the pace of a run with so many steps an epoch."""
    training, optimizer = config.training, config.optimizer
    warmup = optimizer.warmup_steps
    if optimizer.warmup_epochs:
        warmup = math.ceil(optimizer.warmup_epochs * steps_per_epoch)
    return Pace(
        total_steps=min(training.max_steps, training.epochs * steps_per_epoch),
        least_steps=training.min_epochs * steps_per_epoch,
        eval_every=training.eval_epochs * steps_per_epoch or training.eval_every,
        save_every=training.save_epochs * steps_per_epoch or training.save_every,
        optimizer=replace(optimizer, warmup_steps=warmup),
    )


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of a step: linear warm-up, then cosines down to a share of the peak.

    Loshchilov and Hutter 2017 (arXiv 1608.03983), with cycles of equal length.

    Args:
        step: index of the step, from 0.
        total_steps: steps of the whole run; past them the final rate holds.
        config: peak, warm-up steps, restarts and final share.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    cycles = (config.restarts + 1) * (step - config.warmup_steps) / span
    progress = 1.0 if cycles >= config.restarts + 1 else cycles % 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    share = config.final_lr_fraction + (1.0 - config.final_lr_fraction) * cosine
    return config.learning_rate * share
