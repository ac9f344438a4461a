from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kmidi_torch.export.proof import live_inputs
from kmidi_torch.export.pt2_target import METADATA
from kmidi_torch.loading import load_generator, load_recognizer, load_spectocloud

Export = Callable[..., Any]
FLAGS = {
    "midi_generator": ("--sampling",),
    "spectocloud": ("--points", "60"),
    "emotion_recognizer": (),
}
LOADERS = {
    "midi_generator": load_generator,
    "spectocloud": load_spectocloud,
    "emotion_recognizer": load_recognizer,
}

ELSEWHERE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("kmidi_mlx", "kmidi_torch", "mlx"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy, torch
program, given, found = sys.argv[1:]
inputs = numpy.load(given)
module = torch.export.load(program).module()
outputs = module(*(torch.from_numpy(inputs[name]) for name in inputs.files))
outputs = outputs if isinstance(outputs, tuple) else (outputs,)
numpy.savez(found, *(value.detach().numpy() for value in outputs))
"""


@pytest.mark.parametrize(
    "model",
    ["midi_generator", "emotion_recognizer", pytest.param("spectocloud", marks=pytest.mark.slow)],
)
def test_program_is_proved_and_says_so(exported: Export, model: str) -> None:
    report = exported("pt2", model, *FLAGS[model])
    assert report.holds
    files = {METADATA: ""}
    program = torch.export.load(report.path, extra_files=files)
    # nothing of this package may be what a program is made of
    modules = {str(getattr(node.target, "__module__", "")) for node in program.graph.nodes}
    assert not [name for name in modules if name.startswith("kmidi")]
    told = json.loads(files[METADATA])
    assert told["model"] == model
    assert told["step"] == 7
    assert told["differences"] == {each.what: each.largest for each in report.differences[:-1]}
    assert report.differences[-1].largest == 0.0
    assert str(Path(__file__).parents[2]).encode() not in report.path.read_bytes()


def test_program_runs_where_this_package_is_not(
    exported: Export, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = "emotion_recognizer"
    loaded = LOADERS[model](tiny_checkpoints[model])
    inputs, _ = live_inputs(loaded)
    np.savez(tmp_path / "given.npz", **inputs)
    command = [
        *(sys.executable, "-W", "error", "-c", ELSEWHERE),
        *(exported("pt2", model).path, tmp_path / "given.npz", tmp_path / "found.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = loaded.model(*(torch.from_numpy(value) for value in inputs.values()))
    found = np.load(tmp_path / "found.npz")
    assert np.abs(found["arr_0"] - expected.numbers.numpy()).max() < 1e-5
