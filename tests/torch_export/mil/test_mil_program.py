"""Reading and running whole programs."""

from __future__ import annotations

import gc
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as Mil

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil import Program
from kmidi_torch.export.mil.operations import OPERATIONS
from kmidi_torch.export.mil.program import Largest

Build = Callable[..., Path]

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)
X = np.linspace(-1.0, 1.0, 8, dtype=np.float32).reshape(2, 4)
COUNT = np.array([1, 2, 3], np.int32)


def _layer(x: Any, count: Any) -> Any:
    product = Mil.linear(x=x, weight=WEIGHT, name="product")
    return Mil.sub(x=product, y=1.5, name="less"), Mil.add(x=count, y=1, name="more")


@pytest.fixture
def package(build: Build) -> Path:
    return build(_layer, {"x": X, "count": COUNT})


def test_a_program_says_what_it_is(package: Path) -> None:
    program = Program.open(package)
    assert program.inputs == {"x": ((2, 4), np.float32), "count": ((3,), np.int32)}
    assert program.outputs == {"less": ((2, 3), np.float32), "more": ((3,), np.int32)}
    counts = program.op_counts()
    assert (counts["linear"], counts["sub"], counts["add"]) == (1, 1, 1)
    constants = program.constants()
    assert any(np.array_equal(value, WEIGHT) for value in constants.values())
    assert not any(value.flags.writeable for value in constants.values())


def test_a_program_is_evaluated(package: Path) -> None:
    found = Program.open(package).run({"x": X, "count": COUNT})
    np.testing.assert_allclose(found["less"], X @ WEIGHT.T - 1.5, rtol=1e-6)
    assert found["more"].tolist() == [2, 3, 4]
    assert found["more"].dtype == np.int32


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"x": X}, "takes x, count, not x"),
        ({"x": X, "count": COUNT, "more": COUNT}, "not x, count, more"),
        ({"x": X.T, "count": COUNT}, "input x is fp32 .2, 4., but float32 .4, 2."),
        ({"x": X.astype(np.float64), "count": COUNT}, "float64"),
        ({"x": X, "count": COUNT.astype(np.int64)}, "input count is int32"),
        ({"x": X, "count": COUNT.astype(np.float32)}, "input count is int32"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    package: Path, inputs: dict[str, Any], match: str
) -> None:
    with pytest.raises(KmidiError, match=match):
        Program.open(package).run(inputs)


def test_what_is_not_evaluated_is_refused(build: Build) -> None:
    with pytest.raises(KmidiError, match=r"operation odd: sinh cannot be evaluated"):
        Program.open(build(lambda x: Mil.sinh(x=x, name="odd"), {"x": X}))
    both = build(lambda x: Mil.concat(values=[x, x], axis=0, interleave=True), {"x": X})
    with pytest.raises(KmidiError, match=r"concat.*interleave"):
        Program.open(both).run({"x": X})


def test_every_operation_has_a_test() -> None:
    here = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_mil_*.py"))
    named = set(re.findall(r"Mil\.(\w+)", here)) | set(re.findall(r'"(\w+)"', here))
    assert OPERATIONS.keys() <= named, OPERATIONS.keys() - named


# ---- packages that contradict themselves


def _change(package: Any, kind: str) -> Any:
    """The last operation of a kind."""
    return package.of(kind)[-1]


def _shape_of(operation: Any) -> Any:
    return operation.outputs[0].type.tensorType


def _declares_other_shape(package: Any) -> None:
    _shape_of(_change(package, "sub")).dimensions[0].constant.size = 3


def _declares_other_dtype(package: Any) -> None:
    _shape_of(_change(package, "linear")).dataType = 23


def _takes_what_is_not_there(package: Any) -> None:
    _change(package, "sub").inputs["x"].arguments[0].name = "nothing"


def _takes_what_comes_later(package: Any) -> None:
    _change(package, "linear").inputs["x"].arguments[0].name = "less"


def _makes_what_is_there(package: Any) -> None:
    _change(package, "add").outputs[0].name = "x"


def _weight_of_other_shape(package: Any) -> None:
    weight = next(op for op in package.of("const") if package.shape(op) == [3, 4])
    for dimensions in (
        _shape_of(weight).dimensions,
        weight.attributes["val"].type.tensorType.dimensions,
    ):
        dimensions[0].constant.size = 4


def _value_of_other_type(package: Any) -> None:
    _shape_of(next(op for op in package.of("const") if package.shape(op) == [3, 4])).dataType = 10


def _weights_elsewhere(package: Any) -> None:
    weight = next(op for op in package.of("const") if package.shape(op) == [3, 4])
    weight.attributes["val"].blobFileValue.fileName = "@model_path/../../other/weight.bin"


def _unknown_parameter(package: Any) -> None:
    sub = _change(package, "sub")
    sub.inputs["z"].CopyFrom(sub.inputs["y"])


def _flexible(package: Any) -> None:
    _shape_of(_change(package, "sub")).dimensions[0].unknown.variadic = False


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (_declares_other_shape, r"describes less as fp32|less is declared as fp32 \[3, 3\]"),
        (_declares_other_dtype, r"operation product \(linear\) gives float32.*int32"),
        (_takes_what_is_not_there, r"operation less \(sub\) takes nothing, which"),
        (_takes_what_comes_later, r"operation product \(linear\) takes less, which"),
        (_makes_what_is_there, r"operation more \(add\) makes x, which is there already"),
        (_weight_of_other_shape, r"48 bytes .* fp32 \[4, 4\]"),
        (_value_of_other_type, "another type than it declares"),
        (_weights_elsewhere, "outside of itself"),
        (_unknown_parameter, r"operation less \(sub\): got an unexpected keyword argument 'z'"),
        (_flexible, "flexible"),
    ],
)
def test_a_package_that_contradicts_itself_is_refused(
    build_package: Callable[..., Any], tamper: Callable[[Any], None], match: str
) -> None:
    package = build_package(_layer, {"x": X, "count": COUNT})
    tamper(package)
    package.save()
    with pytest.raises(KmidiError, match=match):
        Program.open(package.path).run({"x": X, "count": COUNT})


def test_what_apps_are_told_has_to_be_true(build_package: Callable[..., Any]) -> None:
    package = build_package(_layer, {"x": X, "count": COUNT})
    told = package.model.description.input[0]
    told.type.multiArrayType.shape[0] = 5
    package.save()
    with pytest.raises(KmidiError, match=r"describes x as fp32 \[5, 4\], but its program"):
        Program.open(package.path)
    told.name = "y"
    package.save()
    with pytest.raises(KmidiError, match="describes other inputs"):
        Program.open(package.path)


def test_what_is_no_package_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="cannot read"):
        Program.open(tmp_path)
    with pytest.raises(KmidiError, match="has no function other; it has main"):
        Program.open(package, "other")
    broken = shutil.copytree(package, tmp_path / "broken.mlpackage")
    (broken / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(b"\xff\xff")
    with pytest.raises(KmidiError, match="no Core ML model"):
        Program.open(broken)


# ---- fp16


def test_half_rounds_every_result(build: Build) -> None:
    x = np.array([1.0, 1000.0, 0.3], np.float16)

    def main(x: Any) -> Any:
        small = Mil.add(x=x, y=np.float16(0.125), name="small")
        return Mil.sub(x=small, y=x, name="back")

    program = Program.open(build(main, {"x": x}))
    assert program.largest is None
    exact = program.run({"x": x})["back"]
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(exact, np.float32([0.125] * 3))
    rounded = program.run({"x": x}, half=True)["back"]
    assert rounded.dtype == np.float16
    # 1000.125 is not an fp16 number
    assert rounded.tolist() == [0.125, 0.0, np.float16(np.float16(0.425) - np.float16(0.3))]
    assert program.largest == Largest(1000.125, "small", "add")


def test_a_cache_is_given_as_it_is_computed(build: Build) -> None:
    x = np.array([0.1, 0.2], np.float16)
    program = Program.open(build(lambda x: Mil.add(x=x, y=x, name="twice"), {"x": x}))
    fine = np.float32([0.1, 0.2])
    np.testing.assert_array_equal(program.run({"x": fine})["twice"], 2 * fine)
    with pytest.raises(KmidiError, match="input x is fp16"):
        program.run({"x": fine}, half=True)


def test_half_overflows_as_hardware_does(build: Build) -> None:
    x = np.array([300.0, -200.0], np.float16)

    def main(x: Any) -> Any:
        square = Mil.square(x=x, name="square")
        return Mil.sqrt(x=square), Mil.cast(x=Mil.mul(x=square, y=np.float16(0.0)), dtype="fp32")

    program = Program.open(build(main, {"x": x}))
    root, nothing = program.run({"x": x}).values()
    np.testing.assert_allclose(root, [300.0, 200.0])
    assert nothing.tolist() == [0.0, 0.0]
    root, nothing = program.run({"x": x}, half=True).values()
    assert root.tolist() == [np.inf, 200.0]
    assert np.isnan(nothing[0])
    assert nothing[1] == 0.0
    # the infinite numbers after it are its consequence
    assert program.largest == Largest(90_000.0, "square", "square")


def test_a_package_with_several_functions(build: Build, tmp_path: Path) -> None:
    import coremltools as ct

    shapes = {"many": X, "one": X[:1]}
    merged = tmp_path / "both.mlpackage"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tools about their own temporary folders
        both = ct.utils.MultiFunctionDescriptor()
        for name, x in shapes.items():
            package = build(lambda x: Mil.linear(x=x, weight=WEIGHT, name="y"), {"x": x})
            folder = package / "Data" / "com.apple.CoreML"
            model = ct.utils.load_spec(str(folder / "model.mlmodel"))
            part = str(tmp_path / f"{name}.mlpackage")
            ct.utils.save_spec(model, part, weights_dir=str(folder / "weights"))
            both.add_function(part, "main", name)
        both.default_function_name = "one"
        ct.utils.save_multifunction(both, str(merged))
        gc.collect()
    assert Program.open(merged).inputs["x"][0] == (1, 4)
    for name, x in shapes.items():
        found = Program.open(merged, name).run({"x": x})["y"]
        np.testing.assert_allclose(found, x @ WEIGHT.T, rtol=1e-6)
    with pytest.raises(KmidiError, match="has no function main; it has many, one"):
        Program.open(merged, "main")
