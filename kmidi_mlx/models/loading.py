"""Opening a trained model from a checkpoint folder or file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from kmidi_mlx import checkpoint
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_file import config_from_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer


@dataclass(frozen=True)
class LoadedGenerator:
    """A MIDI generator ready to write: the model, its run's configuration, what is known of it."""

    model: EmotionMIDITransformer
    config: MidiGeneratorConfig
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
    file = path / checkpoint.BEST if path.is_dir() else path
    if not file.exists():
        raise KmidiError(
            f"no such checkpoint: {file}; train one with `kmidi train`, or name one with "
            "--checkpoint (`kmidi hello` leaves a small one in out/hello/model)."
        )
    arrays, metadata = checkpoint.load_arrays(file)
    if metadata.get("model") != MidiGeneratorConfig.name:
        raise KmidiError(
            f"{file} holds {metadata.get('model', 'no kmidi model')!r}; "
            f"a {MidiGeneratorConfig.name!r} is needed here."
        )
    if not isinstance(metadata.get("config"), dict):
        raise KmidiError(f"{file} does not say how its model is built; it cannot be used.")
    config = config_from_dict(metadata["config"], str(file))
    model = EmotionMIDITransformer(config.model)
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
    return LoadedGenerator(model, config, metadata, file)
