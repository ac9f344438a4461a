"""Opening the weights of a trained model, for any framework."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from kmidi_mlx import checkpoint
from kmidi_mlx.config import EmotionRecognizerConfig, RunConfig
from kmidi_mlx.config_file import config_from_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import Packing, check_description, dequantized, packings
from kmidi_mlx.shipped import in_force
from kmidi_mlx.torch_file import Arrays

__all__ = [
    "GENERATOR_HINT", "Loaded", "Weights", "built", "check_numbers", "label_temperature",
    "open_weights", "widened",
]  # fmt: skip

#: What else a person without a checkpoint can do.
GENERATOR_HINT = " (`kmidi hello` leaves a small one in out/hello/model)"

Model = TypeVar("Model")
Config = TypeVar("Config", bound=RunConfig)
Made = TypeVar("Made")


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


@dataclass(frozen=True)
class Weights(Generic[Config]):
    """The arrays of a checkpoint before a framework has made a model of them."""

    arrays: Arrays
    config: Config
    metadata: dict[str, Any]
    path: Path

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Packing]:
        """Compare with the names and shapes that the model of this configuration has.

        Args:
            expected: names and shapes of the plain model.

        Returns:
            How layers are packed that are quantised, by name.

        Raises:
            KmidiError: when a name or shape differs, a number is not finite, or a layer is
                quantised in another way than MLX's mode "affine" or than the metadata says.
        """
        packed = packings(self.arrays, expected, self.path)
        check_description(self.metadata, packed, self.path)
        stored = dict(expected)
        for layer in packed:
            for part in ("weight", "scales", "biases"):
                stored[f"{layer}.{part}"] = self.arrays[f"{layer}.{part}"].shape
        checkpoint.check_names(self.path, self.arrays, stored)
        check_numbers(self.arrays, self.path, {f"{layer}.weight" for layer in packed})
        return packed

    def plain(self, expected: Mapping[str, tuple[int, ...]]) -> Arrays:
        """Return the arrays as `check` wants them, quantised ones as the fp32 that they mean."""
        if not self.check(expected):
            return self.arrays
        return dequantized(widened(self.arrays), expected, self.path)[0]

    @property
    def digest(self) -> str:
        """What tells these numbers from others, whatever file they are kept in."""
        seen = hashlib.sha256()
        for name, array in sorted(widened(self.arrays).items()):
            seen.update(name.encode())
            seen.update(np.ascontiguousarray(array).data)
        return seen.hexdigest()[:16]

    def loaded(self, model: Model) -> Loaded[Model, Config]:
        """Put a model that has taken the arrays beside what is known of it."""
        return Loaded(model, self.config, self.metadata, self.path)


def check_numbers(
    arrays: Arrays, path: Path, packed: Container[str] = (), kinds: str = "f"
) -> None:
    """Hold that arrays are finite numbers of the right kind.

    Args:
        arrays: of a checkpoint.
        path: what to name in an error.
        packed: names of arrays that may be anything.
        kinds: of numpy's types; "f" are floats.

    Raises:
        KmidiError: naming all that are not.
    """
    numbers = {name: array for name, array in arrays.items() if name not in packed}
    strange = [name for name, array in numbers.items() if array.dtype.kind not in kinds]
    if strange:
        found = numbers[strange[0]].dtype
        raise KmidiError(f"{path} holds {found} numbers in {', '.join(strange)}, not floats.")
    broken = [name for name, array in numbers.items() if not np.isfinite(array).all()]
    if broken:
        raise KmidiError(f"{path} holds NaN or Inf in {', '.join(broken)}; it cannot be used.")


def widened(arrays: Arrays) -> Arrays:
    """Return arrays with their floats in fp32; what is packed stays."""
    return {
        name: array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array
        for name, array in arrays.items()
    }


def built(make: Callable[[], Made], source: Path) -> Made:
    """Return what `make` makes of the sizes that a file tells.

    Args:
        make: builds a network, or only its shapes.
        source: the file, for the complaint.

    Raises:
        KmidiError: when there can be no such network.
    """
    try:
        return make()
    except (TypeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        # the frameworks' ways to say that a size is beyond what they count to
        raise KmidiError(f"{source} describes a network that cannot be: {error}.") from error


def open_weights(path: Path, kind: type[Config], hint: str = "") -> Weights[Config]:
    """Read the weights of one kind of model.

    Args:
        path: a checkpoint folder (its `best.safetensors`, or else its `best.pt`) or a file made by
            kmidi; `kmidi_mlx.shipped.in_force` says what `checkpoints/MODEL` stands for.
        kind: configuration of the model that is wanted.
        hint: added to the complaint that there is no checkpoint.

    Raises:
        KmidiError: when there is no checkpoint, or it is damaged, newer or of another model.
    """
    path = in_force(path)
    file = path / checkpoint.BEST if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / checkpoint.BEST_TORCH).exists():
        file = path / checkpoint.BEST_TORCH
    if not file.exists():
        raise KmidiError(
            f"no such checkpoint: {file}; train one with `kmidi train --model {kind.name}`, or "
            f"name the folder of another{hint}."
        )
    arrays, metadata = checkpoint.load_arrays(file)
    if metadata.get("model") != kind.name:
        raise KmidiError(
            f"{file} holds {metadata.get('model', 'no kmidi model')!r}; "
            f"a {kind.name!r} is needed here."
        )
    if not isinstance(metadata.get("config"), dict):
        raise KmidiError(
            f"{file} does not say how its model is built; `kmidi convert --model "
            "NAME --config FILE` can add it."
        )
    config = config_from_dict(metadata["config"], str(file))
    if not isinstance(config, kind):
        raise KmidiError(f"{file} describes a {config.name!r}, not the {kind.name!r} it claims.")
    return Weights(arrays, config, metadata, file)


def label_temperature(loaded: Loaded[Any, EmotionRecognizerConfig]) -> float:
    """Return what divides a recogniser's logits so that its probabilities are calibrated."""
    temperature = loaded.metadata.get("temperature", 1.0)
    if not isinstance(temperature, float) or not 0.0 < temperature < float("inf"):
        raise KmidiError(f"{loaded.path} holds the temperature {temperature!r}, not a number > 0.")
    return temperature
