"""Each model in each precision: written, read back, run by the reference interpreter, equal."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_torch.export.coreml.convert import Converter
from kmidi_torch.export.coreml.functions import PREFILL_EVENTS, functions_of
from kmidi_torch.export.coreml.job import Job
from kmidi_torch.export.coreml.quantize import Quantisation
from kmidi_torch.export.mil import Program
from kmidi_torch.export.report import size_of
from kmidi_torch.export.request import open_request

MODELS = ("midi_generator", "spectocloud", "emotion_recognizer")
POINTS, SECONDS = 60, 0.8


@pytest.fixture(scope="module")
def job_of(
    tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Job]:
    """A function that traces a model once, and converts it once in each precision."""
    folder = tmp_path_factory.mktemp("coreml")

    @cache
    def prepare(model: str, half: bool) -> Job:
        if half:
            traced = prepare(model, False)
            converter = replace(traced.converter, half=True)
            packages = [converter.convert(f, traced._graphs[f.name]) for f in traced.functions]
            out = folder / f"{model}-half.mlpackage"
            return replace(
                traced,
                converter=converter,
                request=replace(traced.request, out=out),
                _packages=packages,
            )
        options = argparse.Namespace(
            model=model,
            checkpoint=tiny_checkpoints[model],
            out=folder / f"{model}.mlpackage",
            adapters=[],
            points=POINTS if model == "spectocloud" else None,
            seconds=SECONDS if model == "emotion_recognizer" else None,
        )
        request = open_request(options, ".mlpackage", folder=True)
        macos = 15 if model == "midi_generator" else 14
        functions = functions_of(request, multifunction=macos == 15)
        job = Job(request, functions, Converter(model, False, macos), lambda line: None)
        job.prepare()
        assert all(difference.holds for difference in job.differences), job.differences
        return job

    return prepare


def write(job: Job, kind: str | None) -> Path:
    """Write and compare; the package holds all bounds, the tight ones among them."""
    out = job.request.out.with_name(f"{job.request.out.stem}-{kind}.mlpackage")
    several = job.converter.macos >= 15
    job.differences, job.notes = [], []
    job.write(out, None if kind is None else Quantisation(kind, grouped=several))
    assert all(difference.holds for difference in job.differences), job.differences
    tight = [one.largest for one in job.differences if one.bound == 1e-4]
    outputs = len(job.functions[0].exportable.outputs)
    # every output in every circumstance; measured: at most 1.9e-5 (logits)
    assert len(tight) == outputs * (4 if job.request.model == "midi_generator" else 2)
    assert 0.0 < max(tight) < 5e-5
    return out


def written(job: Job) -> Path:
    """The package with whole weights, made once."""
    out = job.request.out.with_name(f"{job.request.out.stem}-None.mlpackage")
    return out if out.exists() else write(job, None)


@pytest.mark.parametrize("model", MODELS)
def test_whole_weights_in_fp32_and_fp16(job_of: Callable[[str, bool], Job], model: str) -> None:
    single = size_of(write(job_of(model, False), None))
    assert not job_of(model, False).notes
    half = write(job_of(model, True), None)
    # measured: 3.9e-2 of logits up to 11, 3e-3 of clouds, 7e-4 of cues
    rounded = [one for one in job_of(model, True).differences if "every result" in one.what]
    assert len(rounded) == len(job_of(model, True).functions[0].exportable.outputs)
    assert all(0.0 < one.largest <= one.bound for one in rounded)
    assert size_of(half) < single
    assert "of 65504" in job_of(model, True).notes[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kind", "half"), [("int8", True), ("int4-palette", False)])
def test_quantised_weights(
    job_of: Callable[[str, bool], Job], model: str, kind: str, half: bool
) -> None:
    job = job_of(model, half)
    whole = size_of(written(job))
    out = write(job, kind)
    assert size_of(out) < whole
    counts = Program.open(out).op_counts()
    small = sum(count for name, count in counts.items() if name.startswith("constexpr_"))
    graph = job._graphs[job.functions[-1].name]
    covered = [w for w in graph.weights().values() if Quantisation(kind, False).covers(w)]
    assert small == len(covered) > 0
    # quantisation is told apart from the conversion's own error
    assert max(job.effect.values()) > 1e-3
    assert "quantised weights alone" in job.notes[-1]


def test_generator_has_two_functions_that_share_weights(
    job_of: Callable[[str, bool], Job],
) -> None:
    job = job_of("midi_generator", True)
    out = written(job)
    programs = {name: Program.open(out, name) for name in ("prefill", "step")}
    assert programs["prefill"].inputs["ids"] == ((1, PREFILL_EVENTS), np.int32)
    # the one that runs when none is named
    assert Program.open(out).inputs == programs["step"].inputs
    assert programs["step"].inputs["ids"] == ((1, 1), np.int32)
    for name, (_, dtype) in programs["step"].inputs.items():
        whole = name in ("ids", "chord", "key", "position", "slots")
        cache_too = name in ("past_keys", "past_values")
        assert dtype == (np.int32 if whole else np.float16 if cache_too else np.float32)
    assert {name: dtype for name, (_, dtype) in programs["step"].outputs.items()} == {
        "logits": np.float32,
        "new_keys": np.float16,
        "new_values": np.float16,
    }
    weights = sum(v.size for v in programs["step"].constants().values() if v.dtype == np.float32)
    stored = next(out.rglob("weight.bin")).stat().st_size
    assert stored < 1.2 * 2 * weights


def test_no_tensor_has_more_than_four_axes_in_the_generator_and_the_cloud_network(
    job_of: Callable[[str, bool], Job],
) -> None:
    for model in ("midi_generator", "spectocloud"):
        job = job_of(model, True)
        program = Program.open(written(job))
        steps: list[Any] = program._content.steps
        assert max(len(kind.shape) for step in steps for _, kind in step.outputs) <= 4


def test_norms_of_the_generator_are_in_fp32(job_of: Callable[[str, bool], Job]) -> None:
    program = Program.open(written(job_of("midi_generator", True)), "step")
    steps: list[Any] = program._content.steps
    kinds = {
        kind: {dtype.dtype for step in steps if step.kind == kind for _, dtype in step.outputs}
        for kind in ("reduce_mean", "rsqrt", "linear", "softmax", "matmul")
    }
    assert kinds == {
        "reduce_mean": {"fp32"},
        "rsqrt": {"fp32"},
        "linear": {"fp16"},
        "softmax": {"fp16"},
        "matmul": {"fp16"},
    }
