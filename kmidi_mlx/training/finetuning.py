"""Fine-tuning in MLX: trains what a plan says, and judges what is gained and forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.blas import blas_name
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.quantization import dequantized
from kmidi_mlx.runs.finetuning import FinetunePlan, Memory, about_base, losses_of, original_music
from kmidi_mlx.runs.memory import physical_bytes, require_memory
from kmidi_mlx.runs.run import describe_run, run_task
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training.cloud_task import CloudTask
from kmidi_mlx.training.midi_task import MidiTask
from kmidi_mlx.training.run import make_step, make_task

__all__ = ["finetune_model", "fuse"]

TunedTask = MidiTask | CloudTask


def finetune_model(
    plan: FinetunePlan,
    interruption: Interruption,
    announce: Callable[[str], None] = lambda line: None,
) -> tuple[Outcome, Memory | None]:
    """Fine-tune into a folder, which the caller holds.

    Args:
        plan: of `plan_finetuning`, its data prepared.
        interruption: asks the run to stop at the next step.
        announce: called with lines about what is going to be trained.

    Returns:
        How the run ended; and what was gained and forgotten, None if it was interrupted.

    Raises:
        KmidiError: when base, data or save cannot be used, memory is too small, or training
            diverges.
    """
    config = plan.config
    if config.training.memory_gb > 0:
        mx.set_memory_limit(int(config.training.memory_gb * 1e9))
    path, name = original_music(plan)
    task = make_task(config)
    assert isinstance(task, TunedTask)
    task.metadata["base"] = about_base(plan)
    began = time.monotonic()
    before = losses_of(task, path)
    judging_seconds = time.monotonic() - began
    weights = sum(array.size for _, array in tree_flatten(task.model.parameters()))
    available = int(config.training.memory_gb * 1e9) or physical_bytes()
    trained = _trained(task)
    require_memory(config, weights, available, trained)
    on_cpu = mx.default_device().type != mx.DeviceType.gpu
    place = f"the CPU ({blas_name()})" if on_cpu else "the GPU"
    share = f"{trained:,} of them are trained ({100 * trained / weights:.1f} %)"
    announcement = describe_run(config, weights, task.steps_per_epoch, place, on_cpu, share)
    step = make_step(task)
    outcome = run_task(
        task,
        step,
        plan.out,
        plan.resume,
        interruption,
        announcement,
        announce,
        trackers=plan.trackers,
        # the best weights are judged like those of the base
        after_seconds=judging_seconds,
    )
    if outcome.reason == "interrupted":
        return outcome, None
    _load_best(task, plan)
    return outcome, Memory(task.loss_unit, before, losses_of(task, path), name)


def _trained(task: TunedTask) -> int:
    """Return how many weights are trained; of adapters it must be theirs alone."""
    trained = dict(tree_flatten(task.model.trainable_parameters()))
    if task.config.adapter.adapts:
        strangers = [name for name in trained if name.rpartition(".")[2] not in lora.LEARNT]
        if strangers or len(trained) != len(lora.adapter_weights(task.model)):
            raise AssertionError(f"trained beside the adapters: {strangers}")
    return sum(array.size for array in trained.values())


def _load_best(task: TunedTask, plan: FinetunePlan) -> None:
    adapts = plan.config.adapter.adapts
    path = plan.out / checkpoint.names_of(adapts).weights
    if not path.exists():
        raise KmidiError(f"{plan.out} has no weights to use: no evaluation gave a number.")
    arrays, _ = checkpoint.load_arrays(path)
    if adapts:
        lora.load_adapter(task.model, arrays)
    else:
        task.model.load_weights([(name, mx.array(array)) for name, array in arrays.items()])


def fuse(plan: FinetunePlan, out: Path) -> Path:
    """Write a checkpoint of its own that computes what the base computes with its adapters.

    Args:
        plan: of a run that is done.
        out: folder to write to.

    Returns:
        The file.

    Raises:
        KmidiError: when the run trained no adapters, or left none.
    """
    if not plan.config.adapter.adapts:
        raise KmidiError(f"{plan.out} is a checkpoint of its own; there is nothing to fuse.")
    config = plan.config
    # whatever it was trained in, what is written is exact and plain
    exact = replace(config, training=replace(config.training, precision="fp32"))
    task = make_task(exact)
    assert isinstance(task, TunedTask)
    _load_best(task, plan)
    _, metadata = checkpoint.load_arrays(plan.out / checkpoint.ADAPTER)
    lora.fuse_all(task.model)
    metadata["config"] = config_to_dict(replace(config, adapter=AdapterConfig()))
    arrays = {name: np.array(value) for name, value in tree_flatten(task.model.parameters())}
    like = tree_flatten(type(task.model)(config.model).parameters())
    path = out / checkpoint.BEST
    plain, _ = dequantized(arrays, {name: value.shape for name, value in like}, path)
    checkpoint.save_arrays(path, plain, metadata)
    return path
