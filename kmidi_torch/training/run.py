"""A training run in PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

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
from kmidi_torch.training.cloud_task import CloudTask
from kmidi_torch.training.device import (
    DeviceOptions,
    choose_device,
    describe_device,
    has_slow_half,
    prepare_device,
)
from kmidi_torch.training.distributed import local_rank
from kmidi_torch.training.emotion_task import EmotionTask
from kmidi_torch.training.memory import memory_advice
from kmidi_torch.training.midi_task import MidiTask
from kmidi_torch.training.step import TrainStep

AnyTask = MidiTask | CloudTask | EmotionTask


def train_model(
    config: RunConfig,
    folder: Path,
    resume: bool,
    interruption: Interruption,
    announce: Callable[[str], None] = lambda line: None,
    options: DeviceOptions | None = None,
    processes: Processes = ALONE,
    trackers: Sequence[str] = (),
) -> Outcome:
    """Train a model into a checkpoint folder, which the caller of the leading process holds.

    Args:
        config: the run; saved beside the weights.
        folder: checkpoint folder.
        resume: go on from its last save, or from the start when it was cut short before the first.
        interruption: asks the run to stop at the next step.
        announce: called with a line about what is going to be trained.
        options: of the device; None: the best device, as it comes.
        processes: that train together.
        trackers: names, as `check_trackers` returned them; the leading process has them.

    Raises:
        KmidiError: when data or save cannot be used, memory is too small, or training diverges.
    """
    options = options or DeviceOptions()
    with memory_advice(config, folder):
        task = start_task(config, options, processes)
        return train_task(
            task, folder, resume, interruption, announce, options, processes, trackers
        )


def start_task(config: RunConfig, options: DeviceOptions, processes: Processes = ALONE) -> AnyTask:
    """Set up the device that is asked for, and make the model and data of a run there.

    Raises:
        KmidiError: when there is no such device, the data cannot be used, or memory is too small.
    """
    device = choose_device(options.name, local_rank())
    prepare_device(device, options, config.training.memory_gb)
    made: list[AnyTask] = []
    # first in one process: what it makes on disk is made once, what is wrong is told once
    processes.told(lambda: made.append(make_task(config, device, processes)))
    task = made[0] if made else make_task(config, device, processes)
    if device.type != "cuda":
        # a GPU says what it lacks, a host kills
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        available = int(config.training.memory_gb * 1e9) or physical_bytes()
        trained = sum(one.numel() for one in task.model.parameters() if one.requires_grad)
        require_memory(config, parameter_count(task), available // beside, trained)
    return task


def train_task(
    task: AnyTask,
    folder: Path,
    resume: bool,
    interruption: Interruption,
    announce: Callable[[str], None],
    options: DeviceOptions,
    processes: Processes = ALONE,
    trackers: Sequence[str] = (),
    about: str = "",
    after_seconds: float = 0.0,
) -> Outcome:
    """Train what `start_task` returned; arguments as of `train_model`.

    Args:
        about: what else to announce.
        after_seconds: as of `Trainer`.
    """
    compiled = options.compiles_on(task.device)
    place = describe_device(task.device)
    if processes.count > 1:
        place = f"{processes.count} processes, this one on {place}"
    announcement = describe_run(
        task.config,
        parameter_count(task),
        task.steps_per_epoch,
        place,
        has_slow_half(task.device, task.config.training.precision),
        "; ".join(filter(None, [about, "the first step compiles" if compiled else ""])),
    )
    step = make_step(task, processes, compiled)
    return run_task(
        task,
        step,
        folder,
        resume,
        interruption,
        announcement,
        announce,
        processes,
        trackers,
        after_seconds,
    )


def parameter_count(task: AnyTask) -> int:
    """Number of weights of a task's model, trained or not."""
    return sum(weight.numel() for weight in task.model.parameters())


def make_task(config: RunConfig, device: torch.device, processes: Processes = ALONE) -> AnyTask:
    """The model and data of a run.

    Raises:
        KmidiError: when the data cannot be used.
    """
    if isinstance(config, MidiGeneratorConfig):
        return MidiTask(config, ShardReader(config.data.path), device, processes)
    if isinstance(config, SpectocloudConfig):
        return CloudTask(config, CloudReader(Path(config.data.path)), device, processes)
    if isinstance(config, EmotionRecognizerConfig):
        return EmotionTask(config, open_recordings(config), device, processes)
    raise TypeError(f"there is no task for {type(config).__name__}")


def make_step(task: AnyTask, processes: Processes = ALONE, compiled: bool = False) -> TrainStep:
    """The optimiser step of a task."""
    config = task.config
    return TrainStep(
        task.model,
        task.loss_sum,
        config.optimizer,
        config.training,
        task.positions,
        processes,
        compiled,
    )
