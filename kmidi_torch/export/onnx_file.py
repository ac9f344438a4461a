"""Making an ONNX file of a module, and running it in ONNX Runtime."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.exportable import Exportable
from kmidi_torch.export.quiet import quiet
from kmidi_torch.export.ring import Run

__all__ = ["OPSET", "OnnxRun", "build", "describe", "quantized", "rounded_run", "save"]

#: Version of ONNX's operators; ONNX Runtime knows it from 1.17 on.
OPSET = 20
_MOST_BYTES = 2**31 - 1  # of a protobuf message


def build(exportable: Exportable) -> Any:
    """Translate a module: an `onnx.ModelProto` that holds the weights and no 64-bit ids outside.

    Args:
        exportable: the module with its inputs and outputs.
    """
    with quiet():
        program = torch.onnx.export(
            exportable.traced(),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[port.name for port in exportable.inputs],
            output_names=[port.name for port in exportable.outputs],
            verbose=False,
        )
    proto = program.model_proto
    if proto.ByteSize() > _MOST_BYTES:
        raise KmidiError("the model is larger than the 2 GB that one ONNX file can hold.")
    return proto


def quantized(proto: Any) -> Any:
    """Return a model whose matrices are uint8; activations are quantised as they come.

    uint8 and not int8: without VNNI, x86 adds two products of int8 in 16 bits, which overflow.

    Args:
        proto: in fp32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.onnx"
        quantize_dynamic(
            proto,
            path,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
        )
        return onnx.load(path)


def rounded_run(path: Path) -> Run:
    """Return ONNX's own interpreter of a file: numpy computes and rounds every operation.

    Slow, and exact about types: what overflows in fp16 overflows here.
    """
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))

    return run


def describe(proto: Any, exportable: Exportable, metadata: Mapping[str, Any]) -> None:
    """Write into the file what it is, for people (doc strings) and programs (metadata).

    Args:
        proto: changed in place.
        exportable: what was exported.
        metadata: JSON values; texts stay as they are.
    """
    import onnx

    graph = proto.graph
    graph.name = proto.producer_name = "kmidi"
    proto.doc_string = graph.doc_string = exportable.about
    for values, ports in ((graph.input, exportable.inputs), (graph.output, exportable.outputs)):
        for value, port in zip(values, ports, strict=True):
            value.doc_string = port.meaning
            for dimension, axis in zip(value.type.tensor_type.shape.dim, port.axes, strict=True):
                if not isinstance(axis, int):
                    dimension.dim_param = axis.text
    # the exporter's notes name files of this machine
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    # lengths of what is inside bear names that nobody can read
    del graph.value_info[:]
    text = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
    onnx.helper.set_model_props(proto, text)


def save(proto: Any, path: Path) -> None:
    """Write the file and let ONNX check it, types and shapes of every operation included."""
    import onnx

    onnx.save(proto, path)
    onnx.checker.check_model(path, full_check=True)


class OnnxRun:
    """A file in ONNX Runtime on the CPU, one thread: inputs by name to outputs by name.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._names = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once."""
        given = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        return dict(zip(self._names, self._session.run(None, given), strict=True))
