"""A base as it is after MLX has quantised it: plain layers that hold the rounded numbers.

PyTorch has no layers of MLX's packed integers; what adapters learn over the numbers that those mean
is the same. Which layers are rounded, and to what: `kmidi_mlx.models.quantization`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kmidi_mlx.quantization import EXCEPTIONS, Choice, Packing, choose_packings

__all__ = ["round_base", "rounded"]

# the least that MLX divides by
_SMALLEST_SCALE = 1e-7


@torch.no_grad()
def round_base(model: nn.Module, bits: int) -> dict[str, Packing]:
    """Round what adapters are to be trained over (QLoRA), with the usual exceptions.

    Args:
        model: one of the networks, in fp32, before adapters are attached.
        bits: 8, 6 or 4.

    Returns:
        How MLX would pack the layers that are rounded now, by name.

    Raises:
        KmidiError: as of `kmidi_mlx.quantization.choose_packings`; nothing is changed then.
    """
    layers = {name: one for name, one in model.named_modules() if type(one) is nn.Linear}
    widths = {name: layer.in_features for name, layer in layers.items()}
    packed = choose_packings(widths, Choice(bits), EXCEPTIONS.get(type(model).__name__, ()))
    for name, packing in packed.items():
        layers[name].weight.copy_(rounded(layers[name].weight, packing))
    return packed


def rounded(weight: Tensor, packing: Packing) -> Tensor:
    """Return what MLX has of a weight once it is quantised, in its mode "affine".

    A group's numbers are `scale * integer + bias`. The end that is further from zero is kept
    exactly, and the scale is such that zero stays zero.

    Args:
        weight: fp32 `(rows, columns)`.
        packing: how it is quantised; its groups divide the columns.
    """
    groups = weight.reshape(len(weight), -1, packing.group_size)
    largest, smallest = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    steps = 2**packing.bits - 1
    from_below = smallest.abs() > largest.abs()
    scale = torch.clip((largest - smallest) / steps, _SMALLEST_SCALE)
    scale = torch.where(from_below, scale, -scale)
    edge = torch.where(from_below, smallest, largest)
    to_zero = torch.round(edge / scale)
    scale = torch.where(to_zero != 0, edge / to_zero, scale)
    bias = torch.where(to_zero != 0, edge, torch.zeros_like(edge))
    integers = torch.clip(torch.round((groups - bias) / scale), 0, steps)
    return (integers * scale + bias).reshape(weight.shape)
