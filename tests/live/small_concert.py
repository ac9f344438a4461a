"""A concert of tiny networks, which load and warm up in a moment, and what it takes to judge it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint import BEST, save_arrays
from kmidi_mlx.config import (
    CloudDataConfig,
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    SpectocloudConfig,
    SpectocloudVitConfig,
)
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from tests.stressed_weights import stressed

GENERATOR = MidiGeneratorConfig(
    model=MidiTransformerConfig(
        hidden_dim=64,
        num_layers=2,
        num_heads=2,
        ffn_dim=96,
        context_length=96,
        cross_attention_layers=(1,),
    ),
    data=MidiDataConfig(sequence_length=32),
)
SPECTOCLOUD = SpectocloudConfig(
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
)


def save_checkpoint(folder: Path, run: Any, broken: bool = False, **metadata: Any) -> Path:
    """Write a checkpoint folder of stressed random weights; `broken`: one of them is no number."""
    network: Any = EmotionMIDITransformer if run.name == "midi_generator" else SpectocloudViT
    rng = np.random.default_rng(0)
    weights = {
        name: stressed(name, tuple(value.shape), rng)
        for name, value in tree_flatten(network(run.model).parameters())
    }
    if broken:
        next(iter(weights.values())).flat[3] = np.nan
    known = {
        "model": run.name,
        "config": config_to_dict(run),
        "step": 7,
        "metric": 4.5,
        "synthetic": False,
        "data_licences": ["CC0-1.0"],
    }
    save_arrays(folder / BEST, weights, {**known, **metadata})
    return folder


def small_config(generator: Path, spectocloud: Path | None = None, **sections: Any) -> LiveConfig:
    """A configuration for tests; `sections` are dictionaries of options that differ."""
    options: dict[str, dict[str, Any]] = {
        "models": {
            "generator": str(generator),
            "spectocloud": str(spectocloud or generator / "none"),
            "recognizer": str(generator / "none"),
        },
        "music": {"tempo": 300.0},
        "sampling": {"max_rest_seconds": 0.1, "max_note_seconds": 0.5, "temperature": 1.0},
        "cloud": {"points": 200},
        "server": {"open_browser": False, "port": 0},
        "loop": {"frames_per_second": 30, "memory_gb": 8.0},
        "alerts": {"frames_per_second": 0.0},
    }
    for name, values in sections.items():
        options.setdefault(name, {}).update(values)
    default = LiveConfig()
    parts = {name: replace(getattr(default, name), **values) for name, values in options.items()}
    return replace(default, **parts)


def wait_for(condition: Callable[[], object], seconds: float = 15.0, what: str = "") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited too long {what}"
        time.sleep(0.005)


def our_threads() -> list[str]:
    """Names of the threads that the live application started."""
    return sorted(thread.name for thread in threading.enumerate() if "pytest" not in thread.name)


class Account:
    """A sink that keeps the account of what sounds."""

    def __init__(self, lead_seconds: float = 0.0) -> None:
        self.name = "account"
        self.lead_seconds = lead_seconds
        self.sounding: set[int] = set()
        self.begun: list[tuple[float, int, int]] = []
        self.problems: list[str] = []
        self.silenced = 0
        self.closed = False

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        if pitch in self.sounding:
            self.problems.append(f"{pitch} begins twice")
        self.sounding.add(pitch)
        self.begun.append((at, pitch, velocity))

    def note_off(self, pitch: int, at: float) -> None:
        if pitch not in self.sounding:
            self.problems.append(f"{pitch} ends without having begun")
        self.sounding.discard(pitch)

    def silence(self) -> None:
        if self.sounding:
            self.problems.append("silenced before the ends were sent")
        self.sounding.clear()
        self.silenced += 1

    def close(self) -> None:
        self.closed = True
