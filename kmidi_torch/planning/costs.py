"""Hours and dollars of runs on a rented machine, and what fits into a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kmidi_torch.planning.prices import Billing
from kmidi_torch.planning.speed import Speed
from kmidi_torch.planning.work import Work

__all__ = [
    "EXPORT_MINUTES", "START_MINUTES", "Cost", "Job", "cost_of", "fitting_steps", "gpus_of",
    "training_seconds",
]  # fmt: skip

#: Minutes until the first step: renting, installing, copying the data. ASSUMED.
START_MINUTES = 15.0
#: Minutes of an export to ONNX with its proof, as measured on two cores of a CPU.
EXPORT_MINUTES = {"midi_generator": 5.0, "spectocloud": 1.0}


@dataclass(frozen=True)
class Job:
    """A run and the speed of one GPU at it."""

    work: Work
    speed: Speed


@dataclass(frozen=True)
class Cost:
    """Hours that are paid for, on how many GPUs, and dollars for all of them."""

    hours: float
    gpus: int
    dollars: float


def gpus_of(wanted: int, machine: int) -> int:
    """GPUs that have to be rented to have `wanted`, in machines of `machine`."""
    return math.ceil(wanted / machine) * machine


def training_seconds(job: Job, steps: int, gpus: int, pace: str = "likely") -> float:
    """Return what the steps and evaluations of a run take, arguments as of `cost_of`."""
    units = steps * job.work.units_per_step * (1 + job.work.evaluation_share)
    return units / float(getattr(job.speed, pace) * gpus)


def cost_of(
    jobs: Sequence[Job],
    steps: Sequence[int],
    gpus: int,
    usd_per_gpu_hour: float,
    billing: Billing,
    pace: str = "likely",
) -> Cost:
    """Return what runs cost that follow one another on one machine.

    Args:
        jobs: the runs, one of each model.
        steps: optimiser steps of each, as one GPU makes them.
        gpus: that share the work; ASSUMED to lose nothing by it.
        usd_per_gpu_hour: price.
        billing: of the provider.
        pace: `slow`, `likely` or `quick`.
    """
    seconds = 60 * START_MINUTES
    for job, count in zip(jobs, steps, strict=True):
        seconds += training_seconds(job, count, gpus, pace)
        seconds += 60 * EXPORT_MINUTES[job.work.model]
    hours = billing.billed(seconds) / 3600
    return Cost(hours, gpus, hours * gpus * usd_per_gpu_hour)


def fitting_steps(
    jobs: Sequence[Job], gpus: int, usd_per_gpu_hour: float, billing: Billing, budget: float
) -> list[int] | None:
    """Return the most steps of each run that a budget pays for even at the slow end.

    Runs are shortened by the same share.

    Returns:
        Steps of each; all of them where the budget is enough; None where it does not pay for one.
    """
    most = max(job.work.steps for job in jobs)

    def shortened(share: int) -> list[int]:
        return [share * job.work.steps // most for job in jobs]

    def fits(share: int) -> bool:
        cost = cost_of(jobs, shortened(share), gpus, usd_per_gpu_hour, billing, "slow")
        return cost.dollars <= budget

    low, high = 0, most + 1  # of shares, the largest that fits is in [low, high)
    if not fits(0):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    steps = shortened(low)
    return steps if min(steps) > 0 else None
