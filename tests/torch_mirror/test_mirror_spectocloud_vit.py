"""The PyTorch network draws the clouds that the MLX one draws, from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from kmidi_mlx.config import SpectocloudVitConfig
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.spectocloud import LEVELS_OF_DETAIL

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0 (CPU build)")

from kmidi_torch.models import spectocloud_vit as theirs  # noqa: E402

SMALL = {"dims": (16, 32), "depths": (2, 1), "patch_size": 8, "window_size": 4, "head_dim": 16}
SMALL |= {"condition_dim": 16, "decoder_dim": 32}
SMALL |= {"norm_eps": 1e-3}  # not the frameworks' own

Pair = tuple[SpectocloudViT, Any]
Loader = Callable[..., dict[str, NDArray[np.float32]]]
Compare = Callable[[Any, Any], float]


def sizes(**changed: object) -> SpectocloudVitConfig:
    return SpectocloudVitConfig(**(SMALL | changed))  # type: ignore[arg-type]


def pair_of(same_weights: Loader, config: SpectocloudVitConfig) -> Pair:
    pair = SpectocloudViT(config), theirs.SpectocloudViT(config)
    same_weights(*pair)
    return pair


def inputs(batch: int, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
    draw = np.random.default_rng(seed)
    windows = draw.uniform(size=(batch, 128, 64)) ** 2
    features, emotion = draw.uniform(-1, 1, (batch, 32)), draw.normal(size=(batch, 64))
    return tuple(part.astype(np.float32) for part in (windows, features, emotion))


def draw_both(pair: Pair, batch: int, points: int = 50, scale: float = 1.0) -> tuple[mx.array, Any]:
    given = [scale * part for part in inputs(batch)]
    ours_constants, their_constants = pair[0].constants(points), pair[1].constants(points)
    expected = pair[0](*(mx.array(part) for part in given), ours_constants)
    return expected, pair[1](*(torch.from_numpy(part) for part in given), their_constants)


@pytest.mark.parametrize("config", [sizes(), SpectocloudVitConfig()], ids=["small", "default"])
def test_names_and_shapes_of_weights_are_equal(config: SpectocloudVitConfig) -> None:
    mine = tree_flatten(SpectocloudViT(config).parameters())
    other = theirs.SpectocloudViT(config).state_dict()
    assert {name: tuple(value.shape) for name, value in mine} == {
        name: tuple(value.shape) for name, value in other.items()
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("activation", ["relu2", "gelu"])
@pytest.mark.parametrize("shift", [True, False])
def test_clouds(
    same_weights: Loader, apart: Compare, activation: str, shift: bool, batch: int
) -> None:
    pair = pair_of(same_weights, sizes(activation=activation, shift=shift))
    expected, found = draw_both(pair, batch)
    assert np.array(expected).std(axis=1).mean() > 0.02  # the weights stress the model
    assert found.dtype == torch.float32
    assert apart(expected, found) < 1e-4  # measured 3.3e-6


def test_a_stage_that_ends_unshifted(same_weights: Loader, apart: Compare) -> None:
    pair = pair_of(same_weights, sizes(dims=(16, 32, 64), depths=(3, 1, 2), patch_size=4))
    assert apart(*draw_both(pair, 2)) < 1e-4  # measured 1.9e-6


@pytest.mark.parametrize("points", [1, *LEVELS_OF_DETAIL])
def test_levels_of_detail(same_weights: Loader, apart: Compare, points: int) -> None:
    expected, found = draw_both(pair_of(same_weights, sizes()), 1, points)
    assert found.shape == (1, points, 10)
    assert apart(expected, found) < 1e-4  # measured 6.0e-7


@pytest.mark.parametrize("scale", [0.0, 1e-4, 0.1])
def test_silence(same_weights: Loader, apart: Compare, scale: float) -> None:
    expected, found = draw_both(pair_of(same_weights, sizes()), 2, scale=scale)
    assert apart(expected, found) < 1e-4  # measured 3.6e-7


def test_chosen_points(same_weights: Loader, apart: Compare) -> None:
    mine, other = pair_of(same_weights, sizes())
    some = [3, 4, 1999]
    expected, found = mine.constants(mx.array(some)), other.constants(torch.tensor(some))
    assert apart(expected.queries, found.queries) < 1e-5  # measured 0
    for ours_bias, their_bias in zip(expected.biases, found.biases, strict=True):
        assert apart(ours_bias, their_bias) == 0.0
    with pytest.raises(KmidiError, match="1 to 3000"):
        other.constants(3001)


@pytest.mark.parametrize("activation", ["relu2", "gelu"])
def test_gradients(same_weights: Loader, gradients_apart: Compare, activation: str) -> None:
    mine, other = pair_of(same_weights, sizes(activation=activation))
    given = inputs(2, seed=4)
    target = np.random.default_rng(5).uniform(size=(2, 60, 10)).astype(np.float32)

    def loss(model: SpectocloudViT) -> mx.array:
        clouds = model(*(mx.array(part) for part in given), model.constants(60))
        return mx.mean(mx.square(clouds - mx.array(target)))

    expected_loss, expected = nn.value_and_grad(mine, loss)(mine)
    for checkpointing in (False, True):
        other.zero_grad()
        other.checkpoint_blocks = checkpointing
        clouds = other(*(torch.from_numpy(part) for part in given), other.constants(60))
        found_loss = (clouds - torch.from_numpy(target)).square().mean()
        found_loss.backward()
        assert found_loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
        assert gradients_apart(expected, other) < 1e-4  # measured 3.5e-6


def test_the_real_size(same_weights: Loader, apart: Compare) -> None:
    pair = pair_of(same_weights, SpectocloudVitConfig())
    assert apart(*draw_both(pair, 1, 1200)) < 1e-4  # measured 1.9e-6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close(apart: Compare, dtype: str) -> None:
    config = sizes()
    half, exact = theirs.SpectocloudViT(config), theirs.SpectocloudViT(config)
    exact.initialise(0)
    half.load_state_dict(exact.state_dict())
    half.to(getattr(torch, dtype))
    given = [torch.from_numpy(part) for part in inputs(2)]
    found = half(*given, half.constants(100))
    assert found.dtype == torch.float32
    expected = exact(*given, exact.constants(100)).detach().numpy()
    bound = {"float16": 2e-3, "bfloat16": 1e-2}[dtype]  # measured 3.1e-4, 2.0e-3
    assert apart(expected, found) < bound


def test_initialise_draws_as_mlx_does() -> None:
    config = sizes(dims=(32, 64), decoder_dim=64)
    mine, other = SpectocloudViT(config), theirs.SpectocloudViT(config)
    mine.initialise(0)
    other.initialise(0)
    for name, value in tree_flatten(mine.parameters()):
        expected, drawn = np.array(value), other.state_dict()[name].numpy()
        fixed = (expected == 0) | (expected == 1) | (np.abs(expected - 2.2) < 1e-6)
        np.testing.assert_array_equal(drawn[fixed], expected[fixed], err_msg=name)
        # the rest has the same spread, as far as so many draws tell; keys and values apart
        for half in (slice(None, len(fixed) // 2), slice(len(fixed) // 2, None)):
            mine_drawn, other_drawn = (part[half][~fixed[half]] for part in (expected, drawn))
            if mine_drawn.size:
                spread, sure = mine_drawn.std(), mine_drawn.size**-0.5
                assert abs(other_drawn.std() / spread - 1.0) < 5.0 * sure, name
                assert abs(other_drawn.mean() - mine_drawn.mean()) < 7.0 * sure * spread, name
