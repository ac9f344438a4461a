"""One export to Core ML on its way: traced, converted, written, compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kmidi_torch.export.coreml.chatter import quiet
from kmidi_torch.export.coreml.compare import prove, prove_trace, quantisation_effect
from kmidi_torch.export.coreml.convert import Converter
from kmidi_torch.export.coreml.functions import MAIN, Call, Function, samples_of
from kmidi_torch.export.coreml.graph import Graph, trace
from kmidi_torch.export.coreml.precision import half_nodes
from kmidi_torch.export.coreml.predict import available, predict
from kmidi_torch.export.coreml.quantize import Quantisation
from kmidi_torch.export.report import Difference
from kmidi_torch.export.request import Request

__all__ = ["Job"]


@dataclass
class Job:
    """What is exported, and what is known of it so far.

    Attributes:
        request: what to export.
        functions: of the package.
        converter: of each.
        announce: is told what is being done.
        differences, notes, milliseconds: of the report.
        effect: of quantised weights alone, by output.
    """

    request: Request
    functions: list[Function]
    converter: Converter
    announce: Callable[[str], None]
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    effect: dict[str, float] = field(default_factory=dict)
    milliseconds: float | None = None
    _graphs: dict[str, Graph] = field(default_factory=dict)
    _packages: list[Any] = field(default_factory=list)
    _calls: list[Call] = field(default_factory=list)

    def prepare(self) -> None:
        """Trace and convert."""
        for function in self.functions:
            self.announce(f"converting {function.name} ...")
            self._graphs[function.name] = trace(function.exportable)
            self._packages.append(self.converter.convert(function, self._graphs[function.name]))
        self._calls = samples_of(self.request, self.functions)
        modules = {function.name: function.exportable.module for function in self.functions}
        self.differences = prove_trace(self._calls, self._graphs, modules)

    def write(self, out: Path, quantisation: Quantisation | None) -> None:
        """Write the package in place of what is there, and compare it."""
        if out.exists():
            shutil.rmtree(out)
        self.announce("comparing ..." if quantisation is None else "quantising and comparing ...")
        graphs = list(self._graphs.values())
        self.converter.save(self.functions, self._packages, graphs, out, quantisation)
        in_half = half_nodes(self.request.model) if self.converter.half else None
        rounded = {
            name: graph.rounded(in_half, quantisation.left_of if quantisation else None)
            for name, graph in self._graphs.items()
        }

        def exact(call: Call) -> dict[str, NDArray[Any]]:
            return self._graphs[call.function].run(call.inputs)

        def expected(call: Call) -> dict[str, NDArray[Any]]:
            return rounded[call.function].run(call.inputs)

        whole = expected if quantisation else exact
        inside = {one.name: None if one.name == MAIN else one.name for one in self.functions}
        proof = prove(out, inside, self._calls, expected, whole if self.converter.half else None)
        self.differences += proof.differences
        if proof.largest_half:
            self.notes.append(proof.largest_half)
        if quantisation is not None:
            self.effect = quantisation_effect(self._calls, exact, expected)
            told = ", ".join(f"{name} {value:.3g}" for name, value in self.effect.items())
            self.notes.append(f"quantised weights alone change: {told}")
        if available():
            dtypes = {
                one.name: {p.name: self.converter.dtype(p) for p in one.exportable.inputs}
                for one in self.functions
            }
            with quiet():
                found = predict(out, self._calls, dtypes, whole, self.converter.half)
            self.differences += found.differences
            self.notes += found.notes
            self.milliseconds = found.milliseconds

    def measured(self) -> dict[str, Any]:
        """What was found, for the package itself."""
        return {
            "differences": {one.what: one.largest for one in self.differences},
            "bounds": {one.what: one.bound for one in self.differences},
            "quantised_weights_alone": self.effect,
        }
