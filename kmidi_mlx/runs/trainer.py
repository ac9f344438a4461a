"""The training loop: steps, evaluations, early stopping, saves, true resume.

A run is a pure function of its configuration and data: batches depend on the seed and the step
alone, and a save holds everything else, so a run that is killed and resumed ends with the weights
of a run that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from kmidi_mlx import checkpoint
from kmidi_mlx.command import Interruption
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.console import Progress
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.schedule import learning_rate
from kmidi_mlx.runs.task import Numbers, Step, Task
from kmidi_mlx.runs.tracker import Tracker
from kmidi_mlx.torch_file import Arrays

_GO_ON, _TIME_LIMIT, _INTERRUPTED = range(3)


@dataclass(frozen=True)
class Progression:
    """How far a run is; kept in every save. `tokens` are those of the task's `unit`."""

    step: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    best_loss: float = math.inf
    best_step: int = -1
    evaluated_step: int = 0
    evaluations_without_progress: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `reason` is finished, stopped_early, time_limit or interrupted."""

    reason: str
    unit: str
    loss_unit: str
    progression: Progression
    skipped_steps: int
    peak_memory_bytes: int
    synthetic: bool


class Trainer:
    """Trains a task into a checkpoint folder.

    Args:
        task: what to train.
        step: the task's weights, and what changes them.
        folder: checkpoint folder, held by the caller (`checkpoint.exclusive`).
        resume: go on from `last/`; otherwise the run starts anew.
        processes: that train together; only the leading one reads and writes the folder.

    Attributes:
        trackers: receive every report.
        progression: how far the run is.
        total_steps: steps of the whole run.

    Raises:
        KmidiError: when `last/` cannot be read or does not fit.
    """

    def __init__(
        self,
        task: Task,
        step: Step,
        folder: Path,
        resume: bool,
        processes: Processes = ALONE,
    ) -> None:
        self._task = task
        self._step = step
        self._folder = folder
        self._processes = processes
        self.trackers: list[Tracker] = []
        self._complained: list[Tracker] = []
        self._config = task.config
        self.progression = self._load() if resume else Progression()
        training = task.config.training
        self.total_steps = min(training.max_steps, training.epochs * task.steps_per_epoch)

    def train(self, interruption: Interruption) -> Outcome:
        """Run until the end, a limit, an interruption, or too many bad steps in a row.

        Raises:
            KmidiError: when `max_bad_steps` steps in a row gave NaN or Inf.
        """
        training = self._config.training
        started = time.monotonic() - self.progression.seconds
        reason = "finished"
        first = self.progression.step * training.grad_accum_steps
        done = self.progression.step
        with (
            self._stream() as stream,
            Progress(self.total_steps, "train", "steps", initial=done, stream=stream) as progress,
        ):
            with self._task.stream(first) as batches:
                while self.progression.step < self.total_steps:
                    stopping = self._reason_to_stop(interruption, started)
                    if stopping:
                        reason = stopping
                        break
                    self._one_step(batches, progress, started)
            if self.progression.evaluated_step < self.progression.step and reason != "interrupted":
                self._evaluate(progress)
            elif reason == "interrupted" and not self.progression.evaluated_step:
                # something to listen to; the first evaluation of a resumed run replaces it
                self._processes.told(lambda: self._save_best(None))
            self.progression = replace(self.progression, seconds=time.monotonic() - started)
            self._save()
        return Outcome(
            reason,
            self._task.unit,
            self._task.loss_unit,
            self.progression,
            self._step.skipped_steps,
            self._step.peak_memory_bytes,
            bool(self._task.metadata.get("synthetic", False)),
        )

    @contextmanager
    def _stream(self) -> Iterator[TextIO | None]:
        """Where progress is shown: only one of several processes shows how far it is."""
        if self._processes.leads:
            yield None
        else:
            with Path(os.devnull).open("w") as nowhere:
                yield nowhere

    def _reason_to_stop(self, interruption: Interruption, started: float) -> str | None:
        training = self._config.training
        reason = _GO_ON
        if interruption.requested:
            reason = _INTERRUPTED
        elif training.max_minutes and time.monotonic() - started > 60 * training.max_minutes:
            reason = _TIME_LIMIT
        # what one process has noticed has to stop all of them at the same step
        reason = self._processes.largest(reason)
        if reason != _GO_ON:
            return "interrupted" if reason == _INTERRUPTED else "time_limit"
        waited = self.progression.evaluations_without_progress
        if training.patience and waited >= training.patience:
            return "stopped_early"
        return None

    def _one_step(self, batches: Iterator[Any], progress: Progress, started: float) -> None:
        training = self._config.training
        done = self.progression
        rate = learning_rate(done.step, self.total_steps, self._config.optimizer)
        before = time.monotonic()
        micro_batches = [next(batches) for _ in range(training.grad_accum_steps)]
        measures = self._step.run(micro_batches, rate)
        seconds = time.monotonic() - before
        bad = self._step.bad_steps
        if bad >= training.max_bad_steps:
            saved = (self._folder / checkpoint.LAST).exists()
            advice = (
                f"the save in {self._folder} is from before: go on from it with --resume"
                if saved
                else "nothing was saved yet: start again"
            )
            raise KmidiError(
                f"{bad} steps in a row gave NaN or Inf, the last at step {done.step}; {advice} "
                "and a lower optimizer.learning_rate."
            )
        self.progression = replace(
            done,
            step=done.step + 1,
            tokens=done.tokens + measures["weight"],
            seconds=time.monotonic() - started,
        )
        unit = self._task.unit
        rate_of_units = {f"{unit}_per_second": measures["weight"] / seconds}
        peak_gb = self._step.peak_memory_bytes / 1e9
        progress.advance(1, loss=measures["loss"], **rate_of_units, peak_gb=peak_gb)
        step = self.progression.step
        if step % training.log_every == 0:
            self._report(
                progress,
                {
                    "loss": measures["loss"],
                    "learning_rate": rate,
                    "grad_norm": measures["grad_norm"],
                    "skipped_steps": self._step.skipped_steps,
                    unit: self.progression.tokens,
                    **rate_of_units,
                    "peak_memory_gb": peak_gb,
                },
            )
        if step % training.eval_every == 0:
            self._evaluate(progress)
        if step % training.save_every == 0:
            self._save()

    def _report(self, progress: Progress, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            try:
                tracker.log(self.progression.step, values)
            except Exception as error:  # a run is worth more than its log, whatever went wrong
                if tracker not in self._complained:
                    self._complained.append(tracker)
                    progress.note(
                        f"{type(tracker).__name__} failed at step {self.progression.step} and may "
                        f"miss lines from here on, training goes on: {' '.join(str(error).split())}"
                    )

    def _evaluate(self, progress: Progress) -> None:
        """Judge the weights to use, keep them if they are the best so far, write a sample."""
        measures = self._processes.told(self._judge)
        step, better = self.progression.step, self._is_best(measures)
        waited = self.progression.evaluations_without_progress
        self.progression = replace(
            self.progression,
            best_loss=measures["val_loss"] if better else self.progression.best_loss,
            best_step=step if better else self.progression.best_step,
            evaluated_step=step,
            evaluations_without_progress=0 if better else waited + 1,
        )
        self._report(progress, measures)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        progress.note(f"step {step}: {shown}{' (best)' if better else ''}")

    def _judge(self) -> Numbers:
        with self._step.averaged():
            measures = self._task.evaluate()
            if self._is_best(measures):
                self._save_best(measures["val_loss"])
            if self._config.training.sample_seconds > 0:
                samples = self._folder / checkpoint.SAMPLES
                self._task.write_sample(samples, self.progression.step)
        return measures

    def _is_best(self, measures: Numbers) -> bool:
        return measures["val_loss"] < self.progression.best_loss

    def _save_best(self, metric: float | None) -> None:
        checkpoint.save_arrays(
            self._folder / checkpoint.BEST,
            self._step.weights_to_use(),
            {
                "model": self._config.name,
                "config": config_to_dict(self._config),
                "step": self.progression.step,
                "metric": metric,
                "commit": checkpoint.git_commit(),
                **self._task.metadata,
            },
        )

    def _save(self) -> None:
        """Write everything a resume needs, in one file that is replaced at once."""
        self._processes.told(
            lambda: checkpoint.save_arrays(
                self._folder / checkpoint.LAST,
                self._step.state_arrays(),
                {
                    "model": self._config.name,
                    "progression": asdict(self.progression),
                    "config": config_to_dict(self._config),
                    **self._task.metadata,
                },
            )
        )

    def _load(self) -> Progression:
        arrays, progression = self._processes.told(self._read)
        self._step.load_state_arrays(arrays)
        return progression

    def _read(self) -> tuple[Arrays, Progression]:
        path = self._folder / checkpoint.LAST
        arrays, metadata = checkpoint.load_arrays(path)
        self._require_same_model(metadata.get("config"))
        expected = {name: array.shape for name, array in self._step.state_arrays().items()}
        checkpoint.check_names(path, arrays, expected)
        try:
            progression = Progression(**metadata["progression"])
        except (KeyError, TypeError):
            raise KmidiError(f"{path} does not say how far its run was; start anew.") from None
        return arrays, progression

    def _require_same_model(self, saved: Any) -> None:
        """Name the sizes that a resume tries to change, before arrays that do not fit do."""
        now = config_to_dict(self._config)["model"]
        before = saved.get("model", {}) if isinstance(saved, dict) else {}
        changed = [name for name, value in before.items() if now.get(name, value) != value]
        if changed:
            name = changed[0]
            raise KmidiError(
                f"model.{name} is {before[name]} in the run in {self._folder} and cannot become "
                f"{now[name]} on --resume; start a new run in another --out."
            )
