"""What quantising a checkpoint saves and costs: size, time and loss, before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from rich.table import Table

from kmidi_mlx.checkpoint_model import Weights
from kmidi_mlx.config import RunConfig
from kmidi_mlx.evaluation.held_out import HeldOut, Loss, compare
from kmidi_mlx.evaluation.pace import Pace, paces
from kmidi_mlx.models.loading import assemble
from kmidi_mlx.models.quantization import quantize
from kmidi_mlx.quantization import DESCRIPTION, Choice, Packing, describe

__all__ = ["Costs", "Quantized", "costs_of", "lines_of", "quantized", "table_of"]

AnyWeights = Weights[RunConfig]
Build = Callable[[RunConfig], nn.Module]
OnProgress = Callable[[int], None]

# inputs on which every quantised layer is held against its plain weights
_INPUTS = 4


@dataclass(frozen=True)
class Quantized:
    """A checkpoint after quantising.

    Attributes:
        weights: what is to be written; its metadata tells how it is quantised.
        packed: layers that are quantised.
        kept: linear layers that are not.
    """

    weights: AnyWeights
    packed: dict[str, Packing]
    kept: list[str]


@dataclass(frozen=True)
class Costs:
    """What quantising saves and costs.

    Attributes:
        bytes_before, bytes_after: all numbers of the checkpoint.
        bits_per_weight: on the average over all that were numbers before.
        before, after: time of a unit; the quantised model in its own layers.
        losses: on held-out data, the one that counts first; of the quantised model with its
            weights as plain numbers, which compute the same. Empty: not measured.
        difference: largest difference between what a quantised layer and its plain weights give
            for random inputs, over the standard deviation of that.
        data: where held-out data came from; None: not measured.
        device: what measured.
    """

    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    before: Pace
    after: Pace
    losses: list[Loss]
    difference: float
    data: str | None
    device: str


def quantized(
    source: AnyWeights, build: Build, choice: Choice, dtype: mx.Dtype, path: Path
) -> Quantized:
    """Quantise a checkpoint.

    Args:
        source: plain weights.
        build: makes the network of a run.
        choice: what is wanted.
        dtype: of everything that is not packed, scales and biases of groups included.
        path: that it will be written to.

    Raises:
        KmidiError: when the choice cannot be obeyed, or the weights do not suit.
    """
    model = assemble(source, build, dtype).model
    packed = quantize(model, choice)
    arrays = {name: np.array(value) for name, value in tree_flatten(model.parameters())}
    kept = sorted(name for name, layer in model.named_modules() if type(layer) is nn.Linear)
    metadata = {**source.metadata, DESCRIPTION: describe(packed)}
    return Quantized(Weights(arrays, source.config, metadata, path), packed, kept)


def costs_of(
    source: AnyWeights,
    made: Quantized,
    build: Build,
    held_out: HeldOut | None,
    on_progress: OnProgress = lambda batches: None,
) -> Costs:
    """Measure what quantising saved and cost.

    Args:
        source: weights before.
        made: of `quantized`.
        build: makes the network of a run.
        held_out: data to measure the loss on; None: it is not measured.
        on_progress: called with 1 after each batch of it, twice as many as there are.
    """
    before, after = (assemble(weights, build).model for weights in (source, made.weights))
    shapes = {name: tuple(array.shape) for name, array in source.arrays.items()}
    plain = replace(made.weights, arrays=made.weights.plain(shapes), metadata=source.metadata)
    same = assemble(plain, build).model
    losses: list[Loss] = []
    if held_out is not None:
        measured = [held_out.measure(model, on_progress) for model in (before, same)]
        losses = compare(held_out.units, *measured)
    size = sum(array.nbytes for array in made.weights.arrays.values())
    pace_before, pace_after = paces([before, after], source.config)
    return Costs(
        bytes_before=sum(array.nbytes for array in source.arrays.values()),
        bytes_after=size,
        bits_per_weight=8 * size / sum(array.size for array in source.arrays.values()),
        before=pace_before,
        after=pace_after,
        losses=losses,
        difference=_difference(after, same, list(made.packed)),
        data=held_out.data if held_out else None,
        device=str(mx.default_device().type).rpartition(".")[2],
    )


def _difference(model: nn.Module, plain: nn.Module, layers: Sequence[str]) -> float:
    """Hold the layers of two models against each other."""
    one, two = (dict(each.named_modules()) for each in (model, plain))
    worst = 0.0
    for name in layers:
        weight = two[name].weight
        inputs = mx.random.normal((_INPUTS, weight.shape[1]), key=mx.random.key(0))
        ours, theirs = (each[name](inputs.astype(weight.dtype)) for each in (one, two))
        apart = mx.max(mx.abs(ours - theirs).astype(mx.float32)) / mx.std(theirs)
        worst = max(worst, apart.item())
    return worst


def table_of(costs: Costs) -> Table:
    """Return size, speed and loss as a table for people."""
    table = Table()
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    sizes = costs.bytes_before, costs.bytes_after
    table.add_row("size, MB", *(f"{size / 1e6:.1f}" for size in sizes), _times(*sizes))
    times = costs.before.milliseconds, costs.after.milliseconds
    unit = f"ms per {costs.before.unit}, {costs.device}"
    table.add_row(unit, _spread(costs.before), _spread(costs.after), _times(*times))
    for loss in costs.losses:
        error = "" if loss.standard_error is None else f" ± {loss.standard_error:.1g}"
        grown = f"{loss.growth:+.2g}{error} ({loss.growth / loss.before:+.2%})"
        table.add_row(loss.unit, f"{loss.before:.5g}", f"{loss.after:.5g}", grown)
    return table


def _spread(pace: Pace) -> str:
    ends = f"{pace.quick_milliseconds:.2f}-{pace.slow_milliseconds:.2f}"
    return f"{pace.milliseconds:.2f} ({ends})"


def _times(before: float, after: float) -> str:
    return f"x {after / before:.2f}"


def lines_of(costs: Costs, made: Quantized) -> list[str]:
    """Return what belongs below the table.

    Args:
        costs: of quantising.
        made: what was made.
    """
    kinds = Counter(str(packing) for packing in made.packed.values())
    counted = ", ".join(f"{count} layers in {kind}" for kind, count in sorted(kinds.items()))
    share = sum(made.weights.arrays[f"{name}.weight"].size for name in made.kept)
    left = f"embeddings and {len(made.kept)} linear layers ({share:,} weights) stay plain"
    lines = [
        f"{counted}; {left}; {costs.bits_per_weight:.2f} bits a weight in all",
        "ms: median (10th to 90th percentile), measured in turns; other programs that are running "
        "make it slower and uneven",
    ]
    if costs.data is None:
        return [*lines, "the loss was not measured"]
    agreement = f"quantised layers agree with them to {costs.difference:.0e}"
    return [*lines, f"loss of the dequantised weights on {costs.data}; {agreement}"]
