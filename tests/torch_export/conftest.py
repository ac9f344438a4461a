"""Tiny checkpoints of all three models whose weights make every part count, and their exports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kmidi_mlx.adapter_file import add_adapter_argument
from kmidi_mlx.checkpoint import BEST, save_arrays
from kmidi_mlx.config import (
    AudioEmotionDataConfig,
    CloudDataConfig,
    EmotionRecognizerConfig,
    EmotionRecognizerModelConfig,
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    RunConfig,
    SpectocloudConfig,
    SpectocloudVitConfig,
)
from kmidi_mlx.config_file import config_to_dict
from tests.stressed_weights import stressed


def _missing(*packages: str) -> bool:
    return any(find_spec(package) is None for package in packages)


# each target is tested where its packages are installed (extras `torch`, `export` and `coreai`)
collect_ignore_glob = ["test_*.py"] if _missing("torch") else []
if _missing("onnx", "onnxscript", "onnxruntime"):
    collect_ignore_glob.append("test_onnx_*.py")
if _missing("coremltools"):
    collect_ignore_glob.append("test_coreml_*.py")
if _missing("coreai_torch"):
    collect_ignore_glob.append("test_coreai_*.py")

_RUNS: tuple[RunConfig, ...] = (
    MidiGeneratorConfig(
        model=MidiTransformerConfig(
            hidden_dim=64,
            num_layers=2,
            num_heads=2,
            ffn_dim=96,
            context_length=32,
            cross_attention_layers=(1,),
        ),
        data=MidiDataConfig(sequence_length=32),
    ),
    SpectocloudConfig(
        model=SpectocloudVitConfig(
            dims=(16, 32),
            depths=(2, 1),
            patch_size=8,
            window_size=4,
            head_dim=16,
            condition_dim=16,
            decoder_dim=32,
            decoder_layers=1,
        ),
        data=CloudDataConfig(points=100),
    ),
    EmotionRecognizerConfig(
        model=EmotionRecognizerModelConfig(
            n_mels=16,
            dim=16,
            num_layers=2,
            kernel_size=3,
            labels=("happy", "sad", "calm"),
            num_cues=4,
        ),
        data=AudioEmotionDataConfig(clip_seconds=0.8),
    ),
)


def _stressed(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """As the mirror's tests, with louder embeddings, and convolutions by their taps."""
    drawn = stressed(name, shape, rng)
    if "embedding" in name and "patch" not in name:
        return drawn * np.float32(1.5)
    if "convolution.weight" in name:
        return drawn * np.float32((shape[1] / shape[0]) ** 0.5)
    return drawn


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small are slower on many threads."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint folders by name of the model; not to be changed."""
    from kmidi_torch.models.emotion_recognizer import EmotionRecognizer
    from kmidi_torch.models.midi_transformer import EmotionMIDITransformer
    from kmidi_torch.models.spectocloud_vit import SpectocloudViT

    networks: tuple[Any, ...] = (EmotionMIDITransformer, SpectocloudViT, EmotionRecognizer)
    folders = {}
    for run, network in zip(_RUNS, networks, strict=True):
        rng = np.random.default_rng(0)
        weights = {
            name: _stressed(name, tuple(value.shape), rng)
            for name, value in network(run.model).state_dict().items()
        }
        metadata = {
            "model": run.name,
            "config": config_to_dict(run),
            "step": 7,
            "metric": 0.5,
            "synthetic": False,
            "data_licences": ["CC0-1.0"],
            "temperature": 1.7,
        }
        folders[run.name] = tmp_path_factory.mktemp("checkpoints") / run.name
        save_arrays(folders[run.name] / BEST, weights, metadata)
    return folders


@pytest.fixture(scope="session")
def exported(
    tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """A function `(target, model, *flags)` that exports a tiny model once and gives the report."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def export(target: str, model: str, *flags: str) -> Any:
        module = __import__(f"kmidi_torch.export.{target}_target", fromlist=["export"])
        parser = argparse.ArgumentParser()
        parser.add_argument("--model")
        parser.add_argument("--checkpoint", type=Path)
        parser.add_argument("--out", type=Path)
        add_adapter_argument(parser)
        module.add_arguments(parser)
        suffix = {"coreml": "mlpackage", "coreai": "aimodel"}.get(target, target)
        out = folder / f"{model}{''.join(flags)}.{suffix}"
        given = ["--model", model, "--checkpoint", str(tiny_checkpoints[model]), "--out", str(out)]
        return module.export(parser.parse_args([*given, *flags]), lambda line: None)

    return export
