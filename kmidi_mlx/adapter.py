"""What adapters of both frameworks share: which layers they change, their first numbers, dropout.

An adapter adds a small trained part to a trained layer that stays as it is (`models/lora.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "FUSED_PARTS",
    "WHOLE",
    "Parts",
    "check_numbers",
    "choose_layers",
    "first_inward",
    "keep_factors",
]

#: Layers that make several things of equal width in one product, and what their parts are called.
FUSED_PARTS = {"qkv": ("q", "k", "v"), "kv": ("k", "v"), "gate_up": ("gate", "up")}


@dataclass(frozen=True)
class Parts:
    """Equal parts of a layer's outputs, and which of them an adapter changes.

    Attributes:
        chosen: their numbers, in order.
        total: how many there are.
    """

    chosen: tuple[int, ...]
    total: int


#: The layer as one part.
WHOLE = Parts((0,), 1)


def choose_layers(layers: Iterable[str], targets: Sequence[str]) -> dict[str, Parts]:
    """Find the layers that targets name.

    Args:
        layers: names of a model's linear layers, as "blocks.0.attention.qkv".
        targets: ends of such names, as "qkv" or "cross_attention.out". Of a fused layer parts can
            be chosen, as "qkv:qv" or "gate_up:up"; each then has an adapter of its own, as if it
            were a layer, where "qkv" alone is one adapter for all.

    Returns:
        Name and parts of every layer found, in the order of `layers`.

    Raises:
        KmidiError: if there is no such layer or part, or two targets name the same layer.
    """
    layers = list(layers)
    found: dict[str, Parts] = {}
    for target in targets:
        end, _, parts = target.partition(":")
        matches = [name for name in layers if name == end or name.endswith(f".{end}")]
        if not matches:
            raise KmidiError(
                f"no layer to adapt is called {end[:40]!r}; there are {', '.join(_ends(layers))}."
            )
        twice = [name for name in matches if name in found]
        if twice:
            raise KmidiError(f"two targets name the layer {twice[0]}; give one of them.")
        found |= dict.fromkeys(matches, _parts(end, parts) if ":" in target else WHOLE)
    if not found:
        raise KmidiError(f"no layer to adapt is given; there are {', '.join(_ends(layers))}.")
    return {name: found[name] for name in layers if name in found}


def first_inward(
    inputs: int, outputs: int, rank: int, parts: Parts, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw the matrix that leads into an adapter: normal, variance 1 / inputs.

    Args:
        inputs, outputs: width of the layer.
        rank: of the adapter of every part.
        parts: those with an adapter.
        rng: what draws.

    Returns:
        float32 `(inputs, rank * parts)`.

    Raises:
        KmidiError: if the layer cannot be parted so, or has no use for such a rank.
    """
    width = outputs // parts.total
    if width * parts.total != outputs:
        raise KmidiError(f"a layer with {outputs} outputs has no {parts.total} equal parts.")
    if not 1 <= rank <= min(inputs, width):
        raise KmidiError(
            f"rank {rank} does not suit a layer of {inputs} inputs and {width} outputs; "
            f"give 1 to {min(inputs, width)}."
        )
    drawn: NDArray[np.float64] = rng.normal(size=(inputs, rank * len(parts.chosen)))
    return (drawn / math.sqrt(inputs)).astype(np.float32)


def keep_factors(inputs: int, dropout: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw what dropout multiplies inputs with, 0 or 1 / (1 - dropout): float32 `(inputs,)`."""
    kept: NDArray[np.bool_] = rng.uniform(size=inputs) >= dropout
    return kept.astype(np.float32) / np.float32(1.0 - dropout)


def check_numbers(alpha: float, dropout: float) -> None:
    """Check what `attach` is given.

    Raises:
        KmidiError: if `alpha` is not positive and finite, or `dropout` not in [0, 1).
    """
    if not 0.0 < alpha < math.inf:
        raise KmidiError(f"alpha {alpha} is no positive number.")
    if not 0.0 <= dropout < 1.0:
        raise KmidiError(f"dropout {dropout} is not in [0, 1).")


def _parts(layer: str, text: str) -> Parts:
    names = FUSED_PARTS.get(layer.rpartition(".")[2])
    if names is None:
        raise KmidiError(
            f"{layer[:40]!r} has no parts to choose; only {', '.join(FUSED_PARTS)} have."
        )
    left, chosen = text, []
    for number, name in enumerate(names):
        if left.startswith(name):
            left = left.removeprefix(name).removeprefix("_")
            chosen.append(number)
    if left or not chosen:
        raise KmidiError(
            f"{text[:40]!r} are no parts of {layer}; its parts are {', '.join(names)}, in this "
            "order."
        )
    return Parts(tuple(chosen), len(names))


def _ends(layers: Sequence[str]) -> list[str]:
    """Last parts of names, each once; one that is a number takes the part before along."""
    ends = []
    for name in layers:
        rest, _, last = name.rpartition(".")
        ends.append(f"{rest.rpartition('.')[2]}.{last}" if last.isdigit() else last)
    return sorted(set(ends))
