"""LoRA and DoRA: few trained weights beside a trained layer that stays as it is.

Hu et al. 2021 (arXiv 2106.09685) add a product of two thin matrices to a layer; Liu et al. 2024
(arXiv 2402.09353) also learn the length of every row of the sum. Adapters start as nothing: a model
that was just attached to computes what it did before.

Weights are those of `kmidi_mlx.models.lora`, name for name, none transposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kmidi_mlx.adapter import (
    WHOLE,
    Parts,
    check_numbers,
    choose_layers,
    first_inward,
    keep_factors,
)
from kmidi_mlx.checkpoint import check_names
from kmidi_mlx.errors import KmidiError

# Rows that are all zero have no direction to keep; they stay zero.
_SHORTEST = 1e-12


class LoRALinear(nn.Module):
    """`base(x) + scale * dropout(x) @ lora_a @ lora_b`, with only the latter two trained.

    Args:
        base: a plain layer.
        lora_a: fp32 `(inputs, rank * parts)`; the layer's `lora_b` is `(rank * parts, width)`, a
            block of rows for every chosen part, `width` the outputs of a part.
        alpha: scale times rank.
        dropout: share of inputs that `draw_dropout` drops.
        parts: of the outputs that are changed.
    """

    def __init__(
        self, base: nn.Linear, lora_a: Tensor, alpha: float, dropout: float, parts: Parts
    ) -> None:
        super().__init__()
        self.parts = parts
        self.scale = alpha * len(parts.chosen) / lora_a.shape[1]
        self.dropout = dropout
        self.lora_a = nn.Parameter(lora_a)
        self.lora_b = nn.Parameter(
            lora_a.new_zeros(lora_a.shape[1], base.weight.shape[0] // parts.total)
        )
        self._keep: Tensor
        self.register_buffer("_keep", lora_a.new_ones(lora_a.shape[0]), persistent=False)
        self.base = base

    @classmethod
    def from_base(
        cls,
        linear: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float,
        rng: np.random.Generator,
        parts: Parts = WHOLE,
    ) -> LoRALinear:
        """Wrap a layer, with `lora_a` drawn and `lora_b` zero.

        Raises:
            KmidiError: if rank or parts do not suit the layer.
        """
        outputs, inputs = linear.weight.shape
        drawn = first_inward(inputs, outputs, rank, parts, rng)
        return cls(linear, torch.from_numpy(drawn).to(linear.weight.device), alpha, dropout, parts)

    @property
    def weight(self) -> Tensor:
        """Weight `(outputs, inputs)` of the plain layer that computes the same."""
        return self._adapted().to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        y = self.base(x)
        return y + self._delta(x).to(y.dtype)

    def draw_dropout(self, rng: np.random.Generator) -> None:
        """Draw the inputs that are dropped, at all positions, until drawn again."""
        self._keep.copy_(torch.from_numpy(keep_factors(len(self.lora_a), self.dropout, rng)))

    def change(self) -> Tensor:
        """What the adapter adds to the layer's weight, `(outputs, inputs)`."""
        return self._adapted() - self.base.weight.to(self.lora_a.dtype)

    def fuse(self) -> nn.Linear:
        """Return a plain layer that computes the same."""
        weight = self.weight.detach()
        outputs, inputs = weight.shape
        linear = nn.Linear(inputs, outputs, bias=self.base.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        linear.bias = self.base.bias
        return linear

    def _delta(self, x: Tensor) -> Tensor:
        """What is added to the layer's outputs."""
        x = x.to(self.lora_a.dtype)
        if self.training and self.dropout:
            x = x * self._keep.to(x.dtype)
        return self.scale * (x @ self.lora_a) @ self._outward()

    def _outward(self) -> Tensor:
        """`lora_b` with every block of rows at its part of the outputs, zero at the others."""
        width, total = self.lora_b.shape[1], self.parts.total
        blocks = torch.chunk(self.lora_b, len(self.parts.chosen))
        places = [(part * width, (total - 1 - part) * width) for part in self.parts.chosen]
        padded = [functional.pad(block, place) for block, place in zip(blocks, places, strict=True)]
        return torch.cat(padded) if total > 1 else self.lora_b

    def _adapted(self) -> Tensor:
        """The layer's weight and what is added to it."""
        delta = self.scale * self.lora_a @ self._outward()
        return self.base.weight.to(delta.dtype) + delta.T


class DoRALinear(LoRALinear):
    """As `LoRALinear`, with the rows of the sum brought to the lengths `magnitude`, trained too.

    `magnitude` is `(width * parts,)`. Gradients take the lengths before as constant (section 4.3).
    """

    def __init__(
        self, base: nn.Linear, lora_a: Tensor, alpha: float, dropout: float, parts: Parts
    ) -> None:
        super().__init__(base, lora_a, alpha, dropout, parts)
        lengths = torch.chunk(self._lengths().detach(), parts.total)
        self.magnitude = nn.Parameter(torch.cat([lengths[part] for part in parts.chosen]))

    @property
    def weight(self) -> Tensor:
        """Weight `(outputs, inputs)` of the plain layer that computes the same."""
        adapted = self._gain()[:, None] * self._adapted()
        return adapted.to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        y = self.base(x)
        bias = y.new_zeros(1) if self.base.bias is None else self.base.bias
        return (self._gain() * (y - bias + self._delta(x))).to(y.dtype) + bias

    def change(self) -> Tensor:
        """What the adapter adds to the layer's weight, `(outputs, inputs)`."""
        adapted = self._gain()[:, None] * self._adapted()
        return adapted - self.base.weight.to(adapted.dtype)

    def _lengths(self) -> Tensor:
        """Length of every row of the sum, `(outputs,)`."""
        return torch.sqrt(torch.sum(torch.square(self._adapted()), dim=1))

    def _gain(self) -> Tensor:
        """What every output is multiplied with, `(outputs,)`; 1 where nothing is adapted."""
        lengths = torch.chunk(self._lengths().detach(), self.parts.total)
        magnitudes = iter(torch.chunk(self.magnitude, len(self.parts.chosen)))
        gains = [
            next(magnitudes) / torch.clip(length, _SHORTEST)
            if part in self.parts.chosen
            else torch.ones_like(length)
            for part, length in enumerate(lengths)
        ]
        return torch.cat(gains)


KINDS = {"lora": LoRALinear, "dora": DoRALinear}
#: Names of the arrays of an adapter that are trained.
LEARNT = ("lora_a", "lora_b", "magnitude")


def attach(
    model: nn.Module,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    kind: Literal["lora", "dora"] = "lora",
    seed: int = 0,
) -> list[str]:
    """Put adapters on layers and freeze everything else.

    Args:
        model: changed in place.
        targets: as of `kmidi_mlx.adapter.choose_layers`.
        rank: of every adapter.
        alpha: adapters are scaled by alpha / rank.
        dropout: share of inputs that `draw_dropout` drops.
        kind: what is put on.
        seed: of what `lora_a` is drawn with; the same in both frameworks.

    Returns:
        Names of what is trained now, sorted.

    Raises:
        KmidiError: if there are no such layers, a number is out of range, or the model has
            adapters.
    """
    if kind not in KINDS:
        raise KmidiError(f"no adapter is called {kind!r}; there are {', '.join(KINDS)}.")
    if adapters(model):
        raise KmidiError("the model has adapters; fuse or detach them first.")
    check_numbers(alpha, dropout)
    layers = {
        name: module
        for name, module in sorted(model.named_modules(), key=itemgetter(0))
        if name and isinstance(module, nn.Linear)
    }
    rng = np.random.default_rng(seed)
    made = {
        name: KINDS[kind].from_base(layers[name], rank, alpha, dropout, rng, parts)
        for name, parts in choose_layers(layers, targets).items()
    }
    model.requires_grad_(False)
    for name, adapter in made.items():
        replace_module(model, name, adapter.train(model.training))
    return sorted(name for name, weight in model.named_parameters() if weight.requires_grad)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the adapters of a model by name."""
    found = sorted(model.named_modules(), key=itemgetter(0))
    return {name: module for name, module in found if isinstance(module, LoRALinear)}


def draw_dropout(model: nn.Module, rng: np.random.Generator) -> None:
    """Draw which inputs every adapter drops, before a step of training.

    An input is dropped at all positions of the step; nothing is dropped in `eval`.
    """
    for adapter in adapters(model).values():
        adapter.draw_dropout(rng)


def detach(model: nn.Module) -> None:
    """Take all adapters off again; everything is trained as before."""
    for name, adapter in adapters(model).items():
        replace_module(model, name, adapter.base)
    _train_all(model)


def fuse_all(model: nn.Module) -> None:
    """Replace all adapted layers by plain ones that compute the same; everything is trained."""
    for name, adapter in adapters(model).items():
        replace_module(model, name, adapter.fuse())
    _train_all(model)


def adapter_weights(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """Return what the adapters learnt, by name; none of the model's own weights."""
    return {
        f"{name}.{key}": value.detach().float().cpu().numpy().copy()
        for name, adapter in adapters(model).items()
        for key, value in _own(adapter).items()
    }


@torch.no_grad()
def load_adapter(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Give the adapters of a model what others learnt, in either framework.

    Raises:
        KmidiError: naming all missing, unexpected and misshapen arrays at once.
    """
    held = adapter_weights(model)
    check_names(
        Path("the adapter"), dict(weights), {name: value.shape for name, value in held.items()}
    )
    for name, adapter in adapters(model).items():
        for key, value in _own(adapter).items():
            value.copy_(torch.tensor(weights[f"{name}.{key}"]))


def _train_all(model: nn.Module) -> None:
    """Let everything be trained."""
    model.requires_grad_(True)


def _own(adapter: LoRALinear) -> dict[str, nn.Parameter]:
    """Return the arrays of an adapter that are trained."""
    return {name: getattr(adapter, name) for name in LEARNT if hasattr(adapter, name)}


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, by its name in the model."""
    path, _, last = name.rpartition(".")
    model.get_submodule(path).register_module(last, module)
