"""Options of the recogniser that no other run has: lists of labels, lengths that must fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.config_file import (
    config_from_dict,
    config_to_dict,
    describe_options,
    load_config,
    save_config,
)
from kmidi_mlx.errors import KmidiError

REFERENCE = Path(__file__).parent.parent / "configs" / "emotion_recognizer.yaml"


def load(*overrides: str) -> EmotionRecognizerConfig:
    config = load_config("emotion_recognizer", [], overrides)
    assert isinstance(config, EmotionRecognizerConfig)
    return config


@pytest.mark.parametrize("labels", ["[]", "[happy]", "[happy, sad]", '["calm", tender]'])
def test_labels_survive_files_and_checkpoints(tmp_path: Path, labels: str) -> None:
    config = load(f"model.labels={labels}")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(config.name, [tmp_path / "config.yaml"]) == config
    assert config_from_dict(config_to_dict(config), "checkpoint") == config


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("model.labels=happy", "a list of texts such as"),
        ("model.labels=[1]", r"model.labels\[0\]: expected text"),
        ("model.labels=[happy, happy]", "names a label twice"),
        ("model.labels=[hapy]", "'hapy' is unknown; known are happy"),
        ("training.gradient_checkpointing=true", "gradient_checkpointing: .*too small for it"),
        ("data.n_fft=1001", "has to be even"),
        ("data.hop_length=2048", "at least hop_length"),
        ("data.hop_length=8192", "n_fft"),
        ("data.semitone_n_fft=512", "semitone_n_fft: .*at least n_fft"),
        ("data.semitone_n_fft=8191", "semitone_n_fft: .*has to be even"),
    ],
)
def test_impossible_values_name_the_option(override: str, problem: str) -> None:
    with pytest.raises(KmidiError, match=problem):
        load(override)


def test_a_clip_has_to_fill_a_step_of_the_network() -> None:
    with pytest.raises(KmidiError, match=r"shorter than one step of the network, 1\.024 s"):
        load("data.clip_seconds=1.0", "model.patch_frames=16", "data.hop_length=1024")


def test_the_reference_run_is_what_the_defaults_are() -> None:
    reference = load_config("emotion_recognizer", [REFERENCE])
    assert reference == load()
    assert "model.labels" in describe_options(EmotionRecognizerConfig)
