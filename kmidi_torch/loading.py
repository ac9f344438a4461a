"""Opening a trained model from a checkpoint folder or file, in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from kmidi_mlx.checkpoint_model import GENERATOR_HINT, Loaded, built, open_weights
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_torch.models.emotion_recognizer import EmotionRecognizer
from kmidi_torch.models.midi_transformer import EmotionMIDITransformer
from kmidi_torch.models.spectocloud_vit import SpectocloudViT
from kmidi_torch.parameter_shapes import parameter_shapes

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config", bound=RunConfig)

LoadedGenerator = Loaded[EmotionMIDITransformer, MidiGeneratorConfig]
LoadedSpectocloud = Loaded[SpectocloudViT, SpectocloudConfig]
LoadedRecognizer = Loaded[EmotionRecognizer, EmotionRecognizerConfig]


def load_generator(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedGenerator:
    """Open a MIDI generator.

    Args:
        path: a checkpoint folder (its `best.safetensors`) or a file made by kmidi; quantised
            weights become plain ones.
        dtype: of the weights.
        device: where they go.

    Raises:
        KmidiError: when there is no checkpoint, it is damaged, newer, of another model, or its
            weights are not finite or do not fit its configuration.
    """
    return _load(
        path,
        MidiGeneratorConfig,
        lambda run: EmotionMIDITransformer(run.model),
        dtype,
        device,
        GENERATOR_HINT,
    )


def load_spectocloud(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedSpectocloud:
    """Open a Spectocloud network; arguments and errors as of `load_generator`."""
    return _load(path, SpectocloudConfig, lambda run: SpectocloudViT(run.model), dtype, device)


def load_recognizer(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> LoadedRecognizer:
    """Open an emotion recogniser; arguments and errors as of `load_generator`."""
    return _load(
        path, EmotionRecognizerConfig, lambda run: EmotionRecognizer(run.model), dtype, device
    )


def _load(
    path: Path,
    kind: type[Config],
    build: Callable[[Config], Model],
    dtype: torch.dtype,
    device: torch.device | str,
    hint: str = "",
) -> Loaded[Model, Config]:
    weights = open_weights(path, kind, hint)
    # shapes first: a file may describe more than there is memory for
    shapes = built(lambda: parameter_shapes(lambda: build(weights.config)), weights.path)
    arrays = weights.plain(shapes)
    model = build(weights.config)
    # torch makes its own copies: numpy's arrays may be views of a file that is read only
    model.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})
    model.to(device=device, dtype=dtype).eval()
    return weights.loaded(model)
