"""Comparison of a written package with the model, without a Mac."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kmidi_torch.export.coreml.functions import Call
from kmidi_torch.export.coreml.graph import Graph, run_module
from kmidi_torch.export.mil import Program
from kmidi_torch.export.report import Difference

__all__ = ["FP32_BOUND", "Proof", "half_bound", "prove", "prove_trace", "quantisation_effect"]

Outputs = Mapping[str, NDArray[Any]]

#: Of every output where everything is evaluated in fp32.
FP32_BOUND = 1e-4
# Of outputs where every result is rounded to fp16, as a share of the largest number of the output.
_HALF_SHARE = 2e-2


def half_bound(expected: NDArray[Any]) -> float:
    """Return what an output may differ by where computation is in fp16: 2% of its largest number,
    at least of 1."""
    return _HALF_SHARE * max(1.0, float(np.abs(expected).max()))


@dataclass
class Proof:
    """What a comparison found.

    Attributes:
        differences: largest of each output, by circumstance.
        largest_half: largest fp16 number in the fp16 run, as a sentence; empty: there was no run.
    """

    differences: list[Difference] = field(default_factory=list)
    largest_half: str = ""


def prove_trace(
    calls: Sequence[Call],
    graphs: Mapping[str, Graph],
    modules: Mapping[str, nn.Module],
) -> list[Difference]:
    """Compare traced graphs, constants folded, with the modules that they were made from."""
    found: dict[str, float] = {}
    for call in calls:
        graph = graphs[call.function]
        expected = run_module(modules[call.function], graph.outputs, call.inputs)
        got = graph.run(call.inputs)
        for name, value in expected.items():
            found[name] = _larger(found.get(name, 0.0), _apart(value, got[name]))
    return [Difference(f"{name}, traced", value, FP32_BOUND) for name, value in found.items()]


def prove(
    package: Path,
    functions: Mapping[str, str | None],
    calls: Sequence[Call],
    expected: Callable[[Call], Outputs],
    exact: Callable[[Call], Outputs] | None,
) -> Proof:
    """Run a package and compare.

    Args:
        package: it.
        functions: name in the package, by function; None: its only one.
        calls: with real inputs.
        expected: what the model gives with constants rounded as the package's are; it is held
            against an evaluation in fp32.
        exact: what an evaluation with every fp16 result rounded is held against; None: nothing is
            computed in fp16.
    """
    tight: dict[str, float] = {}
    rounded: dict[str, tuple[float, float]] = {}
    programs = {name: Program.open(package, inside) for name, inside in functions.items()}
    for call in calls:
        program = programs[call.function]
        found = program.run(call.inputs)
        for name, value in expected(call).items():
            key = f"{name}, {call.when}"
            tight[key] = _larger(tight.get(key, 0.0), _apart(value, found[name]))
        if exact is None:
            continue
        stored = {n: value.astype(program.inputs[n][1]) for n, value in call.inputs.items()}
        found = program.run(stored, half=True)
        for name, value in exact(call).items():
            before, bound = rounded.get(name, (0.0, 0.0))
            apart = _apart(value, found[name])
            rounded[name] = _larger(before, apart), max(bound, half_bound(value))
    differences = [Difference(key, value, FP32_BOUND) for key, value in tight.items()]
    differences += [
        Difference(f"{name}, every result in fp16", value, bound)
        for name, (value, bound) in rounded.items()
    ]
    peaks = [program.largest for program in programs.values() if program.largest is not None]
    if exact is None or not peaks:
        return Proof(differences)
    peak = max(peaks, key=lambda largest: largest.value)
    sentence = f"largest fp16 number: {peak.value:.0f} of 65504, in {peak.tensor}"
    return Proof(differences, sentence)


def quantisation_effect(
    calls: Sequence[Call],
    exact: Callable[[Call], Outputs],
    quantised: Callable[[Call], Outputs],
) -> dict[str, float]:
    """Return by output how far quantised weights alone move it at most; and where there are logits,
    the share of events after which the likeliest next one stays the same."""
    effect: dict[str, float] = {}
    same: list[NDArray[np.bool_]] = []
    for call in calls:
        before, after = exact(call), quantised(call)
        for name, value in before.items():
            effect[name] = _larger(effect.get(name, 0.0), _apart(value, after[name]))
        if "logits" in before:
            pairs = (side["logits"].argmax(axis=-1).ravel() for side in (before, after))
            same.append(np.equal(*pairs))
    if same:
        effect["same likeliest event"] = float(np.concatenate(same).mean())
    return effect


def _apart(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max())


def _larger(one: float, other: float) -> float:
    """The larger; NaN is largest."""
    return float(np.maximum(one, other))
