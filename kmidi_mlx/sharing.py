"""What of a checkpoint folder is shared: which files, what is known of them.

Only safetensors, YAML and text are shared, never a pickle. Before they leave, the paths of the
machine that trained them are cut down to their last part.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_file import adapter_names, open_adapter
from kmidi_mlx.checkpoint_model import check_numbers, open_weights
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.config_file import config_from_dict, load_config, save_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import DESCRIPTION
from kmidi_mlx.torch_file import SUFFIXES, Arrays

__all__ = [
    "CARD", "ORIGIN", "Part", "is_shared", "read_parts", "stage", "unfinished", "unknown_licences",
]  # fmt: skip

CARD = "README.md"
#: Where a pulled folder says what it was pulled from.
ORIGIN = "hub.json"

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_SHARED = re.compile(
    rf"{re.escape(checkpoint.BEST)}|{re.escape(checkpoint.CONFIG)}|{re.escape(CARD)}"
    rf"|{re.escape(checkpoint.METRICS)}|{checkpoint.ADAPTERS}/{_NAME}/"
    rf"(?:{re.escape(checkpoint.ADAPTER)}|{re.escape(checkpoint.ADAPTER_CONFIG)})"
)


@dataclass(frozen=True)
class Part:
    """A model or an adapter of a checkpoint folder.

    Attributes:
        name: of the adapter; empty: the model.
        config: its run.
        metadata: all that its file says.
        parameters: numbers that it holds, quantised ones counted as what they mean.
        path: the file.
    """

    name: str
    config: RunConfig
    metadata: dict[str, Any]
    parameters: int
    path: Path

    @property
    def licences(self) -> list[str]:
        """Licences of what it learnt from; empty: unknown."""
        told = self.metadata.get("data_licences")
        return [str(item) for item in told if str(item).strip()] if isinstance(told, list) else []


def is_shared(name: str) -> bool:
    """Whether a file of this name, folders with slashes, is one of those that are shared."""
    return _SHARED.fullmatch(name) is not None


def read_parts(source: Path) -> list[Part]:
    """Read and check what a checkpoint folder has to share.

    Args:
        source: a checkpoint folder, the folder of an adapter, or a model's .safetensors file.

    Returns:
        The model, if there is one, then its adapters, without those of `unfinished`.

    Raises:
        KmidiError: when there is nothing to share, only PyTorch's kind of file, or something
            damaged.
    """
    if source.suffix in SUFFIXES and not source.is_dir():
        raise _pickled(source)
    if not source.is_dir():
        return [_model(source)]
    if (source / checkpoint.ADAPTER).exists():
        return [_adapter(source / checkpoint.ADAPTER)]
    parts = [_model(source / checkpoint.BEST)] if (source / checkpoint.BEST).exists() else []
    left_out = unfinished(source)
    for name in adapter_names(source):
        if name in left_out:
            continue
        parts.append(_adapter(source / checkpoint.ADAPTERS / name / checkpoint.ADAPTER))
    if not parts:
        if (source / checkpoint.BEST_TORCH).exists():
            raise _pickled(source / checkpoint.BEST_TORCH)
        raise KmidiError(
            f"{source} holds no checkpoint of kmidi: neither {checkpoint.BEST} nor "
            f"{checkpoint.ADAPTERS}/NAME/{checkpoint.ADAPTER}."
        )
    return parts


def unfinished(source: Path) -> list[str]:
    """Return the names of a checkpoint folder's adapters whose fine-tuning was cut off or goes on.

    They have a training state, and nothing yet that says what was gained.
    """
    folders = (source / checkpoint.ADAPTERS).glob("*/")
    return sorted(
        folder.name
        for folder in folders
        if (folder / checkpoint.LAST).exists() and not (folder / checkpoint.GAINED).exists()
    )


def check_configs(folder: Path, parts: Iterable[Part]) -> None:
    """Hold that the configuration files of a folder are readable and those of its weights.

    Raises:
        KmidiError: when one is missing, or describes another network.
    """
    for part in parts:
        names = checkpoint.names_of(bool(part.name))
        file = part.path.with_name(names.config)
        if not file.exists():
            raise KmidiError(f"{folder} lacks {file.relative_to(folder)}.")
        if load_config(part.config.name, [file]).model != part.config.model:
            raise KmidiError(
                f"{file.relative_to(folder)} describes another network than {part.path.name}."
            )


def unknown_licences(parts: Iterable[Part]) -> list[str]:
    """Return the files of which nobody has said under which licences their data were."""
    return [part.path.name if not part.name else part.name for part in parts if not part.licences]


def stage(parts: Iterable[Part], folder: Path) -> list[str]:
    """Write the files that are to be shared into an empty folder, without the card.

    Returns:
        Their names, as the repository will have them.

    Raises:
        KmidiError: when a name cannot be shared, or the system refuses.
    """
    written = []
    for part in parts:
        names = checkpoint.names_of(bool(part.name))
        place = f"{checkpoint.ADAPTERS}/{part.name}/" if part.name else ""
        if not is_shared(f"{place}{names.weights}"):
            raise KmidiError(
                f"an adapter called {part.name!r} cannot be shared; rename its folder to letters, "
                "digits, dots, dashes and underscores."
            )
        (folder / place).mkdir(parents=True, exist_ok=True)
        metadata = {**part.metadata, "config": without_paths(part.metadata["config"])}
        _copy_with(part.path, folder / place / names.weights, metadata)
        config = config_from_dict(metadata["config"], str(part.path))
        save_config(config, folder / place / names.config)
        written += [f"{place}{names.weights}", f"{place}{names.config}"]
    return written


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's configuration with every path cut down to its last part."""
    return {
        section: {
            key: re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else value
            for key, value in values.items()
        }
        if isinstance(values, dict)
        else values
        for section, values in config.items()
    }


def _copy_with(source: Path, target: Path, metadata: dict[str, Any]) -> None:
    """Copy a safetensors file with other metadata; the numbers keep their bits."""
    with source.open("rb") as old:
        header = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        header["__metadata__"] = {name: json.dumps(value) for name, value in metadata.items()}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as new:
            new.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(old, new, 1 << 20)


def _model(path: Path) -> Part:
    _, metadata = _opened(path)
    kind = RUN_CONFIGS.get(str(metadata.get("model")))
    if kind is None:
        raise KmidiError(f"{path} holds {metadata.get('model', 'no kmidi model')!r}.")
    weights = open_weights(path, kind)
    if weights.config.adapter.adapts:
        return _adapter(path)
    layers = _quantised(metadata)
    check_numbers(weights.arrays, path, {f"{layer}.weight" for layer in layers})
    return Part("", weights.config, metadata, _count(weights.arrays, layers), path)


def _adapter(path: Path) -> Part:
    _, metadata = _opened(path)
    model = str(metadata.get("model"))
    adapter = open_adapter(path, model)
    config = config_from_dict(metadata["config"], str(path))
    return Part(adapter.name, config, metadata, _count(adapter.arrays, {}), path)


def _opened(path: Path) -> tuple[Arrays, dict[str, Any]]:
    arrays, metadata = checkpoint.load_arrays(path)
    if not isinstance(metadata.get("config"), dict):
        raise KmidiError(f"{path} does not say how its model is built.")
    return arrays, metadata


def _quantised(metadata: dict[str, Any]) -> dict[str, int]:
    """Return the group size of every layer that metadata calls quantised."""
    told = metadata.get(DESCRIPTION)
    layers = told.get("layers") if isinstance(told, dict) else None
    if not isinstance(layers, dict):
        return {}
    return {
        name: value["group_size"]
        for name, value in layers.items()
        if isinstance(value, dict) and isinstance(value.get("group_size"), int)
    }


def _count(arrays: Arrays, quantised: dict[str, int]) -> int:
    count = 0
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")
        if layer in quantised and part in ("scales", "biases"):
            # a pair of them stands for a group
            count += array.size * quantised[layer] if part == "scales" else 0
        elif layer not in quantised or part != "weight":
            count += array.size
    return count


def _pickled(path: Path) -> KmidiError:
    return KmidiError(
        f"{path} is a PyTorch file, and those are not shared: they can hold code; make a "
        f"{checkpoint.BEST} of it with `kmidi convert {path} {path.with_name(checkpoint.BEST)}`."
    )
