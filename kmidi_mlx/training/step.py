"""One optimiser step as compiled graphs: gradients in any precision, clipped, checked, applied.

Weights, averages and optimiser state stay in fp32. In fp16 the loss is scaled so that small
gradients survive, and the scale adapts (Micikevicius et al. 2018, arXiv 1710.03740). A step whose
gradient holds NaN or Inf changes nothing but the counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from numpy.typing import NDArray

from kmidi_mlx.config import OptimizerConfig, TrainingConfig
from kmidi_mlx.runs.loss_scale import (
    FIRST_LOSS_SCALE,
    LARGEST_LOSS_SCALE,
    SCALE_GROWTH_STEPS,
)
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import Numbers
from kmidi_mlx.torch_file import Arrays
from kmidi_mlx.training.distributed import Group
from kmidi_mlx.training.optimizer import make_optimizer

DTYPES = {"fp32": mx.float32, "fp16": mx.float16, "bf16": mx.bfloat16}

Batch = dict[str, mx.array]
LossSum = Callable[[nn.Module, Batch], tuple[mx.array, mx.array]]


def to_arrays(staged: Mapping[str, NDArray[Any]]) -> Batch:
    """Hand numpy arrays to MLX."""
    return {name: mx.array(value) for name, value in staged.items()}


class TrainStep:
    """Weights, optimiser state and counters of a run, and the compiled graphs that change them.

    Only what the model lets be trained is; the rest is part of the graphs, and not of a save.

    Args:
        model: fp32 weights; changed in place. What is frozen may have any precision.
        loss_sum: returns the summed loss of a micro-batch and the weight it was summed over.
        optimizer, training: the run's settings.
        positions: number of loss positions in a full micro-batch; keeps fp16 losses small.
        processes: that train together; each brings its own micro-batches.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_sum: LossSum,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        positions: int,
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self._group = processes if isinstance(processes, Group) else None
        if self._group is not None:
            # another kind of machine may have drawn other first weights
            first = self._group.told(lambda: _as_numpy(model.trainable_parameters()))
            model.update(tree_unflatten([(name, mx.array(array)) for name, array in first.items()]))
        self._loss_sum = loss_sum
        self._clip_norm = optimizer.clip_norm
        self._dtype = DTYPES[training.precision]
        self._scaled = training.precision == "fp16"
        self._ema_decay = training.ema_decay
        self._positions = positions
        self.optimizer = make_optimizer(optimizer)
        self.optimizer.init(model.trainable_parameters())
        trained = model.trainable_parameters()
        self.average = tree_map(lambda weight: weight + 0, trained) if self._ema_decay else {}
        scale = FIRST_LOSS_SCALE if self._scaled else 1.0
        self.counters = {
            "loss_scale": mx.array(scale),
            "good_steps": mx.array(0),
            "bad_steps": mx.array(0),
            "skipped_steps": mx.array(0),
        }
        self._compile()

    def _compile(self) -> None:
        """Compile against the arrays in use now; needed again when a resume replaced them."""
        state = [self.model.state, self.optimizer.state, self.average, self.counters]
        mx.eval(state)
        self._gradients = mx.compile(
            self._gradients_graph, inputs=[self.model.state, self.counters]
        )
        self._more = mx.compile(self._more_graph, inputs=[self.model.state, self.counters])
        self._apply = mx.compile(self._apply_graph, inputs=state, outputs=state)

    def run(self, micro_batches: list[Batch], learning_rate: float) -> Numbers:
        """Do one optimiser step over micro-batches.

        Returns:
            `loss` (mean over weighted positions), `weight` (their number), `grad_norm` (before
            clipping), `finite` (0: the step was skipped); all of them over all processes.
        """
        gradients, loss, weight = self._gradients(micro_batches[0])
        for batch in micro_batches[1:]:
            # evaluated piece by piece, or the activations of all micro-batches live at once
            mx.eval(gradients, loss, weight)
            gradients, loss, weight = self._more(gradients, loss, weight, batch)
        if self._group is not None:
            gradients, loss, weight = self._group.add_up((gradients, loss, weight))
        grad_norm, finite = self._apply(gradients, loss, weight, mx.array(learning_rate))
        measures = {
            "loss": loss / mx.maximum(weight, 1),
            "weight": weight,
            "grad_norm": grad_norm,
            "finite": finite,
        }
        mx.eval(measures, self.model.state, self.optimizer.state, self.average, self.counters)
        return {name: value.item() for name, value in measures.items()}

    def _gradients_graph(self, batch: Batch) -> tuple[Any, mx.array, mx.array]:
        scale = self.counters["loss_scale"] / self._positions
        masters = self.model.trainable_parameters()

        def scaled_loss(model: nn.Module) -> tuple[mx.array, mx.array, mx.array]:
            weights = model.trainable_parameters()
            model.update(tree_map(lambda value: value.astype(self._dtype), weights))
            loss, weight = self._loss_sum(model, batch)
            model.update(weights)
            return loss * scale, loss, weight

        (_, loss, weight), gradients = nn.value_and_grad(self.model, scaled_loss)(self.model)
        # differentiation leaves its own placeholders in the model
        self.model.update(masters)
        return gradients, loss, weight

    def _more_graph(
        self, gradients: Any, loss: mx.array, weight: mx.array, batch: Batch
    ) -> tuple[Any, mx.array, mx.array]:
        new_gradients, new_loss, new_weight = self._gradients_graph(batch)
        return tree_map(mx.add, gradients, new_gradients), loss + new_loss, weight + new_weight

    def _apply_graph(
        self, gradients: Any, loss: mx.array, weight: mx.array, learning_rate: mx.array
    ) -> tuple[mx.array, mx.array]:
        counters = self.counters
        factor = self._positions / (counters["loss_scale"] * mx.maximum(weight, 1))
        gradients = tree_map(lambda gradient: gradient * factor, gradients)
        squares = [mx.sum(mx.square(gradient)) for _, gradient in tree_flatten(gradients)]
        grad_norm = mx.sqrt(mx.sum(mx.stack(squares)))
        finite = mx.isfinite(grad_norm) & mx.isfinite(loss)
        clip = mx.minimum(1.0, self._clip_norm / (grad_norm + 1e-6))
        gradients = tree_map(lambda gradient: gradient * clip, gradients)

        def keep_if_bad(old: Any, new: Any) -> Any:
            return tree_map(lambda before, after: mx.where(finite, after, before), old, new)

        weights = self.model.trainable_parameters()
        states = [tree_map(lambda value: value, part.state) for part in self.optimizer.optimizers]
        self.optimizer.learning_rate = learning_rate
        self.optimizer.update(self.model, gradients)
        self.model.update(keep_if_bad(weights, self.model.trainable_parameters()))
        for part, old in zip(self.optimizer.optimizers, states, strict=True):
            part.state.update(keep_if_bad(old, part.state))
        if self._ema_decay:
            steps = self.optimizer.optimizers[0].step.astype(mx.float32)
            # averages of a young run follow it closely
            decay = mx.minimum(self._ema_decay, (1 + steps) / (10 + steps))
            moved = tree_map(
                lambda mean, value: mean + (1 - decay) * (value - mean),
                self.average,
                self.model.trainable_parameters(),
            )
            self.average.update(keep_if_bad(self.average, moved))
        self._count(finite)
        return grad_norm, finite

    def _count(self, finite: mx.array) -> None:
        counters = self.counters
        good = mx.where(finite, counters["good_steps"] + 1, 0)
        if self._scaled:
            scale = counters["loss_scale"]
            grown = mx.where(good % SCALE_GROWTH_STEPS == 0, scale * 2, scale)
            grown = mx.minimum(grown, LARGEST_LOSS_SCALE)
            counters["loss_scale"] = mx.where(finite, grown, mx.maximum(scale / 2, 1.0))
        counters["good_steps"] = good
        counters["bad_steps"] = mx.where(finite, 0, counters["bad_steps"] + 1)
        counters["skipped_steps"] = mx.where(
            finite, counters["skipped_steps"], counters["skipped_steps"] + 1
        )

    @property
    def bad_steps(self) -> int:
        """Steps in a row, up to the last one, that gave NaN or Inf."""
        return int(self.counters["bad_steps"].item())

    @property
    def skipped_steps(self) -> int:
        """Steps of the run that gave NaN or Inf and changed nothing."""
        return int(self.counters["skipped_steps"].item())

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory that MLX has allocated so far."""
        return mx.get_peak_memory()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the weights to use, averaged where that is on, and drop nothing."""
        trained = self.model.trainable_parameters()
        self.model.update(self._to_use())
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            self.model.update(trained)

    def _to_use(self) -> dict[str, Any]:
        tree: dict[str, Any] = self.average or self.model.trainable_parameters()
        return tree

    def weights_to_use(self) -> Arrays:
        """Averaged weights where averaging is on, else the weights; by name."""
        return _as_numpy(self._to_use())

    def state_arrays(self) -> Arrays:
        """Everything a resume needs, flat and named."""
        return _as_numpy(
            {
                "weights": self.model.trainable_parameters(),
                "average": self.average,
                "optimizer": self.optimizer.state,
                "counters": self.counters,
            }
        )

    def load_state_arrays(self, arrays: Arrays) -> None:
        """Take over arrays made by `state_arrays` of an equal configuration."""
        trees = tree_unflatten([(name, mx.array(array)) for name, array in arrays.items()])
        self.model.update(trees["weights"])
        self.average = trees.get("average", {})
        self.optimizer.state = trees["optimizer"]
        self.counters = trees["counters"]
        self._compile()


def _as_numpy(tree: Any) -> Arrays:
    return {name: np.asarray(array) for name, array in tree_flatten(tree)}
