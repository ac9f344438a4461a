"""Runs in PyTorch: resumed to the last bit, and handed from one framework to the other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import load_config
from kmidi_mlx.models.loading import load_generator
from kmidi_mlx.models.midi_transformer import Conditions as OurConditions
from kmidi_mlx.runs.trainer import Outcome
from kmidi_mlx.training.run import train_model as train_with_mlx
from kmidi_torch.models.midi_transformer import Conditions as TheirConditions
from kmidi_torch.models.midi_transformer import EmotionMIDITransformer
from kmidi_torch.training.device import DeviceOptions, has_slow_half
from kmidi_torch.training.run import make_step, make_task
from kmidi_torch.training.run import train_model as train_with_torch

MODELS = ("midi_generator", "spectocloud", "emotion_recognizer")
ON_CPU = DeviceOptions("cpu")
# what a resumed run cannot repeat, and what frameworks measure in their own way
TIMING = ("tokens_per_second", "clouds_per_second", "clips_per_second", "peak_memory_gb")
EIGHT_STEPS = [
    "training.max_steps=8",
    "training.eval_every=3",
    "training.eval_batches=1",
    "training.save_every=2",
    "training.log_every=1",
]

Settings = dict[str, list[str]]
StateOf = Callable[[Path, str], dict[str, Any]]


class StopAfter(Interruption):
    """Asks for a stop when it has been asked often enough."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def requested(self) -> bool:  # type: ignore[override]
        self._left -= 1
        return self._left < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        pass


def train(framework: str, model: str, settings: list[str], folder: Path, steps: int = 8) -> Outcome:
    """Train, or go on with what is in the folder, and stop after some steps of this sitting."""
    config = load_config(model, [], [*settings, *EIGHT_STEPS])
    interruption = StopAfter(steps) if steps < 8 else Interruption()
    resume = (folder / checkpoint.LAST).exists()
    with checkpoint.exclusive(folder):
        if framework == "mlx":
            return train_with_mlx(config, folder, resume, interruption)
        return train_with_torch(config, folder, resume, interruption, options=ON_CPU)


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / checkpoint.METRICS).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def bits(arrays: dict[str, Any]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in arrays.items()}


@pytest.mark.parametrize("model", MODELS)
def test_a_run_in_two_parts_ends_with_the_same_bits(
    settings_of: Settings, state_of: StateOf, tmp_path: Path, model: str
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = [*settings_of[model], "training.sample_seconds=0.3"]
    assert train("torch", model, settings, whole).reason == "finished"
    assert train("torch", model, settings, parts, 5).reason == "interrupted"
    assert train("torch", model, settings, parts).reason == "finished"
    for name in (checkpoint.LAST, checkpoint.BEST):
        assert bits(state_of(whole, name)) == bits(state_of(parts, name))
        both = [checkpoint.load_arrays(folder / name)[1] for folder in (whole, parts)]
        for metadata in both:
            metadata.get("progression", {}).pop("seconds", None)
        assert both[0] == both[1]
    assert metrics(whole) == metrics(parts)
    samples = [
        {item.name: item.read_bytes() for item in folder.glob("samples/*")}
        for folder in (whole, parts)
    ]
    assert samples[0] == samples[1]
    assert len(samples[0]) == (0 if model == "emotion_recognizer" else 3)


@pytest.mark.parametrize(
    ("first", "model"),
    [
        ("mlx", "midi_generator"), ("torch", "midi_generator"),
        ("mlx", "spectocloud"), ("torch", "emotion_recognizer"),
    ],
)  # fmt: skip
def test_a_run_begun_in_one_framework_is_ended_in_the_other(
    settings_of: Settings,
    state_of: StateOf,
    arrays_apart: Callable[..., float],
    tmp_path: Path,
    first: str,
    model: str,
) -> None:
    settings = settings_of[model]
    second = "torch" if first == "mlx" else "mlx"
    train(first, model, settings, tmp_path / "one")
    assert train(first, model, settings, tmp_path / "two", 4).progression.step == 4
    assert train(second, model, settings, tmp_path / "two").progression.step == 8
    for name in (checkpoint.LAST, checkpoint.BEST):
        # measured 6e-6
        assert arrays_apart(*(state_of(tmp_path / n, name) for n in ("one", "two"))) < 1e-4
    lines = [metrics(tmp_path / name) for name in ("one", "two")]
    assert [list(line) for line in lines[0]] == [list(line) for line in lines[1]]
    for one, two in zip(*lines, strict=True):
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_best_weights_work_in_both_frameworks(settings_of: Settings, tmp_path: Path) -> None:
    train("torch", "midi_generator", settings_of["midi_generator"], tmp_path)
    loaded = load_generator(tmp_path)
    mirror = EmotionMIDITransformer(loaded.config.model)
    arrays, _ = checkpoint.load_arrays(tmp_path / checkpoint.BEST)
    mirror.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
    rng = np.random.default_rng(0)
    ids, emotion = rng.integers(0, 388, (1, 20)), rng.normal(size=(1, 64)).astype(np.float32)
    zeros = np.zeros((1, 1), np.int64)
    ours = loaded.model(
        mx.array(ids),
        OurConditions(mx.array(emotion), mx.array(zeros), mx.array(zeros[0])),
        mx.zeros((1, 20), mx.int32),
    )
    told = TheirConditions(
        torch.from_numpy(emotion), torch.from_numpy(zeros), torch.from_numpy(zeros[0])
    )
    with torch.no_grad():
        theirs = mirror(torch.from_numpy(ids), told, torch.zeros(1, 20, dtype=torch.int64))
    np.testing.assert_allclose(np.array(ours), theirs.numpy(), atol=1e-5)  # measured 1e-6


def test_a_killed_and_resumed_run_ends_with_the_same_bits(
    settings_of: Settings, state_of: StateOf, tmp_path: Path
) -> None:
    settings = [*settings_of["midi_generator"], *EIGHT_STEPS, "training.max_steps=40"]
    sets = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "kmidi_torch.train", "--device", "cpu", "--json"]

    # in processes of their own: another BLAS, such as MLX's, would add up in another order
    def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", str(folder), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = start(parts, *sets)
    while process.poll() is None and not (parts / checkpoint.LAST).exists():
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    for process in (start(parts, "--resume"), start(whole, *sets)):
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert json.loads(out)["step"] == 40
    for name in (checkpoint.LAST, checkpoint.BEST):
        assert bits(state_of(whole, name)) == bits(state_of(parts, name))
    assert metrics(whole) == metrics(parts)


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_loss_is_one_graph_for_the_compiler(
    settings_of: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    config = load_config(model, [], [*settings_of[model], "training.precision=bf16"])
    task = make_task(config, torch.device("cpu"))
    plain, graphs = make_step(task), []

    def note(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    # makes no machine code, but refuses what the compiler cannot follow
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note, fullgraph=True))
    compiled = make_step(task, compiled=True)
    with task.stream(0) as batches:
        batch = next(batches)
        saved = {name: np.array(value) for name, value in plain.state_arrays().items()}
        expected = plain.run([batch], 1e-3)
        compiled.load_state_arrays(saved)
        found = compiled.run([batch], 1e-3)
    assert len(graphs) == 1
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("able", "precision", "slow"),
    [
        ({}, "bf16", True),
        ({"avx512_bf16": True, "avx512_fp16": False}, "bf16", False),
        ({"avx512_bf16": True, "avx512_fp16": False}, "fp16", True),
        ({"bf16": True, "fp16_arith": True}, "fp16", False),
    ],
)
def test_a_cpu_is_asked_whether_half_precision_is_fast(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], precision: str, slow: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert has_slow_half(torch.device("cpu"), precision) is slow
    assert not has_slow_half(torch.device("cuda"), precision)
