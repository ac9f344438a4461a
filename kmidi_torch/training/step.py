"""One optimiser step: gradients in any precision, summed over processes, clipped, checked, applied.

Weights, averages and optimiser state stay in fp32; in half precision the products are autocast. In
fp16 the loss is scaled so that small gradients survive, and the scale adapts (Micikevicius et al.
2018, arXiv 1710.03740). A step whose gradient holds NaN or Inf changes nothing but the counters.

What is saved has the names and shapes of `kmidi_mlx.training.step`, so that either framework goes
on with a run of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kmidi_mlx.config import OptimizerConfig, TrainingConfig
from kmidi_mlx.runs.loss_scale import (
    FIRST_LOSS_SCALE,
    LARGEST_LOSS_SCALE,
    SCALE_GROWTH_STEPS,
)
from kmidi_mlx.runs.processes import ALONE, Processes
from kmidi_mlx.runs.task import Numbers
from kmidi_mlx.torch_file import Arrays
from kmidi_torch.training.device import peak_memory_bytes
from kmidi_torch.training.distributed import Group, partners
from kmidi_torch.training.optimizer import GroupedOptimizer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Batch = dict[str, Tensor]
LossSum = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def stage_arrays(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> Batch:
    """Make numpy arrays ready to be copied to a device; for CUDA in memory it reads by itself."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if device.type != "cuda":
        return tensors
    # in the thread that makes batches the device is not set yet
    with torch.cuda.device(device):
        return {name: tensor.pin_memory() for name, tensor in tensors.items()}


def to_device(staged: Batch, device: torch.device) -> Batch:
    """Copy what `stage_arrays` returned; on CUDA nobody waits for it."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in staged.items()}


class LossModule(nn.Module):
    """A micro-batch in, its loss out: what is compiled, and what several processes share.

    Args:
        model: the network.
        loss_sum: returns the summed loss of a micro-batch and the weight it was summed over.
        dtype: of the products; fp32: no autocast.
    """

    def __init__(self, model: nn.Module, loss_sum: LossSum, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self._loss_sum = loss_sum
        self._dtype = dtype

    def forward(self, batch: Batch, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled loss, and `(2,)` summed loss and weight."""
        half = self._dtype != torch.float32
        with torch.autocast(scale.device.type, dtype=self._dtype if half else None, enabled=half):
            loss, weight = self._loss_sum(self.model, batch)
        return loss * scale, torch.stack([loss.detach(), weight.detach()])


class TrainStep:
    """Weights, optimiser state and counters of a run, and what changes them.

    Only what requires a gradient is trained, averaged and saved.

    Args:
        model: fp32 weights on the device where it trains; changed in place.
        loss_sum: returns the summed loss of a micro-batch and the weight it was summed over.
        optimizer, training: the run's settings.
        positions: number of loss positions in a full micro-batch; keeps fp16 losses small.
        processes: that train together; each brings its own micro-batches.
        compiled: whether loss and gradient become kernels of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_sum: LossSum,
        optimizer: OptimizerConfig,
        training: TrainingConfig,
        positions: int,
        processes: Processes = ALONE,
        compiled: bool = False,
    ) -> None:
        self.model = model
        self._weights = {
            name: weight for name, weight in model.named_parameters() if weight.requires_grad
        }
        self.device = next(iter(self._weights.values())).device
        self._clip_norm = optimizer.clip_norm
        self._scaled = training.precision == "fp16"
        self._ema_decay = training.ema_decay
        self._positions = positions
        self._group = processes if isinstance(processes, Group) else None
        module: nn.Module = LossModule(model, loss_sum, DTYPES[training.precision])
        if compiled:
            module = torch.compile(module)
        if self._group is not None:
            # one backend for all: what gloo has no device number for is None
            ids = [self.device.index] if self.device.type == "cuda" else None
            module = DistributedDataParallel(module, device_ids=ids)
        self._loss = module
        self._optimizer = GroupedOptimizer(self._weights, optimizer)
        self.average = {
            name: weight.detach().clone() for name, weight in self._weights.items()
        } if self._ema_decay else {}  # fmt: skip
        self.counters: dict[str, float | int] = {
            "loss_scale": FIRST_LOSS_SCALE if self._scaled else 1.0,
            "good_steps": 0,
            "bad_steps": 0,
            "skipped_steps": 0,
        }

    def run(self, micro_batches: list[Batch], learning_rate: float) -> Numbers:
        """Do one optimiser step over micro-batches.

        Returns:
            `loss` (mean over weighted positions), `weight` (their number), `grad_norm` (before
            clipping), `finite` (0: the step was skipped); all of them over all processes.
        """
        totals = self._add_gradients(micro_batches)
        processes = 1
        if self._group is not None:
            self._group.add_up(totals)
            processes = self._group.count
        gradients = [weight.grad for weight in self._weights.values() if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        loss, weight, raw_norm = torch.cat([totals, norm[None]]).tolist()
        # several processes' gradients arrive as their mean
        factor = self._positions * processes / (self.counters["loss_scale"] * max(weight, 1.0))
        grad_norm = raw_norm * factor
        finite = bool(np.isfinite(grad_norm) and np.isfinite(loss))
        if finite:
            clip = min(1.0, self._clip_norm / (grad_norm + 1e-6))
            torch._foreach_mul_(gradients, factor * clip)
            self._apply(learning_rate)
        self.model.zero_grad(set_to_none=True)
        self._count(finite)
        return {
            "loss": loss / max(weight, 1.0),
            "weight": weight,
            "grad_norm": grad_norm,
            "finite": float(finite),
        }

    def _add_gradients(self, micro_batches: list[Batch]) -> Tensor:
        """Leave the gradients in the weights; return `(2,)` summed loss and weight."""
        scale = torch.tensor(self.counters["loss_scale"] / self._positions, device=self.device)
        totals = torch.zeros(2, device=self.device)
        last = len(micro_batches) - 1
        with partners():
            for index, batch in enumerate(micro_batches):
                # gradients go over the wire once a step
                with self._local() if index < last else nullcontext():
                    loss, sums = self._loss(batch, scale)
                    loss.backward()
                totals += sums
        return totals

    def _local(self) -> AbstractContextManager[None]:
        if isinstance(self._loss, DistributedDataParallel):
            return self._loss.no_sync()
        return nullcontext()

    @torch.no_grad()
    def _apply(self, learning_rate: float) -> None:
        self._optimizer.step(learning_rate)
        if self._ema_decay:
            steps = self._optimizer.steps
            # averages of a young run follow it closely
            decay = min(self._ema_decay, (1 + steps) / (10 + steps))
            weights = list(self._weights.values())
            torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    def _count(self, finite: bool) -> None:
        counters = self.counters
        good = counters["good_steps"] + 1 if finite else 0
        if self._scaled:
            scale = counters["loss_scale"]
            if not finite:
                counters["loss_scale"] = max(scale / 2, 1.0)
            elif good % SCALE_GROWTH_STEPS == 0:
                counters["loss_scale"] = min(scale * 2, LARGEST_LOSS_SCALE)
        counters["good_steps"] = good
        counters["bad_steps"] = 0 if finite else counters["bad_steps"] + 1
        counters["skipped_steps"] += not finite

    @property
    def bad_steps(self) -> int:
        """Steps in a row, up to the last one, that gave NaN or Inf."""
        return int(self.counters["bad_steps"])

    @property
    def skipped_steps(self) -> int:
        """Steps of the run that gave NaN or Inf and changed nothing."""
        return int(self.counters["skipped_steps"])

    @property
    def peak_memory_bytes(self) -> int:
        """Most memory taken so far, see `kmidi_torch.training.device.peak_memory_bytes`."""
        return peak_memory_bytes(self.device)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold the weights to use, averaged where that is on, and drop nothing."""
        trained = {name: self._weights[name].detach().clone() for name in self.average}
        _fill(self._weights, self.average)
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            _fill(self._weights, trained)

    def weights_to_use(self) -> Arrays:
        """Averaged weights where averaging is on, else the weights; by name."""
        return _as_numpy(self.average or self._weights)

    def state_arrays(self) -> Arrays:
        """Everything a resume needs, flat and named as in MLX."""
        parts = {"weights": self._weights, "average": self.average}
        arrays = {
            f"{part}.{name}": array
            for part, tensors in parts.items()
            for name, array in _as_numpy(tensors).items()
        }
        arrays |= self._optimizer.state_arrays()
        for name, value in self.counters.items():
            dtype = np.float32 if name == "loss_scale" else np.int32
            arrays[f"counters.{name}"] = np.array(value, dtype)
        return arrays

    def load_state_arrays(self, arrays: Arrays) -> None:
        """Take over arrays made by `state_arrays` of an equal configuration, in any framework."""
        for part, target in (("weights", self._weights), ("average", self.average)):
            _fill(target, {name: torch.tensor(arrays[f"{part}.{name}"]) for name in target})
        self._optimizer.load_state_arrays(arrays)
        self.counters = {name: arrays[f"counters.{name}"].item() for name in self.counters}


@torch.no_grad()
def _fill(target: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    for name, value in values.items():
        target[name].copy_(value)


def _as_numpy(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
