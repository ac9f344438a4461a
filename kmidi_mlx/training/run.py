"""A training run from its configuration to its checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint
from kmidi_mlx.blas import blas_name
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.config_file import save_config
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.training.cloud_task import CloudTask
from kmidi_mlx.training.emotion_task import EmotionTask, open_recordings
from kmidi_mlx.training.memory import physical_bytes, require_memory
from kmidi_mlx.training.midi_task import MidiTask
from kmidi_mlx.training.tracker import JsonLinesTracker
from kmidi_mlx.training.trainer import Outcome, Task, Trainer


def train_model(
    config: RunConfig,
    folder: Path,
    resume: bool,
    interruption: Interruption,
    announce: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train a model into a checkpoint folder, which the caller holds.

    Args:
        config: the run; saved beside the weights.
        folder: checkpoint folder.
        resume: go on from its last save, or from the start when it was cut short before the first.
        interruption: asks the run to stop at the next step.
        announce: called with a line about what is going to be trained.

    Raises:
        KmidiError: when data or save cannot be used, memory is too small, or training diverges.
    """
    if config.training.memory_gb > 0:
        mx.set_memory_limit(int(config.training.memory_gb * 1e9))
    task = make_task(config)
    parameters = sum(array.size for _, array in tree_flatten(task.model.parameters()))
    available = int(config.training.memory_gb * 1e9) or physical_bytes()
    require_memory(config, parameters, available)
    resume = resume and (folder / checkpoint.LAST).exists()
    trainer = Trainer(task, folder, resume)
    announce(_announcement(config, parameters, task.steps_per_epoch))
    save_config(config, folder / checkpoint.CONFIG)
    resume_step = trainer.progression.step if resume else None
    trainer.trackers.append(JsonLinesTracker(folder / checkpoint.METRICS, resume_step))
    return trainer.train(interruption)


def make_task(config: RunConfig) -> Task:
    """The model and data of a run.

    Raises:
        KmidiError: when the data cannot be used.
    """
    if isinstance(config, MidiGeneratorConfig):
        return MidiTask(config, ShardReader(config.data.path))
    if isinstance(config, SpectocloudConfig):
        return CloudTask(config, CloudReader(Path(config.data.path)))
    if isinstance(config, EmotionRecognizerConfig):
        return EmotionTask(config, open_recordings(config))
    raise TypeError(f"there is no task for {type(config).__name__}")


def _announcement(config: RunConfig, parameters: int, steps_per_epoch: int) -> str:
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    place = "the GPU" if on_gpu else f"the CPU ({blas_name()})"
    line = (
        f"{config.name}: {parameters / 1e6:.1f}M parameters, {steps_per_epoch} steps an epoch, "
        f"{config.training.precision} on {place}; the first step compiles"
    )
    if not on_gpu and config.training.precision != "fp32":
        line += "\nhint: half precision is slow on a CPU; add --set training.precision=fp32"
    steps = min(config.training.max_steps, config.training.epochs * steps_per_epoch)
    warmup = config.optimizer.warmup_steps
    if warmup > steps // 2:
        line += (
            f"\nhint: this run has {steps} steps and warms up for {warmup} of them; with so little "
            f"data add --set optimizer.warmup_steps={max(1, steps // 20)} and more training.epochs"
        )
    return line
