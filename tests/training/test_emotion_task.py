"""Training the recogniser: what is not known does not matter, it learns, and it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from small_models import same_bits

from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint_model import label_temperature
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.loading import load_recognizer
from kmidi_mlx.runs.emotion_task import open_recordings
from kmidi_mlx.runs.tracker import Tracker
from kmidi_mlx.runs.trainer import Trainer
from kmidi_mlx.training.emotion_task import EmotionTask, losses_of
from kmidi_mlx.training.run import make_step, make_task, train_model
from kmidi_mlx.training.step import Batch


def config_of(settings: list[str], *more: str) -> EmotionRecognizerConfig:
    config = load_config("emotion_recognizer", [], [*settings, *more])
    assert isinstance(config, EmotionRecognizerConfig)
    return config


@pytest.fixture
def task(tiny_recognizer_settings: list[str]) -> EmotionTask:
    config = config_of(tiny_recognizer_settings)
    return EmotionTask(config, open_recordings(config))


def gradients(task: EmotionTask, batch: Batch) -> dict[str, Any]:
    def loss(model: nn.Module) -> mx.array:
        return losses_of(model, batch, task.config, 0.1)[0]

    _, found = nn.value_and_grad(task.model, loss)(task.model)
    return {name: np.array(value) for name, value in tree_flatten(found)}


def first_batch(task: EmotionTask) -> Batch:
    with task.stream(0) as batches:
        return next(batches)


def test_labels_are_those_of_the_manifest(task: EmotionTask) -> None:
    assert task.config.model.labels == ("happy", "sad")
    assert task.metadata["train_label"] in (0, 1)
    np.testing.assert_allclose(task.metadata["train_mean"][0], 0.05, atol=1e-6)


def test_rows_of_which_nothing_is_known_change_nothing(task: EmotionTask) -> None:
    batch = first_batch(task)
    silent = batch | {
        "number_weights": batch["number_weights"] * mx.array([1, 1, 1, 0])[:, None],
        "label_weights": batch["label_weights"] * mx.array([1, 1, 1, 0]),
    }
    other = silent | {
        "mel": mx.concatenate([batch["mel"][:3], 1 - batch["mel"][3:]]),
        "numbers": mx.concatenate([batch["numbers"][:3], 0.9 - batch["numbers"][3:]]),
        "labels": mx.concatenate([batch["labels"][:3], 1 - batch["labels"][3:]]),
    }
    assert same_bits(gradients(task, silent), gradients(task, other))
    assert not same_bits(gradients(task, silent), gradients(task, batch))
    weights = [losses_of(task.model, b, task.config, 0.0)[1].item() for b in (batch, silent)]
    assert weights == [4, 3]


def test_a_number_or_label_that_is_not_known_moves_no_head(task: EmotionTask) -> None:
    batch = first_batch(task)
    without_labels = batch | {"label_weights": 0 * batch["label_weights"]}
    moved = gradients(task, without_labels)
    assert not moved["labels.weight"].any()
    assert moved["numbers.weight"].any()
    arousal_only = batch | {
        "label_weights": 0 * batch["label_weights"],
        "number_weights": mx.tile(mx.array([0.0, 1.0, 0.0]), (4, 1)),
    }
    moved = gradients(task, arousal_only)
    assert moved["numbers.weight"][1].any()
    assert not moved["numbers.weight"][[0, 2]].any()
    nothing = arousal_only | {"number_weights": mx.zeros((4, 3))}
    assert not any(value.any() for value in gradients(task, nothing).values())


def test_the_loss_is_the_weighted_sum_of_its_parts(task: EmotionTask) -> None:
    batch = first_batch(task)
    estimate = task.model(batch["mel"], batch["frames"], batch["keep"])
    squares = np.square(np.array(estimate.numbers) - np.array(batch["numbers"])).sum() / 3
    logits = np.array(estimate.logits, np.float64)
    nats = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), np.array(batch["labels"])]
    loss, weight = losses_of(task.model, batch, task.config, 0.0)
    assert loss.item() == pytest.approx(10 * squares + 0.3 * nats.sum(), rel=1e-5)
    assert weight.item() == 4


def manifest_with_cues(manifest: Path, folder: Path) -> Path:
    """The tones with one cue, how they swell; the second recording has none."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["path"] = str(manifest.parent / line["path"])
        if number != 1:
            line["cues"] = [5.0 if line["label"] == "happy" else 3.0]
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_cues_are_learnt_where_they_are_known(
    tone_manifest: Path, tiny_recognizer_settings: list[str], tmp_path: Path
) -> None:
    file = manifest_with_cues(tone_manifest, tmp_path)
    config = config_of(tiny_recognizer_settings, f'data.manifest="{file}"', "training.max_steps=80")
    task = EmotionTask(config, open_recordings(config))
    assert task.config.model.num_cues == 1
    batch = first_batch(task)
    unknown = batch | {"cue_weights": mx.zeros(4)}
    labels_only = unknown | {"number_weights": mx.zeros((4, 3))}
    assert not gradients(task, labels_only)["cues.weight"].any()
    assert gradients(task, batch)["cues.weight"].any()
    extra = losses_of(task.model, batch, task.config, 0.0)[0]
    extra = extra - losses_of(task.model, unknown, task.config, 0.0)[0]
    estimate = task.model(batch["mel"], batch["frames"], batch["keep"])
    squares = np.square(np.array(estimate.cues - batch["cues"]))[:, 0]
    expected = (squares * np.array(batch["cue_weights"])).sum()
    assert extra.item() == pytest.approx(expected, rel=1e-3)
    Trainer(task, make_step(task), tmp_path, False).train(Interruption())
    loaded = load_recognizer(tmp_path)
    clips = task.held_out.batch(0)
    heard = loaded.model(mx.array(clips.mel), mx.array(clips.frames)).cues
    np.testing.assert_allclose(np.array(heard), clips.cues, atol=0.5)
    more = replace(config, model=replace(config.model, num_cues=2))
    with pytest.raises(KmidiError, match=r"has 1 cues a line, but model\.num_cues is 2"):
        EmotionTask(more, task.recordings)


@pytest.fixture
def mixed_settings(
    tone_manifest: Path, tiny_recognizer_settings: list[str], tmp_path: Path
) -> list[str]:
    """Settings of a run whose train side has three labelled tones and three with cues alone."""
    lines = [json.loads(line) for line in tone_manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["path"] = str(tone_manifest.parent / line["path"])
        line["cues"] = [5.0 + number if line["label"] == "happy" else 3.0, float(number)]
        line["split"] = "val" if number >= 6 else "train"
        if number in (0, 1, 3):
            for key in ("label", "valence", "arousal", "intensity"):
                line.pop(key, None)
    file = tmp_path / "mixed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [*tiny_recognizer_settings, f'data.manifest="{file}"', "data.labelled_share=0.5"]


def test_recordings_with_cues_alone_move_only_the_cues(mixed_settings: list[str]) -> None:
    config = config_of(mixed_settings, "loss.numbers=0", "loss.labels=0")
    task = EmotionTask(config, open_recordings(config))
    batch = first_batch(task)
    np.testing.assert_array_equal(np.array(batch["label_weights"]), [1, 1, 0, 0])
    np.testing.assert_array_equal(np.array(batch["number_weights"])[2:], 0)
    assert losses_of(task.model, batch, config, 0.0)[1].item() == 4
    # the same rows with other, unknown emotions
    other = batch | {
        "numbers": mx.concatenate([batch["numbers"][:2], 0.9 - batch["numbers"][2:]]),
        "labels": mx.concatenate([batch["labels"][:2], 1 - batch["labels"][2:]]),
    }
    config = config_of(mixed_settings)
    task = EmotionTask(config, open_recordings(config))
    assert same_bits(gradients(task, batch), gradients(task, other))
    without = batch | {"cue_weights": batch["cue_weights"] * mx.array([1, 1, 0, 0])}
    assert not same_bits(gradients(task, batch), gradients(task, without))
    assert (task.held_out.batch(0).label_weights == (task.held_out.batch(0).recording >= 0)).all()


def test_padding_of_the_last_held_out_batch_does_not_count(task: EmotionTask) -> None:
    measures = task.evaluate()
    batch = task.held_out.batch(0)
    assert (batch.recording >= 0).sum() == 4
    larger = replace(task.config, training=replace(task.config.training, batch_size=7))
    other = EmotionTask(larger, task.recordings)
    assert other.evaluate()["val_loss"] == pytest.approx(measures["val_loss"], rel=1e-5)


def test_it_learns_pulses_from_drones(tiny_recognizer_settings: list[str], tmp_path: Path) -> None:
    config = config_of(tiny_recognizer_settings, "training.max_steps=60", "training.eval_every=30")
    task = EmotionTask(config, open_recordings(config))
    outcome = Trainer(task, make_step(task), tmp_path, False).train(Interruption())
    assert outcome.unit == "clips"
    loaded = load_recognizer(tmp_path)
    assert loaded.config.model.labels == ("happy", "sad")
    task = EmotionTask(loaded.config, open_recordings(loaded.config))
    task.model.update(loaded.model.parameters())
    measures = task.evaluate()
    assert measures["val_accuracy"] == 1
    assert measures["val_valence_r2"] > 0.9
    assert measures["val_loss"] == pytest.approx(outcome.progression.best_loss, rel=1e-4)
    # clear cases may be said clearly
    assert label_temperature(loaded) < 1


def test_the_best_weights_are_saved_with_the_temperature_that_fits_them(
    tiny_recognizer_settings: list[str], tmp_path: Path
) -> None:
    config = config_of(tiny_recognizer_settings)
    task = EmotionTask(config, open_recordings(config))
    assert task.metadata["temperature"] == 1.0
    Trainer(task, make_step(task), tmp_path, False).train(Interruption())
    loaded = load_recognizer(tmp_path)
    fresh = EmotionTask(loaded.config, open_recordings(loaded.config))
    fresh.model.update(loaded.model.parameters())
    fresh.evaluate()
    assert label_temperature(loaded) == pytest.approx(fresh.metadata["temperature"], rel=1e-3)
    broken = replace(loaded, metadata={"temperature": -1.0})
    with pytest.raises(KmidiError, match=r"holds the temperature -1\.0"):
        label_temperature(broken)


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ("tiny_recognizer_settings", "fp32"),
        ("tiny_recognizer_settings", "fp16"),
        ("mixed_settings", "fp32"),
    ],
)
def test_a_run_in_two_parts_ends_with_the_same_bits(
    request: pytest.FixtureRequest, tmp_path: Path, settings: str, precision: str
) -> None:
    config = config_of(
        request.getfixturevalue(settings),
        f"training.precision={precision}",
        "training.grad_accum_steps=2",
        "data.augment=true",
        "data.augment_variants=0",
        "training.max_steps=12",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    train_model(config, whole, False, Interruption())

    stop = Interruption()

    class StopAfterSeven(Tracker):
        def log(self, step: int, values: dict[str, Any]) -> None:
            stop.requested = step >= 7

    task = make_task(config)
    trainer = Trainer(task, make_step(task), cut, False)
    trainer.trackers.append(StopAfterSeven())
    assert trainer.train(stop).reason == "interrupted"
    assert trainer.progression.step == 7
    train_model(config, cut, True, Interruption())
    for name in (checkpoint.BEST, checkpoint.LAST):
        one, two = (checkpoint.load_arrays(folder / name) for folder in (whole, cut))
        assert same_bits(dict(sorted(one[0].items())), dict(sorted(two[0].items()))), name
        for metadata in (one[1], two[1]):
            metadata.get("progression", {}).pop("seconds", None)
        assert one[1] == two[1]


def test_other_labels_cannot_be_resumed(
    tiny_recognizer_settings: list[str], tmp_path: Path
) -> None:
    config = config_of(tiny_recognizer_settings, "training.max_steps=2")
    train_model(config, tmp_path, False, Interruption())
    more = replace(config, model=replace(config.model, labels=("calm", "happy", "sad")))
    with pytest.raises(KmidiError, match=r"model.labels is .* cannot become .*calm"):
        train_model(more, tmp_path, True, Interruption())


def test_numbers_alone_make_a_model_without_labels(
    tone_manifest: Path, tiny_recognizer_settings: list[str], tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in tone_manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["path"] = str(tone_manifest.parent / line["path"])
        line["arousal"] = 0.5 if line.pop("label") == "happy" else -0.5
        line["split"] = "val" if number >= 6 else "train"
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_of(tiny_recognizer_settings, f'data.manifest="{file}"', "training.max_steps=4")
    train_model(config, tmp_path, False, Interruption())
    loaded = load_recognizer(tmp_path)
    assert loaded.config.model.labels == ()
    assert loaded.metadata["train_mean"] == [None, pytest.approx(0.0), None]
    assert loaded.metadata["train_label"] is None
