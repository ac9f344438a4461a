"""The training loop: steps, evaluations, early stopping, saves, true resume.

A run is a pure function of its configuration and data: batches depend on the seed and the step
alone, and a save holds everything else, so a run that is killed and resumed ends with the weights
of a run that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
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
from kmidi_mlx.runs.schedule import learning_rate, pace_of
from kmidi_mlx.runs.task import Numbers, Step, Task
from kmidi_mlx.runs.time_left import EVALUATIONS, SAVES, STEPS, TimeLeft
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
        after_seconds: that what the caller does after the run will take, for the estimate.

    Attributes:
        trackers: receive every report.
        progression: how far the run is.
        pace: steps of the whole run, and when what happens.

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
        after_seconds: float = 0.0,
    ) -> None:
        self._task = task
        self._step = step
        self._folder = folder
        self._processes = processes
        self.trackers: list[Tracker] = []
        self._complained: list[Tracker] = []
        self._config = task.config
        self.progression = self._load() if resume else Progression()
        self.pace = pace_of(task.config, task.steps_per_epoch)
        may_stop = bool(task.config.training.patience)
        self._time_left = TimeLeft(self.pace, may_stop, after_seconds)

    def train(self, interruption: Interruption) -> Outcome:
        """Run until the end, a limit, an interruption, or too many bad steps in a row.

        Raises:
            KmidiError: when `max_bad_steps` steps in a row gave NaN or Inf.
        """
        started = time.monotonic() - self.progression.seconds
        done = self.progression.step
        with (
            self._stream() as stream,
            Progress(
                self.pace.total_steps, "train", "steps", initial=done, stream=stream
            ) as progress,
        ):
            about = {**config_to_dict(self._config), "commit": checkpoint.git_commit()}
            about |= self._task.metadata
            self._tell(progress, lambda tracker: tracker.start(about, done))
            try:
                reason = self._run(interruption, progress, started)
            except Exception:
                self._finish(progress, "failed")
                raise
            self._finish(progress, reason)
        return Outcome(
            reason,
            self._task.unit,
            self._task.loss_unit,
            self.progression,
            self._step.skipped_steps,
            self._step.peak_memory_bytes,
            bool(self._task.metadata.get("synthetic", False)),
        )

    def _run(self, interruption: Interruption, progress: Progress, started: float) -> str:
        """Train until the end or until there is a reason to stop, save, return the reason."""
        reason = "finished"
        first = self.progression.step * self._config.training.grad_accum_steps
        with self._task.stream(first) as batches:
            while self.progression.step < self.pace.total_steps:
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
        return reason

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
        impatient = training.patience and waited >= training.patience
        if impatient and self.progression.step >= self.pace.least_steps:
            return "stopped_early"
        return None

    def _one_step(self, batches: Iterator[Any], progress: Progress, started: float) -> None:
        training = self._config.training
        done = self.progression
        rate = learning_rate(done.step, self.pace.total_steps, self.pace.optimizer)
        before = time.monotonic()
        self._task.before_step(done.step)
        micro_batches = [next(batches) for _ in range(training.grad_accum_steps)]
        measures = self._step.run(micro_batches, rate)
        seconds = time.monotonic() - before
        self._time_left.add(STEPS, seconds)
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
        if step % self.pace.eval_every == 0:
            self._evaluate(progress)
        if step % self.pace.save_every == 0:
            self._save()
        news = self._time_left.news(step)
        if news is not None:
            progress.note(news)

    def _report(self, progress: Progress, values: dict[str, Any]) -> None:
        self._tell(progress, lambda tracker: tracker.log(self.progression.step, values))

    def _tell(self, progress: Progress, call: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            try:
                call(tracker)
            except Exception as error:  # a run is worth more than its log, whatever went wrong
                if tracker not in self._complained:
                    self._complained.append(tracker)
                    progress.note(
                        f"{tracker.name} failed at step {self.progression.step} and may "
                        f"miss lines from here on, training goes on: {' '.join(str(error).split())}"
                    )

    def _finish(self, progress: Progress, reason: str) -> None:
        """Let the trackers end, and say what they lack; called once, so none is asked too often."""
        for tracker in self.trackers:
            try:
                tracker.finish(reason)
            except Exception as error:
                progress.note(f"{tracker.name} may lack lines: {' '.join(str(error).split())}")

    def _show_samples(self, progress: Progress) -> None:
        step = self.progression.step
        samples = sorted((self._folder / checkpoint.SAMPLES).glob(f"step-{step:06d}.*"))
        if samples:
            self._tell(progress, lambda tracker: tracker.add_samples(step, samples))

    def _evaluate(self, progress: Progress) -> None:
        """Judge the weights to use, keep them if they are the best so far, write a sample."""
        before = time.monotonic()
        measures = self._processes.told(self._judge)
        self._time_left.add(EVALUATIONS, time.monotonic() - before)
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
        self._show_samples(progress)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
        progress.note(f"step {step}: {shown}{' (best)' if better else ''}")

    def _judge(self) -> Numbers:
        with self._step.averaged():
            measures = self._task.evaluate()
            if self._is_best(measures):
                self._save_best(measures["val_loss"])
            if self._config.training.sample_seconds > 0:
                samples, step = self._folder / checkpoint.SAMPLES, self.progression.step
                self._task.write_sample(samples, step, step // self.pace.eval_every)
        return measures

    def _is_best(self, measures: Numbers) -> bool:
        return measures["val_loss"] < self.progression.best_loss

    def _save_best(self, metric: float | None) -> None:
        checkpoint.save_arrays(
            self._folder / checkpoint.names_of(self._config.adapter.adapts).weights,
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
        before = time.monotonic()
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
        self._time_left.add(SAVES, time.monotonic() - before)

    def _load(self) -> Progression:
        arrays, progression = self._processes.told(self._read)
        self._step.load_state_arrays(arrays)
        return progression

    def _read(self) -> tuple[Arrays, Progression]:
        path = self._folder / checkpoint.LAST
        arrays, metadata = checkpoint.load_arrays(path)
        self._require_same_model(metadata.get("config"))
        self._require_same_base(metadata.get("base"))
        expected = {name: array.shape for name, array in self._step.state_arrays().items()}
        checkpoint.check_names(path, arrays, expected)
        try:
            progression = Progression(**metadata["progression"])
        except (KeyError, TypeError):
            raise KmidiError(f"{path} does not say how far its run was; start anew.") from None
        return arrays, progression

    def _require_same_model(self, saved: Any) -> None:
        """Name the sizes that a resume tries to change, before arrays that do not fit do."""
        for section in ("model", "adapter"):
            now = config_to_dict(self._config)[section]
            before = saved.get(section, {}) if isinstance(saved, dict) else {}
            changed = [
                name
                for name, value in before.items()
                # a base may have moved; `_require_same_base` knows its weights
                if (section, name) != ("adapter", "base") and now.get(name, value) != value
            ]
            if changed:
                name = changed[0]
                raise KmidiError(
                    f"{section}.{name} is {before[name]} in the run in {self._folder} and cannot "
                    f"become {now[name]} on --resume; start a new run in another --out."
                )

    def _require_same_base(self, saved: Any) -> None:
        """What is trained over a base goes on over the same weights, wherever they lie now."""
        base = self._task.metadata.get("base")
        if base and isinstance(saved, dict) and saved.get("digest") != base["digest"]:
            raise KmidiError(
                f"the run in {self._folder} was begun over other weights than those in "
                f"{self._config.adapter.base}; name those with --set adapter.base=DIR."
            )
