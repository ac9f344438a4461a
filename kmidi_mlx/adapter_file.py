"""Adapters as files: a folder with `adapter.safetensors` and `adapter_config.yaml`, any framework.

An adapter belongs to the checkpoint it was trained over and lies in its folder `adapters` under its
name; `NAME:SCALE` asks for it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.checkpoint_model import open_weights
from kmidi_mlx.config import RUN_CONFIGS
from kmidi_mlx.config_file import config_from_dict
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import Arrays

__all__ = [
    "LARGEST_SCALE", "Adapter", "adapter_names", "add_adapter_argument", "find_adapter",
    "is_synthetic", "notices", "open_adapter", "open_adapters",
]  # fmt: skip

#: Adapters count up to so many times, in either direction.
LARGEST_SCALE = 4.0


@dataclass(frozen=True)
class Adapter:
    """What an adapter's file holds.

    Attributes:
        name: of its folder.
        config: how it is made.
        arrays: what it learnt, float32, by name.
        base: digest of the weights that it was trained over; empty: unknown.
        metadata: all that is known of it.
        path: the file.
    """

    name: str
    config: AdapterConfig
    arrays: Arrays
    base: str
    metadata: dict[str, Any]
    path: Path


def add_adapter_argument(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--adapter`, which may be given several times."""
    parser.add_argument(
        "--adapter",
        dest="adapters",
        action="append",
        default=[],
        metavar="NAME[:SCALE]",
        help="what `kmidi finetune` taught the checkpoint; several add up",
    )


def adapter_names(folder: Path) -> list[str]:
    """Return the names of the adapters of a checkpoint folder, in order."""
    found = (folder / checkpoint.ADAPTERS).glob(f"*/{checkpoint.ADAPTER}")
    return sorted(path.parent.name for path in found)


def find_adapter(text: str, folder: Path) -> tuple[Path, float]:
    """Understand `NAME`, `NAME:SCALE`, or a path in the place of the name.

    Args:
        text: as a person gives it.
        folder: of the checkpoint whose adapters are meant.

    Returns:
        The adapter's file and its scale.

    Raises:
        KmidiError: when there is no such adapter, naming those that there are, or the scale is
            none.
    """
    name, colon, number = text.rpartition(":")
    name, scale = (text, 1.0) if not colon or _is_there(text, folder) else (name, _scale(number))
    for place in (folder / checkpoint.ADAPTERS / name, Path(name)):
        file = place / checkpoint.ADAPTER if place.is_dir() else place
        if name and file.is_file():
            return file, scale
    there = ", ".join(adapter_names(folder)) or f"none; `kmidi finetune --base {folder}` makes one"
    raise KmidiError(f"no adapter is called {name[:80]!r}; {folder} has {there}.")


def _is_there(text: str, folder: Path) -> bool:
    return (folder / checkpoint.ADAPTERS / text).exists() or Path(text).exists()


def _scale(number: str) -> float:
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not abs(scale) <= LARGEST_SCALE:
        raise KmidiError(
            f"an adapter cannot count {number[:20]!r} times; give a number from "
            f"{-LARGEST_SCALE:g} to {LARGEST_SCALE:g}, as in mine:0.7."
        )
    return scale


def open_adapter(path: Path, model: str) -> Adapter:
    """Read an adapter.

    Args:
        path: its file.
        model: what it is to be put on, `midi_generator` or `spectocloud`.

    Raises:
        KmidiError: when it is missing, damaged, newer, for another model, or holds NaN or Inf.
    """
    arrays, metadata = checkpoint.load_arrays(path)
    if metadata.get("model") != model:
        raise KmidiError(
            f"{path} is for {metadata.get('model', 'no kmidi model')!r}; one for {model!r} is "
            "needed here."
        )
    told = metadata.get("config")
    if not isinstance(told, dict):
        raise KmidiError(f"{path} does not say how its adapters are made; it cannot be used.")
    config = config_from_dict(told, str(path)).adapter
    if not config.adapts:
        raise KmidiError(f"{path} holds a whole model and no adapter; name it as the checkpoint.")
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise KmidiError(f"{path} holds NaN or Inf in {broken[0]}; it cannot be used.")
    base = metadata.get("base")
    digest = str(base.get("digest", "")) if isinstance(base, dict) else ""
    return Adapter(path.parent.name, config, arrays, digest, metadata, path)


def open_adapters(texts: Sequence[str], folder: Path, model: str) -> list[tuple[Adapter, float]]:
    """Read what `--adapter` names, in order; arguments and errors as of the functions above."""
    found = [find_adapter(text, folder) for text in texts]
    return [(open_adapter(path, model), scale) for path, scale in found]


def is_synthetic(metadata: Mapping[str, Any], adapters: Sequence[tuple[Adapter, float]]) -> bool:
    """Whether weights of this metadata, or an adapter on them, learnt from practice music."""
    known = [metadata, *(adapter.metadata for adapter, _ in adapters)]
    return any(bool(one.get("synthetic")) for one in known)


def notices(adapters: Sequence[tuple[Adapter, float]], base: Path, model: str) -> list[str]:
    """What every command that uses adapters has to say about them.

    Args:
        adapters: as of `open_adapters`.
        base: the weights that they are put on.
        model: of both.

    Raises:
        KmidiError: when the weights cannot be read.
    """
    if not adapters:
        return []
    found = []
    digest = open_weights(base, RUN_CONFIGS[model]).digest
    for adapter, _ in adapters:
        if adapter.metadata.get("synthetic"):
            found.append(
                f"note: the adapter {adapter.path} was trained on synthetic practice music, not on "
                "real music."
            )
        if adapter.base not in ("", digest):
            found.append(
                f"note: the adapter {adapter.path} was trained over other weights than those in "
                f"{base}; with these it does something else."
            )
    return found
