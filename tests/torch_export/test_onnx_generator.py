from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.music import grammar
from kmidi_mlx.music.event_stream import NOISE_BLOCK
from kmidi_mlx.music.events import START_TOKEN
from kmidi_mlx.music.knobs import gumbel_noise, pack
from kmidi_torch.export.exported_decoder import ExportedDecoder
from kmidi_torch.export.onnx_file import OnnxRun
from kmidi_torch.export.proof import live_inputs
from kmidi_torch.export.ring import StepRing
from kmidi_torch.export.samples import piece_ids
from kmidi_torch.generation.generator import EventGenerator
from kmidi_torch.loading import LoadedGenerator, load_generator

Export = Callable[..., Any]
_INT64 = onnx.TensorProto.INT64


@pytest.fixture(scope="module")
def generator(tiny_checkpoints: dict[str, Path]) -> LoadedGenerator:
    return load_generator(tiny_checkpoints["midi_generator"])


@pytest.fixture(scope="module")
def step(exported: Export) -> OnnxRun:
    return OnnxRun(exported("onnx", "midi_generator").path)


def test_step_is_proved_and_says_so(exported: Export) -> None:
    report = exported("onnx", "midi_generator")
    assert report.holds
    assert all(each.largest <= 1e-4 for each in report.differences)
    assert report.milliseconds > 0
    assert report.megabytes == pytest.approx(report.path.stat().st_size / 1e6)
    proto = onnx.load(report.path)
    told = {entry.key: entry.value for entry in proto.metadata_props}
    differences = json.loads(told["differences"])
    *measured, described = report.differences
    assert differences == {each.what: each.largest for each in measured}
    assert described.largest == 0.0
    assert told["model"] == "midi_generator"
    assert told["precision"] == "fp32"
    assert json.loads(told["config"])["context_length"] == 32
    assert json.loads(told["data_licences"]) == ["CC0-1.0"]
    assert json.loads(told["step"]) == 7
    assert json.loads(told["inputs"])["ids"]["shape"] == ["batch", "events"]


def test_file_is_described_and_tells_nothing_of_the_machine(exported: Export) -> None:
    path = exported("onnx", "midi_generator").path
    proto = onnx.load(path)
    onnx.checker.check_model(path, full_check=True)
    assert [opset.version for opset in proto.opset_import] == [20]
    assert proto.doc_string
    values = [*proto.graph.input, *proto.graph.output]
    assert [value.name for value in values] == [
        *("ids", "emotion", "chord", "key", "position", "slots", "past_keys", "past_values"),
        *("logits", "new_keys", "new_values"),
    ]
    assert all(value.doc_string for value in values)
    assert _INT64 not in {value.type.tensor_type.elem_type for value in values}
    lengths = {d.dim_param for value in values for d in value.type.tensor_type.shape.dim}
    assert lengths == {"", "batch", "events", "places"}
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("batch", "events", "places"), [(1, 1, 0), (1, 9, 0), (2, 1, 31), (3, 4, 7), (1, 40, 1)]
)
def test_lengths_are_free(
    step: OnnxRun, generator: LoadedGenerator, batch: int, events: int, places: int
) -> None:
    inputs, _ = live_inputs(generator)
    inputs = {name: np.repeat(value, batch, axis=0) for name, value in inputs.items()} | {
        "ids": np.tile(piece_ids(events), (batch, 1)),
        "position": inputs["position"],
        "slots": inputs["slots"][:places],
        "past_keys": np.repeat(inputs["past_keys"][:, :, :places], batch, axis=0),
        "past_values": np.repeat(inputs["past_values"][:, :, :places], batch, axis=0),
    }
    found = step(inputs)
    assert found["logits"].shape == (batch, events, 388)
    assert found["new_keys"].shape == found["new_values"].shape == (batch, 4, events, 32)
    assert np.isfinite(found["logits"]).all()


@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(temperature=0.0), SamplingConfig(), SamplingConfig(guidance_scale=1.7)],
)
def test_onnx_runtime_writes_what_the_model_writes(
    step: OnnxRun, generator: LoadedGenerator, sampling: SamplingConfig
) -> None:
    """300 events, from a prompt, past the wrap."""
    prompt = piece_ids(12)[1:]
    ours, theirs = (
        EventGenerator(model, sampling, seed=5, emotion=Emotion.of(0.8, 0.1), prompt=prompt)
        for model in (generator.model, ExportedDecoder(step, generator.config.model))
    )
    for index in range(300):
        assert ours.next_event() == theirs.next_event(), index


@pytest.mark.parametrize("guidance_scale", [1.0, 1.7])
def test_draw_in_the_graph_is_the_generator_s(
    exported: Export, generator: LoadedGenerator, guidance_scale: float
) -> None:
    """300 events from nothing but the graph's own outputs, past the wrap."""
    report = exported("onnx", "midi_generator", "--sampling")
    assert report.holds
    assert {each.bound for each in report.differences if "other events" in each.what} == {0.0}
    run = OnnxRun(report.path)
    sampling = SamplingConfig(guidance_scale=guidance_scale)
    rows = 1 if guidance_scale == 1.0 else 2
    expected = EventGenerator(generator.model, sampling, seed=9)
    rng = np.random.default_rng(9)
    kept: dict[str, Any] = {"new_state": grammar.initial_state(), "event": [START_TOKEN]}

    def drawing(inputs: Any) -> Any:
        kept["found"] = run(
            {**inputs, "state": kept["new_state"], "noise": kept["noise"], "knobs": pack(sampling)}
        )
        return kept["found"]

    ring = StepRing(drawing, generator.config.model, rows)
    silent = {
        "emotion": np.zeros((rows, 64), np.float32),
        "chord": np.zeros(rows, np.int32),
        "key": np.zeros(rows, np.int32),
    }
    for index in range(300):
        if index % NOISE_BLOCK == 0:
            block = gumbel_noise(rng, NOISE_BLOCK)
        kept["noise"] = block[index % NOISE_BLOCK]
        ring.read(np.full((rows, 1), kept["event"][0], np.int32), silent)
        kept |= {name: kept["found"][name] for name in ("event", "new_state")}
        assert kept["event"].dtype == np.int32
        assert kept["event"][0] == expected.next_event(), index


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_precisions_are_smaller_and_near(exported: Export, precision: str) -> None:
    whole = exported("onnx", "midi_generator")
    report = exported("onnx", "midi_generator", "--precision", precision)
    assert report.holds
    assert any("share of other greedy events" in each.what for each in report.differences)
    largest = max(each.largest for each in report.differences)
    assert largest > 1e-4  # something was rounded
    proto = onnx.load(report.path)
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
    # the tables of angles stay, and they are much of so small a model
    tables = 2 * 5 * 32 * 16 * 4 / 1e6
    share = (report.megabytes - tables) / (whole.megabytes - tables)
    if precision == "fp16":
        assert share < 0.65
        assert kinds["past_keys"] == kinds["past_values"] == onnx.TensorProto.FLOAT16
        assert kinds["emotion"] == onnx.TensorProto.FLOAT
        assert any("all rounded to fp16" in each.what for each in report.differences)
    else:
        assert share < 0.6
        assert kinds["past_keys"] == onnx.TensorProto.FLOAT
        assert onnx.TensorProto.UINT8 in {tensor.data_type for tensor in proto.graph.initializer}


def test_half_precision_writes_music_with_a_half_cache(
    exported: Export, generator: LoadedGenerator
) -> None:
    run = OnnxRun(exported("onnx", "midi_generator", "--precision", "fp16").path)
    decoder = ExportedDecoder(run, generator.config.model, dtype=np.float16)
    stream = EventGenerator(decoder, SamplingConfig(), seed=1)
    assert len({stream.next_event() for _ in range(80)}) > 5


def test_other_runtimes_see_the_same_documentation(exported: Export) -> None:
    session = onnxruntime.InferenceSession(exported("onnx", "midi_generator").path)
    about = session.get_modelmeta()
    assert about.producer_name == about.graph_name == "kmidi"
    assert about.custom_metadata_map["kmidi_version"]
