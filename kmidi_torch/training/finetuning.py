"""Fine-tuning in PyTorch: trains what a plan says, and judges what is gained and forgotten.

Plans, saves and adapters are those of `kmidi_mlx.training.finetuning`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.finetuning import (
    FinetunePlan,
    Losses,
    Memory,
    about_base,
    losses_of,
    original_music,
)
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.trainer import Outcome
from kmidi_torch.models import lora
from kmidi_torch.training.cloud_task import CloudTask
from kmidi_torch.training.device import DeviceOptions
from kmidi_torch.training.memory import memory_advice
from kmidi_torch.training.midi_task import MidiTask
from kmidi_torch.training.run import make_task, parameter_count, start_task, train_task

__all__ = ["finetune_model", "fuse"]

TunedTask = MidiTask | CloudTask


def finetune_model(
    plan: FinetunePlan,
    interruption: Interruption,
    announce: Callable[[str], None] = lambda line: None,
    options: DeviceOptions | None = None,
    processes: Processes = ALONE,
) -> tuple[Outcome, Memory | None]:
    """Fine-tune into a folder, which the caller of the leading process holds.

    Args:
        plan: of `plan_finetuning`, its data prepared.
        interruption: asks the run to stop at the next step.
        announce: called with lines about what is going to be trained.
        options: of the device; None: the best device, as it comes.
        processes: that train together.

    Returns:
        How the run ended; and what was gained and forgotten, None if it was interrupted.

    Raises:
        KmidiError: when base, data or save cannot be used, memory is too small, or training
            diverges.
    """
    options = options or DeviceOptions()
    path, name = processes.told(lambda: original_music(plan))
    with memory_advice(plan.config, plan.out):
        task = start_task(plan.config, options, processes)
        assert isinstance(task, TunedTask)
        task.metadata["base"] = processes.told(lambda: about_base(plan))
        began = time.monotonic()
        before = processes.told(lambda: losses_of(task, path))
        judging_seconds = time.monotonic() - began
        trained, weights = _trained(task), parameter_count(task)
        outcome = train_task(
            task,
            plan.out,
            plan.resume,
            interruption,
            announce,
            options,
            processes,
            trackers=plan.trackers,
            about=f"{trained:,} of them are trained ({100 * trained / weights:.1f} %)",
            # the best weights are judged like those of the base
            after_seconds=judging_seconds,
        )
        if outcome.reason == "interrupted":
            return outcome, None
        after = processes.told(lambda: _losses_of_best(task, plan, path))
    return outcome, Memory(task.loss_unit, before, after, name)


def _trained(task: TunedTask) -> int:
    """Return how many weights are trained; of adapters it must be theirs alone."""
    trained = {name: one for name, one in task.model.named_parameters() if one.requires_grad}
    if task.config.adapter.adapts:
        strangers = [name for name in trained if name.rpartition(".")[2] not in lora.LEARNT]
        if strangers or len(trained) != len(lora.adapter_weights(task.model)):
            raise AssertionError(f"trained beside the adapters: {strangers}")
    return sum(weight.numel() for weight in trained.values())


def _losses_of_best(task: TunedTask, plan: FinetunePlan, original: Path | None) -> Losses:
    _load_best(task, plan)
    return losses_of(task, original)


def _load_best(task: TunedTask, plan: FinetunePlan) -> None:
    adapts = plan.config.adapter.adapts
    path = plan.out / checkpoint.names_of(adapts).weights
    if not path.exists():
        raise KmidiError(f"{plan.out} has no weights to use: no evaluation gave a number.")
    arrays, _ = checkpoint.load_arrays(path)
    if adapts:
        lora.load_adapter(task.model, arrays)
    else:
        # torch makes its own copies: numpy's arrays may be views of a file that is read only
        task.model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})


def fuse(plan: FinetunePlan, out: Path) -> Path:
    """Write a checkpoint of its own that computes what the base computes with its adapters.

    Args:
        plan: of a run that trained adapters and is done.
        out: folder to write to.

    Returns:
        The file.

    Raises:
        KmidiError: when the run left no adapters.
    """
    task = make_task(plan.config, torch.device("cpu"))
    assert isinstance(task, TunedTask)
    _load_best(task, plan)
    _, metadata = checkpoint.load_arrays(plan.out / checkpoint.ADAPTER)
    lora.fuse_all(task.model)
    metadata["config"] = config_to_dict(replace(plan.config, adapter=AdapterConfig()))
    arrays = {name: value.detach().numpy() for name, value in task.model.named_parameters()}
    path = out / checkpoint.BEST
    checkpoint.save_arrays(path, arrays, metadata)
    return path
