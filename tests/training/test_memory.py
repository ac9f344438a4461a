"""The memory estimate against what a step really takes, and the refusal."""

from __future__ import annotations

import dataclasses
import gc

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from bench.train import random_batch
from kmidi_mlx.config import (
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    TrainingConfig,
)
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.runs.memory import estimated_bytes, physical_bytes, require_memory
from kmidi_mlx.training.midi_task import cross_entropy_of
from kmidi_mlx.training.step import TrainStep

SIZES = MidiTransformerConfig(
    hidden_dim=128, num_layers=4, num_heads=2, ffn_dim=512, cross_attention_layers=(0, 2)
)


def config(length: int, batch_size: int, checkpointing: bool = False) -> MidiGeneratorConfig:
    return MidiGeneratorConfig(
        model=SIZES,
        data=MidiDataConfig(sequence_length=length),
        training=TrainingConfig(batch_size=batch_size, gradient_checkpointing=checkpointing),
    )


def measured(run: MidiGeneratorConfig) -> tuple[int, int]:
    """Parameters, and bytes that one step added at its peak."""
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = EmotionMIDITransformer(run.model)
    model.initialise(0)
    model.checkpoint_blocks = run.training.gradient_checkpointing
    positions = run.training.batch_size * run.data.sequence_length
    step = TrainStep(
        model,
        lambda net, batch: cross_entropy_of(net, batch, 0.0),
        run.optimizer,
        run.training,
        positions,
    )
    step.run([random_batch(run, np.random.default_rng(0))], 1e-3)
    parameters = sum(array.size for _, array in tree_flatten(model.parameters()))
    return parameters, mx.get_peak_memory() - before


@pytest.mark.parametrize(
    ("length", "batch_size", "checkpointing"), [(64, 8, False), (512, 2, False), (128, 8, True)]
)
def test_the_estimate_is_right_to_about_a_third(
    length: int, batch_size: int, checkpointing: bool
) -> None:
    run = config(length, batch_size, checkpointing)
    parameters, peak = measured(run)
    assert 0.6 < estimated_bytes(run, parameters) / peak < 1.6


def test_the_estimate_grows_with_what_needs_memory() -> None:
    small, large = config(128, 2), config(128, 4)
    assert estimated_bytes(small, 10**6) < estimated_bytes(large, 10**6)
    assert estimated_bytes(config(128, 4, True), 10**6) < estimated_bytes(large, 10**6)
    averaged = dataclasses.replace(
        small, training=dataclasses.replace(small.training, ema_decay=0.99)
    )
    assert estimated_bytes(averaged, 10**6) >= estimated_bytes(small, 10**6) + 4 * 10**6


def test_a_run_that_cannot_fit_is_refused_with_what_to_change() -> None:
    reference = MidiGeneratorConfig()
    with pytest.raises(KmidiError, match=r"needs about \d+ GB and there are 16: .*m4_16gb"):
        require_memory(reference, 25_010_736, 16 * 10**9)
    require_memory(reference, 25_010_736, 10**12)


def test_the_machine_has_some_memory() -> None:
    assert physical_bytes() > 10**9
