"""Training speed in PyTorch: `python -m bench.train_torch [--only MODEL] [--device NAME]`.

Times optimiser steps of the generator (25M weights, tokens/s) and of the cloud network (12M,
clouds/s) on random inputs in the shapes of their configurations, so the figures are those of the
step alone, data once on the device. Without `--config` it is the configuration of each model.

The floating-point operations are those of the matrix products of one forward and backward pass
without recomputation, counted by PyTorch; a causal mask saves none of them. `mfu` is their share
of the peak that the maker of the device states for the precision at hand without sparsity (TF32
where fp32 is multiplied in it); None where the peak is not known, such as on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.report import Row, add_arguments, publish, spread
from kmidi_mlx.command import CommandParser, add_config_arguments, run
from kmidi_mlx.config import MidiGeneratorConfig, RunConfig, SpectocloudConfig
from kmidi_mlx.config_file import load_config
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud import DEFAULT_POINTS
from kmidi_torch.models.midi_transformer import EmotionMIDITransformer
from kmidi_torch.models.spectocloud_vit import SpectocloudViT
from kmidi_torch.planning.gpus import PEAKS, gpu_of_device
from kmidi_torch.training.cloud_losses import cloud_losses
from kmidi_torch.training.cloud_task import clouds_of
from kmidi_torch.training.device import DeviceOptions, choose_device, prepare_device
from kmidi_torch.training.midi_task import cross_entropy_of
from kmidi_torch.training.step import Batch, LossSum, TrainStep, stage_arrays, to_device

CONFIGS = Path(__file__).parent.parent / "configs"
COLUMNS = (
    "model",
    "device",
    "precision",
    "batch",
    "accum",
    "compiled",
    "tokens_per_second",
    "clouds_per_second",
    "seconds",
    "gflop",
    "mfu",
    "peak_gb",
)


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    parser = CommandParser(prog="python -m bench.train_torch", description=__doc__)
    parser.add_argument("--only", choices=sorted(MEASURED), help="this model only")
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:N, mps or cpu")
    parser.add_argument("--steps", type=int, default=10, help="timed steps (after three)")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    parser.add_argument("--tf32", action="store_true", help="multiply fp32 with 11 bits on CUDA")
    add_config_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args(argv)
    if args.steps < 1:
        raise KmidiError(f"--steps {args.steps}: give 1 or more.")
    if args.only is None and (args.config_files or args.overrides):
        raise KmidiError("settings are those of one model; name it with --only.")
    options = DeviceOptions(args.device, args.compile, tf32=args.tf32)
    device = choose_device(args.device)
    rows = []
    for name in [args.only] if args.only else MEASURED:
        files = args.config_files or [CONFIGS / f"{name}.yaml"]
        config = load_config(name, files, args.overrides)
        prepare_device(device, options, config.training.memory_gb)
        rows.append(MEASURED[name](config, device, options, args.steps))
    publish("train_torch", rows, COLUMNS, args)
    return 0


def measure_midi(
    config: RunConfig, device: torch.device, options: DeviceOptions, steps: int
) -> Row:
    """Time steps of the generator."""
    assert isinstance(config, MidiGeneratorConfig)
    length, slots = config.data.sequence_length, config.data.max_chords
    model = EmotionMIDITransformer(config.model)

    def batch(rows: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        shape = (rows, length)
        return {
            "inputs": rng.integers(0, 388, shape, dtype=np.int32),
            "targets": rng.integers(0, 388, shape, dtype=np.int32),
            "weights": np.ones(shape, np.float32),
            "emotion": rng.uniform(-1, 1, (rows, 64)).astype(np.float32),
            "chords": rng.integers(0, config.model.num_chords, (rows, slots), dtype=np.int32),
            "keys": rng.integers(0, config.model.num_keys, rows, dtype=np.int32),
            "chord_index": rng.integers(0, slots, shape, dtype=np.int32),
        }

    def loss_sum(net: nn.Module, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return cross_entropy_of(net, given, 0.0)

    row = _measure(config, model, loss_sum, batch, ("tokens", length), device, options, steps)
    return row | {"sequence": length}


def measure_clouds(
    config: RunConfig, device: torch.device, options: DeviceOptions, steps: int
) -> Row:
    """Time steps of the cloud network."""
    assert isinstance(config, SpectocloudConfig)
    points = config.data.points
    model = SpectocloudViT(config.model)

    def batch(rows: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        chosen = np.sort(rng.choice(DEFAULT_POINTS, points, replace=False))
        return {
            "windows": rng.uniform(size=(rows, 128, 64)).astype(np.float32),
            "features": rng.uniform(-1, 1, (rows, 32)).astype(np.float32),
            "emotion": rng.uniform(-1, 1, (rows, 64)).astype(np.float32),
            "clouds": rng.uniform(size=(rows, points, 10)).astype(np.float32),
            "point_indices": chosen.astype(np.int32),
            "weights": np.ones(rows, np.float32),
        }

    def loss_sum(net: nn.Module, given: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        losses = cloud_losses(clouds_of(net, given), given["clouds"], config.loss)
        return torch.sum(losses.total(config.loss)), torch.sum(given["weights"])

    row = _measure(config, model, loss_sum, batch, ("clouds", 1), device, options, steps)
    return row | {"points": points}


def _measure(
    config: RunConfig,
    model: EmotionMIDITransformer | SpectocloudViT,
    loss_sum: LossSum,
    batch: Callable[[int, np.random.Generator], dict[str, NDArray[np.generic]]],
    unit: tuple[str, int],
    device: torch.device,
    options: DeviceOptions,
    steps: int,
) -> Row:
    """Time steps; `unit` is what is counted and how many of it are in a row of a batch."""
    training = config.training
    counted, in_row = unit
    model.initialise(training.seed)
    rng = np.random.default_rng(0)
    # pairs of frames need two rows
    per_row = flop(model, loss_sum, stage_arrays(batch(2, rng), torch.device("cpu"))) / 2
    model.to(device).checkpoint_blocks = training.gradient_checkpointing
    compiled = options.compiles_on(device)
    step = TrainStep(
        model,
        loss_sum,
        config.optimizer,
        training,
        training.batch_size * in_row,
        compiled=compiled,
    )
    rows = training.batch_size
    batches = [
        to_device(stage_arrays(batch(rows, rng), device), device)
        for _ in range(training.grad_accum_steps)
    ]
    losses, seconds = [], []
    for _ in range(steps + 3):
        started = time.perf_counter()
        losses.append(step.run(batches, config.optimizer.learning_rate)["loss"])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    timed = seconds[3:]
    units = rows * training.grad_accum_steps * in_row
    operations = per_row * rows * training.grad_accum_steps
    peak = peak_flops(device, training.precision, options.tf32)
    return {
        "model": config.name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": training.precision,
        "tf32": options.tf32,
        "batch": rows,
        "accum": training.grad_accum_steps,
        "checkpointing": training.gradient_checkpointing,
        "compiled": compiled,
        **spread("seconds", timed),
        **spread(f"{counted}_per_second", [units / value for value in timed]),
        "gflop": operations / 1e9,
        "mfu": operations / float(np.median(timed)) / peak if peak else None,
        "peak_gb": step.peak_memory_bytes / 1e9,
        "loss_first": losses[0],
        "loss_last": losses[-1],
    }


def flop(model: nn.Module, loss_sum: LossSum, batch: Batch) -> int:
    """Floating-point operations of the products of one forward and backward pass, on the host."""
    counter = FlopCounterMode(display=False)
    # attention as plain products, which the counter knows on every device
    with counter, sdpa_kernel(SDPBackend.MATH):
        loss_sum(model, batch)[0].backward()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str, tf32: bool) -> float | None:
    """Operations a second that a device is made for; None where that is not known."""
    if device.type != "cuda":
        return None
    gpu = gpu_of_device(torch.cuda.get_device_name(device))
    return None if gpu is None else PEAKS[gpu].of(precision, tf32)


#: What can be measured, by model.
MEASURED: dict[str, Callable[[RunConfig, torch.device, DeviceOptions, int], Row]] = {
    MidiGeneratorConfig.name: measure_midi,
    SpectocloudConfig.name: measure_clouds,
}


if __name__ == "__main__":
    sys.exit(run(main))
