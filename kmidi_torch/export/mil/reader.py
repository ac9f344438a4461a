"""Reads a Core ML package (`.mlpackage`): its program (protobuf) and the weights beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil.operations_constexpr import is_constexpr
from kmidi_torch.export.mil.steps import Step
from kmidi_torch.export.mil.values import Array, Type, Value, read_type, read_value
from kmidi_torch.export.mil.weights import WeightFile

__all__ = ["Content", "read_package"]

_FOLDER = Path("Data", "com.apple.CoreML")
_MODEL = "model.mlmodel"
_BLOBS = "@model_path/"
# iOS 17 and iOS 18; before, other rules hold for some operations
_OPSETS = ("CoreML7", "CoreML8")
# `ArrayDataType` of FeatureTypes.proto
_BORDER_DTYPES = {65552: "fp16", 65568: "fp32", 131104: "int32"}


@dataclass
class Content:
    """A function of a program.

    Attributes:
        inputs, outputs: types by name.
        constants: values by name, weights that are stored smaller already made whole.
        steps: operations that run at every call, in order.
        counts: how often each operation is there.
    """

    inputs: dict[str, Type]
    outputs: dict[str, Type] = field(default_factory=dict)
    constants: dict[str, Value] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read_package(path: Path, function: str | None) -> Content:
    """Read a function of a package.

    Args:
        path: the folder.
        function: name; None: the one that runs when none is named.

    Raises:
        KmidiError: if there is no package, it is damaged, or something in it is not evaluated.
    """
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    file = path / _FOLDER / _MODEL
    model: Any = Model_pb2.Model()
    try:
        model.ParseFromString(file.read_bytes())
    except OSError as error:
        raise KmidiError(f"cannot read {file}: {error.strerror}.") from error
    except DecodeError as error:
        raise KmidiError(f"{file} is no Core ML model: {error}.") from error
    if model.WhichOneof("Type") != "mlProgram":
        raise KmidiError(f"{path} holds a {model.WhichOneof('Type')}, not an ML Program.")
    functions = model.mlProgram.functions
    name = function or model.description.defaultFunctionName or "main"
    if name not in functions:
        raise KmidiError(f"{path} has no function {name}; it has {', '.join(sorted(functions))}.")
    if functions[name].opset not in _OPSETS:
        raise KmidiError(
            f"{path} is written for {functions[name].opset}; evaluated are {', '.join(_OPSETS)}."
        )
    content = _read_function(functions[name], _blob_reader(path))
    _check_border(path, _description(model, name), content)
    return content


def _blob_reader(path: Path) -> Callable[[Any, Type], Array]:
    files: dict[str, WeightFile] = {}

    def read(blob: Any, kind: Type) -> Array:
        name = blob.fileName.removeprefix(_BLOBS)
        if name == blob.fileName or ".." in Path(name).parts or Path(name).is_absolute():
            raise KmidiError(f"{path} keeps weights in {blob.fileName}, outside of itself.")
        if name not in files:
            files[name] = WeightFile(path / _FOLDER / name)
        return files[name].read(blob.offset, kind)

    return read


def _read_function(function: Any, read_blob: Callable[[Any, Type], Array]) -> Content:
    block = function.block_specializations[function.opset]
    content = Content({value.name: read_type(value.type, value.name) for value in function.inputs})
    types = dict(content.inputs)
    for operation in block.operations:
        name = read_value(operation.attributes["name"], "the name of an operation", read_blob)
        where = f"operation {name} ({operation.type})"
        outputs = [(value.name, read_type(value.type, where)) for value in operation.outputs]
        for output, kind in outputs:
            if output in types:
                raise KmidiError(f"{where} makes {output}, which is there already.")
            types[output] = kind
        content.counts[operation.type] += 1
        if operation.type == "const":
            value = operation.attributes["val"]
            if [read_type(value.type, where)] != [kind for _, kind in outputs]:
                raise KmidiError(f"{where} has a value of another type than it declares.")
            content.constants[outputs[0][0]] = read_value(value, where, read_blob)
            continue
        arguments = _arguments(operation, name, where, content.constants, read_blob)
        for source in (source for sources in arguments.values() for source in sources):
            if source not in types and source not in content.constants:
                raise KmidiError(f"{where} takes {source}, which nothing before it makes.")
        step = Step.build(name, operation.type, arguments, outputs)
        if is_constexpr(operation.type):
            for (output, kind), value in zip(
                outputs, step.evaluate(content.constants), strict=True
            ):
                # a weight of fp16 is one of fp16 in the end, however small it is stored
                content.constants[output] = value.astype(kind.stored).astype(kind.computed)
        else:
            content.steps.append(step)
    for output in block.outputs:
        if output not in types:
            raise KmidiError(f"the program returns {output}, which no operation makes.")
        content.outputs[output] = types[output]
    return content


def _arguments(
    operation: Any,
    name: str,
    where: str,
    constants: dict[str, Value],
    read_blob: Callable[[Any, Type], Array],
) -> dict[str, list[str]]:
    """Names of what an operation takes; values that it holds itself get names in `constants`."""
    arguments: dict[str, list[str]] = {}

    def hold(parameter: str, value: Any) -> str:
        held = f"{name}.{parameter}.{len(arguments.get(parameter, []))}"
        constants[held] = read_value(value, f"{where}, {parameter}", read_blob)
        return held

    for parameter, argument in operation.inputs.items():
        arguments[parameter] = []
        for binding in argument.arguments:
            inline = binding.WhichOneof("binding") == "value"
            arguments[parameter].append(hold(parameter, binding.value) if inline else binding.name)
    for parameter, value in operation.attributes.items():
        if parameter != "name":
            arguments[parameter] = [hold(parameter, value)]
    return arguments


def _description(model: Any, function: str) -> Any:
    """What the package says about the inputs and outputs of a function."""
    several = {described.name: described for described in model.description.functions}
    return several.get(function, model.description)


def _check_border(path: Path, description: Any, content: Content) -> None:
    """Refuse a package whose description, which apps see, is not of its program."""
    for told, types in ((description.input, content.inputs), (description.output, content.outputs)):
        if {feature.name for feature in told} != types.keys():
            raise KmidiError(f"{path} describes other inputs or outputs than its program has.")
        for feature in told:
            array, kind = feature.type.multiArrayType, types[feature.name]
            dtype, shape = _BORDER_DTYPES.get(array.dataType), tuple(array.shape)
            # outputs may be described without a shape
            if dtype != kind.dtype or (shape and shape != kind.shape):
                raise KmidiError(
                    f"{path} describes {feature.name} as {dtype} {list(shape)}, but its program "
                    f"has {kind}."
                )
