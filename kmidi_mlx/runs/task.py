"""What the training loop asks of a model and its data (`Task`) and of a framework (`Step`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import RunConfig
from kmidi_mlx.data.prefetch import Prefetcher
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.torch_file import Arrays

Numbers = dict[str, float]

# tells the draws of dropout from others of the same seed
_DROPOUT = 0xD0


class Task(Protocol):
    """What is trained: its data, how it is judged and what it makes.

    `unit` names what weights count (`tokens`, `clouds`), `loss_unit` what the validation loss is.
    """

    @property
    def config(self) -> RunConfig:
        """The run."""

    unit: str
    loss_unit: str
    steps_per_epoch: int
    metadata: dict[str, Any]

    def stream(self, first: int) -> AbstractContextManager[Iterator[Any]]:
        """Micro-batches `first`, `first + 1`, ... as a pure function of their index."""

    def before_step(self, step: int) -> None:
        """Make ready for an optimiser step; what is drawn depends on its number alone."""

    def evaluate(self) -> Numbers:
        """Judge the model as it stands; `val_loss` decides what is best."""

    def write_sample(self, folder: Path, step: int, turn: int) -> None:
        """Write something the model makes as it stands, named after the step.

        Args:
            folder: made when missing.
            step: of the run.
            turn: number of the evaluation, from 0; what is asked for may vary with it.
        """


class Step(Protocol):
    """Weights, optimiser state and counters of a run, and what changes them."""

    @property
    def bad_steps(self) -> int:
        """Steps in a row, up to the last one, that gave NaN or Inf."""

    @property
    def skipped_steps(self) -> int:
        """Steps of the run that gave NaN or Inf and changed nothing."""

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory taken so far."""

    def run(self, micro_batches: list[Any], learning_rate: float) -> Numbers:
        """Do one optimiser step over micro-batches.

        Returns:
            `loss` (mean over weighted positions), `weight` (their number), `grad_norm` (before
            clipping), `finite` (0: the step was skipped).
        """

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model hold the weights to use, averaged where that is on, and drop nothing."""

    def weights_to_use(self) -> Arrays:
        """Averaged weights where averaging is on, else the weights; by name."""

    def state_arrays(self) -> Arrays:
        """Everything a resume needs, flat and named; the names are those of every framework."""

    def load_state_arrays(self, arrays: Arrays) -> None:
        """Take over arrays made by `state_arrays` of an equal configuration."""


class Batches(Protocol):
    """Batches as a pure function of their number."""

    def batch(self, step: int) -> Any:
        """Return batch `step`."""

    def steps_per_epoch(self, grad_accum_steps: int = 1) -> int:
        """Return the optimiser steps that see an epoch."""


class HostTask(ABC):
    """The part of a task that needs no framework: batches, sums, counts.

    Args:
        config: the run.
        batches: of the train side.
        held_out: of the val side.
        depth: batches made ahead by a background thread.
        processes: that share the batches.

    Attributes:
        model: the network, made by `build`.
        positions: number of loss positions in a full micro-batch; keeps fp16 losses small.
    """

    unit: str
    loss_unit: str
    # fields of a batch that go to the network and its loss
    names: ClassVar[tuple[str, ...]]

    model: Any
    positions: int
    metadata: dict[str, Any]

    def __init__(
        self,
        config: RunConfig,
        batches: Batches,
        held_out: Batches,
        depth: int,
        processes: Processes = ALONE,
    ) -> None:
        accumulated = config.training.grad_accum_steps * processes.count
        self._batches = batches
        self.held_out = held_out
        self.steps_per_epoch = batches.steps_per_epoch(accumulated)
        self._depth = depth
        self._eval_batches = config.training.eval_batches
        self._processes = processes
        self._adapter = config.adapter
        self._seed = config.training.seed

    @contextmanager
    def stream(self, first: int) -> Iterator[Iterator[Any]]:
        """Micro-batches of this process from its `first` on, made ahead by a background thread."""

        def make(number: int) -> Any:
            return self.stage(self._batches.batch(self._processes.share(number)))

        with Prefetcher(make, first, self._depth) as staged:
            yield map(self.to_device, staged)

    def before_step(self, step: int) -> None:
        """Draw which inputs the adapters drop in a step, where there are adapters."""
        if self._adapter.adapts and self._adapter.dropout:
            self.draw_dropout(np.random.default_rng([self._seed, _DROPOUT, step]))

    def stage(self, batch: Any) -> Any:
        """Make a batch ready for `to_device`, in the thread that made it."""
        return {name: getattr(batch, name) for name in self.names}

    @abstractmethod
    def to_device(self, staged: Any) -> Any:
        """Hand what `stage` returned to the framework: arrays by name."""

    @abstractmethod
    def draw_dropout(self, rng: np.random.Generator) -> None:
        """Draw which inputs the adapters of the model drop."""

    @abstractmethod
    def loss_sum(self, model: Any, batch: Any) -> tuple[Any, Any]:
        """Summed loss of a micro-batch and the weight it was summed over."""

    @abstractmethod
    def held_out_sums(self, batch: Any) -> tuple[float, ...]:
        """Sums over a held-out batch, last of all the weight they were summed over."""

    def held_out_totals(self, held_out: Batches | None = None) -> NDArray[np.float64]:
        """`held_out_sums` of as many held-out batches as an evaluation looks at, added up.

        Args:
            held_out: batches of the same shapes; None: those of the val side.
        """
        held_out = held_out or self.held_out
        count = min(self._eval_batches, held_out.steps_per_epoch())
        totals: NDArray[np.float64] | float = 0.0
        for index in range(count):
            batch = self.to_device(self.stage(held_out.batch(index)))
            totals = totals + np.array(self.held_out_sums(batch), np.float64)
        return np.asarray(totals)
