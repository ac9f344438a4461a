"""Opening a trained model from a checkpoint folder or file, in MLX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint_model import GENERATOR_HINT, Loaded, Weights, built, open_weights
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.quantization import cast, restructure
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config", bound=RunConfig)

LoadedGenerator = Loaded[EmotionMIDITransformer, MidiGeneratorConfig]
LoadedSpectocloud = Loaded[SpectocloudViT, SpectocloudConfig]
LoadedRecognizer = Loaded[EmotionRecognizer, EmotionRecognizerConfig]


def default_dtype() -> mx.Dtype:
    """fp16 on an Apple GPU; fp32 on a CPU, where half precision is slower."""
    return mx.float16 if mx.default_device().type == mx.DeviceType.gpu else mx.float32


def load_generator(
    path: Path, dtype: mx.Dtype | None = None, packed: bool | None = None
) -> LoadedGenerator:
    """Open a MIDI generator.

    Args:
        path: a checkpoint folder (its `best.safetensors`) or a file made by kmidi.
        dtype: of the weights; None: `default_dtype`.
        packed: whether quantised layers stay so, or become plain ones of the numbers they mean;
            None: on a GPU. A CPU has no fast products of packed numbers.

    Raises:
        KmidiError: when there is no checkpoint, it is damaged, newer, of another model, or its
            weights are not finite or do not fit its configuration.
    """
    return _load(
        path,
        MidiGeneratorConfig,
        lambda run: EmotionMIDITransformer(run.model),
        dtype,
        packed,
        GENERATOR_HINT,
    )


def load_spectocloud(
    path: Path, dtype: mx.Dtype | None = None, packed: bool | None = None
) -> LoadedSpectocloud:
    """Open a Spectocloud network; arguments and errors as of `load_generator`."""
    return _load(path, SpectocloudConfig, lambda run: SpectocloudViT(run.model), dtype, packed)


def load_recognizer(
    path: Path, dtype: mx.Dtype | None = None, packed: bool | None = None
) -> LoadedRecognizer:
    """Open an emotion recogniser; arguments and errors as of `load_generator`."""
    return _load(
        path, EmotionRecognizerConfig, lambda run: EmotionRecognizer(run.model), dtype, packed
    )


def _load(
    path: Path,
    kind: type[Config],
    build: Callable[[Config], Model],
    dtype: mx.Dtype | None,
    packed: bool | None,
    hint: str = "",
) -> Loaded[Model, Config]:
    if packed is None:
        packed = mx.default_device().type == mx.DeviceType.gpu
    return assemble(open_weights(path, kind, hint), build, dtype, packed)


def assemble(
    weights: Weights[Config],
    build: Callable[[Config], Model],
    dtype: mx.Dtype | None = None,
    packed: bool = True,
) -> Loaded[Model, Config]:
    """Make a model of weights.

    Args:
        weights: of a checkpoint.
        build: makes the network of a run.
        dtype: of the weights, packed ones left alone; None: `default_dtype`.
        packed: whether quantised layers stay so, or become plain ones of the numbers they mean.

    Raises:
        KmidiError: when the weights are not finite, do not fit their configuration, or are not
            quantised as they say.
    """
    model = built(lambda: build(weights.config), weights.path)
    shapes = {name: array.shape for name, array in tree_flatten(model.parameters())}
    if packed:
        restructure(model, weights.check(shapes), weights.path)
        arrays = weights.arrays
    else:
        arrays = weights.plain(shapes)
    model.load_weights([(name, mx.array(array)) for name, array in arrays.items()])
    cast(model, dtype or default_dtype())
    model.eval()
    mx.eval(model.parameters())
    return weights.loaded(model)
