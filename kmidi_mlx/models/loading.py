"""Opening a trained model from a checkpoint folder or file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map

from kmidi_mlx import checkpoint
from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.config_file import config_from_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Loaded(Generic[Model, Config]):
    """A model ready to use: its weights, its run's configuration, what is known of it."""

    model: Model
    config: Config
    metadata: dict[str, Any]
    path: Path

    @property
    def notice(self) -> str | None:
        """What every command that uses these weights has to say about them; None: nothing."""
        if self.metadata.get("synthetic"):
            return (
                f"note: {self.path} was trained on synthetic practice music, not on real music; "
                "it shows that everything works, not what the model can do."
            )
        return None


LoadedGenerator = Loaded[EmotionMIDITransformer, MidiGeneratorConfig]
LoadedSpectocloud = Loaded[SpectocloudViT, SpectocloudConfig]
LoadedRecognizer = Loaded[EmotionRecognizer, EmotionRecognizerConfig]


def default_dtype() -> mx.Dtype:
    """fp16 on an Apple GPU; fp32 on a CPU, where half precision is slower."""
    return mx.float16 if mx.default_device().type == mx.DeviceType.gpu else mx.float32


def load_generator(path: Path, dtype: mx.Dtype | None = None) -> LoadedGenerator:
    """Open a MIDI generator.

    Args:
        path: a checkpoint folder (its `best.safetensors`) or a safetensors file made by kmidi.
        dtype: of the weights; None: `default_dtype`.

    Raises:
        KmidiError: when there is no checkpoint, it is damaged, newer, of another model, or its
            weights are not finite or do not fit its configuration.
    """
    hint = " (`kmidi hello` leaves a small one in out/hello/model)"
    return _load(
        path, MidiGeneratorConfig, lambda run: EmotionMIDITransformer(run.model), dtype, hint
    )


def load_spectocloud(path: Path, dtype: mx.Dtype | None = None) -> LoadedSpectocloud:
    """Open a Spectocloud network; arguments and errors as of `load_generator`."""
    return _load(path, SpectocloudConfig, lambda run: SpectocloudViT(run.model), dtype)


def load_recognizer(path: Path, dtype: mx.Dtype | None = None) -> LoadedRecognizer:
    """Open an emotion recogniser; arguments and errors as of `load_generator`."""
    return _load(path, EmotionRecognizerConfig, lambda run: EmotionRecognizer(run.model), dtype)


def label_temperature(loaded: LoadedRecognizer) -> float:
    """Return what divides a recogniser's logits so that its probabilities are calibrated."""
    temperature = loaded.metadata.get("temperature", 1.0)
    if not isinstance(temperature, float) or not 0.0 < temperature < float("inf"):
        raise KmidiError(f"{loaded.path} holds the temperature {temperature!r}, not a number > 0.")
    return temperature


def _load(
    path: Path,
    kind: type[Config],
    build: Callable[[Config], Model],
    dtype: mx.Dtype | None,
    hint: str = "",
) -> Loaded[Model, Config]:
    file = path / checkpoint.BEST if path.is_dir() else path
    if not file.exists():
        raise KmidiError(
            f"no such checkpoint: {file}; train one with `kmidi train --model {kind.name}`, or "
            f"name one with --checkpoint{hint}."
        )
    arrays, metadata = checkpoint.load_arrays(file)
    if metadata.get("model") != kind.name:
        raise KmidiError(
            f"{file} holds {metadata.get('model', 'no kmidi model')!r}; "
            f"a {kind.name!r} is needed here."
        )
    if not isinstance(metadata.get("config"), dict):
        raise KmidiError(f"{file} does not say how its model is built; it cannot be used.")
    config = config_from_dict(metadata["config"], str(file))
    if not isinstance(config, kind):
        raise KmidiError(f"{file} describes a {config.name!r}, not the {kind.name!r} it claims.")
    model = build(config)
    expected = {name: array.shape for name, array in tree_flatten(model.parameters())}
    checkpoint.check_names(file, arrays, expected)
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise KmidiError(f"{file} holds NaN or Inf in {', '.join(broken)}; it cannot be used.")
    model.load_weights([(name, mx.array(array)) for name, array in arrays.items()])
    wanted = dtype or default_dtype()
    model.update(tree_map(lambda weight: weight.astype(wanted), model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return Loaded(model, config, metadata, file)
