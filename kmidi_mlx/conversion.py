"""Moving a checkpoint between MLX and PyTorch: what it holds, what it should hold, what is written.

Both frameworks have the same parameters under the same names in the same layout, so nothing is
renamed or transposed; a conversion changes the file format and keeps every bit of every number.
Neither framework is needed: the caller tells the names and shapes that a network has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx import checkpoint, torch_file
from kmidi_mlx.checkpoint_model import built, check_numbers, widened
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.config_file import config_from_dict, config_to_dict, load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.optimizer_groups import GROUPS, group_of
from kmidi_mlx.quantization import DESCRIPTION, check_description, dequantized, packings
from kmidi_mlx.torch_file import Arrays

__all__ = [
    "DTYPES", "LOSS", "Converted", "ExpectedShapes", "Order", "Prepared", "convert", "prepare",
    "state_shapes", "write",
]  # fmt: skip

#: What weights can be stored as.
DTYPES = {"fp32": np.float32, "fp16": np.float16}
#: Name under which metadata tells what quantising cost.
LOSS = "quantization_loss"
_SAFETENSORS = ".safetensors"
_WEIGHTS, _AVERAGE, _OPTIMIZER = "weights.", "average.", "optimizer.states."
_COUNTERS = ("loss_scale", "good_steps", "bad_steps", "skipped_steps")

Shapes = Mapping[str, tuple[int, ...]]
#: Tells the shape of every parameter of the network that a run describes.
ExpectedShapes = Callable[[RunConfig], Shapes]


@dataclass(frozen=True)
class Order:
    """What to convert.

    Attributes:
        source: checkpoint folder, or a safetensors or torch file.
        destination: file to make, by its suffix; or a folder, which gets the standard name.
        state: convert the whole training state (weights, averages, optimiser, counters) instead of
            the weights to use.
        dtype: key of `DTYPES`; None: as they are.
        model: what a source without metadata holds, a key of `RUN_CONFIGS`.
        config_files: YAML files that tell how that model is built.
        force: replace a file that is there.
        quantized: the result is going to be quantised, which only a safetensors file can hold.
    """

    source: Path
    destination: Path
    state: bool = False
    dtype: str | None = None
    model: str | None = None
    config_files: Sequence[Path] = ()
    force: bool = False
    quantized: bool = False


@dataclass(frozen=True)
class Prepared:
    """What a conversion is going to write.

    Attributes:
        path: file to make.
        source: file that was read.
        arrays: by name; quantised weights are plain again.
        metadata: of the source.
        config: of the run.
        notices: as of `Converted`.
    """

    path: Path
    source: Path
    arrays: Arrays
    metadata: dict[str, Any]
    config: RunConfig
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Converted:
    """What a conversion made.

    Attributes:
        path: file that was written.
        model: key of `RUN_CONFIGS`.
        count: number of arrays.
        notices: what happened to the numbers besides being copied.
    """

    path: Path
    model: str
    count: int
    notices: tuple[str, ...]


def convert(order: Order, expected: ExpectedShapes) -> Converted:
    """Read a checkpoint, compare it with its model, write it in another format.

    Args:
        order: what to convert into what.
        expected: tells what the network of a run has to hold.

    Raises:
        KmidiError: when the source is damaged, newer, of another model, does not fit its model or
            holds numbers that are not finite; when the destination is there already or cannot be
            written. Nothing is written or replaced then.
    """
    return write(prepare(order, expected))


def prepare(order: Order, expected: ExpectedShapes) -> Prepared:
    """Do everything of `convert` but write; arguments and errors as of that."""
    source = _source(order)
    path = _destination(order, source)
    stored = checkpoint.load_stored(source)
    arrays, metadata = stored.arrays, dict(stored.metadata)
    notices = _widening(stored.widened)
    is_state = any(name.startswith(_WEIGHTS) for name in arrays)
    if order.state and not is_state:
        raise KmidiError(f"{source} holds weights and no training state; leave out --state.")
    if not is_state:
        arrays, wrappers = _without_wrappers(arrays, source)
        notices += wrappers
    config = _config(order, metadata, source)
    shapes = built(lambda: expected(config), source)
    if order.state:
        averaged = any(name.startswith(_AVERAGE) for name in arrays)
        wanted = state_shapes(shapes, averaged, config.optimizer.name)
        checkpoint.check_names(source, arrays, wanted)
    else:
        if is_state:
            arrays, notice = _weights_to_use(arrays, metadata)
            notices.append(notice)
        arrays, how = _plain(arrays, metadata, shapes, order.dtype, source)
        notices += how
        checkpoint.check_names(source, arrays, shapes)
    check_numbers(arrays, source, kinds="fiu" if order.state else "f")
    if order.dtype is not None:
        arrays = _cast(arrays, order.dtype, source)
    return Prepared(path, source, arrays, metadata, config, tuple(notices))


def write(prepared: Prepared) -> Converted:
    """Write what was prepared; errors as of `convert`."""
    # sorted, so that the same checkpoint always gives the same torch file
    arrays = dict(sorted(prepared.arrays.items()))
    _write(prepared.path, arrays, dict(sorted(prepared.metadata.items())))
    return Converted(prepared.path, prepared.config.name, len(arrays), prepared.notices)


def _plain(
    arrays: Arrays, metadata: dict[str, Any], shapes: Shapes, dtype: str | None, source: Path
) -> tuple[Arrays, list[str]]:
    """Take quantised weights back in full, and what metadata says of quantising away."""
    check_description(metadata, packings(arrays, shapes, source), source)
    metadata.pop(DESCRIPTION, None)
    metadata.pop(LOSS, None)
    if dtype == "fp32":
        # before the products, which fp16 would round
        arrays = widened(arrays)
    arrays, how = dequantized(arrays, shapes, source)
    return arrays, _dequantizing(how)


def _source(order: Order) -> Path:
    if not order.source.is_dir():
        return order.source
    name = Path(checkpoint.LAST if order.state else checkpoint.BEST)
    found = [order.source / name.with_suffix(suffix) for suffix in (_SAFETENSORS, ".pt")]
    for file in found:
        if file.exists():
            return file
    raise KmidiError(f"no such checkpoint: neither {found[0]} nor {found[1].name} is there.")


def _destination(order: Order, source: Path) -> Path:
    path = order.destination
    if path.is_dir() or not path.suffix:
        name = Path(checkpoint.LAST if order.state else checkpoint.BEST)
        to_torch = source.suffix not in torch_file.SUFFIXES and not order.quantized
        path = path / name.with_suffix(".pt" if to_torch else _SAFETENSORS)
    elif path.suffix not in (_SAFETENSORS, *torch_file.SUFFIXES):
        raise KmidiError(
            f"{path} ends in {path.suffix}; name a file that ends in {_SAFETENSORS} (MLX and "
            "others) or .pt (PyTorch), or a folder."
        )
    elif order.quantized and path.suffix in torch_file.SUFFIXES:
        raise KmidiError(
            f"{path}: quantised weights are MLX's; name a file that ends in {_SAFETENSORS}."
        )
    if os.path.lexists(path):
        if source.exists() and path.exists() and path.samefile(source):
            raise KmidiError(f"{path} cannot be converted into itself; name another file.")
        if not order.force:
            raise KmidiError(f"{path} is there already; give --force to replace it.")
    return path


def _widening(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"{len(names)} arrays were bfloat16 and are float32 now, their values unchanged"]


def _dequantizing(how: Mapping[str, str]) -> list[str]:
    return [
        f"{sum(other == kind for other in how.values())} weights were quantised ({kind}) and are "
        "plain numbers now; what quantising lost stays lost"
        for kind in sorted(set(how.values()))
    ]


def _without_wrappers(arrays: Arrays, source: Path) -> tuple[Arrays, list[str]]:
    """Strip what torch.compile and DistributedDataParallel add to names."""
    found = set()
    names = {name: name.split(".") for name in arrays}
    for name, parts in names.items():
        if "_orig_mod" in parts:
            found.add("_orig_mod.")
            names[name] = [part for part in parts if part != "_orig_mod"]
    while names and all(parts[0] == "module" for parts in names.values()):
        found.add("module.")
        names = {name: parts[1:] for name, parts in names.items()}
    stripped = {".".join(names[name]): array for name, array in arrays.items()}
    if len(stripped) != len(arrays):
        raise KmidiError(f"{source} holds the same name with and without a wrapper's prefix.")
    notices = [f"the prefix {prefix!r} was taken off the names" for prefix in sorted(found)]
    return stripped, notices


def _config(order: Order, metadata: dict[str, Any], source: Path) -> RunConfig:
    """Find what the source holds, and note it in the metadata where only the order tells."""
    kinds = ", ".join(RUN_CONFIGS)
    if "model" not in metadata and order.model is not None:
        config = load_config(order.model, order.config_files, ())
        metadata.update(model=config.name, config=config_to_dict(config))
        return config
    if "model" not in metadata:
        raise KmidiError(
            f"{source} does not say what it holds; give --model ({kinds}), and --config FILE where "
            "its sizes are not the default ones."
        )
    # compared as text, because metadata can hold anything
    if str(metadata["model"]) not in RUN_CONFIGS or not isinstance(metadata.get("config"), dict):
        raise KmidiError(f"{source} holds {metadata['model']!r:.60}, not one of {kinds}.")
    if order.model not in (None, metadata["model"]):
        raise KmidiError(f"{source} holds {metadata['model']!r}, not the {order.model!r} you name.")
    if order.config_files:
        raise KmidiError(f"{source} says itself how its model is built; leave out --config.")
    config = config_from_dict(metadata["config"], str(source))
    if config.name != metadata["model"]:
        raise KmidiError(
            f"{source} describes a {config.name!r}, not the {metadata['model']!r} it claims."
        )
    return config


def state_shapes(
    shapes: Shapes, averaged: bool, optimizer: str = "adamw"
) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything in the training state of a network.

    Args:
        shapes: of its parameters.
        averaged: whether the run keeps averaged weights.
        optimizer: the name of what trains it.
    """
    state: dict[str, tuple[int, ...]] = {f"counters.{name}": () for name in _COUNTERS}
    for group in range(len(GROUPS[optimizer])):
        state |= {f"{_OPTIMIZER}{group}.{name}": () for name in ("step", "learning_rate")}
    for name, shape in shapes.items():
        state[_WEIGHTS + name] = shape
        if averaged:
            state[_AVERAGE + name] = shape
        group = group_of(optimizer, name, len(shape))
        memories = GROUPS[optimizer][group]
        state |= {f"{_OPTIMIZER}{group}.{name}.{memory}": shape for memory in memories}
    return state


def _weights_to_use(arrays: Arrays, metadata: dict[str, Any]) -> tuple[Arrays, str]:
    """Take the averaged weights where there are any, else the weights, out of a training state."""
    averaged = any(name.startswith(_AVERAGE) for name in arrays)
    prefix = _AVERAGE if averaged else _WEIGHTS
    weights = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    progression = metadata.pop("progression", {})
    step = progression.get("step") if isinstance(progression, dict) else None
    if step is not None:
        metadata["step"] = step
    kind = "averaged weights" if averaged else "weights"
    return weights, f"these are the {kind} of a training state, at step {step}; --state takes all"


def _cast(arrays: Arrays, dtype: str, source: Path) -> Arrays:
    kind = DTYPES[dtype]
    with np.errstate(over="ignore"):
        cast = {name: array.astype(kind, copy=False) for name, array in arrays.items()}
    broken = [name for name, array in cast.items() if not np.isfinite(array).all()]
    if broken:
        raise KmidiError(f"{source} holds numbers too large for {dtype} in {', '.join(broken)}.")
    return cast


def _write(path: Path, arrays: Arrays, metadata: dict[str, Any]) -> None:
    if path.suffix not in torch_file.SUFFIXES:
        checkpoint.save_arrays(path, arrays, metadata)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KmidiError(f"cannot make the folder {path.parent}: {error.strerror}.") from error
    version = {"format_version": checkpoint.FORMAT_VERSION}
    torch_file.write_torch_file(path, arrays, version | metadata)
