"""Quantised layers in MLX: fewer bits for a weight, in groups that share a scale and a bias.

Only linear layers are quantised. Embeddings stay plain: in the generator their matrix is the output
layer too, and they are less than a hundredth of the weights. The linear layers that stay plain as
well (`kmidi_mlx.quantization.EXCEPTIONS`) are those where quantising costs far more than their
share of the weights; docs/quantization.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_map

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.quantization import EXCEPTIONS, Choice, Packing, choose_packings

__all__ = [
    "cast", "quantize", "quantize_base", "quantized_layers", "restructure",
]  # fmt: skip


def quantize(model: nn.Module, choice: Choice) -> dict[str, Packing]:
    """Quantise the linear layers of a model in place; they are no longer trained.

    Args:
        model: one of the networks, in any float type.
        choice: which layers, and to how many bits.

    Returns:
        The packing of every layer that is quantised now.

    Raises:
        KmidiError: as of `kmidi_mlx.quantization.choose_packings`; nothing is changed then.
    """
    widths = {name: module.weight.shape[1] for name, module in _linear(model).items()}
    packed = choose_packings(widths, choice, EXCEPTIONS.get(type(model).__name__, ()))
    _pack(model, packed)
    return packed


def quantize_base(model: nn.Module, bits: int) -> dict[str, Packing]:
    """Quantise what adapters are to be trained over (QLoRA), with the usual exceptions.

    Args:
        model: one of the networks, before adapters are attached; it stays as it is where layers of
            it are quantised already.
        bits: 8, 6 or 4.

    Returns:
        The packing of every layer that is quantised now.

    Raises:
        KmidiError: as of `quantize`.
    """
    return quantized_layers(model) or quantize(model, Choice(bits))


def quantized_layers(model: nn.Module) -> dict[str, Packing]:
    """Return the packing of every quantised layer of a model by name."""
    return {
        name: Packing(module.bits, module.group_size)
        for name, module in model.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }


def restructure(model: nn.Module, packed: Mapping[str, Packing], path: Path) -> None:
    """Give a new model the layers that a quantised checkpoint has; their numbers are not set.

    Args:
        model: changed in place.
        packed: by the names of the layers.
        path: of the checkpoint, for the complaint.

    Raises:
        KmidiError: when a layer is not one that can be used quantised.
    """
    others = sorted(packed.keys() - _linear(model).keys())
    if others:
        raise KmidiError(
            f"{path} holds {', '.join(others)} quantised, and only linear layers can be used so; "
            "`kmidi convert` makes plain weights of it."
        )
    _pack(model, packed)


def cast(model: nn.Module, dtype: mx.Dtype) -> None:
    """Give all numbers of a model but packed ones a type, in place."""
    model.update(
        tree_map(
            lambda value: value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value,
            model.parameters(),
        )
    )


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    """Return the plain linear layers of a model by name, in its own order."""
    return {name: module for name, module in model.named_modules() if type(module) is nn.Linear}


def _pack(model: nn.Module, packed: Mapping[str, Packing]) -> None:
    def settings(name: str, module: nn.Module) -> bool | dict[str, int]:
        packing = packed.get(name)
        return packing is not None and {"bits": packing.bits, "group_size": packing.group_size}

    if packed:
        nn.quantize(model, class_predicate=settings)
