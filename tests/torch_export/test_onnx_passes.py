from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from kmidi_torch.export.onnx_file import OnnxRun
from kmidi_torch.export.samples import cloud_inputs, recognizer_inputs
from kmidi_torch.loading import load_recognizer, load_spectocloud

Export = Callable[..., Any]


def test_cloud_is_proved(exported: Export) -> None:
    report = exported("onnx", "spectocloud", "--points", "60")
    assert report.holds
    assert {each.what for each in report.differences} == {
        "cloud, batch of 1",
        "cloud, batch of 3",
        "any output, once described",
    }
    output = onnx.load(report.path).graph.output[0]
    lengths = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
    assert lengths == ["batch", 60, 10]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_cloud_of_any_batch(
    exported: Export, tiny_checkpoints: dict[str, Path], batch: int
) -> None:
    loaded = load_spectocloud(tiny_checkpoints["spectocloud"])
    inputs = cloud_inputs(batch)
    found = OnnxRun(exported("onnx", "spectocloud", "--points", "60").path)(inputs)["cloud"]
    with torch.no_grad():
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        expected = loaded.model(*tensors, loaded.model.constants(60)).numpy()
    assert expected.std() > 0.05
    assert np.abs(found - expected).max() < 1e-4  # measured 1e-6


def test_recognizer_is_proved_and_says_how_sound_is_heard(exported: Export) -> None:
    report = exported("onnx", "emotion_recognizer")
    assert report.holds
    assert {each.what.partition(",")[0] for each in report.differences} == {
        *("numbers", "probabilities", "cues", "any output"),
    }
    proto = onnx.load(report.path)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(told["hearing"])["sample_rate"] == 16_000
    assert json.loads(told["config"])["labels"] == ["happy", "sad", "calm"]
    frames, counts = proto.graph.input
    lengths = [d.dim_param or d.dim_value for d in frames.type.tensor_type.shape.dim]
    assert lengths[:2] == ["batch", "4*patches"]
    assert counts.type.tensor_type.elem_type == onnx.TensorProto.INT32


@pytest.mark.parametrize(("batch", "time"), [(1, 4), (1, 128), (2, 400)])
def test_recognizer_of_any_length(
    exported: Export, tiny_checkpoints: dict[str, Path], batch: int, time: int
) -> None:
    loaded = load_recognizer(tiny_checkpoints["emotion_recognizer"])
    inputs = recognizer_inputs(loaded.config, batch, time)
    found = OnnxRun(exported("onnx", "emotion_recognizer").path)(inputs)
    with torch.no_grad():
        expected = loaded.model(*(torch.from_numpy(value) for value in inputs.values()))
    assert np.abs(found["numbers"] - expected.numbers.numpy()).max() < 1e-4  # measured 1e-6
    probabilities = torch.softmax(expected.logits / 1.7, dim=-1).numpy()
    assert np.abs(found["probabilities"] - probabilities).max() < 1e-4
    assert np.abs(found["cues"] - expected.cues.numpy()).max() < 1e-4


def test_frames_that_do_not_count_change_nothing(
    exported: Export, tiny_checkpoints: dict[str, Path]
) -> None:
    loaded = load_recognizer(tiny_checkpoints["emotion_recognizer"])
    run = OnnxRun(exported("onnx", "emotion_recognizer").path)
    inputs = recognizer_inputs(loaded.config, 1, 200)
    inputs["counts"][:] = 120
    whole = run(inputs)
    cut = run({**inputs, "frames": inputs["frames"][:, :120]})
    assert np.abs(whole["numbers"] - cut["numbers"]).max() < 1e-6
