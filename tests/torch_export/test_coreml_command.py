"""`python -m kmidi_torch.export coreml`: flags, refusals, what the package says of itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.checkpoint import BEST, load_arrays, save_arrays
from kmidi_mlx.command import run
from kmidi_torch.export.__main__ import main
from kmidi_torch.export.coreml import job as job_module
from kmidi_torch.export.coreml import predict as predict_module
from kmidi_torch.export.coreml.chatter import quiet
from kmidi_torch.export.coreml.convert import Converter
from kmidi_torch.export.mil import Program

RECOGNIZER, GENERATOR = "emotion_recognizer", "midi_generator"


@pytest.fixture
def recognizer(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint folder of the recogniser to write beside."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_checkpoints[RECOGNIZER], folder)
    return folder


def export(model: str, checkpoint: Path, *flags: str) -> int:
    return run(main, ["coreml", "--model", model, "--checkpoint", str(checkpoint), *flags])


def described(package: Path) -> Any:
    from coremltools.proto import Model_pb2

    model: Any = Model_pb2.Model()
    model.ParseFromString(next(package.rglob("model.mlmodel")).read_bytes())
    return model.description


def test_writes_beside_the_weights_and_describes_itself(
    recognizer: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert export(RECOGNIZER, recognizer, "--quantize", "int8", "--quantize-after") == 0
    told = capfd.readouterr()
    # tools that have much to say are not heard
    assert told.err.splitlines() == [
        "converting main ...",
        "comparing ...",
        "quantising and comparing ...",
    ]
    assert "compute units: .cpuOnly" in told.out
    assert "needs macOS 14" in told.out
    assert sorted(path.name for path in recognizer.iterdir()) == ["best.mlpackage", BEST]
    description = described(recognizer / "best.mlpackage")
    about = description.metadata
    assert about.author == "kmidi"
    assert "CC0-1.0" in about.license
    assert "emotion of clips" in about.shortDescription
    assert about.versionString
    meanings = {port.name: port.shortDescription for port in [*description.input]}
    assert meanings.keys() == {"frames", "counts"}
    assert all(len(text) > 20 for text in meanings.values())
    assert all(port.shortDescription for port in description.output)
    extra = about.userDefined
    assert json.loads(extra["kmidi.config"])["model"]["dim"] == 16
    assert extra["kmidi.step"] == "7"
    assert extra["kmidi.precision"] == "fp32, int8 weights"
    measured = json.loads(extra["kmidi.measured"])
    # first the whole weights, then what quantisation adds, apart
    whole = {name for name in measured["differences"] if name.endswith("whole weights")}
    assert {"cues, sample 1, whole weights", "cues, traced, whole weights"} <= whole
    assert {"cues, sample 1", "cues, sample 2"} <= measured["differences"].keys() - whole
    assert all(value <= 1e-4 for value in measured["differences"].values())
    assert measured["quantised_weights_alone"]["cues"] > 1e-4


def test_a_defect_is_refused_and_the_old_package_stays(
    recognizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = recognizer / "best.mlpackage"
    old.mkdir()
    (old / "Manifest.json").write_text("old", "utf-8")
    convert = Converter.convert

    def damaged(self: Converter, function: Any, graph: Any) -> Any:
        package = convert(self, function, graph)
        # the model moves by a little after it was converted
        graph.module.get_parameter("model.final_norm.weight").data.mul_(1.05)
        return package

    monkeypatch.setattr(Converter, "convert", damaged)
    assert export(RECOGNIZER, recognizer) == 1
    told = capsys.readouterr()
    assert "nothing was kept" in told.err.splitlines()[-1]
    assert "> " in told.out
    assert sorted(path.name for path in recognizer.iterdir()) == ["best.mlpackage", BEST]
    assert [path.name for path in old.iterdir()] == ["Manifest.json"]


@pytest.mark.parametrize(
    ("model", "flags", "sentence"),
    [
        (GENERATOR, ["--points", "9"], "--points is an option of --model spectocloud only"),
        (GENERATOR, ["--seconds", "9"], "--seconds is an option of --model emotion_recognizer"),
        ("spectocloud", ["--points", "0"], "--points 0: give a number from 1 to 3000"),
        (RECOGNIZER, ["--seconds", "0.01"], "--seconds 0.01: a clip has at least"),
        (RECOGNIZER, ["--seconds", "nan"], "--seconds nan: a clip has at least"),
        (RECOGNIZER, ["--seconds", "1e9"], "at most 120 s"),
        (RECOGNIZER, ["--quantize-after"], "add --quantize int8 or int4-palette"),
        (
            RECOGNIZER,
            ["--quantize-after", "--quantize", "int8", "--precision", "fp16"],
            "leave out --precision fp16",
        ),
        (RECOGNIZER, ["--quantize", "int5"], "did you mean int8?"),
        (RECOGNIZER, ["--out", "x.onnx"], "give a name that ends in .mlpackage"),
    ],
)
def test_wrong_use_is_one_line(
    tiny_checkpoints: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    model: str,
    flags: list[str],
    sentence: str,
) -> None:
    assert export(model, tiny_checkpoints[model], *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not list(tiny_checkpoints[model].glob("*.mlpackage"))


def test_a_large_residual_stream_does_not_overflow_in_fp16(
    tiny_checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, metadata = load_arrays(tiny_checkpoints[GENERATOR] / BEST)
    # squares of what is embedded are past the largest fp16 number, many times
    arrays["embedding.weight"] = np.float32(3000.0) * arrays["embedding.weight"]
    arrays["final_norm.weight"] = arrays["final_norm.weight"] / np.float32(3000.0)
    save_arrays(tmp_path / BEST, arrays, metadata)
    assert export(GENERATOR, tmp_path, "--macos", "14", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    found = report["differences"]["logits, every result in fp16"]
    assert 0.0 < found["largest"] <= found["bound"]
    # without `prefill` the one function has no other name, and an older system will do
    program = Program.open(tmp_path / "best.mlpackage", "main")
    assert program.inputs["ids"][0] == (1, 1)
    assert report["notes"][1] == "needs macOS 14 or later"


class _FakeModel:
    """Core ML as the reference interpreter has it; one kind of processor is broken."""

    def __init__(self, path: str, *, compute_units: Any, function_name: str | None) -> None:
        self._program = Program.open(Path(path), function_name)
        self._broken = compute_units.name == "CPU_AND_NE"

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        for name, (shape, dtype) in self._program.inputs.items():
            assert (inputs[name].shape, inputs[name].dtype) == (shape, dtype)
        found = self._program.run(inputs, half=True)
        return {name: value + self._broken for name, value in found.items()}


def test_on_a_mac_core_ml_runs_on_every_unit(
    recognizer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet():
        import coremltools
    monkeypatch.setattr(predict_module.sys, "platform", "darwin")
    assert predict_module.available()
    monkeypatch.undo()
    monkeypatch.setattr(job_module, "available", lambda: True)
    real = coremltools.models.MLModel

    def model(path: str, **options: Any) -> Any:
        # conversion makes models too, but does not run them
        return (_FakeModel if "function_name" in options else real)(path, **options)

    monkeypatch.setattr(coremltools.models, "MLModel", model)
    assert export(RECOGNIZER, recognizer, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["milliseconds"] > 0.0
    assert "numbers, Core ML CPU_ONLY" in report["differences"]
    notes = [note for note in report["notes"] if note.startswith("Core ML ")]
    assert [note.split()[2].rstrip(":") for note in notes] == list(predict_module.UNITS)
    assert ["do not choose it" in note for note in notes] == [False, False, True, False]
