from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kmidi_mlx.models import swin

Floats = NDArray[np.float32]

maps = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4]))


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tiles(grid: NDArray[np.generic], window: int) -> list[NDArray[np.generic]]:
    """Windows of (height, width, ...), from left to right and top to bottom."""
    height, width = grid.shape[:2]
    return [
        grid[top : top + window, left : left + window]
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]


@given(maps, st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_windows_are_cut_as_by_hand_and_put_back(sides: tuple[int, int, int], batch: int) -> None:
    down, across, window = sides
    height, width = down * window, across * window
    x = random(batch, height * width, 5)
    cut = swin.partition(mx.array(x), height, width, window)
    by_hand = [
        np.concatenate(
            [tile.reshape(-1, 5) for tile in tiles(one.reshape(height, width, 5), window)]
        )
        for one in x
    ]
    np.testing.assert_array_equal(np.array(cut), np.stack(by_hand))
    np.testing.assert_array_equal(np.array(swin.unpartition(cut, height, width, window)), x)


@given(st.integers(2, 6), st.integers(2, 6), st.integers(-3, 3))
@settings(max_examples=20, deadline=None)
def test_shifting_is_rolling_and_shifting_back_undoes_it(height: int, width: int, by: int) -> None:
    x = random(2, height * width, 3)
    moved = swin.shift(mx.array(x), height, width, by)
    rolled = np.roll(x.reshape(2, height, width, 3), (-by, -by), axis=(1, 2))
    np.testing.assert_array_equal(np.array(moved), rolled.reshape(x.shape))
    np.testing.assert_array_equal(np.array(swin.shift(moved, height, width, -by)), x)


@given(maps)
@settings(max_examples=10, deadline=None)
def test_the_mask_keeps_apart_what_only_the_shift_brought_together(
    sides: tuple[int, int, int],
) -> None:
    down, across, window = sides
    height, width, by = down * window, across * window, window // 2
    mask = swin.shift_mask(height, width, window, by)
    place = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    moved = np.roll(place, (-by, -by), axis=(0, 1))
    for tile, kept in zip(tiles(moved, window), mask, strict=True):
        tokens = tile.reshape(-1, 2)
        # neighbours in a window were neighbours before, unless one came in from the other side
        offset = tokens[:, None] - tokens[None]
        here = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij"), axis=-1).reshape(
            -1, 2
        )
        together = (offset == here[:, None] - here[None]).all(axis=-1)
        np.testing.assert_array_equal(kept == 0.0, together)
        assert set(np.unique(kept)) <= {0.0, np.float32(swin.MASKED)}


def test_relative_positions_share_a_bias() -> None:
    index = swin.relative_index(3, 4).reshape(12, 12)
    offsets: dict[int, tuple[int, int]] = {}
    for one in range(12):
        for other in range(12):
            offset = (one // 4 - other // 4, one % 4 - other % 4)
            assert offsets.setdefault(int(index[one, other]), offset) == offset
    assert sorted(offsets) == list(range(5 * 7))
    assert len(set(offsets.values())) == 5 * 7


def slow_attention(layer: swin.RelativeAttention, x: Floats, bias: Floats, windows: int) -> Floats:
    """The definition, head by head and token by token."""
    qkv = x @ np.array(layer.qkv.weight).T
    out = np.zeros_like(x)
    batch, tokens, dim = x.shape
    size, width = tokens // windows, layer.head_dim
    for row in range(batch):
        for window in range(windows):
            part = slice(window * size, (window + 1) * size)
            for head in range(layer.num_heads):
                q, k, v = (
                    qkv[row, part, start + head * width : start + (head + 1) * width]
                    for start in (0, dim, 2 * dim)
                )
                scores = q @ k.T / width**0.5 + bias[window % len(bias), head]
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                found = weights / weights.sum(axis=1, keepdims=True) @ v
                out[row, part, head * width : (head + 1) * width] = found
    return out @ np.array(layer.out.weight).T


@pytest.mark.parametrize(("heads", "masked"), [(1, False), (2, False), (1, True), (3, True)])
def test_attention_is_what_its_definition_says(heads: int, masked: bool) -> None:
    mask = swin.shift_mask(8, 4, 4, 2) if masked else None
    layer = swin.RelativeAttention(8 * heads, 8, 4, 4, mask)
    layer.bias_table = mx.array(random(*layer.bias_table.shape, seed=1))
    x, residual = random(2, 32, 8 * heads, seed=2), random(2, 32, 8 * heads, seed=3)
    bias = layer.bias()
    assert bias.shape == (2 if masked else 1, heads, 16, 16)
    found = layer(mx.array(residual), mx.array(x), bias)
    expected = residual + slow_attention(layer, x, np.array(bias), windows=2)
    np.testing.assert_allclose(np.array(found), expected, atol=2e-5)


def test_one_row_and_many_are_normed_alike() -> None:
    x, gain, bias = (mx.array(random(*shape)) for shape in ((3, 7, 16), (3, 16), (3, 16)))
    together = swin.modulated_norm(x, (gain, bias), 1e-5)
    centred = np.array(x) - np.array(x).mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    expected = normed * np.array(gain)[:, None] + np.array(bias)[:, None]
    np.testing.assert_allclose(np.array(together), expected, atol=1e-5)
    for row in range(3):
        own = slice(row, row + 1)
        alone = swin.modulated_norm(x[own], (gain[own], bias[own]), 1e-5)
        np.testing.assert_allclose(np.array(alone[0]), expected[row], atol=1e-5)


def test_merging_joins_each_square_of_four() -> None:
    merge = swin.PatchMerging(3, 6, 1e-5)
    x = random(2, 4 * 6, 3)
    grid = x.reshape(2, 4, 6, 3)
    corners = [grid[:, 0::2, 0::2], grid[:, 0::2, 1::2], grid[:, 1::2, 0::2], grid[:, 1::2, 1::2]]
    joined = np.concatenate(corners, axis=-1).reshape(2, 6, 12)
    expected = merge.reduction(merge.norm(mx.array(joined)))
    np.testing.assert_allclose(np.array(merge(mx.array(x), 4, 6)), np.array(expected), atol=1e-6)
