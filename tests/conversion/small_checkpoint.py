"""A generator so small that its checkpoint is made in a moment, and its conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mlx.utils import tree_flatten

from kmidi_mlx.checkpoint import load_arrays
from kmidi_mlx.config import MidiDataConfig, MidiGeneratorConfig, MidiTransformerConfig, RunConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.conversion import Converted, Order, convert
from kmidi_mlx.convert import find_network
from kmidi_mlx.torch_file import Arrays

SMALL = MidiGeneratorConfig(
    model=MidiTransformerConfig(
        hidden_dim=64,
        num_layers=2,
        num_heads=1,
        ffn_dim=128,
        context_length=64,
        cross_attention_layers=(0,),
    ),
    data=MidiDataConfig(sequence_length=32),
)
METADATA: dict[str, Any] = {
    "format_version": 1,
    "model": SMALL.name,
    "config": config_to_dict(SMALL),
    "step": 12,
    "metric": 3.293831051882385,
    "synthetic": True,
    "data_licences": ["MIT", "Öffentlich"],
    "theirs": None,
}


def expected(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a network of MLX."""
    network = find_network("kmidi_mlx", config)(config.model)
    return {name: value.shape for name, value in tree_flatten(network.parameters())}


SHAPES = expected(SMALL)


def make(
    source: Path, destination: Path, shapes: Callable[..., Any] = expected, **order: Any
) -> Converted:
    """Convert."""
    return convert(Order(source, destination, **order), shapes)


def weights(shapes: Any = SHAPES) -> Arrays:
    """Some weights, always the same."""
    rng = np.random.default_rng(0)
    return {name: np.asarray(rng.normal(size=shape), "float32") for name, shape in shapes.items()}


def same(one: Path, two: Path) -> None:
    """Hold that two files hold the same, bit for bit."""
    (arrays, metadata), (others, of_others) = load_arrays(one), load_arrays(two)
    assert metadata == of_others
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        other = others[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()


def untouched(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
