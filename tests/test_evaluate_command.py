from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint
from kmidi_mlx.command import run
from kmidi_mlx.config import (
    MidiDataConfig,
    MidiGeneratorConfig,
    MidiTransformerConfig,
    SamplingConfig,
)
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.synthetic import write_synthetic
from kmidi_mlx.evaluate import main
from kmidi_mlx.evaluation import control
from kmidi_mlx.evaluation.music_measures import MEASURES
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer

SCORE = {
    "events",
    "notes",
    "songs",
    "nats_per_event",
    "standard_error",
    "perplexity",
    "nats_per_note",
    "accuracy",
    "illegal_mass",
}


def save(folder: Path, synthetic: bool, model: str = "midi_generator") -> Path:
    config = MidiGeneratorConfig(
        model=MidiTransformerConfig(
            hidden_dim=64,
            num_layers=1,
            num_heads=1,
            ffn_dim=64,
            context_length=32,
            cross_attention_layers=(0,),
        ),
        data=MidiDataConfig(sequence_length=32),
        sampling=SamplingConfig(max_note_seconds=0.5, max_rest_seconds=0.3),
    )
    network = EmotionMIDITransformer(config.model)
    network.initialise(0)
    arrays = {name: np.asarray(value) for name, value in tree_flatten(network.parameters())}
    metadata = {
        "model": model,
        "config": config_to_dict(config),
        "step": 7,
        "synthetic": synthetic,
    }
    checkpoint.save_arrays(folder / checkpoint.BEST, arrays, metadata)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare_midi([], folder / "out", synthetic=12, val_share=0.2, workers=1)
    return folder / "out"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("trained"), synthetic=True)


def test_a_model_is_measured_on_everything(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--checkpoint {trained} --data {data} --limit 200 --baselines --generate 4 --json"
    status = run(main, [*flags.split(), "--seconds", "1", "--guidance-scale", "1", "2.5"])
    captured = capsys.readouterr()
    assert status == 0
    assert "synthetic practice music" in captured.err
    assert "predict: " in captured.err
    result = json.loads(captured.out)
    assert (result["step"], result["synthetic"], result["split"]) == (7, True, "val")
    scores = result["likelihood"]["scores"]
    names = ["with conditions", "without conditions", "uniform", "unigram", "trigram"]
    assert list(scores) == names
    assert all(set(score) == SCORE for score in scores.values())
    assert len({score["events"] for score in scores.values()}) == 1
    assert 200 <= scores["trigram"]["events"] < 200 + 32
    assert scores["uniform"]["nats_per_event"] == pytest.approx(np.log(388))
    assert scores["trigram"]["nats_per_event"] < scores["unigram"]["nats_per_event"] < np.log(388)
    gain = result["likelihood"]["conditions_gain"]["nats_per_event"]
    plain, given = (scores[names[k]]["nats_per_event"] for k in (1, 0))
    assert gain == pytest.approx(plain - given)
    assert (result["likelihood"]["context"], result["likelihood"]["stride"]) == (32, 16)
    assert [row["guidance_scale"] for row in result["control"]] == [1.0, 2.5]
    for row in result["control"]:
        assert (row["pieces"], row["violations"], row["hanging_notes"]) == (4, 0, 0)
        assert row["first_violation"] is None
        assert row["quadrant_chance"] == 0.25
    assert list(result["measures"]) == ["real", "guidance 1", "guidance 2.5"]
    for found in result["measures"].values():
        assert set(found["measures"]) == set(MEASURES)
    assert "difference" in result["measures"]["guidance 1"]["measures"]["mean_pitch"]


def test_tables_say_the_same(data: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--checkpoint {trained / checkpoint.BEST} --data {data} --limit 50 --stride 32"
    assert run(main, [*flags.split(), "--generate", "1", "--seconds", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("nats per event", "with conditions", "guidance 1", "quadrant", "mean pitch"):
        assert words in out
    assert "windows of 32 events every 32" in out
    assert all(len(line) <= 120 for line in out.splitlines()[1:])


def test_real_music_brings_no_notice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = save(tmp_path / "real", synthetic=False)
    assert run(main, ["--checkpoint", str(real), "--data", str(data), "--limit", "20"]) == 0
    captured = capsys.readouterr()
    assert "synthetic" not in captured.err
    assert "guidance" not in captured.out


def test_files_are_measured_without_a_model(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic(tmp_path / "files", 3, seed=1, val_share=0.0)
    broken = tmp_path / "files" / "broken.mid"
    broken.write_bytes(b"MThd no music")
    flags = ["--midi", str(tmp_path / "files"), "--data", str(data), "--json"]
    assert run(main, [*flags, "--checkpoint", str(tmp_path / "none")]) == 0
    captured = capsys.readouterr()
    assert str(broken) in captured.err
    result = json.loads(captured.out)
    assert result["unreadable"] == 1
    assert result["measures"]["files"]["pieces"] == 3
    assert "likelihood" not in result
    assert result["measures"]["files"]["measures"]["note_density"]["difference"] is not None
    assert run(main, flags[:2]) == 0
    assert "files (3)" in capsys.readouterr().out


def test_invalid_music_fails_the_check(
    data: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_piece = control.write_piece

    def hanging(*arguments: Any) -> control.Written:
        return replace(write_piece(*arguments), violation="event 3: wrong", hanging_notes=2)

    monkeypatch.setattr(control, "write_piece", hanging)
    flags = f"--checkpoint {trained} --data {data} --limit 20 --generate 2 --seconds 0.5 --seed 3"
    assert run(main, flags.split()) == 1
    assert "not valid music: seed 3, event 3: wrong" in capsys.readouterr().out
    assert run(main, [*flags.split(), "--json"]) == 1
    row = json.loads(capsys.readouterr().out)["control"][0]
    assert (row["violations"], row["hanging_notes"]) == (2, 4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", "give --data DIR to measure a model, or --midi FOLDER"),
        ("--data {data} --midi x --generate 2", "--midi measures files without a model"),
        ("--data {data} --guidance-scale 2", "--guidance-scale needs --generate"),
        ("--data {data} --limit 0", "--limit 0: give 1 or more"),
        ("--data {data} --batch-size 0", "--batch-size 0: give 1 or more"),
        ("--data {data} --generate 1 --seconds 0", "--seconds 0: give more than 0"),
        ("--data {data} --seed -1", "--seed -1: give 0 or more"),
        ("--data {data} --stride 33", "the stride is 33; it has to be from 1 to 32"),
        ("--data {data} --context 64", "the context of 64 events is longer than the model's, 32"),
        ("--data {data} --split test", "no pieces in 'test'"),
        ("--data {data} --generate 1 --guidance-scale 11 --limit 9", "--guidance-scale: 11"),
        ("--data nowhere", "nowhere is not a prepared data set"),
        ("--data {data} --checkpoint nowhere", "no such checkpoint: nowhere"),
        ("--midi nowhere", "nowhere does not exist"),
        ("--model midi_generatr", "did you mean midi_generator?"),
        ("--baseline", "did you mean --baselines?"),
    ],
)
def test_wrong_use_is_one_line(
    data: Path, trained: Path, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    given = flags.format(data=data).split()
    if "--checkpoint" not in given:
        given += ["--checkpoint", str(trained)]
    assert run(main, given) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("kmidi evaluate: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_checkpoint_of_another_model_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save(tmp_path / "other", synthetic=False, model="spectocloud")
    assert run(main, ["--checkpoint", str(other), "--data", str(data)]) == 2
    assert "'spectocloud'" in capsys.readouterr().err
