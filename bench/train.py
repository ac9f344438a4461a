"""Training speed and memory: `python -m bench.train [--config F] [--set a.b=c] [--steps N]`.

Trains on random events with the shapes of the configuration (nothing is prepared or read), so the
figures are those of the step alone. Without `--config` it is the profile for a 16 GB Mac:
`configs/midi_generator.yaml` with `configs/m4_16gb.yaml` over it. Peak memory is what MLX
allocated; the process adds the interpreter and the libraries, about 0.15 GB.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np

from bench.report import Row, add_arguments, publish, spread
from kmidi_mlx.command import CommandParser, add_config_arguments, run
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.training.midi_task import cross_entropy_of
from kmidi_mlx.training.step import Batch, TrainStep

CONFIGS = Path(__file__).parent.parent / "configs"
PROFILE = [CONFIGS / "midi_generator.yaml", CONFIGS / "m4_16gb.yaml"]
COLUMNS = (
    "precision",
    "batch",
    "accum",
    "sequence",
    "checkpointing",
    "tokens_per_second",
    "seconds",
    "peak_gb",
    "loss_first",
    "loss_last",
)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    parser = CommandParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="timed steps (after one to warm up)")
    add_config_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args(argv)
    config = load_config("midi_generator", args.config_files or PROFILE, args.overrides)
    assert isinstance(config, MidiGeneratorConfig)
    publish("train", [measure(config, args.steps)], COLUMNS, args)
    return 0


def measure(config: MidiGeneratorConfig, steps: int) -> Row:
    """Time optimiser steps and note the peak of MLX's memory."""
    training, length = config.training, config.data.sequence_length
    model = EmotionMIDITransformer(config.model)
    model.initialise(training.seed)
    model.checkpoint_blocks = training.gradient_checkpointing
    step = TrainStep(
        model,
        lambda model, batch: cross_entropy_of(model, batch, 0.0),
        config.optimizer,
        training,
        training.batch_size * length,
    )
    rng = np.random.default_rng(0)
    batches = [random_batch(config, rng) for _ in range(training.grad_accum_steps)]
    losses, seconds = [], []
    for _ in range(steps + 1):
        started = time.perf_counter()
        losses.append(step.run(batches, config.optimizer.learning_rate)["loss"])
        seconds.append(time.perf_counter() - started)
    tokens = training.batch_size * training.grad_accum_steps * length
    timed = seconds[1:] or seconds
    return {
        "precision": training.precision,
        "batch": training.batch_size,
        "accum": training.grad_accum_steps,
        "sequence": length,
        "checkpointing": training.gradient_checkpointing,
        **spread("seconds", timed),
        **spread("tokens_per_second", [tokens / value for value in timed]),
        "peak_gb": mx.get_peak_memory() / 1e9,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def random_batch(config: MidiGeneratorConfig, rng: np.random.Generator) -> Batch:
    """Random events in the shapes of a training batch."""
    shape = (config.training.batch_size, config.data.sequence_length)
    slots = config.data.max_chords
    return {
        "inputs": mx.array(rng.integers(0, 388, shape, dtype=np.int32)),
        "targets": mx.array(rng.integers(0, 388, shape, dtype=np.int32)),
        "weights": mx.ones(shape),
        "emotion": mx.array(rng.uniform(-1, 1, (shape[0], 64)).astype(np.float32)),
        "chords": mx.array(rng.integers(0, config.model.num_chords, (shape[0], slots))),
        "keys": mx.array(rng.integers(0, config.model.num_keys, shape[0])),
        "chord_index": mx.array(rng.integers(0, slots, shape, dtype=np.int32)),
    }


if __name__ == "__main__":
    sys.exit(run(main))
