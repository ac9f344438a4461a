from __future__ import annotations

import dataclasses
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.data.prepare import prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music import read_midi
from kmidi_mlx.training.midi_task import MidiTask, logits_of


@pytest.fixture
def config(tiny_settings: list[str]) -> MidiGeneratorConfig:
    return load_config("midi_generator", [], [*tiny_settings, "training.sample_seconds=3"])


@pytest.fixture
def task(config: MidiGeneratorConfig) -> MidiTask:
    return MidiTask(config, ShardReader(config.data.path))


def test_the_stream_is_a_function_of_the_index(task: MidiTask) -> None:
    with task.stream(0) as batches:
        early = [next(batches) for _ in range(5)]
    with task.stream(3) as batches:
        late = [next(batches) for _ in range(2)]
    for one, two in zip(early[3:], late, strict=True):
        assert all(mx.array_equal(one[name], two[name]) for name in one)
    assert not mx.array_equal(early[0]["inputs"], early[1]["inputs"])


def test_evaluation_is_nats_per_held_out_event_without_smoothing(
    config: MidiGeneratorConfig, practice_data: Path
) -> None:
    smoothed = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, label_smoothing=0.3, eval_batches=10**6),
    )
    task = MidiTask(smoothed, ShardReader(practice_data))
    total, events = 0.0, 0.0
    for index in range(task.held_out.steps_per_epoch()):
        batch = task.held_out.batch(index)
        arrays = {
            name: mx.array(getattr(batch, name))
            for name in ("inputs", "emotion", "chords", "keys", "chord_index")
        }
        logits = np.asarray(logits_of(task.model, arrays)).astype(np.float64)
        likely = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = np.take_along_axis(likely, batch.targets[..., None].astype(np.int64), -1)[..., 0]
        total -= float((chosen * batch.weights).sum())
        events += float(batch.weights.sum())
    pieces = ShardReader(practice_data).pieces
    assert events == pieces.length[ShardReader(practice_data).split("val")].sum()
    assert task.evaluate()["val_loss"] == pytest.approx(total / events, rel=1e-5)
    # an untrained model knows nothing
    assert total / events == pytest.approx(np.log(388), abs=0.2)


def test_evaluation_sees_the_weights_as_they_are_now(task: MidiTask) -> None:
    first = task.evaluate()
    assert task.evaluate() == first
    task.model.load_weights([("embedding.weight", 30 * task.model.embedding.weight)], strict=False)
    assert task.evaluate()["val_loss"] > first["val_loss"] + 0.1
    task.model.load_weights([("embedding.weight", task.model.embedding.weight / 30)], strict=False)
    assert task.evaluate()["val_loss"] == pytest.approx(first["val_loss"], rel=1e-5)


def test_samples_are_playable_repeatable_and_follow_the_step(
    task: MidiTask, tmp_path: Path
) -> None:
    for turn, step in enumerate((10, 20)):
        task.write_sample(tmp_path / "samples", step, turn)
    notes = read_midi(tmp_path / "samples" / "step-000010.mid")
    assert len(notes) > 0
    assert notes.duration_seconds <= 3.01
    task.write_sample(tmp_path / "again", 10, 0)
    names = [f"step-{step:06d}.mid" for step in (10, 20)]
    ten, twenty = ((tmp_path / "samples" / name).read_bytes() for name in names)
    assert (tmp_path / "again" / names[0]).read_bytes() == ten != twenty


def test_the_seed_decides_weights_and_batches(config: MidiGeneratorConfig) -> None:
    def first_numbers(seed: int) -> tuple[mx.array, mx.array]:
        own = dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
        task = MidiTask(own, ShardReader(own.data.path))
        with task.stream(0) as batches:
            return task.model.embedding.weight, next(batches)["inputs"]

    one, same, other = first_numbers(1), first_numbers(1), first_numbers(2)
    for index in range(2):
        assert mx.array_equal(one[index], same[index])
        assert not mx.array_equal(one[index], other[index])


def test_data_without_a_held_out_side_is_an_error(
    config: MidiGeneratorConfig, tmp_path: Path
) -> None:
    prepare_midi([], tmp_path / "data", synthetic=3, val_share=0.0, workers=1)
    own = dataclasses.replace(
        config, data=dataclasses.replace(config.data, path=str(tmp_path / "data"))
    )
    with pytest.raises(KmidiError, match="no pieces in 'val'"):
        MidiTask(own, ShardReader(own.data.path))


def test_the_metadata_says_what_the_data_is(task: MidiTask) -> None:
    assert task.metadata["synthetic"] is True
    assert task.metadata["data_licences"] == ["generated, free to use"]
