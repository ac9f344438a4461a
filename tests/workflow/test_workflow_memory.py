"""Batches fit, and what a step sums over stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.memory import estimated_bytes
from kmidi_mlx.workflow.memory import fitting

PARAMETERS = 25_000_000


def fitted(config: RunConfig, gigabytes: float) -> RunConfig:
    options = dict(text.split("=") for text in fitting(config, PARAMETERS, gigabytes))
    training = replace(
        config.training,
        batch_size=int(options["training.batch_size"]),
        grad_accum_steps=int(options["training.grad_accum_steps"]),
        gradient_checkpointing=options["training.gradient_checkpointing"] == "true",
    )
    return replace(config, training=training)


@given(
    st.sampled_from([MidiGeneratorConfig(), SpectocloudConfig()]),
    st.integers(1, 48),
    st.integers(1, 6),
    st.floats(2.0, 64.0),
)
def test_it_fits_with_the_same_sum_and_no_smaller_than_needed(
    config: RunConfig, half: int, accumulated: int, gigabytes: float
) -> None:
    training = replace(config.training, batch_size=2 * half, grad_accum_steps=accumulated)
    config = replace(config, training=training)
    made = fitted(config, gigabytes)
    together = 2 * half * accumulated
    assert made.training.batch_size * made.training.grad_accum_steps == together
    assert made.training.batch_size <= 2 * half
    assert estimated_bytes(made, PARAMETERS) <= 0.7e9 * gigabytes
    more = fitted(config, 2 * gigabytes)
    if more.training.gradient_checkpointing == made.training.gradient_checkpointing:
        assert more.training.batch_size >= made.training.batch_size
    else:
        assert made.training.gradient_checkpointing


def test_what_fits_stays_as_it_is_wanted() -> None:
    config = load_config("midi_generator", [], ["training.batch_size=4"])
    assert fitted(config, 64.0) == config


def test_what_never_fits_is_said() -> None:
    with pytest.raises(KmidiError, match="midi_generator does not fit into 1 GB even one window"):
        fitting(MidiGeneratorConfig(), 400_000_000, 1.0)
