"""LoRA and DoRA: few trained weights beside a trained layer that stays as it is.

Hu et al. 2021 (arXiv 2106.09685) add a product of two thin matrices to a layer; Liu et al. 2024
(arXiv 2402.09353) also learn the length of every row of the sum. Over a quantised layer it is the
scheme of Dettmers et al. 2023 (QLoRA, arXiv 2305.14314). Adapters start as nothing: a model that
was just attached to computes what it did before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

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

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding)
# Rows that are all zero have no direction to keep; they stay zero.
_SHORTEST = 1e-12


class LoRALinear(nn.Module):
    """`base(x) + scale * dropout(x) @ lora_a @ lora_b`, with only the latter two trained.

    Args:
        base: `nn.Linear`, or `nn.QuantizedLinear`.
        lora_a: fp32 `(inputs, rank * parts)`; the layer's `lora_b` is `(rank * parts, width)`, a
            block of rows for every chosen part, `width` the outputs of a part.
        alpha: scale times rank.
        dropout: share of inputs that `draw_dropout` drops.
        parts: of the outputs that are changed.
    """

    def __init__(
        self, base: nn.Module, lora_a: mx.array, alpha: float, dropout: float, parts: Parts
    ) -> None:
        super().__init__()
        self.parts = parts
        self.scale = alpha * len(parts.chosen) / lora_a.shape[1]
        self.dropout = dropout
        self.lora_a = lora_a
        self.lora_b = mx.zeros((lora_a.shape[1], base.weight.shape[0] // parts.total))
        self._keep = mx.ones((lora_a.shape[0],))
        self.base = base

    @classmethod
    def from_base(
        cls,
        linear: nn.Module,
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
        outputs, inputs = plain_weight(linear).shape
        drawn = first_inward(inputs, outputs, rank, parts, rng)
        return cls(linear, mx.array(drawn), alpha, dropout, parts)

    @property
    def weight(self) -> mx.array:
        """Weight `(outputs, inputs)` of the plain layer that computes the same."""
        return self._adapted().astype(plain_weight(self.base).dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., inputs)` to `(..., outputs)`."""
        y = self.base(x)
        return y + self._delta(x).astype(y.dtype)

    def draw_dropout(self, rng: np.random.Generator) -> None:
        """Draw the inputs that are dropped, at all positions, until drawn again."""
        self._keep = mx.array(keep_factors(len(self.lora_a), self.dropout, rng))

    def change(self) -> mx.array:
        """What the adapter adds to the layer's weight, `(outputs, inputs)`."""
        return self._adapted() - plain_weight(self.base).astype(self.lora_a.dtype)

    def fuse(self) -> nn.Linear:
        """Return a plain layer that computes the same."""
        outputs, inputs = self.weight.shape
        linear = nn.Linear(inputs, outputs, bias="bias" in self.base)
        linear.weight = self.weight
        if "bias" in self.base:
            linear.bias = self.base.bias
        return linear

    def _delta(self, x: mx.array) -> mx.array:
        """What is added to the layer's outputs."""
        x = x.astype(self.lora_a.dtype)
        if self.training and self.dropout:
            x = x * self._keep.astype(x.dtype)
        return self.scale * (x @ self.lora_a) @ self._outward()

    def _outward(self) -> mx.array:
        """`lora_b` with every block of rows at its part of the outputs, zero at the others."""
        width, total = self.lora_b.shape[1], self.parts.total
        blocks = mx.split(self.lora_b, len(self.parts.chosen))
        places = [(part * width, (total - 1 - part) * width) for part in self.parts.chosen]
        padded = [
            mx.pad(block, ((0, 0), place)) for block, place in zip(blocks, places, strict=True)
        ]
        return mx.concatenate(padded) if total > 1 else self.lora_b

    def _adapted(self) -> mx.array:
        """The layer's weight and what is added to it."""
        delta = self.scale * self.lora_a @ self._outward()
        return plain_weight(self.base).astype(delta.dtype) + delta.T


class DoRALinear(LoRALinear):
    """As `LoRALinear`, with the rows of the sum brought to the lengths `magnitude`, trained too.

    `magnitude` is `(width * parts,)`. Gradients take the lengths before as constant (section 4.3).
    """

    def __init__(
        self, base: nn.Module, lora_a: mx.array, alpha: float, dropout: float, parts: Parts
    ) -> None:
        super().__init__(base, lora_a, alpha, dropout, parts)
        lengths = mx.split(self._lengths(), parts.total)
        self.magnitude = mx.concatenate([lengths[part] for part in parts.chosen])

    @property
    def weight(self) -> mx.array:
        """Weight `(outputs, inputs)` of the plain layer that computes the same."""
        adapted = self._gain()[:, None] * self._adapted()
        return adapted.astype(plain_weight(self.base).dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """`(..., inputs)` to `(..., outputs)`."""
        y = self.base(x)
        bias = self.base.bias if "bias" in self.base else mx.zeros((1,), y.dtype)
        return (self._gain() * (y - bias + self._delta(x))).astype(y.dtype) + bias

    def change(self) -> mx.array:
        """What the adapter adds to the layer's weight, `(outputs, inputs)`."""
        adapted = self._gain()[:, None] * self._adapted()
        return adapted - plain_weight(self.base).astype(adapted.dtype)

    def _lengths(self) -> mx.array:
        """Length of every row of the sum, `(outputs,)`."""
        return mx.sqrt(mx.sum(mx.square(self._adapted()), axis=1))

    def _gain(self) -> mx.array:
        """What every output is multiplied with, `(outputs,)`; 1 where nothing is adapted."""
        lengths = mx.split(mx.stop_gradient(self._lengths()), self.parts.total)
        magnitudes = iter(mx.split(self.magnitude, len(self.parts.chosen)))
        gains = [
            next(magnitudes) / mx.maximum(length, _SHORTEST)
            if part in self.parts.chosen
            else mx.ones_like(length)
            for part, length in enumerate(lengths)
        ]
        return mx.concatenate(gains)


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
        if name and isinstance(module, _LINEAR)
    }
    rng = np.random.default_rng(seed)
    made = {
        name: KINDS[kind].from_base(layers[name], rank, alpha, dropout, rng, parts)
        for name, parts in choose_layers(layers, targets).items()
    }
    model.freeze()
    for name, adapter in made.items():
        replace_module(model, name, adapter.train(model.training))
        adapter.unfreeze(recurse=False)
    return sorted(name for name, _ in tree_flatten(model.trainable_parameters()))


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
        f"{name}.{key}": np.array(value.astype(mx.float32))
        for name, adapter in adapters(model).items()
        for key, value in _own(adapter).items()
    }


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
            adapter[key] = mx.array(weights[f"{name}.{key}"]).astype(value.dtype)


def _train_all(model: nn.Module) -> None:
    """Let everything be trained that can be."""
    model.unfreeze()
    for module in model.modules():
        if isinstance(module, _QUANTIZED):
            module.freeze()


def _own(adapter: LoRALinear) -> dict[str, mx.array]:
    """Return the arrays of an adapter that are trained."""
    return {name: adapter[name] for name in LEARNT if name in adapter}


def plain_weight(linear: nn.Module) -> mx.array:
    """Return the weight `(outputs, inputs)` of a layer, quantised or not."""
    if isinstance(linear, nn.QuantizedLinear):
        return mx.dequantize(
            linear.weight,
            linear.scales,
            linear.biases,
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    return linear.weight


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, by its name in the model."""
    place = model
    *path, last = name.split(".")
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    place[int(last) if isinstance(place, list) else last] = module
