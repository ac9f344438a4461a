from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.errors import KmidiError
from kmidi_torch.export import coreai_target
from kmidi_torch.export.__main__ import main
from kmidi_torch.export.coreai_file import CoreaiRun
from kmidi_torch.export.exported_decoder import ExportedDecoder
from kmidi_torch.export.proof import live_inputs
from kmidi_torch.generation.generator import EventGenerator
from kmidi_torch.loading import load_generator

MODELS = ("midi_generator", "spectocloud", "emotion_recognizer")
FUNCTIONS = {
    "midi_generator": {"main", "fixed_prefill", "fixed_step"},
    "spectocloud": {"main", "fixed_frame"},
    "emotion_recognizer": {"main", "fixed_clip"},
}


@pytest.mark.parametrize("model", MODELS)
def test_asset_computes_what_the_model_does(exported: Callable[..., Any], model: str) -> None:
    report = exported("coreai", model)
    assert [each for each in report.differences if not each.holds] == []
    assert max(each.largest for each in report.differences) < 1e-4
    told = {each.what for each in report.differences}
    for function in FUNCTIONS[model] - {"main"}:
        assert any(function in what for what in told)
    assert report.path.is_dir()
    assert report.milliseconds > 0.0


@pytest.mark.parametrize(
    "model",
    ["midi_generator", "emotion_recognizer", pytest.param("spectocloud", marks=pytest.mark.slow)],
)
def test_half_precision_is_near_and_half_as_large(exported: Callable[..., Any], model: str) -> None:
    report = exported("coreai", model, "--precision", "fp16")
    assert [each for each in report.differences if not each.holds] == []
    # the generator's is mostly weights, the others' mostly program
    share = {"midi_generator": 0.6}.get(model, 0.9)
    assert report.megabytes < share * exported("coreai", model).megabytes


def test_asset_says_what_it_is(exported: Callable[..., Any]) -> None:
    report = exported("coreai", "emotion_recognizer")
    known = json.loads((report.path / "metadata.json").read_text())
    told = known["creatorDefinedMetadata"]
    assert "emotion" in json.dumps({k: v for k, v in known.items() if isinstance(v, str)})
    assert told["model"] == "emotion_recognizer"
    assert told["config"]["labels"] == ["happy", "sad", "calm"]
    assert set(told["inputs"]) == {"frames", "counts"}
    assert told["differences"] == {each.what: each.largest for each in report.differences}
    assert told["fixed_functions"] == {"fixed_clip": {"batch": 1, "patches": 125}}


@pytest.mark.parametrize("model", MODELS)
def test_functions_have_the_names_of_the_module(exported: Callable[..., Any], model: str) -> None:
    from coreai.authoring import AIModelAsset

    path = exported("coreai", model).path
    summary = AIModelAsset.load(path).summary(include_statistics=False)
    assert set(summary.function_names) == FUNCTIONS[model]
    for function in summary.function_names:
        inputs = {name for name, _ in summary.function_inputs(function)}
        outputs = {name for name, _ in summary.function_outputs(function)}
        if model == "midi_generator":
            assert {"ids", "slots", "past_keys"} < inputs
            assert outputs == {"logits", "new_keys", "new_values"}
        elif model == "spectocloud":
            assert inputs == {"windows", "features", "emotion"}
            assert outputs == {"cloud"}
        else:
            assert inputs == {"frames", "counts"}
            assert outputs == {"numbers", "probabilities", "cues"}


def test_file_holds_no_name_of_this_machine(exported: Callable[..., Any]) -> None:
    program = exported("coreai", "midi_generator").path / "main.mlirb"
    assert str(Path(__file__).parents[2]).encode() not in program.read_bytes()


def test_asset_writes_the_piece_that_the_model_writes(
    exported: Callable[..., Any], tiny_checkpoints: dict[str, Path]
) -> None:
    """Long after the ring wrapped, positions moved back; then with guidance, two rows."""
    loaded = load_generator(tiny_checkpoints["midi_generator"])
    greedy = SamplingConfig(temperature=0.0)
    with CoreaiRun(exported("coreai", "midi_generator").path) as run:
        decoder = ExportedDecoder(run, loaded.config.model)
        pieces = []
        for model in (loaded.model, decoder):
            stream = EventGenerator(model, greedy, seed=1)
            events = [stream.next_event() for _ in range(180)]
            stream.set_sampling(SamplingConfig(guidance_scale=2.0))
            pieces.append(events + [stream.next_event() for _ in range(20)])
    assert pieces[0] == pieces[1]
    assert len(set(pieces[0])) > 5


def test_results_outlive_the_next_call(
    exported: Callable[..., Any], tiny_checkpoints: dict[str, Path]
) -> None:
    loaded = load_generator(tiny_checkpoints["midi_generator"])
    inputs, _ = live_inputs(loaded)
    with CoreaiRun(exported("coreai", "midi_generator").path) as run:
        first = run(inputs)["logits"]
        kept = first.copy()
        run({**inputs, "ids": inputs["ids"] + 1})
        assert np.array_equal(first, kept)


def test_wrong_export_is_refused_and_the_old_one_stays(
    tiny_checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = coreai_target.build

    def wrong(exportable: Any, fixed: Any) -> Any:
        module = copy.deepcopy(exportable.module)
        with torch.no_grad():
            module.model.blocks[1].down.bias[0] += 0.05
        return right(replace(exportable, module=module), fixed)

    monkeypatch.setattr(coreai_target, "build", wrong)
    out = tmp_path / "old.aimodel"
    out.mkdir()
    (out / "main.mlirb").write_text("as it was")
    checkpoint = str(tiny_checkpoints["emotion_recognizer"])
    argv = ["coreai", "--model", "emotion_recognizer", "--checkpoint", checkpoint]
    assert main([*argv, "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert "nothing was kept" in printed.err
    assert any(line.startswith("cues") and " > " in line for line in printed.out.splitlines())
    assert [path.name for path in tmp_path.iterdir()] == ["old.aimodel"]
    assert (out / "main.mlirb").read_text() == "as it was"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--out", "here.mlpackage"], "ends in .aimodel"),
        (["--points", "100"], "--points is for --model spectocloud"),
        (["--checkpoint", "nowhere"], "no such checkpoint"),
        (["--model", "midi_generator", "--sampling"], "knows no sorting"),
    ],
)
def test_wrong_use_is_told(
    tiny_checkpoints: dict[str, Path], flags: list[str], complaint: str
) -> None:
    checkpoint = str(tiny_checkpoints["emotion_recognizer"])
    argv = ["coreai", "--model", "emotion_recognizer", "--checkpoint", checkpoint]
    with pytest.raises(KmidiError, match=complaint):
        main([*argv, *flags])


def test_missing_package_is_told(
    tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coreai_torch", None)
    checkpoint = str(tiny_checkpoints["spectocloud"])
    with pytest.raises(KmidiError, match=r"coreai needs coreai_torch: pip install .*\[coreai\]"):
        main(["coreai", "--model", "spectocloud", "--checkpoint", checkpoint])
