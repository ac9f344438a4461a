"""prepare audio-emotion, train and evaluate --model emotion_recognizer, as people call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kmidi_mlx import evaluate, prepare, train
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tone_manifest: Path,
    tiny_recognizer_settings: list[str],
) -> Path:
    """A trained run."""
    out = tmp_path_factory.mktemp("recognizer") / "run"
    flags = [word for setting in tiny_recognizer_settings[1:] for word in ("--set", setting)]
    status = train.main(
        [
            *("--model", "emotion_recognizer", "--audio-manifest", str(tone_manifest)),
            *("--out", str(out), *flags),
        ]
    )
    assert status == 0
    return out


def test_the_flags_of_train_are_settings(tmp_path: Path, tone_manifest: Path) -> None:
    with pytest.raises(KmidiError, match="unknown to this model; known are happy"):
        train.main(
            [
                *("--model", "emotion_recognizer", "--audio-manifest", str(tone_manifest)),
                *("--sample-rate", "8000", "--n-mels", "8", "--use-augmentation"),
                *("--set", "model.labels=[happy]", "--out", str(tmp_path / "run")),
            ]
        )
    parsed: Any = type("Flags", (), {})()
    parsed.model, parsed.data, parsed.audio_manifest = "emotion_recognizer", None, "a b.jsonl"
    parsed.sample_rate, parsed.n_mels, parsed.use_augmentation = 8000, 64, True
    config = load_config("emotion_recognizer", [], train.recording_overrides(parsed))
    assert isinstance(config, EmotionRecognizerConfig)
    assert config.data.manifest == "a b.jsonl"
    assert (config.data.sample_rate, config.model.n_mels, config.data.augment) == (8000, 64, True)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--model", "midi_generator", "--n-mels", "8"], "--n-mels is for --model emotion_reco"),
        (["--use-augmentation"], "--use-augmentation is for --model emotion_recognizer"),
        (["--model", "emotion_recognizer", "--data", "d"], "give --audio-manifest FILE instead"),
        (["--model", "emotion_recognizer", "--n-mels", "2"], "below the smallest"),
        (["--model", "emotion_recognizer", "--audio-manifest", "no.jsonl"], "no.jsonl"),
    ],
)
def test_flags_that_do_not_go_together_are_one_clear_error(
    tmp_path: Path, flags: list[str], problem: str
) -> None:
    with pytest.raises(KmidiError, match=problem):
        train.main([*flags, "--out", str(tmp_path / "run")])


def test_evaluate_prints_every_figure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "emotion_recognizer", "--checkpoint", str(run)]
    assert evaluate.main([*flags, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recordings"], result["clips"], result["split"]) == (2, 4, "val")
    assert set(result["numbers"]) == {"valence", "arousal", "intensity"}
    assert set(result["numbers"]["valence"]) == {"count", "r2", "r", "error", "mean_error"}
    assert set(result["labels"]) == {"count", "accuracy", "macro_f1", "largest_share"}
    # the val side fitted the temperature of the checkpoint, so it may not be judged by it
    assert "cross-fitted" in result["calibration"]["method"]
    assert evaluate.main(flags) == 0
    shown = capsys.readouterr().out
    for word in ("valence", "arousal", "intensity", "accuracy", "calibration error"):
        assert word in shown
    assert evaluate.main([*flags, "--json", "--split", "train"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recordings"] == 6
    assert "other songs" in result["calibration"]["method"]


def test_evaluate_names_what_is_missing(run: Path, tmp_path: Path) -> None:
    flags = ["--model", "emotion_recognizer", "--checkpoint", str(run)]
    with pytest.raises(KmidiError, match="no such file"):
        evaluate.main([*flags, "--audio-manifest", str(tmp_path / "none.jsonl")])
    with pytest.raises(KmidiError, match="no recordings in 'test'"):
        evaluate.main([*flags, "--split", "test"])
    with pytest.raises(KmidiError, match="no such checkpoint"):
        evaluate.main(["--model", "emotion_recognizer", "--checkpoint", str(tmp_path)])


def test_prepare_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["audio-emotion", "--synthetic", "4", "--val-share", "0.5", "--seconds", "1"]
    flags += ["--workers", "1", "--out", str(tmp_path)]
    assert prepare.main(flags) == 0
    shown = capsys.readouterr().out
    assert "4 files: 4 recordings made, 0 as before" in shown
    assert "train  2 recordings of 2 songs" in shown
    assert f"ready: {tmp_path / 'manifest.jsonl'}" in shown
    assert prepare.main([*flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rendered"], report["reused"]) == (0, 4)
    assert report["out"] == str(tmp_path)
    bare = tmp_path / "synthetic" / "bare.jsonl"
    lines = (tmp_path / "synthetic" / "manifest.jsonl").read_text().splitlines()
    row = {"path": json.loads(lines[0])["path"], "song": "bare", "split": "val"}
    bare.write_text(json.dumps(row) + "\n")
    more = [*flags, str(bare), "--with-unlabelled", "--out", str(tmp_path / "more")]
    assert prepare.main(more) == 0
    shown = capsys.readouterr().out
    assert "train  3 recordings of 3 songs" in shown
    assert "without label: 1 recording, all in train" in shown
    assert "rejected" not in shown


def test_only_what_has_an_emotion_is_evaluated(
    run: Path, tone_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in tone_manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["path"] = str(tone_manifest.parent / line["path"])
        if number < 3:
            for key in ("label", "valence", "arousal", "intensity", "split"):
                line.pop(key, None)
            line["cues"] = [1.0]
        else:
            line["split"] = "train"
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--model", "emotion_recognizer", "--checkpoint", str(run), "--json"]
    assert evaluate.main([*flags, "--audio-manifest", str(file), "--split", "train"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recordings"], result["labels"]["count"]) == (5, 5)


@pytest.mark.parametrize("count", [1, 8])
def test_other_recordings_without_sides_are_all_measured(
    run: Path, tone_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    lines = [json.loads(line) for line in tone_manifest.read_text().splitlines()][:count]
    for line in lines:
        line["path"] = str(tone_manifest.parent / line["path"])
        del line["split"]
    file = tmp_path / "others.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--model", "emotion_recognizer", "--checkpoint", str(run), "--json"]
    assert evaluate.main([*flags, "--audio-manifest", str(file)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["recordings"], result["split"]) == (count, "all")
