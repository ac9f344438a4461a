"""Two models on the same held-out data, and how fast they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.config import (
    EmotionRecognizerConfig,
    MidiGeneratorConfig,
    RunConfig,
    SpectocloudConfig,
)
from kmidi_mlx.config_file import load_config
from kmidi_mlx.convert import find_network
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.held_out import compare, open_held_out
from kmidi_mlx.evaluation.pace import paces
from kmidi_mlx.models.midi_transformer import Conditions
from kmidi_mlx.training.run import make_task

NAMES = ("midi_generator", "spectocloud", "emotion_recognizer")


@pytest.fixture(scope="module")
def runs(
    tiny_settings: list[str], tiny_cloud_settings: list[str], tiny_recognizer_settings: list[str]
) -> dict[str, Any]:
    options = (tiny_settings, tiny_cloud_settings, tiny_recognizer_settings)
    return {name: load_config(name, [], given) for name, given in zip(NAMES, options, strict=True)}


def fresh(config: RunConfig, seed: int) -> Any:
    model = find_network("kmidi_mlx", config)(config.model)
    model.initialise(seed)
    mx.eval(model.parameters())
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_run(runs: dict[str, Any], name: str) -> None:
    task = make_task(runs[name])
    # as stored in a checkpoint: with the labels and cues of the data
    config = replace(task.config, training=replace(task.config.training, eval_batches=1000))
    task = make_task(config)
    held_out = open_held_out(config, limit=10_000)
    rows = held_out.measure(task.model)
    (first, *_) = compare(held_out.units, rows, rows)
    column = held_out.units.index("loss of training") if name == "spectocloud" else 0
    totals = compare(held_out.units, rows, rows)[column]
    if name == "spectocloud":
        # training looks at some points of a cloud, this at all
        assert 0 < first.before < totals.before
    else:
        assert totals.before == pytest.approx(task.evaluate()["val_loss"], rel=1e-5)
    assert (totals.growth, totals.standard_error) in ((0.0, 0.0), (0.0, None))


def test_nats_are_counted_right(runs: dict[str, Any]) -> None:
    config: MidiGeneratorConfig = runs["midi_generator"]
    model, held_out = fresh(config, 1), open_held_out(config, limit=8)
    assert len(held_out.batches) == 2
    total = count = 0.0
    for batch in held_out.batches:
        arrays = {name: mx.array(value) for name, value in batch.items()}
        conditions = Conditions(arrays["emotion"], arrays["chords"], arrays["keys"])
        logits = np.array(model(arrays["inputs"], conditions, arrays["chord_index"]), np.float64)
        for row, targets in enumerate(batch["targets"]):
            for at, target in enumerate(targets):
                if batch["weights"][row, at]:
                    line = logits[row, at]
                    total += np.log(np.sum(np.exp(line))) - line[target]
                    count += 1
    (loss,) = compare(held_out.units, *[held_out.measure(model)] * 2)
    assert loss.before == pytest.approx(total / count, rel=1e-5)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(1, 50)), min_size=1, max_size=6
    )
)
def test_growth_is_the_difference(rows: list[tuple[float, float, float]]) -> None:
    before = np.array([(one, weight) for one, _, weight in rows])
    after = np.array([(two, weight) for _, two, weight in rows])
    (loss,) = compare(["nats"], before, after)
    weight = sum(row[2] for row in rows)
    assert loss.before == pytest.approx(sum(row[0] for row in rows) / weight)
    assert loss.growth == pytest.approx(loss.after - loss.before)
    assert (loss.standard_error is None) == (len(rows) == 1)
    (swapped,) = compare(["nats"], after, before)
    assert swapped.growth == pytest.approx(-loss.growth)


def test_every_batch_is_reported(runs: dict[str, Any]) -> None:
    held_out = open_held_out(runs["midi_generator"], limit=5)  # rounded up to two batches of four
    seen: list[int] = []
    held_out.measure(fresh(runs["midi_generator"], 0), seen.append)
    assert seen == [1, 1]


def test_data_that_is_gone_is_told(runs: dict[str, Any], tmp_path: Path) -> None:
    clouds: SpectocloudConfig = runs["spectocloud"]
    gone = replace(clouds, data=replace(clouds.data, path=str(tmp_path / "gone")))
    with pytest.raises(KmidiError, match="gone is not there any more; give --data, made by"):
        open_held_out(gone)
    assert open_held_out(gone, Path(clouds.data.path), 8).data == clouds.data.path
    heard: EmotionRecognizerConfig = runs["emotion_recognizer"]
    with pytest.raises(KmidiError, match="does not say what it learnt from; give --data, a man"):
        open_held_out(replace(heard, data=replace(heard.data, manifest="")))


@pytest.mark.parametrize("name", NAMES)
def test_a_slower_model_is_slower(
    runs: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(100_000))
    monkeypatch.setattr("time.perf_counter", lambda: 1e-3 * next(clock))
    config = runs[name]
    found = paces([fresh(config, 0), fresh(config, 0)], config, turns=1)
    assert [pace.unit for pace in found] == [
        {"midi_generator": "event", "spectocloud": "cloud"}.get(name, "second of sound")
    ] * 2
    assert all(pace.milliseconds == pytest.approx(1.0) for pace in found)
