"""Gives MLX a fast BLAS before any test imports it; the smallest data set and run, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()


@pytest.fixture(scope="session")
def practice_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of eight practice pieces."""
    from kmidi_mlx.data.prepare import prepare_midi

    folder = tmp_path_factory.mktemp("practice") / "data"
    prepare_midi([], folder, synthetic=8, val_share=0.3, workers=1)
    return folder


@pytest.fixture(scope="session")
def tiny_settings(practice_data: Path) -> list[str]:
    """What `--set` is given for a run of a few seconds: tiny model, few steps."""
    return [
        f'data.path="{practice_data}"',
        "data.sequence_length=32",
        "data.max_chords=4",
        "model.hidden_dim=64",
        "model.num_layers=2",
        "model.num_heads=1",
        "model.ffn_dim=128",
        "model.context_length=64",
        "model.cross_attention_layers=[0]",
        "optimizer.warmup_steps=5",
        "optimizer.learning_rate=2e-3",
        "training.batch_size=2",
        "training.max_steps=20",
        "training.eval_every=10",
        "training.eval_batches=2",
        "training.save_every=10",
        "training.log_every=5",
        "training.sample_seconds=0",
    ]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_settings: list[str]) -> Path:
    """A checkpoint folder after twenty steps on practice music; not to be changed."""
    from kmidi_mlx import checkpoint
    from kmidi_mlx.command import Interruption
    from kmidi_mlx.config_file import load_config
    from kmidi_mlx.training.run import train_midi_generator

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with checkpoint.exclusive(folder):
        train_midi_generator(
            load_config("midi_generator", [], tiny_settings), folder, False, Interruption()
        )
    return folder
