"""Weights that MLX has quantised: which layers, how they are packed, plain again; no framework.

`mlx.nn.quantize` keeps `X.weight` as packed integers of a few bits with `X.scales` and `X.biases`,
one pair for every group of neighbours in a row: weight = scale * integer + bias. A row is one
stream of bits, lowest first, in little-endian 32-bit words, so that three, five and six bits run
across the words (MLX documentation of `mlx.core.quantize`, mode "affine").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError, nearest

__all__ = [
    "BITS", "DESCRIPTION", "EXCEPTIONS", "GROUP_SIZES", "Choice", "Packing", "check_description",
    "choose_packings", "dequantize", "dequantized", "describe", "packings",
]  # fmt: skip

#: What a weight can be quantised to by kmidi; files of others may have more kinds.
BITS = (8, 6, 4)
GROUP_SIZES = (32, 64, 128)
#: Linear layers that stay plain unless bits are asked for them by name, by the network's name.
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    "EmotionMIDITransformer": (),
    # what places the points, and what the sound passes first
    "SpectocloudViT": ("decoder", "head", "memory_projections", "query_out", "stages.0"),
    "EmotionRecognizer": ("numbers", "labels", "cues"),
}
#: Name under which metadata tells what `describe` returns.
DESCRIPTION = "quantization"

_WORD_BITS = 32
_READABLE_BITS = (1, 2, 3, 4, 5, 6, 8)
_ROWS_AT_ONCE = 256  # bounds the memory that the single bits of a weight take


@dataclass(frozen=True)
class Packing:
    """How the weight of a layer is packed.

    Attributes:
        bits: of a number.
        group_size: neighbours in a row that share a scale and a bias.
    """

    bits: int
    group_size: int

    def __str__(self) -> str:
        """Say it in words."""
        return f"{self.bits} bits in groups of {self.group_size}"


@dataclass(frozen=True)
class Choice:
    """What a person wants to have quantised.

    Layers are named by parts of their names: "qkv" and "blocks.0" both name
    "blocks.0.attention.qkv".

    Attributes:
        bits: one of `BITS`.
        group_size: one of `GROUP_SIZES`; layers whose inputs it does not divide take a smaller one.
        keep: layers that stay plain.
        layer_bits: other bits for some layers, also for those that stay plain by default; of
            several that name a layer the last one counts.
    """

    bits: int
    group_size: int = 64
    keep: Sequence[str] = ()
    layer_bits: Mapping[str, int] = field(default_factory=dict)


def choose_packings(
    layers: Mapping[str, int], choice: Choice, exceptions: Sequence[str] = ()
) -> dict[str, Packing]:
    """Choose the layers to quantise.

    Args:
        layers: names of a model's linear layers, and how many inputs each has.
        choice: what is wanted.
        exceptions: layers that stay plain unless `layer_bits` names them, named as in `Choice`.

    Returns:
        The packing of every layer that is to be quantised, in the order of `layers`.

    Raises:
        KmidiError: if a name fits no layer, a number is not to be had, two wishes contradict each
            other, or nothing is left to quantise.
    """
    for bits in (choice.bits, *choice.layer_bits.values()):
        if bits not in BITS:
            raise KmidiError(f"{bits} bits are not to be had; choose from {_listed(BITS)}.")
    if choice.group_size not in GROUP_SIZES:
        raise KmidiError(
            f"groups of {choice.group_size} are not to be had; choose from {_listed(GROUP_SIZES)}."
        )
    wanted = dict.fromkeys(layers, choice.bits)
    for part in exceptions:
        for name in _named(layers, part):
            wanted.pop(name, None)
    sizes = {name: _group_size(inputs, choice.group_size) for name, inputs in layers.items()}
    named: set[str] = set()
    for part, bits in choice.layer_bits.items():
        found = _named(layers, part) or _refuse(layers, part)
        if not any(sizes[name] for name in found):
            raise KmidiError(
                f"{part} cannot be quantised: no group of {_listed(GROUP_SIZES)} divides its "
                f"{layers[found[0]]} inputs."
            )
        wanted |= dict.fromkeys(found, bits)
        named |= set(found)
    for part in choice.keep:
        for name in _named(layers, part) or _refuse(layers, part):
            if name in named:
                raise KmidiError(f"{name} cannot be both kept and given bits; leave out one.")
            wanted.pop(name, None)
    chosen = {
        name: Packing(wanted[name], size) for name, size in sizes.items() if size and name in wanted
    }
    if not chosen:
        raise KmidiError("no layer is left to quantise; keep fewer.")
    return chosen


def _named(layers: Iterable[str], part: str) -> list[str]:
    return [name for name in layers if f".{part}." in f".{name}."] if part else []


def _refuse(layers: Iterable[str], part: str) -> list[str]:
    words = [name.split(".") for name in layers]
    parts = {
        ".".join(each[first:last])
        for each in words
        for first in range(len(each))
        for last in range(first + 1, len(each) + 1)
    }
    names = sorted(name for name in parts if not name.isdigit())
    ends = sorted({each[-1] for each in words} - set("0123456789"))
    hint = nearest(part, names) or f"; there are {', '.join(ends)}, and their whole names."
    raise KmidiError(f"no layer that can be quantised is called {part[:40]!r}{hint}")


def _group_size(inputs: int, wanted: int) -> int:
    """Return the largest group up to the wanted one that divides the inputs; 0: none."""
    sizes = [size for size in GROUP_SIZES if size <= wanted and inputs % size == 0]
    return max(sizes, default=0)


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def describe(packed: Mapping[str, Packing]) -> dict[str, Any]:
    """Return what metadata says of quantised layers, as JSON can hold it."""
    layers = {
        name: {"bits": packing.bits, "group_size": packing.group_size}
        for name, packing in sorted(packed.items())
    }
    return {"mode": "affine", "layers": layers}


def check_description(
    metadata: Mapping[str, Any], packed: Mapping[str, Packing], path: Path
) -> None:
    """Hold that metadata says of quantised layers what the arrays are, if it says anything.

    Raises:
        KmidiError: when it does not.
    """
    told = metadata.get(DESCRIPTION)
    if told is None or told == describe(packed):
        return
    layers = told.get("layers") if isinstance(told, dict) else None
    layers = layers if isinstance(layers, dict) else {}
    real = describe(packed)["layers"]
    wrong = sorted(n for n in {*real, *layers} if real.get(n) != layers.get(n))
    what = f"of {wrong[0][:60]}" if wrong else "of the mode"
    raise KmidiError(
        f"{path} is damaged: what it says {what} is not how its weights are quantised; quantise "
        "the weights from before again."
    )


def packings(
    arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, Packing]:
    """Tell which layers of a checkpoint are quantised, and how.

    Args:
        arrays: of a checkpoint.
        expected: shape of every parameter of its model, which tells bits and group size.
        path: what to name in an error.

    Returns:
        Packings by the names of the layers; a layer "a" has "a.weight".

    Raises:
        KmidiError: when one is quantised in another way than MLX's mode "affine".
    """
    found: dict[str, Packing] = {}
    for scales_name in [name for name in arrays if name.endswith(".scales")]:
        layer = scales_name.removesuffix(".scales")
        name = f"{layer}.weight"
        if scales_name in expected or name not in expected or name not in arrays:
            continue  # told by the comparison of names
        packed, scales, biases = arrays[name], arrays[scales_name], arrays.get(f"{layer}.biases")
        floats = biases is not None and scales.dtype.kind == biases.dtype.kind == "f"
        if biases is None or packed.dtype != np.uint32 or not floats:
            raise KmidiError(
                f"{path}: {name} is not quantised in MLX's mode 'affine'; quantise with that, or "
                "convert the weights from before."
            )
        packing = _packing(packed.shape, scales.shape, expected[name])
        if packing is None or biases.shape != scales.shape:
            raise KmidiError(
                f"{path}: {name} is quantised to the shape {packed.shape} with scales "
                f"{scales.shape}, which does not fit a weight of {expected[name]}."
            )
        found[layer] = packing
    return found


def dequantized(
    arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[int, ...]], path: Path
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Replace every quantised weight by plain numbers.

    Args:
        arrays, expected, path: as of `packings`.

    Returns:
        The arrays, without scales and biases; and for every weight that was quantised how, such as
        "4 bits in groups of 64".

    Raises:
        KmidiError: as of `packings`.
    """
    plain = dict(arrays)
    how: dict[str, str] = {}
    for layer, packing in packings(arrays, expected, path).items():
        name = f"{layer}.weight"
        scales, biases = plain.pop(f"{layer}.scales"), plain.pop(f"{layer}.biases")
        plain[name] = dequantize(arrays[name], scales, biases, packing.bits)
        how[name] = str(packing)
    return plain, how


def _packing(
    packed: tuple[int, ...], scales: tuple[int, ...], shape: tuple[int, ...]
) -> Packing | None:
    """Return what has these shapes; None: nothing has."""
    if len(shape) == 2 and packed[:-1] == scales[:-1] == shape[:-1]:
        for bits in _READABLE_BITS:
            for size in GROUP_SIZES:
                if packed[-1] * _WORD_BITS == shape[-1] * bits and scales[-1] * size == shape[-1]:
                    return Packing(bits, size)
    return None


def dequantize(
    packed: NDArray[np.uint32], scales: NDArray[Any], biases: NDArray[Any], bits: int
) -> NDArray[Any]:
    """Return `scale * integer + bias`, rounded as `mlx.core.dequantize` does.

    Args:
        packed: `(rows, columns * bits / 32)`.
        scales, biases: `(rows, columns / group size)`, of one float type.
        bits: of an integer, 1 to 8.

    Returns:
        `(rows, columns)` of the type of the scales.
    """
    rows, columns = packed.shape[0], packed.shape[1] * _WORD_BITS // bits
    weights = np.empty((rows, columns), scales.dtype)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        data = np.ascontiguousarray(packed[part], dtype="<u4").view(np.uint8)
        stream = np.unpackbits(data, axis=-1, bitorder="little").reshape(-1, bits)
        integers = np.packbits(stream, axis=-1, bitorder="little").astype(scales.dtype)
        grouped = integers.reshape(*scales[part].shape, -1)
        grouped = grouped * scales[part][..., None] + biases[part][..., None]
        weights[part] = grouped.reshape(-1, columns)
    return weights
