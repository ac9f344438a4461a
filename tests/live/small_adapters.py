"""Adapters for the tiny generator, as `kmidi finetune` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from small_concert import GENERATOR, SPECTOCLOUD

from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.checkpoint import ADAPTER, ADAPTERS, save_arrays
from kmidi_mlx.config import MidiGeneratorConfig, SpectocloudConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.models import lora
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT


def save_adapter(folder: Path, name: str, seed: int = 0, size: float = 0.2, **other: Any) -> Path:
    """Write an adapter of random numbers into a checkpoint folder; `other`: wrong metadata."""
    model = EmotionMIDITransformer(other.pop("model_config", GENERATOR.model))
    config = AdapterConfig(method="lora", base="base", rank=other.pop("rank", 4), alpha=8.0)
    return _save(folder, name, model, MidiGeneratorConfig(adapter=config), seed, size, other)


def save_cloud_adapter(folder: Path, name: str, seed: int = 0) -> Path:
    """Write one for the network that draws."""
    config = AdapterConfig(method="lora", base="base", rank=4, alpha=8.0)
    run = SpectocloudConfig(adapter=config)
    return _save(folder, name, SpectocloudViT(SPECTOCLOUD.model), run, seed, 0.2, {})


def _save(
    folder: Path, name: str, model: Any, run: Any, seed: int, size: float, other: dict[str, Any]
) -> Path:
    config = run.adapter
    lora.attach(model, config.targets, config.rank, config.alpha)
    rng = np.random.default_rng(seed)
    arrays = {
        key: (size * rng.normal(size=value.shape)).astype(np.float32)
        for key, value in lora.adapter_weights(model).items()
    }
    metadata = {"model": run.name, "config": config_to_dict(run), "base": {"digest": "12ab"}}
    path = folder / ADAPTERS / name / ADAPTER
    save_arrays(path, arrays, {**metadata, **other})
    return path
