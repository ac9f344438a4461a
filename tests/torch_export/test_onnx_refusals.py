"""What is wrong or goes wrong: one line, nothing overwritten."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kmidi_mlx.checkpoint import BEST, load_arrays, save_arrays
from kmidi_mlx.command import run
from kmidi_torch.export import modules, onnx_target
from kmidi_torch.export.__main__ import main

Export = Callable[..., Any]
OLD = b"an export of yesterday"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "best.onnx"
    path.write_bytes(OLD)
    return path


def _run(out: Path, *flags: object, target: str = "onnx") -> int:
    return run(main, [target, "--out", str(out), *map(str, flags)])


def _sole_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    return lines[0]


def _nothing_changed(out: Path) -> bool:
    return out.read_bytes() == OLD and list(out.parent.iterdir()) == [out]


def _truncate(checkpoint: Path) -> None:
    weights = checkpoint / BEST
    weights.write_bytes(weights.read_bytes()[:-100])


def _spoil(checkpoint: Path) -> None:
    arrays, metadata = load_arrays(checkpoint / BEST)
    arrays["stem.bias"] = arrays["stem.bias"] * np.nan
    save_arrays(checkpoint / BEST, arrays, metadata)


def _bend(checkpoint: Path) -> None:
    arrays, metadata = load_arrays(checkpoint / BEST)
    arrays["stem.bias"] = arrays["stem.bias"][:-1]
    save_arrays(checkpoint / BEST, arrays, metadata)


def _age(checkpoint: Path) -> None:
    path = checkpoint / BEST
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"format_version":"1"', b'"format_version":"9"'))


def _pickle(checkpoint: Path) -> None:
    (checkpoint / BEST).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize("target", ["onnx", "pt2"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "not a readable safetensors file"),
        (_spoil, "NaN or Inf in stem.bias"),
        (_bend, "stem.bias is (15,), not (16,)"),
        (_age, "format version 9"),
        (_pickle, "not a readable safetensors file"),
    ],
)
def test_damaged_checkpoint(
    tiny_checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    words: str,
    target: str,
) -> None:
    model = "emotion_recognizer"
    checkpoint = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(tiny_checkpoints[model], checkpoint)
    damage(checkpoint)
    out = tmp_path / f"best.{target}"
    out.write_bytes(OLD)
    assert _run(out, "--model", model, "--checkpoint", checkpoint, target=target) == 2
    assert words in _sole_line(capsys)
    assert _nothing_changed(out)


def test_wrong_use(
    tiny_checkpoints: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator, cloud = tiny_checkpoints["midi_generator"], tiny_checkpoints["spectocloud"]
    for flags, words in (
        (("midi_generator", cloud), "holds 'spectocloud'; a 'midi_generator' is needed here"),
        (("midi_generator", out.parent), "no such checkpoint"),
        (("midi_generator", generator, "--points", 5), "--points is for --model spectocloud"),
        (("spectocloud", cloud, "--sampling"), "--sampling is for --model midi_generator"),
        (("spectocloud", cloud, "--points", 3001), "give a number from 1 to 3000"),
        (("spectocloud", cloud, "--precision", "int4"), "unknown choice 'int4'"),
    ):
        model, checkpoint, *more = flags
        assert _run(out, "--model", model, "--checkpoint", checkpoint, *more) == 2
        assert words in _sole_line(capsys)
        assert _nothing_changed(out)


def test_place_that_cannot_be_written(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    for name, words in (
        ("folder.onnx", "is a folder"),
        ("missing/best.onnx", "there is no folder"),
        ("best.bin", "give a name that ends in .onnx"),
    ):
        checkpoint = tiny_checkpoints["spectocloud"]
        flags = ("--model", "spectocloud", "--checkpoint", checkpoint)
        assert _run(tmp_path / name, *flags) == 2
        assert words in _sole_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_disk_that_fills_up(
    tiny_checkpoints: dict[str, Path],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(proto: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_target, "build", lambda exportable: onnx.ModelProto())
    monkeypatch.setattr(onnx_target, "describe", lambda *everything: None)
    monkeypatch.setattr(onnx_target, "save", fail)
    model = "emotion_recognizer"
    assert _run(out, "--model", model, "--checkpoint", tiny_checkpoints[model]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert _nothing_changed(out)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_package(
    tiny_checkpoints: dict[str, Path],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    model = "spectocloud"
    assert _run(out, "--model", model, "--checkpoint", tiny_checkpoints[model]) == 2
    line = _sole_line(capsys)
    assert f"onnx needs {package}" in line
    assert "pip install" in line
    assert _nothing_changed(out)


def _changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    proto = onnx.load(path)
    del proto.metadata_props[:]
    change(proto)
    return proto


def _matrix_times(factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        matrices = [each for each in proto.graph.initializer if len(each.dims) == 2]
        chosen = matrices[len(matrices) // 2]
        values = numpy_helper.to_array(chosen) * np.float32(factor)
        chosen.CopyFrom(numpy_helper.from_array(values, chosen.name))

    return change


def _swap_values(proto: onnx.ModelProto) -> None:
    """The first two matrices of the same shape change their places."""
    seen: dict[tuple[int, ...], onnx.TensorProto] = {}
    for tensor in proto.graph.initializer:
        shape = tuple(tensor.dims)
        if len(shape) == 2 and shape in seen:
            one, other = (numpy_helper.to_array(each).copy() for each in (seen[shape], tensor))
            seen[shape].CopyFrom(numpy_helper.from_array(other, seen[shape].name))
            tensor.CopyFrom(numpy_helper.from_array(one, tensor.name))
            return
        seen[shape] = tensor
    raise AssertionError("no two matrices of one shape")


def _other_epsilon(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if not tensor.dims and abs(float(numpy_helper.to_array(tensor)) - 1e-5) < 1e-7:
            changed = np.array(1e-3, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
            return
    raise AssertionError("no epsilon")


@pytest.mark.parametrize(
    "change", [_matrix_times(1.05), _matrix_times(0.999), _swap_values, _other_epsilon]
)
def test_export_that_computes_something_else_is_not_kept(
    exported: Export,
    tiny_checkpoints: dict[str, Path],
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[onnx.ModelProto], None],
) -> None:
    broken = _changed(exported("onnx", "midi_generator").path, change)
    monkeypatch.setattr(onnx_target, "build", lambda exportable: broken)
    model = "midi_generator"
    assert _run(out, "--model", model, "--checkpoint", tiny_checkpoints[model]) == 1
    assert "nothing was kept" in capsys.readouterr().err.splitlines()[-1]
    assert _nothing_changed(out)


def test_error_in_the_traced_module_is_seen(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reference is the model and its cache, not the module that is exported."""
    right = modules.rotate
    monkeypatch.setattr(modules, "rotate", lambda x, cos, sin: right(x, cos, -sin))
    out = tmp_path / "best.pt2"
    out.write_bytes(OLD)
    model = "midi_generator"
    flags = ("--model", model, "--checkpoint", tiny_checkpoints[model])
    assert _run(out, *flags, target="pt2") == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert _nothing_changed(out)


def test_default_name_is_beside_the_weights(
    exported: Export,
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = "emotion_recognizer"
    right = _changed(exported("onnx", model).path, lambda proto: None)
    monkeypatch.setattr(onnx_target, "build", lambda exportable: right)
    checkpoint = tmp_path / "run"
    shutil.copytree(tiny_checkpoints[model], checkpoint)
    status = run(main, ["onnx", "--model", model, "--checkpoint", str(checkpoint)])
    assert status == 0
    assert {path.name for path in checkpoint.iterdir()} == {BEST, "best.onnx"}
    printed = capsys.readouterr().out
    assert "numbers" in printed
    assert f"wrote {checkpoint / 'best.onnx'}" in printed
