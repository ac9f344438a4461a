"""A checkpoint and a training state to convert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_checkpoint import METADATA, SHAPES, weights

from kmidi_mlx import checkpoint
from kmidi_mlx.checkpoint import save_arrays
from kmidi_mlx.conversion import state_shapes
from kmidi_mlx.torch_file import Arrays


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Weights to use, in a checkpoint folder."""
    path = tmp_path / "run" / checkpoint.BEST
    save_arrays(path, weights(), METADATA)
    return path


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A training state with averages, made as a run of MLX writes it."""
    rng = np.random.default_rng(1)
    arrays: Arrays = {
        name: np.asarray(rng.normal(size=shape), np.float32)
        for name, shape in state_shapes(SHAPES, averaged=True).items()
    }
    for name in arrays:
        if name.endswith(".step"):
            arrays[name] = np.array(2**53 + 1, np.uint64)
        elif name.endswith("_steps"):
            arrays[name] = np.array(-3, np.int32)
    path = tmp_path / "run" / checkpoint.LAST
    metadata = {name: METADATA[name] for name in ("model", "config", "synthetic")}
    save_arrays(path, arrays, metadata | {"progression": {"step": 7, "best_loss": 2.5}})
    return path
