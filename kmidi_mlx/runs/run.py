"""A training run from its configuration to its checkpoint folder, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import RunConfig
from kmidi_mlx.config_file import save_config
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.schedule import pace_of
from kmidi_mlx.runs.task import Step, Task
from kmidi_mlx.runs.tracker import JsonLinesTracker
from kmidi_mlx.runs.trackers import open_trackers, where_to_look
from kmidi_mlx.runs.trainer import Outcome, Trainer

Announce = Callable[[str], None]


def run_task(
    task: Task,
    step: Step,
    folder: Path,
    resume: bool,
    interruption: Interruption,
    announcement: str,
    announce: Announce,
    processes: Processes = ALONE,
    trackers: Sequence[str] = (),
    after_seconds: float = 0.0,
) -> Outcome:
    """Train a task into a checkpoint folder, which the caller holds.

    Args:
        task: what to train.
        step: the task's weights, and what changes them.
        folder: checkpoint folder.
        resume: go on from its last save, or from the start when it was cut short before the first.
        interruption: asks the run to stop at the next step.
        announcement: what is going to be trained.
        announce: called with the announcement.
        processes: that train together.
        trackers: names, as `check_trackers` returned them; JSON lines are always written.
        after_seconds: as of `Trainer`.

    Raises:
        KmidiError: when the save cannot be used, or training diverges.
    """
    config = task.config
    saved = processes.told((folder / checkpoint.LAST).exists)
    if resume and not saved:
        announcement += f"\nnothing was saved in {folder} yet: the run begins anew"
    resume = resume and saved
    trainer = Trainer(task, step, folder, resume, processes, after_seconds)
    if processes.leads:
        announce(announcement)
        save_config(config, folder / checkpoint.names_of(config.adapter.adapts).config)
        resume_step = trainer.progression.step if resume else None
        trainer.trackers.append(JsonLinesTracker(folder / checkpoint.METRICS, resume_step))
        trainer.trackers += open_trackers(trackers, folder, config.name)
        if trackers:
            announce(where_to_look(trackers, folder, config.name))
    return trainer.train(interruption)


def describe_run(
    config: RunConfig,
    parameters: int,
    steps_per_epoch: int,
    place: str,
    slow_half: bool,
    after: str,
) -> str:
    """Say what is going to be trained, with hints where the settings will disappoint.

    Args:
        config: the run.
        parameters: number of weights.
        steps_per_epoch: of the task.
        place: where it is trained, such as `the GPU`.
        slow_half: whether half precision is slow there.
        after: what else is to be known, such as `the first step compiles`; empty: nothing.
    """
    line = (
        f"{config.name}: {parameters / 1e6:.1f}M parameters, {steps_per_epoch} steps an epoch, "
        f"{config.training.precision} on {place}{'; ' if after else ''}{after}"
    )
    if slow_half and config.training.precision != "fp32":
        line += "\nhint: half precision is slow on this CPU; add --set training.precision=fp32"
    pace = pace_of(config, steps_per_epoch)
    steps, warmup = pace.total_steps, pace.optimizer.warmup_steps
    if warmup > steps // 2:
        line += (
            f"\nhint: this run has {steps} steps and warms up for {warmup} of them; with so little "
            f"data add --set optimizer.warmup_steps={max(1, steps // 20)} and more training.epochs"
        )
    return line
