"""Small ML Programs, written with coremltools' own builder, and packages to tamper with."""

from __future__ import annotations

import gc
import inspect
import shutil
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]

collect_ignore_glob = [] if find_spec("coremltools") and find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes a package of one program, exactly as it is built.

    It takes a function of MIL variables that returns one or more, and its inputs by name: arrays,
    whose shapes and dtypes are declared.
    """
    import coremltools as ct
    from coremltools.converters.mil import Builder as Mil
    from coremltools.converters.mil.backend.mil.load import load
    from coremltools.converters.mil.mil import types

    known = {
        np.dtype(np.float32): types.fp32,
        np.dtype(np.float16): types.fp16,
        np.dtype(np.int32): types.int32,
    }

    def write(main: Callable[..., Any], inputs: Mapping[str, Array], ios: int = 17) -> Path:
        # the builder refuses functions that do not take the inputs by position
        assert list(inspect.signature(main).parameters) == list(inputs)
        specs = [Mil.TensorSpec(value.shape, dtype=known[value.dtype]) for value in inputs.values()]
        target = {17: ct.target.iOS17, 18: ct.target.iOS18}[ios]
        program = Mil.program(input_specs=specs, opset_version=target)(main)
        package = tmp_path_factory.mktemp("program") / "small.mlpackage"
        weights = package / "Data" / "com.apple.CoreML" / "weights"
        weights.mkdir(parents=True)
        model = load(program, str(weights), specification_version=target.value)
        (weights.parent / "model.mlmodel").write_bytes(model.SerializeToString())
        return package

    return write


@pytest.fixture(scope="session")
def evaluate(build: Callable[..., Path]) -> Callable[..., list[Array]]:
    """A function that writes such a package, runs it and returns its outputs in order."""
    from kmidi_torch.export.mil import Program

    def run(
        main: Callable[..., Any], inputs: Mapping[str, Array], ios: int = 17, half: bool = False
    ) -> list[Array]:
        return list(Program.open(build(main, inputs, ios)).run(inputs, half).values())

    return run


class Package:
    """A written package that can be tampered with.

    Attributes:
        path: its folder.
        model: as protobuf has it; changes are written by `save`.
        operations: of its only function.
    """

    def __init__(self, path: Path) -> None:
        from coremltools.proto import Model_pb2

        self.path = path
        self._file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        self._weights = self._file.parent / "weights" / "weight.bin"
        self.model: Any = Model_pb2.Model()
        self.model.ParseFromString(self._file.read_bytes())
        (function,) = self.model.mlProgram.functions.values()
        self.operations = function.block_specializations[function.opset].operations

    def copy(self, folder: Path) -> Package:
        """The same package in another folder."""
        shutil.copytree(self.path, folder)
        return Package(folder)

    def of(self, *kinds: str) -> list[Any]:
        """Operations of some kinds, in order."""
        return [operation for operation in self.operations if operation.type in kinds]

    def taking(self, kind: str, parameter: str, source: str) -> list[Any]:
        """Operations of a kind that take a tensor of this name."""
        return [
            operation
            for operation in self.of(kind)
            if source in [item.name for item in operation.inputs[parameter].arguments]
        ]

    def shape(self, operation: Any) -> list[int]:
        """Declared shape of what an operation makes."""
        return [size.constant.size for size in operation.outputs[0].type.tensorType.dimensions]

    def value(self, operation: Any, parameter: str) -> Array:
        """The constant that an operation takes."""
        return self.constants()[operation.inputs[parameter].arguments[0].name]

    def set(self, operation: Any, parameter: str, value: Any) -> None:
        """Change the constant that an operation takes."""
        self.put(operation.inputs[parameter].arguments[0].name, np.asarray(value))

    def constants(self) -> dict[str, Array]:
        """All constants by name."""
        from kmidi_torch.export.mil import Program

        return Program.open(self.path).constants()

    def edit(self, known: Array, change: Callable[[Array], Array]) -> None:
        """Change a constant that is found by its value, wherever it is stored."""
        names = [
            name
            for name, value in self.constants().items()
            if value.size == known.size and np.array_equal(value.ravel(), known.ravel())
        ]
        assert names
        for name in names:
            self.put(name, change(known.copy()))

    def put(self, name: str, value: Array) -> None:
        """Change a constant of this name."""
        (constant,) = [op for op in self.of("const") if op.outputs[0].name == name]
        held = constant.attributes["val"]
        if held.WhichOneof("value") == "blobFileValue":
            data = bytearray(self._weights.read_bytes())
            count, start = struct.unpack_from("<QQ", data, held.blobFileValue.offset + 8)
            new = np.ascontiguousarray(value, np.float32).tobytes()
            assert len(new) == count
            data[start : start + count] = new
            self._weights.write_bytes(data)
            return
        tensor = held.immediateValue.tensor
        values = getattr(tensor, tensor.WhichOneof("value")).values
        assert len(values) == np.size(value)
        values[:] = np.ravel(value).tolist()
        self.save()

    def save(self) -> None:
        """Write what was changed in `operations`."""
        self._file.write_bytes(self.model.SerializeToString())


@pytest.fixture(scope="session")
def build_package(build: Callable[..., Path]) -> Callable[..., Package]:
    """What `build` does, to be tampered with."""
    return lambda main, inputs: Package(build(main, inputs))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Package]:
    """A function that converts an `Exportable` in fp32, with a number for every free length."""
    import coremltools as ct
    import torch

    from kmidi_torch.export.coreml.graph import trace
    from kmidi_torch.export.exportable import Axis

    def fixed(port: Any, lengths: Mapping[str, int]) -> Any:
        axes = [lengths[axis.name] if isinstance(axis, Axis) else axis for axis in port.axes]
        return replace(port, axes=tuple(axes))

    def convert(exportable: Any, lengths: Mapping[str, int]) -> Package:
        inputs = tuple(fixed(port, lengths) for port in exportable.inputs)
        where = torch.ops.aten.where.ScalarOther
        decompositions = torch.export.default_decompositions()
        out = tmp_path_factory.mktemp("converted") / "model.mlpackage"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tools about themselves
            program = trace(replace(exportable, inputs=inputs)).program
            model = ct.convert(
                # a choice between a tensor and a number is unknown to the converter
                program.run_decompositions({where: decompositions[where]}),
                inputs=[
                    ct.TensorType(
                        name=port.name,
                        shape=port.axes,
                        dtype=np.int32 if port.dtype == torch.int32 else np.float32,
                    )
                    for port in inputs
                ],
                outputs=[ct.TensorType(name=port.name) for port in exportable.outputs],
                minimum_deployment_target=ct.target.macOS14,
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )
            model.save(str(out))
            del model
            gc.collect()
        return Package(out)

    return convert


@pytest.fixture(scope="session")
def case_of(
    tiny_checkpoints: dict[str, Path], converted: Callable[..., Package]
) -> Callable[[str], SimpleNamespace]:
    """A function that gives a model by name, converted.

    It is narrow but whole, and nothing of what it holds is too faint to be seen. Attributes:
    `module`, `config`, `weights` by name; `calls`: inputs; `expected`: what the module makes of
    each; `package`; `convert`: makes such a package of the module as it then is.
    """
    from kmidi_torch.export import exportable
    from kmidi_torch.loading import load_generator, load_recognizer, load_spectocloud

    open_as: dict[str, tuple[Any, Any, Any]] = {
        "midi_generator": (
            load_generator,
            exportable.generator_step,
            {"batch": 1, "events": 2, "places": 31},
        ),
        "spectocloud": (load_spectocloud, lambda it: exportable.cloud_pass(it, 24), {"batch": 1}),
        "emotion_recognizer": (
            load_recognizer,
            exportable.recognizer_pass,
            {"batch": 2, "patches": 24},
        ),
    }

    @cache
    def get(name: str) -> SimpleNamespace:
        load, export_of, lengths = open_as[name]
        loaded = load(tiny_checkpoints[name])
        export = export_of(loaded)
        calls = _calls(name, loaded.model, lengths)
        return SimpleNamespace(
            module=export.module,
            config=loaded.config.model,
            weights={key: value.numpy() for key, value in loaded.model.state_dict().items()},
            calls=calls,
            expected=[_outputs(export, inputs) for inputs in calls],
            package=converted(export, lengths),
            convert=lambda: converted(export, lengths),
        )

    return get


def _calls(name: str, model: Any, lengths: Mapping[str, int]) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    def uniform(*shape: int) -> Array:
        return rng.random(shape).astype(np.float32)

    if name == "spectocloud":
        return [
            {"windows": uniform(1, 128, 64), "features": normal(1, 32), "emotion": normal(1, 64)}
        ]
    if name == "emotion_recognizer":
        time = lengths["patches"]
        counts = np.array([time, time // 2], np.int32)
        return [{"frames": uniform(2, time, model.bands), "counts": counts}]
    config, places = model.config, lengths["places"]
    calls = []
    # at first most places are empty; later the ring is full, in no order, and the oldest event is
    # just old enough for the first new event to see it and the second not
    for position in (10, 70):
        slots = rng.permutation(np.arange(position - places, position)).astype(np.int32)
        cache = (1, config.num_layers * config.num_heads, places, config.head_dim)
        calls.append(
            {
                "ids": np.array([[60, 188]], np.int32),
                "emotion": normal(1, 64),
                "chord": np.array([7], np.int32),
                "key": np.array([3], np.int32),
                "position": np.array([position], np.int32),
                "slots": np.maximum(slots, -1),
                "past_keys": normal(*cache),
                "past_values": normal(*cache),
            }
        )
    return calls


def _outputs(export: Any, inputs: dict[str, Array]) -> dict[str, Array]:
    import torch

    with torch.no_grad():
        found = export.module(*(torch.from_numpy(value) for value in inputs.values()))
    found = found if isinstance(found, tuple) else (found,)
    return {port.name: value.numpy() for port, value in zip(export.outputs, found, strict=True)}


@pytest.fixture
def apart(case_of: Callable[[str], SimpleNamespace], tmp_path: Path) -> Callable[..., float]:
    """A function that plants an error into a model's package and tells how far it is then off.

    It takes the name of the model and what plants: that is given a copy of the package and the
    case, and may return another package.
    """
    from kmidi_torch.export.mil import Program

    def measure(name: str, plant: Callable[[Package, SimpleNamespace], Package | None]) -> float:
        case = case_of(name)
        package = case.package.copy(tmp_path / "planted.mlpackage")
        package = plant(package, case) or package
        program, largest = Program.open(package.path), 0.0
        for inputs, expected in zip(case.calls, case.expected, strict=True):
            found = program.run(inputs)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                largest = max(largest, float(np.abs(found[key] - value).max()))
        return largest

    return measure
