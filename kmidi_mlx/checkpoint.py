"""Checkpoint folders: weights to use, and everything a resume needs. No framework, no pickle.

    config.yaml            the whole resolved configuration
    best.safetensors       weights to use, with metadata
    best.pt                the same, as `kmidi convert` writes it for PyTorch
    last/state.safetensors weights, averages, optimiser state; counters in its metadata
    metrics.jsonl          one line per log step and evaluation
    samples/               what the model wrote at evaluations
    tensorboard/, wandb/   what trackers keep, where they were asked for; wandb.json: the run's id
    hub.json               where a pulled checkpoint came from
    adapters/NAME/         what fine-tuning learnt: adapter_config.yaml, adapter.safetensors in the
                           places of config.yaml and best.safetensors, finetune.json at its end

Every file is written under a temporary name, flushed and renamed, so a crash or a full disk leaves
the old file or the new one.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

import kmidi_mlx
from kmidi_mlx import torch_file
from kmidi_mlx.atomic import atomic_write, remove_leftovers
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.folder_lock import locked
from kmidi_mlx.torch_file import Arrays, StoredArrays

FORMAT_VERSION = 1
BEST = "best.safetensors"
BEST_TORCH = "best.pt"
LAST = "last/state.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
ADAPTERS = "adapters"
ADAPTER = "adapter.safetensors"
ADAPTER_CONFIG = "adapter_config.yaml"
#: What fine-tuning gained and forgot; written when it has come to its end.
GAINED = "finetune.json"
SAMPLES = "samples"
LOCK = ".lock"


class Names(NamedTuple):
    """What a folder's weights to use and their configuration are called."""

    weights: str
    config: str


def names_of(adapts: bool) -> Names:
    """Return the names of a run that trains adapters, or a whole model."""
    return Names(ADAPTER, ADAPTER_CONFIG) if adapts else Names(BEST, CONFIG)


# what Rust adds to the system's own words
_OS_ERROR = re.compile(r" \(os error \d+\)")


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    """Write a safetensors file atomically.

    Args:
        path: file to make or replace; its folder is made when missing.
        arrays: named arrays.
        metadata: JSON values, kept under their names as JSON text.

    Raises:
        KmidiError: when the system refuses (disk full, no permission); the old file stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KmidiError(f"cannot make the folder {path.parent}: {error.strerror}.") from error
    text = {name: json.dumps(value) for name, value in metadata.items()}
    text["format_version"] = json.dumps(FORMAT_VERSION)
    # not ascontiguousarray, which gives a scalar a dimension
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with atomic_write(path) as temporary:
        try:
            # straight to the disk: bytes in between would be two more copies of everything
            safetensors.numpy.save_file(ordered, temporary, metadata=text)
        except safetensors.SafetensorError as error:
            reason = _OS_ERROR.sub("", str(error)).rpartition(": ")[2]
            raise KmidiError(f"cannot write {path}: {reason}.") from error


def load_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a safetensors file, or what `torch.save` made of one, and its metadata.

    Args:
        path: file; one that ends in .pt or .pth is read as PyTorch's.

    Raises:
        KmidiError: when it is missing, truncated, of another kind, holds code, or is of a newer
            format.
    """
    stored = load_stored(path)
    return stored.arrays, stored.metadata


def load_stored(path: Path) -> StoredArrays:
    """Read as `load_arrays` does, and tell which arrays had been bfloat16."""
    if path.suffix in torch_file.SUFFIXES:
        stored = torch_file.read_torch_file(path)
        _check_version(stored.metadata, path)
        return stored
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())
            wide = tuple(name for name in names if file.get_slice(name).get_dtype() == "BF16")
            arrays = {name: file.get_tensor(name) for name in names if name not in wide}
            text = file.metadata() or {}
        arrays |= _widened(path, wide)
    except FileNotFoundError:
        raise KmidiError(f"no such checkpoint: {path}.") from None
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as error:
        # the last two: a number type that numpy lacks, such as those of eight bits
        raise KmidiError(f"{path} is not a readable safetensors file: {error}.") from error
    return StoredArrays(arrays, read_metadata(text, path), wide)


def _widened(path: Path, names: tuple[str, ...]) -> Arrays:
    """Read bfloat16 arrays, which numpy lacks, of a file that safetensors has found good."""
    if not names:
        return {}
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
    arrays: Arrays = {}
    for name in names:
        shape, offset = header[name]["shape"], start + header[name]["data_offsets"][0]
        bits = np.fromfile(path, "<u2", math.prod(shape), offset=offset)
        arrays[name] = torch_file.widened(bits.reshape(shape))
    return arrays


def read_metadata(text: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Decode the metadata of a checkpoint; text of other makers stays text."""
    metadata: dict[str, Any] = {}
    for name, value in text.items():
        try:
            metadata[name] = json.loads(value)
        except (ValueError, RecursionError):
            metadata[name] = value
    _check_version(metadata, path)
    return metadata


def _check_version(metadata: Mapping[str, Any], path: Path) -> None:
    version = metadata.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise KmidiError(
            f"{path} has format version {version}; this kmidi reads up to {FORMAT_VERSION}, "
            "so update kmidi."
        )


def check_names(
    path: Path, arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the arrays of a file with the names and shapes a model expects.

    Raises:
        KmidiError: naming all missing, unexpected and misshapen arrays at once.
    """
    missing = [name for name in expected if name not in arrays]
    unexpected = [name for name in arrays if name not in expected]
    misshapen = [
        f"{name} is {array.shape}, not {expected[name]}"
        for name, array in arrays.items()
        if name in expected and array.shape != expected[name]
    ]
    problems = [
        f"{title}: {', '.join(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if names
    ]
    if problems:
        raise KmidiError(f"{path} does not fit this model; {'; '.join(problems)}.")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a checkpoint folder, so that two runs never write into one.

    What a killed run left half written is removed. If nothing was written in the end, a folder that
    was made for it is gone again.

    Raises:
        KmidiError: when another process holds it, or the folder cannot be made.
    """
    with locked(folder, f"another run is training into {folder}; give another --out."):
        for part in (folder, (folder / LAST).parent, folder / SAMPLES):
            remove_leftovers(part)
        yield


def git_commit() -> str:
    """Commit of the source tree kmidi runs from, or the version where there is none."""
    source = Path(kmidi_mlx.__file__).parents[1]
    version = f"v{kmidi_mlx.__version__}"
    # an installed package may lie inside the repository of another project
    if not (source / ".git").exists():
        return version
    try:
        commit = _git(source, "describe", "--always", "--abbrev=12")
        # `describe --dirty` locks the index, and leaves the lock when it is killed
        changed = _git(source, "--no-optional-locks", "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
