"""`kmidi convert` as a person meets it, and where only one framework is installed."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_checkpoint import METADATA, SHAPES, SMALL, expected, same, untouched, weights

from kmidi_mlx import checkpoint
from kmidi_mlx.__main__ import main as kmidi
from kmidi_mlx.checkpoint import load_arrays
from kmidi_mlx.config import RUN_CONFIGS, RunConfig
from kmidi_mlx.config_file import save_config
from kmidi_mlx.convert import find_network
from kmidi_mlx.torch_file import write_torch_file

ROOT = Path(__file__).parents[2]
WITHOUT = """
import importlib, sys
blocked, package, *pairs = sys.argv[1:]
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == blocked:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from kmidi_mlx.command import run
main = importlib.import_module(f"{package}.convert").main
statuses = [run(main, pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
sys.exit(max(statuses))
"""
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="needs PyTorch (extra `torch`)")


def without(framework: str, package: str, *pairs: Path) -> Any:
    """Convert every SRC DST of a list in a process that cannot import one of the frameworks."""
    command = [sys.executable, "-c", WITHOUT, framework, package, *map(str, pairs)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def run(*arguments: Path | str) -> int:
    return kmidi(["convert", *map(str, arguments)])


def test_one_line_says_what_was_written(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source.parent, tmp_path / "best.pt") == 0
    size = (tmp_path / "best.pt").stat().st_size / 1e6
    shown = capsys.readouterr()
    assert shown.out == (
        f"wrote {tmp_path / 'best.pt'}: midi_generator, {len(SHAPES)} arrays, {size:.1f} MB\n"
    )
    assert shown.err == ""
    same(source, tmp_path / "best.pt")


def test_what_happened_to_the_numbers_is_noted(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(state, tmp_path / "best.pt", "--dtype", "fp16") == 0
    assert "\nnote: these are the averaged weights of a training" in capsys.readouterr().out


def test_json_tells_the_same(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "best.pt", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "best.pt"),
        "model": "midi_generator",
        "count": len(SHAPES),
        "bytes": (tmp_path / "best.pt").stat().st_size,
        "notices": [],
    }


def test_a_bare_state_dict_is_told_by_flags(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "bare.pt", weights(), {})
    save_config(SMALL, tmp_path / "config.yaml")
    flags = ("--model", "midi_generator", "--config", tmp_path / "config.yaml")
    assert run(tmp_path / "bare.pt", tmp_path / "best.safetensors", *flags) == 0
    assert load_arrays(tmp_path / "best.safetensors")[1]["config"] == METADATA["config"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.pt"], "the following arguments are required: DST; see kmidi convert --help."),
        (["a.pt", "b.pt", "--dtyp", "fp16"], "unknown option --dtyp; did you mean --dtype?"),
        (["a.pt", "b.pt", "--dtype", "int8"], "unknown choice 'int8'"),
        (["a.pt", "b.pt", "--state", "--dtype", "fp16"], "--dtype is for weights to use;"),
        (["a.pt", "b.pt", "--config", "c.yaml"], "--config tells how a --model is built;"),
        (["a.pt", "b.pt"], "no such checkpoint: a.pt."),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("kmidi convert: ")
    assert complaint in shown.err
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_one_line_and_nothing_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: int
) -> None:
    mark = tmp_path / "sprung"
    content = pickle.dumps({"state_dict": {}, "metadata": Trap(mark)}, protocol)
    with zipfile.ZipFile(tmp_path / "best.pt", "w") as archive:
        archive.writestr("best/data.pkl", content)
    (tmp_path / "best.safetensors").write_bytes(b"precious")
    before = untouched(tmp_path)
    assert run(tmp_path / "best.pt", tmp_path / "best.safetensors", "--force") == 2
    shown = capsys.readouterr().err
    name = os.system.__module__
    assert shown == (
        f"kmidi convert: {tmp_path / 'best.pt'} holds code ({name}.system) and is not opened.\n"
    )
    assert untouched(tmp_path) == before
    pickle.loads(content)
    assert mark.exists()  # the trap works


def test_a_person_can_play_what_was_converted(tiny_run: Path, tmp_path: Path) -> None:
    assert run(tiny_run, tmp_path / "best.pt") == 0
    flags = ["--seconds", "2", "--seed", "3", "--emotion", "happy"]
    for number, weights_file in enumerate((tiny_run / checkpoint.BEST, tmp_path / "best.pt")):
        out = str(tmp_path / f"{number}.mid")
        assert kmidi(["generate", "--checkpoint", str(weights_file), *flags, "--out", out]) == 0
    assert (tmp_path / "0.mid").read_bytes() == (tmp_path / "1.mid").read_bytes()


# --- one framework is enough ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocked", "package"),
    [("torch", "kmidi_mlx"), pytest.param("mlx", "kmidi_torch", marks=needs_torch)],
)
def test_one_framework_converts_both_ways(
    source: Path, tmp_path: Path, blocked: str, package: str
) -> None:
    target, back = tmp_path / "best.pt", tmp_path / "back"
    done = without(blocked, package, source, target, target, back)
    assert (done.returncode, done.stderr) == (0, "")
    same(source, target)
    same(source, back / "best.safetensors")


@pytest.mark.parametrize(
    ("ours", "other"), [("kmidi_mlx", "kmidi_torch"), ("kmidi_torch", "kmidi_mlx")]
)
def test_a_missing_framework_points_at_the_other(
    source: Path, tmp_path: Path, ours: str, other: str
) -> None:
    done = without(ours.removeprefix("kmidi_"), ours, source, tmp_path / "best.pt")
    assert done.returncode == 2
    assert done.stderr.startswith(f"kmidi convert: {ours} cannot be used here")
    assert f"`python -m {other}.convert` does the same" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "best.pt").exists()


@needs_torch
@pytest.mark.parametrize("config_class", list(RUN_CONFIGS.values()))
def test_both_frameworks_expect_the_same(config_class: type[RunConfig]) -> None:
    from kmidi_torch.parameter_shapes import parameter_shapes

    config = config_class()
    network = find_network("kmidi_torch", config)
    assert parameter_shapes(lambda: network(config.model)) == expected(config)


@needs_torch
def test_both_frameworks_make_the_same_file(source: Path, state: Path, tmp_path: Path) -> None:
    from kmidi_torch.convert import main

    for flags, folder in ([], "weights"), (["--state"], "state"):
        for name, command in (("mlx", run), ("torch", lambda *given: main(list(map(str, given))))):
            assert command(source.parent, tmp_path / folder / name / "a.pt", *flags) == 0
        one, two = ((tmp_path / folder / name / "a.pt").read_bytes() for name in ("mlx", "torch"))
        assert one == two
    assert state.exists()


@needs_torch
def test_torch_loads_what_was_written_strictly(source: Path, tmp_path: Path) -> None:
    import torch

    from kmidi_torch.models.midi_transformer import EmotionMIDITransformer

    assert run(source, tmp_path / "best.pt") == 0
    loaded = torch.load(tmp_path / "best.pt", weights_only=True)
    assert loaded["metadata"] == METADATA
    model = EmotionMIDITransformer(SMALL.model)
    model.load_state_dict(loaded["state_dict"], strict=True)
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), weights()[name])


@needs_torch
def test_what_torch_trained_is_converted(tmp_path: Path) -> None:
    import torch

    from kmidi_torch.models.midi_transformer import EmotionMIDITransformer

    model = EmotionMIDITransformer(SMALL.model)
    wrapped = torch.nn.DataParallel(model)
    torch.save(wrapped.state_dict(), tmp_path / "theirs.pt")
    torch.save(model.bfloat16().state_dict(), tmp_path / "half.pt")
    save_config(SMALL, tmp_path / "config.yaml")
    flags = ("--model", "midi_generator", "--config", tmp_path / "config.yaml")
    for name in ("theirs", "half"):
        assert run(tmp_path / f"{name}.pt", tmp_path / f"{name}.safetensors", *flags) == 0
    half = load_arrays(tmp_path / "half.safetensors")[0]
    for name, value in model.state_dict().items():
        assert np.array_equal(half[name], value.float().numpy())
    theirs = load_arrays(tmp_path / "theirs.safetensors")[0]
    assert theirs.keys() == half.keys()
