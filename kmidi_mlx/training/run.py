"""A training run in MLX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from kmidi_mlx.blas import blas_name
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.runs.emotion_task import open_recordings
from kmidi_mlx.runs.memory import physical_bytes, require_memory
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.run import describe_run, run_task
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training.cloud_task import CloudTask
from kmidi_mlx.training.distributed import processes_here
from kmidi_mlx.training.emotion_task import EmotionTask
from kmidi_mlx.training.midi_task import MidiTask
from kmidi_mlx.training.step import TrainStep

AnyTask = MidiTask | CloudTask | EmotionTask


def train_model(
    config: RunConfig,
    folder: Path,
    resume: bool,
    interruption: Interruption,
    announce: Callable[[str], None] = lambda line: None,
    trackers: Sequence[str] = (),
    processes: Processes = ALONE,
) -> Outcome:
    """Train a model into a checkpoint folder, which the caller of the leading process holds.

    Args:
        config: the run; saved beside the weights.
        folder: checkpoint folder.
        resume: go on from its last save, or from the start when it was cut short before the first.
        interruption: asks the run to stop at the next step.
        announce: called with a line about what is going to be trained.
        trackers: names, as `check_trackers` returned them.
        processes: that train together.

    Raises:
        KmidiError: when data or save cannot be used, memory is too small, or training diverges.
    """
    if config.training.memory_gb > 0:
        mx.set_memory_limit(int(config.training.memory_gb * 1e9))
    made: list[AnyTask] = []
    # first in one process: what it makes on disk is made once, what is wrong is told once
    processes.told(lambda: made.append(make_task(config, processes)))
    task = made[0] if made else make_task(config, processes)
    parameters = sum(array.size for _, array in tree_flatten(task.model.parameters()))
    available = int(config.training.memory_gb * 1e9) or physical_bytes()
    require_memory(config, parameters, available // processes_here())
    on_cpu = mx.default_device().type != mx.DeviceType.gpu
    place = f"the CPU ({blas_name()})" if on_cpu else "the GPU"
    if processes.count > 1:
        place = f"{processes.count} processes, this one on {place}"
    announcement = describe_run(
        config, parameters, task.steps_per_epoch, place, on_cpu, "the first step compiles"
    )
    return run_task(
        task,
        make_step(task, processes),
        folder,
        resume,
        interruption,
        announcement,
        announce,
        processes,
        trackers,
    )


def make_task(config: RunConfig, processes: Processes = ALONE) -> AnyTask:
    """The model and data of a run.

    Raises:
        KmidiError: when the data cannot be used.
    """
    if isinstance(config, MidiGeneratorConfig):
        return MidiTask(config, ShardReader(config.data.path), processes)
    if isinstance(config, SpectocloudConfig):
        return CloudTask(config, CloudReader(Path(config.data.path)), processes)
    if isinstance(config, EmotionRecognizerConfig):
        return EmotionTask(config, open_recordings(config), processes)
    raise TypeError(f"there is no task for {type(config).__name__}")


def make_step(task: AnyTask, processes: Processes = ALONE) -> TrainStep:
    """The optimiser step of a task."""
    config = task.config
    return TrainStep(
        task.model,
        task.loss_sum,
        config.optimizer,
        config.training,
        task.positions,
        processes,
    )
