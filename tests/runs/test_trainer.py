from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_step import Batch, PlainStep, Weights, same_bits, slopes

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config import MidiGeneratorConfig, OptimizerConfig, TrainingConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.schedule import learning_rate
from kmidi_mlx.runs.tracker import JsonLinesTracker, Tracker
from kmidi_mlx.runs.trainer import Outcome, Trainer
from kmidi_mlx.torch_file import Arrays

OPTIMIZER = OptimizerConfig(learning_rate=0.05, warmup_steps=2)


def weights_of(model: Weights) -> Arrays:
    return {name: value.copy() for name, value in model.items()}


class ScriptedTask:
    """Weights with given gradients and evaluations with given losses, so that all is known."""

    def __init__(
        self,
        losses: Callable[[int], float] = lambda turn: 1.0 / (turn + 1),
        poisoned: Callable[[int], bool] = lambda index: False,
        on_batch: Callable[[int], None] = lambda index: None,
        **training: Any,
    ) -> None:
        options = {"max_steps": 8, "eval_every": 2, "save_every": 3, "log_every": 1}
        options |= {"sample_seconds": 0.0} | training
        self.config = MidiGeneratorConfig(
            optimizer=OPTIMIZER,
            training=TrainingConfig(**options),  # type: ignore[arg-type]
        )
        self.model = slopes(0)
        self.unit, self.loss_unit = "tokens", "nats per event"
        self.steps_per_epoch = 1000
        self.metadata: dict[str, Any] = {"synthetic": True, "data_licences": ["none"]}
        self.first: int | None = None
        self.open_streams = 0
        self.judged: list[Arrays] = []
        self.sampled: list[tuple[int, Arrays]] = []
        self.began: list[int] = []
        self._losses, self._poisoned, self._on_batch = losses, poisoned, on_batch

    @contextmanager
    def stream(self, first: int) -> Iterator[Iterator[Batch]]:
        self.first = first
        self.open_streams += 1
        yield map(self._batch, count(first))
        self.open_streams -= 1

    def _batch(self, index: int) -> Batch:
        self._on_batch(index)
        gradients = slopes(index + 1)
        if self._poisoned(index):
            gradients["sinks"][0] = np.nan
        return gradients, 2.0

    def before_step(self, step: int) -> None:
        self.began.append(step)

    def evaluate(self) -> dict[str, float]:
        self.judged.append(weights_of(self.model))
        return {"val_loss": self._losses(len(self.judged) - 1)}

    def write_sample(self, folder: Path, step: int, turn: int) -> None:
        self.sampled.append((step, weights_of(self.model)))
        folder.mkdir(exist_ok=True)
        (folder / f"step-{step:06d}.txt").write_text(str(step))


def trainer_of(task: ScriptedTask, folder: Path, resume: bool) -> Trainer:
    return Trainer(task, PlainStep(task.model, task.config.training), folder, resume)


def train(
    task: ScriptedTask, folder: Path, resume: bool = False, interruption: Interruption | None = None
) -> Outcome:
    folder.mkdir(exist_ok=True)
    trainer = trainer_of(task, folder, resume)
    step = trainer.progression.step if resume else None
    trainer.trackers.append(JsonLinesTracker(folder / checkpoint.METRICS, step))
    outcome = trainer.train(interruption or Interruption())
    assert task.open_streams == 0
    return outcome


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / checkpoint.METRICS).read_text().splitlines()]


def saved(folder: Path) -> Arrays:
    return checkpoint.load_arrays(folder / checkpoint.LAST)[0]


def saved_progression(folder: Path) -> dict[str, Any]:
    progression: dict[str, Any] = checkpoint.load_arrays(folder / checkpoint.LAST)[1]["progression"]
    return progression


# --- the whole run -------------------------------------------------------------------------------


def test_a_run_ends_after_its_steps_and_leaves_everything_it_promised(tmp_path: Path) -> None:
    task = ScriptedTask()
    outcome = train(task, tmp_path)
    assert outcome.reason == "finished"
    assert outcome.progression.step == 8
    assert outcome.progression.tokens == 8 * 2
    assert outcome.skipped_steps == 0
    assert outcome.synthetic
    assert outcome.peak_memory_bytes > 0
    assert len(task.judged) == 4  # the last step was a time to evaluate: no second time
    assert {item.name for item in tmp_path.iterdir()} == {
        "best.safetensors", "last", "metrics.jsonl"
    }  # fmt: skip
    assert saved_progression(tmp_path)["step"] == 8
    weights = {n.removeprefix("weights."): v for n, v in saved(tmp_path).items() if "weights" in n}
    assert same_bits(dict(sorted(weights.items())), dict(sorted(weights_of(task.model).items())))


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"), [(3, 2, 6), (1, 1000, 8), (2, 4, 8), (1, 1, 1)]
)
def test_epochs_and_steps_both_limit_a_run(
    tmp_path: Path, epochs: int, per_epoch: int, steps: int
) -> None:
    task = ScriptedTask(epochs=epochs)
    task.steps_per_epoch = per_epoch
    assert train(task, tmp_path).progression.step == steps


def test_a_run_that_ends_between_evaluations_is_judged_at_its_end(tmp_path: Path) -> None:
    task = ScriptedTask(max_steps=5)
    outcome = train(task, tmp_path)
    assert len(task.judged) == 3
    assert [line["step"] for line in metrics(tmp_path) if "val_loss" in line] == [2, 4, 5]
    assert outcome.progression.best_step == 5
    assert same_bits(task.judged[-1], weights_of(task.model))


def test_metrics_say_how_the_run_went(tmp_path: Path) -> None:
    task = ScriptedTask(log_every=2, grad_accum_steps=2)
    train(task, tmp_path)
    logged = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in logged] == [2, 4, 6, 8]
    for line in logged:
        assert set(line) == {
            "step", "loss", "learning_rate", "grad_norm", "skipped_steps", "tokens",
            "tokens_per_second", "peak_memory_gb",
        }  # fmt: skip
        assert line["learning_rate"] == learning_rate(line["step"] - 1, 8, OPTIMIZER)
        assert line["tokens"] == line["step"] * 2 * 2.0
        assert line["tokens_per_second"] > 0
        assert line["peak_memory_gb"] > 0
        assert line["grad_norm"] > 0
    judged = [line for line in metrics(tmp_path) if "val_loss" in line]
    assert judged == [{"step": 2 * (i + 1), "val_loss": 1 / (i + 1)} for i in range(4)]


def test_each_step_reads_its_own_micro_batches(tmp_path: Path) -> None:
    seen: list[int] = []
    train(ScriptedTask(on_batch=seen.append, max_steps=3, grad_accum_steps=2), tmp_path)
    assert seen == [0, 1, 2, 3, 4, 5]


# --- what is best, and when to stop --------------------------------------------------------------


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_best_holds_the_weights_of_the_best_evaluation(tmp_path: Path, ema_decay: float) -> None:
    losses = [3.0, 2.0, 2.5, 2.0]
    task = ScriptedTask(lambda turn: losses[turn], ema_decay=ema_decay)
    outcome = train(task, tmp_path)
    arrays, metadata = checkpoint.load_arrays(tmp_path / checkpoint.BEST)
    assert same_bits(dict(sorted(arrays.items())), dict(sorted(task.judged[1].items())))
    assert metadata["step"] == outcome.progression.best_step == 4
    assert metadata["metric"] == outcome.progression.best_loss == 2.0
    assert metadata["data_licences"] == ["none"]


def test_a_run_without_progress_stops_early(tmp_path: Path) -> None:
    losses = [3.0, 3.5, 2.0, 2.0, 2.5, 1.0]
    task = ScriptedTask(lambda turn: losses[turn], patience=2, max_steps=100)
    outcome = train(task, tmp_path)
    assert outcome.reason == "stopped_early"
    assert outcome.progression.step == 10
    assert outcome.progression.best_step == 6
    assert saved_progression(tmp_path)["step"] == 10
    # going on changes nothing
    again = train(ScriptedTask(lambda turn: 0.0, patience=2, max_steps=100), tmp_path, resume=True)
    assert again.reason == "stopped_early"
    assert again.progression.step == 10
    assert checkpoint.load_arrays(tmp_path / checkpoint.BEST)[1]["step"] == 6


def test_patience_waits_for_the_least_epochs(tmp_path: Path) -> None:
    task = ScriptedTask(
        losses=lambda turn: 1.0, max_steps=40, epochs=20, min_epochs=9, eval_epochs=1, patience=2
    )
    task.steps_per_epoch = 2
    outcome = train(task, tmp_path)
    assert outcome.reason == "stopped_early"
    # the first evaluation was the best, two waited: enough at step 6, and not before epoch 9
    assert outcome.progression.step == 18
    assert [step for step, _ in task.sampled] == []
    assert len(task.judged) == 9


def test_every_step_is_announced_with_its_number_also_after_a_resume(tmp_path: Path) -> None:
    task = ScriptedTask(max_steps=4, save_every=2)
    train(task, tmp_path)
    assert task.began == [0, 1, 2, 3]
    again = ScriptedTask(max_steps=6, save_every=2)
    train(again, tmp_path, resume=True)
    assert again.began == [4, 5]


def test_a_base_that_has_changed_is_noticed(tmp_path: Path) -> None:
    task = ScriptedTask(max_steps=4)
    task.metadata["base"] = {"name": "pop", "digest": "1"}
    train(task, tmp_path)
    again = ScriptedTask(max_steps=6)
    again.metadata["base"] = {"name": "pop", "digest": "2"}
    with pytest.raises(KmidiError, match="was begun over other weights than those in"):
        train(again, tmp_path, resume=True)


def test_without_patience_a_run_never_stops_early(tmp_path: Path) -> None:
    task = ScriptedTask(float, patience=0, max_steps=30, eval_every=1)
    assert train(task, tmp_path).reason == "finished"


def test_an_evaluation_that_is_no_number_is_no_progress(tmp_path: Path) -> None:
    losses = [math.nan, 3.0, math.nan, math.nan]
    task = ScriptedTask(lambda turn: losses[turn], patience=2, max_steps=100)
    outcome = train(task, tmp_path)
    assert outcome.reason == "stopped_early"
    assert outcome.progression.best_step == 4
    assert [line["val_loss"] for line in metrics(tmp_path) if "val_loss" in line] == [
        None, 3.0, None, None
    ]  # fmt: skip


def test_a_run_without_one_good_evaluation_has_no_best_weights(tmp_path: Path) -> None:
    outcome = train(ScriptedTask(lambda turn: math.nan), tmp_path)
    assert outcome.progression.best_step == -1
    assert not (tmp_path / checkpoint.BEST).exists()
    assert (tmp_path / checkpoint.LAST).exists()


def test_a_time_limit_stops_judges_and_saves(tmp_path: Path) -> None:
    task = ScriptedTask(max_minutes=0.5 / 60, max_steps=10**6, eval_every=10**6, log_every=10**6)
    task.steps_per_epoch = 10**6
    outcome = train(task, tmp_path)
    assert outcome.reason == "time_limit"
    assert 0.5 <= outcome.progression.seconds < 10
    assert len(task.judged) == min(1, outcome.progression.step)
    assert saved_progression(tmp_path)["step"] == outcome.progression.step
    # the time of earlier sittings counts
    again = train(ScriptedTask(max_minutes=0.5 / 60, max_steps=10**6), tmp_path, resume=True)
    assert again.reason == "time_limit"
    assert again.progression.step == outcome.progression.step


# --- averages and samples ------------------------------------------------------------------------


def test_evaluations_use_the_average_and_give_the_trained_weights_back(tmp_path: Path) -> None:
    options = {"ema_decay": 0.9, "sample_seconds": 1.0}
    judged, left_alone = ScriptedTask(**options), ScriptedTask(eval_every=1000, **options)
    train(judged, tmp_path / "one")
    train(left_alone, tmp_path / "two")
    assert len(judged.judged) == 4
    assert len(left_alone.judged) == 1
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert same_bits(weights_of(judged.model), weights_of(left_alone.model))
    average = {n.removeprefix("average."): v for n, v in one.items() if n.startswith("average.")}
    last = judged.judged[-1]
    assert all(last[name].tobytes() == average[name].tobytes() for name in last)
    assert not same_bits(last, weights_of(judged.model))
    # samples are made by what is judged
    assert [step for step, _ in judged.sampled] == [2, 4, 6, 8]
    for (_, sampled), seen in zip(judged.sampled, judged.judged, strict=True):
        assert same_bits(sampled, seen)
    names = sorted(item.name for item in (tmp_path / "one" / checkpoint.SAMPLES).iterdir())
    assert names == [f"step-{step:06d}.txt" for step in (2, 4, 6, 8)]


# --- steps that are no numbers -------------------------------------------------------------------


def test_bad_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    task = ScriptedTask(poisoned=lambda index: index in (2, 3, 6), max_bad_steps=3)
    outcome = train(task, tmp_path)
    assert outcome.reason == "finished"
    assert outcome.skipped_steps == 3
    logged = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["skipped_steps"] for line in logged] == [0, 0, 1, 2, 2, 2, 3, 3]
    assert [line["loss"] is None for line in logged] == [i in (2, 3, 6) for i in range(8)]


def test_too_many_bad_steps_in_a_row_stop_the_run_and_the_last_save_stays_good(
    tmp_path: Path,
) -> None:
    healthy = ScriptedTask(max_steps=3)
    train(healthy, tmp_path / "healthy")
    task = ScriptedTask(poisoned=lambda index: index >= 4, max_bad_steps=3, max_steps=100)
    with pytest.raises(KmidiError) as caught:
        train(task, tmp_path / "run")
    text = str(caught.value)
    assert text.startswith("3 steps in a row gave NaN or Inf, the last at step 6; the save in ")
    assert "--resume" in text
    assert "lower optimizer.learning_rate" in text
    assert saved_progression(tmp_path / "run")["step"] in (3, 6)
    arrays = saved(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in arrays.values())
    best = checkpoint.load_arrays(tmp_path / "run" / checkpoint.BEST)[0]
    assert all(np.isfinite(value).all() for value in best.values())
    # and the run can go on once the cause is gone
    outcome = train(ScriptedTask(max_steps=9), tmp_path / "run", resume=True)
    assert outcome.reason == "finished"
    assert outcome.progression.step == 9


def test_bad_steps_before_the_first_save_do_not_send_people_to_resume(tmp_path: Path) -> None:
    task = ScriptedTask(poisoned=lambda index: True, max_bad_steps=2)
    with pytest.raises(KmidiError, match="nothing was saved yet: start again and a lower") as error:
        train(task, tmp_path)
    assert "--resume" not in str(error.value)
    assert not (tmp_path / checkpoint.LAST).exists()


# --- interruption and resume ---------------------------------------------------------------------


def interrupted_at(step: int, folder: Path, **options: Any) -> Outcome:
    """Run a task that is asked to stop while it does the step of this number."""
    interruption = Interruption()
    accumulated = options.get("grad_accum_steps", 1)

    def on_batch(index: int) -> None:
        if index == step * accumulated:
            interruption.requested = True

    return train(ScriptedTask(on_batch=on_batch, **options), folder, interruption=interruption)


@pytest.mark.parametrize("step", [0, 1, 4, 6])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_accum_steps": 2, "ema_decay": 0.9},
        {"sample_seconds": 1.0},
    ],
)
def test_an_interrupted_and_resumed_run_ends_as_if_it_had_not_been(
    tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    train(ScriptedTask(**options), tmp_path / "whole")
    first = interrupted_at(step, tmp_path / "parts", **options)
    assert first.reason == "interrupted"
    assert first.progression.step == step + 1
    assert saved_progression(tmp_path / "parts")["step"] == step + 1
    judged = first.progression.evaluated_step // 2
    task = ScriptedTask(lambda turn: 1 / (turn + 1 + judged), **options)
    outcome = train(task, tmp_path / "parts", resume=True)
    assert outcome.reason == "finished"
    assert task.first == (step + 1) * options.get("grad_accum_steps", 1)
    for name in (checkpoint.LAST, checkpoint.BEST):
        one = checkpoint.load_arrays(tmp_path / "whole" / name)[0]
        two = checkpoint.load_arrays(tmp_path / "parts" / name)[0]
        assert same_bits(dict(sorted(one.items())), dict(sorted(two.items())))
    timing = ("tokens_per_second", "peak_memory_gb")
    lines = [
        [{k: v for k, v in line.items() if k not in timing} for line in metrics(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert lines[0] == lines[1]
    ends = [saved_progression(tmp_path / name) | {"seconds": 0} for name in ("whole", "parts")]
    assert ends[0] == ends[1]


def test_a_run_interrupted_before_it_was_judged_leaves_weights_to_use(tmp_path: Path) -> None:
    first = interrupted_at(0, tmp_path)
    assert first.progression.best_step == -1
    best, metadata = checkpoint.load_arrays(tmp_path / checkpoint.BEST)
    last, _ = checkpoint.load_arrays(tmp_path / checkpoint.LAST)
    assert metadata["metric"] is None
    assert best
    for name, array in best.items():
        np.testing.assert_array_equal(array, last[f"weights.{name}"])


def test_an_interrupted_run_is_not_judged_out_of_turn(tmp_path: Path) -> None:
    interrupted_at(2, tmp_path)
    assert [line["step"] for line in metrics(tmp_path) if "val_loss" in line] == [2]


def test_a_run_interrupted_before_it_began_is_saved_at_step_zero(tmp_path: Path) -> None:
    outcome = train(ScriptedTask(), tmp_path, interruption=Interruption(requested=True))
    assert outcome.reason == "interrupted"
    assert saved_progression(tmp_path)["step"] == 0
    assert train(ScriptedTask(), tmp_path, resume=True).progression.step == 8


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    train(ScriptedTask(), tmp_path)
    before = saved(tmp_path)
    task = ScriptedTask()
    assert train(task, tmp_path, resume=True).reason == "finished"
    assert not task.judged
    after = saved(tmp_path)
    assert same_bits(dict(sorted(before.items())), dict(sorted(after.items())))


def test_a_save_of_another_kind_is_refused(tmp_path: Path) -> None:
    train(ScriptedTask(), tmp_path)
    with pytest.raises(KmidiError, match=r"does not fit this model; missing: average\."):
        trainer_of(ScriptedTask(ema_decay=0.9), tmp_path, resume=True)
    arrays, metadata = checkpoint.load_arrays(tmp_path / checkpoint.LAST)
    for broken in ({"progression": {"steps": 3}}, {"progression": None}, {}):
        del metadata["progression"]
        metadata |= broken
        checkpoint.save_arrays(tmp_path / checkpoint.LAST, arrays, metadata)
        with pytest.raises(KmidiError, match="does not say how far its run was"):
            trainer_of(ScriptedTask(), tmp_path, resume=True)
        metadata["progression"] = None
    (tmp_path / checkpoint.LAST).unlink()
    with pytest.raises(KmidiError, match="no such checkpoint"):
        trainer_of(ScriptedTask(), tmp_path, resume=True)


# --- trackers ------------------------------------------------------------------------------------


class BrokenTracker(Tracker):
    def __init__(self) -> None:
        self.calls = 0

    def log(self, step: int, values: dict[str, Any]) -> None:
        self.calls += 1
        raise ConnectionError("the server\nis away")


def test_a_tracker_that_fails_is_reported_once_and_never_stops_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(ScriptedTask(), tmp_path, resume=False)
    broken = BrokenTracker()
    trainer.trackers += [broken, JsonLinesTracker(tmp_path / checkpoint.METRICS)]
    assert trainer.train(Interruption()).reason == "finished"
    complaints = [line for line in capsys.readouterr().err.splitlines() if "Tracker" in line]
    assert complaints == [
        "BrokenTracker failed at step 1 and may miss lines from here on, training goes on: "
        "the server is away"
    ]
    assert broken.calls == len(metrics(tmp_path)) == 8 + 4
