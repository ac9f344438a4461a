"""Conversion of traced functions to one Core ML package."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kmidi_torch.export.coreml.chatter import quiet
from kmidi_torch.export.coreml.functions import MAIN, Function
from kmidi_torch.export.coreml.graph import Graph
from kmidi_torch.export.coreml.precision import half_selector
from kmidi_torch.export.coreml.quantize import Quantisation
from kmidi_torch.export.exportable import Port

__all__ = ["Converter"]

_CACHES = ("past_keys", "past_values", "new_keys", "new_values")


@dataclass(frozen=True)
class Converter:
    """How functions become a package.

    Attributes:
        model: name of the model.
        half: compute in fp16, but for what `precision` says.
        macos: oldest system that the package is for, 14 or 15.
    """

    model: str
    half: bool
    macos: int

    def convert(self, function: Function, graph: Graph) -> Any:
        """Convert a traced function to a `coremltools.models.MLModel`."""
        with quiet():
            import coremltools as ct

            precision = ct.precision.FLOAT32
            if self.half:
                precision = ct.transform.FP16ComputePrecision(half_selector(self.model))
            # 16-bit indices would only matter on the Neural Engine
            passes = ct.PassPipeline.DEFAULT
            passes.remove_passes({"common::add_int16_cast"})
            return ct.convert(
                graph.program,
                inputs=[
                    ct.TensorType(name=port.name, shape=port.axes, dtype=self.dtype(port))
                    for port in function.exportable.inputs
                ],
                outputs=[
                    ct.TensorType(name=port.name, dtype=self.dtype(port))
                    for port in function.exportable.outputs
                ],
                convert_to="mlprogram",
                minimum_deployment_target={14: ct.target.macOS14, 15: ct.target.macOS15}[
                    self.macos
                ],
                compute_precision=precision,
                pass_pipeline=passes,
                skip_model_load=True,
            )

    def dtype(self, port: Port) -> Any:
        """Type of an input or output: int32, fp32, and for caches that of the computation, so that
        what is large is not converted at every step."""
        if port.dtype == torch.int32:
            return np.int32
        return np.float16 if self.half and port.name in _CACHES else np.float32

    def save(
        self,
        functions: Sequence[Function],
        packages: Sequence[Any],
        graphs: Sequence[Graph],
        out: Path,
        quantisation: Quantisation | None = None,
    ) -> None:
        """Write converted functions as one package; they share their weights.

        Args:
            functions: the one that runs by default last.
            packages: what `convert` made of each.
            graphs: that it was made from.
            out: folder to make.
            quantisation: of the weights, of each function before they are put together.
        """
        with quiet(), tempfile.TemporaryDirectory(prefix="kmidi-coreml-") as folder:
            import coremltools as ct

            if quantisation is not None:
                packages = [
                    quantisation.apply(package, graph.weights())
                    for package, graph in zip(packages, graphs, strict=True)
                ]
            if functions[0].name == MAIN:
                packages[0].save(str(out))
                return
            together = ct.utils.MultiFunctionDescriptor()
            for function, package in zip(functions, packages, strict=True):
                part = str(Path(folder) / f"{function.name}.mlpackage")
                package.save(part)
                together.add_function(part, MAIN, function.name)
            together.default_function_name = functions[-1].name
            ct.utils.save_multifunction(together, str(out))
