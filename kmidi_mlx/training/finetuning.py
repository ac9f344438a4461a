"""Fine-tuning in MLX: trains what a plan says, and judges what is gained and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint
from kmidi_mlx.blas import blas_name
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models import lora
from kmidi_mlx.runs.finetuning import FinetunePlan, Losses, Memory, original_music
from kmidi_mlx.runs.memory import physical_bytes, require_memory
from kmidi_mlx.runs.run import describe_run, run_task
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training.cloud_task import CloudTask
from kmidi_mlx.training.first_model import digest_of
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
    digest = digest_of(task.model)
    task.metadata["base"] = {"name": Path(config.adapter.base).name, "digest": digest}
    before = _losses(task, path)
    weights = sum(array.size for _, array in tree_flatten(task.model.parameters()))
    available = int(config.training.memory_gb * 1e9) or physical_bytes()
    require_memory(config, weights, available)
    on_cpu = mx.default_device().type != mx.DeviceType.gpu
    place = f"the CPU ({blas_name()})" if on_cpu else "the GPU"
    announcement = describe_run(
        config, weights, task.steps_per_epoch, place, on_cpu, _trained(task, weights)
    )
    step = make_step(task)
    outcome = run_task(task, step, plan.out, plan.resume, interruption, announcement, announce)
    if outcome.reason == "interrupted":
        return outcome, None
    _load_best(task, plan)
    return outcome, Memory(task.loss_unit, before, _losses(task, path), name)


def _trained(task: TunedTask, weights: int) -> str:
    """Say how many weights are trained; of adapters it must be theirs alone."""
    trained = dict(tree_flatten(task.model.trainable_parameters()))
    if task.config.adapter.adapts:
        strangers = [name for name in trained if name.rpartition(".")[2] not in lora.LEARNT]
        if strangers or len(trained) != len(lora.adapter_weights(task.model)):
            raise AssertionError(f"trained beside the adapters: {strangers}")
    count = sum(array.size for array in trained.values())
    return f"{count:,} of them are trained ({100 * count / weights:.1f} %)"


def _losses(task: TunedTask, original: Path | None) -> Losses:
    task.model.eval()
    own = task.evaluate()["val_loss"]
    kept = task.evaluate(task.batches_of(original))["val_loss"] if original else None
    task.model.train()
    return Losses(own, kept)


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
    import numpy as np

    if not plan.config.adapter.adapts:
        raise KmidiError(
            f"{plan.out} is a checkpoint of its own; there is nothing to fuse."
        )
    task = make_task(plan.config)
    assert isinstance(task, TunedTask)
    _load_best(task, plan)
    _, metadata = checkpoint.load_arrays(plan.out / checkpoint.ADAPTER)
    lora.fuse_all(task.model)
    plain = config_to_dict(type(plan.config)())["adapter"]
    metadata["config"] = {**metadata["config"], "adapter": plain}
    arrays = {name: np.array(value) for name, value in tree_flatten(task.model.parameters())}
    path = out / checkpoint.BEST
    checkpoint.save_arrays(path, arrays, metadata)
    return path
