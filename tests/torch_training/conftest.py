"""Tasks and steps of both frameworks over the same data and weights, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx import checkpoint

Arrays = dict[str, Any]

# These tests run where PyTorch is installed (extra `torch`); the rest of kmidi needs none.
collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small are slower on many threads."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def settings_of(
    tiny_settings: list[str], tiny_cloud_settings: list[str], tiny_recognizer_settings: list[str]
) -> dict[str, list[str]]:
    """What `--set` is given for a tiny run of each model; accumulated and averaged."""
    more = ["training.grad_accum_steps=2", "training.ema_decay=0.9", "training.patience=0"]
    return {
        "midi_generator": [*tiny_settings, *more],
        "spectocloud": [*tiny_cloud_settings, *more],
        "emotion_recognizer": [*tiny_recognizer_settings, *more],
    }


class Pair:
    """The same run in MLX (`ours`) and in PyTorch (`theirs`), from the same weights."""

    def __init__(self, model: str, settings: list[str]) -> None:
        import torch

        from kmidi_mlx.config_file import load_config
        from kmidi_mlx.training import run as mlx_run
        from kmidi_torch.training import run as torch_run

        self.config = load_config(model, [], settings)
        self.our_task = mlx_run.make_task(self.config)
        self.their_task = torch_run.make_task(self.config, torch.device("cpu"))
        self.ours = mlx_run.make_step(self.our_task)
        self.theirs = torch_run.make_step(self.their_task)
        self.theirs.load_state_arrays(copied(self.ours))

    def train(self, steps: int) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Do the run's first steps in both; return their measures."""
        from kmidi_mlx.runs.schedule import learning_rate

        accumulated, measures = self.config.training.grad_accum_steps, []
        with self.our_task.stream(0) as our, self.their_task.stream(0) as their:
            for step in range(steps):
                rate = learning_rate(step, 20, self.config.optimizer)
                for task in (self.our_task, self.their_task):
                    task.before_step(step)
                batches = [[next(stream) for _ in range(accumulated)] for stream in (our, their)]
                measures.append(
                    (self.ours.run(batches[0], rate), self.theirs.run(batches[1], rate))
                )
        return measures

    def apart(self, *parts: str) -> float:
        """Largest difference of what both keep, of names that start with one of the parts."""
        return apart(copied(self.ours), copied(self.theirs), *parts)


def copied(step: Any) -> Arrays:
    """A copy of what a step keeps."""
    return {name: np.array(value) for name, value in step.state_arrays().items()}


def apart(one: Arrays, two: Arrays, *parts: str) -> float:
    """Largest difference of two sets of equally named, typed and shaped arrays."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert (value.dtype, value.shape) == (two[name].dtype, two[name].shape), name
    chosen = [name for name in one if name.startswith(parts or ("",))]
    assert chosen
    return max(float(np.abs(one[n].astype(np.float64) - two[n]).max(initial=0)) for n in chosen)


@pytest.fixture(scope="session")
def pair_of(settings_of: dict[str, list[str]]) -> Callable[..., Pair]:
    """A function that makes the `Pair` of a model: `pair_of(model, *more_settings)`."""
    return lambda model, *more: Pair(model, [*settings_of[model], *more])


@pytest.fixture(scope="session")
def state_of() -> Callable[[Path, str], Arrays]:
    """A function that reads a file of a checkpoint folder: `state_of(folder, checkpoint.LAST)`."""
    return lambda folder, name: dict(sorted(checkpoint.load_arrays(folder / name)[0].items()))


@pytest.fixture(scope="session")
def arrays_apart() -> Callable[..., float]:
    """`apart`, for the arrays of two files."""
    return apart
