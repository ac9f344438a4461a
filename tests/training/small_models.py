"""Small models and batches with which the optimiser step can be followed number by number."""

from __future__ import annotations

import dataclasses
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx.config import MidiTransformerConfig, OptimizerConfig, TrainingConfig
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.training.midi_task import cross_entropy_of
from kmidi_mlx.training.step import Batch, TrainStep

Arrays = dict[str, NDArray[Any]]

TINY = MidiTransformerConfig(
    hidden_dim=64,
    num_layers=2,
    num_heads=1,
    ffn_dim=128,
    context_length=64,
    cross_attention_layers=(0,),
)


class Parts(nn.Module):
    """One of each kind of weight: matrix, bias, gain, sinks, embedding; all random."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.RMSNorm(3)
        self.chord_embedding = nn.Embedding(4, 3)
        self.sinks = mx.zeros((2,))
        randomise(self)


def randomise(model: nn.Module) -> None:
    """Draw every weight anew, also those that start as zero or one."""
    rng = np.random.default_rng(0)
    model.load_weights(
        [
            (name, mx.array(rng.normal(size=value.shape).astype(np.float32)))
            for name, value in tree_flatten(model.parameters())
        ]
    )


def slope(model: nn.Module, batch: Batch) -> tuple[mx.array, mx.array]:
    """A loss whose gradient is what the batch says, whatever the weights."""
    total = mx.array(0.0)
    for name, value in tree_flatten(model.parameters()):
        total = total + mx.sum(value.astype(mx.float32) * batch[name])
    return total, batch["weight"]


def slopes(seed: int, size: float = 1.0, weight: float = 1.0) -> Batch:
    """A batch for `slope` with random gradients."""
    rng = np.random.default_rng((7, seed))
    gradients = {
        name: mx.array((size * rng.normal(size=value.shape)).astype(np.float32))
        for name, value in tree_flatten(Parts().parameters())
    }
    return gradients | {"weight": mx.array(weight)}


def parts_step(**options: Any) -> TrainStep:
    """A step over `Parts`: options of optimizer and training by name; no clipping unless asked."""
    names = {item.name for item in dataclasses.fields(OptimizerConfig)}
    optimizer = {"clip_norm": 1e9} | {k: v for k, v in options.items() if k in names}
    training = {k: v for k, v in options.items() if k not in names}
    return TrainStep(
        Parts(), slope, OptimizerConfig(**optimizer), TrainingConfig(**training), positions=1
    )


def music_step(
    optimizer: OptimizerConfig | None = None, checkpointing: bool = False, **training: Any
) -> TrainStep:
    """A step over a tiny EmotionMIDITransformer with the loss of real training."""
    model = EmotionMIDITransformer(TINY)
    model.initialise(0)
    model.checkpoint_blocks = checkpointing
    return TrainStep(
        model,
        lambda module, batch: cross_entropy_of(module, batch, 0.0),
        optimizer or OptimizerConfig(),
        TrainingConfig(**training),
        positions=32,
    )


def music_batch(rows: int = 4, time: int = 16, seed: int = 0) -> Batch:
    """Random rows of events, the last of them half padding, each with its own conditions."""
    rng = np.random.default_rng((3, seed))
    weights = np.ones((rows, time), np.float32)
    weights[-1, time // 2 :] = 0
    return {
        "inputs": mx.array(rng.integers(0, 388, (rows, time)).astype(np.int32)),
        "targets": mx.array(rng.integers(0, 388, (rows, time)).astype(np.int32)),
        "weights": mx.array(weights),
        "emotion": mx.array(rng.normal(size=(rows, 64)).astype(np.float32)),
        "chords": mx.array(rng.integers(0, 110, (rows, 3)).astype(np.int32)),
        "keys": mx.array(rng.integers(0, 25, rows).astype(np.int32)),
        "chord_index": mx.array(rng.integers(0, 3, (rows, time)).astype(np.int32)),
    }


def rows_of(batch: Batch, first: int, last: int) -> Batch:
    """Some rows of a batch as a batch."""
    return {name: value[first:last] for name, value in batch.items()}


def kept(step: TrainStep, *prefixes: str) -> Arrays:
    """A copy of what a step keeps, as numpy arrays; only names with one of the prefixes."""
    return {
        name: np.array(value)
        for name, value in step.state_arrays().items()
        if name.startswith(prefixes or ("",))
    }


def gradients(step: TrainStep) -> Arrays:
    """The clipped gradients of a step that was the first: its running mean, scaled up."""
    return {
        name: value / (1 - 0.9)
        for name, value in kept(step, "optimizer").items()
        if name.endswith(".m")
    }


def same_bits(one: Arrays, two: Arrays) -> bool:
    """Whether two sets of arrays have the same names, shapes, types and bits."""
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype
        and one[name].shape == two[name].shape
        and one[name].tobytes() == two[name].tobytes()
        for name in one
    )
