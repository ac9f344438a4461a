"""An optimiser step in numpy: momentum, averages, skipped steps; enough to be trained and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import TrainingConfig
from kmidi_mlx.torch_file import Arrays

Weights = dict[str, NDArray[np.float32]]
# gradients whatever the weights are, and the weight they were summed over
Batch = tuple[Weights, float]

SHAPES = {"linear.weight": (2, 3), "norm.weight": (3,), "sinks": (2,)}


def slopes(seed: int) -> Weights:
    """Random numbers in the shapes of the weights."""
    rng = np.random.default_rng((7, seed))
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def same_bits(one: Arrays, two: Arrays) -> bool:
    """Whether two sets of arrays have the same names, shapes, types and bits."""
    return list(one) == list(two) and all(
        one[name].dtype == two[name].dtype
        and one[name].shape == two[name].shape
        and one[name].tobytes() == two[name].tobytes()
        for name in one
    )


class PlainStep:
    """What `Trainer` needs of a framework, on weights that are changed in place."""

    peak_memory_bytes = 1

    def __init__(self, model: Weights, training: TrainingConfig) -> None:
        self.model = model
        self._decay = training.ema_decay
        self._momentum = {name: np.zeros_like(value) for name, value in model.items()}
        self._average = {name: value.copy() for name, value in model.items() if self._decay}
        self.bad_steps = self.skipped_steps = 0

    def run(self, micro_batches: list[Batch], learning_rate: float) -> dict[str, float]:
        weight = sum(batch[1] for batch in micro_batches)
        gradients = {
            name: sum(batch[0][name] for batch in micro_batches) / weight for name in self.model
        }
        norm = float(np.sqrt(sum(np.square(value).sum() for value in gradients.values())))
        finite = bool(np.isfinite(norm))
        self.bad_steps = 0 if finite else self.bad_steps + 1
        self.skipped_steps += not finite
        for name, value in self.model.items() if finite else ():
            self._momentum[name] = np.float32(0.9) * self._momentum[name] + gradients[name]
            value -= np.float32(learning_rate) * self._momentum[name]
            if self._decay:
                self._average[name] += np.float32(1 - self._decay) * (value - self._average[name])
        return {"loss": norm, "weight": weight, "grad_norm": norm, "finite": float(finite)}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        trained = {name: value.copy() for name, value in self.model.items()}
        self._fill(self.weights_to_use())
        yield
        self._fill(trained)

    def _fill(self, arrays: Arrays) -> None:
        for name, value in self.model.items():
            value[...] = arrays[name]

    def weights_to_use(self) -> Arrays:
        return self._average or self.model

    def state_arrays(self) -> Arrays:
        parts = {"weights": self.model, "average": self._average, "momentum": self._momentum}
        counters = {"bad": np.array(self.bad_steps), "skipped": np.array(self.skipped_steps)}
        return {f"{part}.{n}": v for part, arrays in parts.items() for n, v in arrays.items()} | {
            f"counters.{name}": value for name, value in counters.items()
        }

    def load_state_arrays(self, arrays: Arrays) -> None:
        parts = {"average": self._average, "momentum": self._momentum}
        for part, held in parts.items():
            for name in held:
                held[name] = arrays[f"{part}.{name}"].copy()
        self._fill({name: arrays[f"weights.{name}"] for name in self.model})
        self.bad_steps = int(arrays["counters.bad"])
        self.skipped_steps = int(arrays["counters.skipped"])
