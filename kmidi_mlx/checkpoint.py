"""Checkpoint folders: weights to use, and everything a resume needs. No framework, no pickle.

    config.yaml            the whole resolved configuration
    best.safetensors       weights to use, with metadata
    last/state.safetensors weights, averages, optimiser state; counters in its metadata
    metrics.jsonl          one line per log step and evaluation
    samples/               what the model wrote at evaluations

Every file is written under a temporary name, flushed and renamed, so a crash or a full disk leaves
the old file or the new one.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

import kmidi_mlx
from kmidi_mlx.atomic import remove_leftovers, write_bytes_atomically
from kmidi_mlx.errors import KmidiError

FORMAT_VERSION = 1
BEST = "best.safetensors"
LAST = "last/state.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
SAMPLES = "samples"

Arrays = dict[str, NDArray[Any]]


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
    write_bytes_atomically(path, safetensors.numpy.save(ordered, metadata=text))


def load_arrays(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Read a safetensors file and its metadata.

    Raises:
        KmidiError: when it is missing, truncated, no safetensors file, or of a newer format.
    """
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            text = file.metadata() or {}
    except FileNotFoundError:
        raise KmidiError(f"no such checkpoint: {path}.") from None
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        # TypeError: a number type that numpy lacks, such as bfloat16, which kmidi never writes
        raise KmidiError(f"{path} is not a readable safetensors file: {error}.") from error
    metadata = read_metadata(text, path)
    return arrays, metadata


def read_metadata(text: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Decode the metadata of a checkpoint; text of other makers stays text."""
    metadata: dict[str, Any] = {}
    for name, value in text.items():
        try:
            metadata[name] = json.loads(value)
        except ValueError:
            metadata[name] = value
    version = metadata.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise KmidiError(
            f"{path} has format version {version}; this kmidi reads up to {FORMAT_VERSION}, "
            "so update kmidi."
        )
    return metadata


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

    What a killed run left half written is removed.

    Raises:
        KmidiError: when another process holds it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise KmidiError(f"cannot write into {folder}: {error.strerror}.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KmidiError(
                f"another run is training into {folder}; give another --out."
            ) from None
        except OSError as error:
            raise KmidiError(f"cannot lock {folder}: {error.strerror}.") from error
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
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return version
    return done.stdout.strip()
