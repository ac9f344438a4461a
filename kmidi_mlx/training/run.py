"""A training run from its configuration to its checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_file import save_config
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.training.midi_task import MidiTask
from kmidi_mlx.training.tracker import JsonLinesTracker
from kmidi_mlx.training.trainer import Outcome, Trainer


def train_midi_generator(
    config: MidiGeneratorConfig, folder: Path, resume: bool, interruption: Interruption
) -> Outcome:
    """Train the MIDI generator into a checkpoint folder, which the caller holds.

    Args:
        config: the run; saved beside the weights.
        folder: checkpoint folder.
        resume: go on from its last save, or from the start when it was cut short before the first.
        interruption: asks the run to stop at the next step.

    Raises:
        KmidiError: when data or save cannot be used, or training diverges.
    """
    if config.training.memory_gb > 0:
        mx.set_memory_limit(int(config.training.memory_gb * 1e9))
    task = MidiTask(config, ShardReader(config.data.path))
    resume = resume and (folder / checkpoint.LAST).exists()
    trainer = Trainer(task, folder, resume)
    save_config(config, folder / checkpoint.CONFIG)
    resume_step = trainer.progression.step if resume else None
    trainer.trackers.append(JsonLinesTracker(folder / checkpoint.METRICS, resume_step))
    return trainer.train(interruption)
