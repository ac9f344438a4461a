"""Gives MLX a fast BLAS before any test imports it; the smallest data set and run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from kmidi_mlx.blas import load_fast_blas

load_fast_blas()
# how long an example takes says more about the machine than about the law
settings.register_profile("kmidi", deadline=None)
settings.load_profile("kmidi")


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
    from kmidi_mlx.training.run import train_model

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    with checkpoint.exclusive(folder):
        train_model(load_config("midi_generator", [], tiny_settings), folder, False, Interruption())
    return folder


@pytest.fixture(scope="session")
def practice_clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clouds of four practice pieces, one of them in val; not to be changed."""
    from kmidi_mlx.data.cloud_prepare import prepare_clouds

    folder = tmp_path_factory.mktemp("clouds") / "practice"
    prepare_clouds([], folder, synthetic=4, samples=8, workers=1, val_share=0.25)
    return folder


@pytest.fixture(scope="session")
def tiny_cloud_settings(practice_clouds: Path) -> list[str]:
    """`--set` values of a Spectocloud run that takes a moment."""
    return [
        f"data.path={practice_clouds}",
        "data.points=100",
        "model.dims=[16, 32]",
        "model.depths=[2, 1]",
        "model.patch_size=8",
        "model.window_size=4",
        "model.head_dim=16",
        "model.condition_dim=16",
        "model.decoder_dim=32",
        "model.decoder_layers=1",
        "optimizer.warmup_steps=5",
        "optimizer.learning_rate=3e-3",
        "training.batch_size=4",
        "training.max_steps=20",
        "training.epochs=100",
        "training.ema_decay=0.9",
        "training.eval_every=10",
        "training.eval_batches=2",
        "training.save_every=10",
        "training.log_every=5",
        "training.sample_seconds=0",
    ]


@pytest.fixture(scope="session")
def tone_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of eight short recordings: bright pulses are happy, a dark drone is sad."""
    import numpy as np

    from kmidi_mlx.audio.files import write_wav
    from kmidi_mlx.data.manifest import write_manifest

    folder = tmp_path_factory.mktemp("tones")
    time = np.arange(24_000) / 16_000
    rows = []
    for number in range(8):
        happy = number % 2 == 0
        tone = np.sin(2 * np.pi * (1500 + 100 * number if happy else 150 + 10 * number) * time)
        loudness = (np.sin(2 * np.pi * (6 + number) * time) > 0) if happy else 1.0
        name = f"{'happy' if happy else 'sad'}-{number}.wav"
        write_wav(folder / name, (0.3 * loudness * tone).astype(np.float32), 16_000)
        rows.append(
            {
                "path": name,
                "label": "happy" if happy else "sad",
                "split": "val" if number >= 6 else "train",
            }
        )
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def tiny_recognizer_settings(tone_manifest: Path) -> list[str]:
    """What `--set` is given for a recogniser of a few seconds: tiny model, few steps."""
    return [
        f'data.manifest="{tone_manifest}"',
        "data.clip_seconds=0.8",
        "data.dropout=0.1",
        "data.workers=1",
        "model.n_mels=16",
        "model.dim=16",
        "model.num_layers=2",
        "model.kernel_size=3",
        "optimizer.warmup_steps=2",
        "optimizer.learning_rate=1e-2",
        "training.batch_size=4",
        "training.max_steps=20",
        "training.epochs=100",
        "training.eval_every=10",
        "training.save_every=5",
        "training.log_every=1",
        "training.ema_decay=0.5",
    ]


@pytest.fixture(scope="session")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four tunes of one kind, two pitches and one rhythm, to fine-tune on."""
    import numpy as np

    from kmidi_mlx.music.midi_file import write_midi
    from kmidi_mlx.music.notes import Notes

    folder = tmp_path_factory.mktemp("mine") / "tunes"
    folder.mkdir()
    for number in range(4):
        count = 60 + 4 * number
        onset = 0.2 * np.arange(count)
        pitch = np.where(np.arange(count) % 2, 64, 60 + 7 * (number % 2))
        tune = Notes.build(pitch, np.full(count, 80), onset, onset + 0.1)
        write_midi(tune, folder / f"{number}.mid")
    return folder


@pytest.fixture
def base(tiny_run: Path, tmp_path: Path) -> Path:
    """A checkpoint folder of one's own, to be fine-tuned."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_run, folder)
    return folder
