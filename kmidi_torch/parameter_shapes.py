"""Names and shapes of a network's parameters, without drawing or keeping a number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: for normal numbers without memory PyTorch imports half of itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "normal_":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


def parameter_shapes(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shape of everything in the state dict of the network that `build` makes."""
    with torch.device("meta"), _Undrawn():
        network = build()
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
