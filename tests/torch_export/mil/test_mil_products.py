"""Products, attention, normalisation and reductions, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil import Builder as Mil
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

Evaluate = Callable[..., list[Any]]

few = settings(max_examples=10, deadline=None)
seeds = st.integers(0, 1000)


def _draw(seed: int, *shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def _near(found: Any, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


@few
@given(seeds, st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans())
def test_linear(evaluate: Evaluate, seed: int, lengths: list[int], biased: bool) -> None:
    x, weight, bias = _draw(seed, (*lengths, 5), (3, 5), (3,))
    given_bias = {"bias": bias} if biased else {}
    (found,) = evaluate(lambda x: Mil.linear(x=x, weight=weight, **given_bias), {"x": x})
    tensors = (torch.from_numpy(value) for value in (x, weight, *given_bias.values()))
    _near(found, functional.linear(*tensors))


@few
@given(seeds, st.booleans(), st.booleans(), st.sampled_from([(), (1,), (2,), (2, 1)]))
def test_matmul(
    evaluate: Evaluate, seed: int, over_x: bool, over_y: bool, batch: tuple[int, ...]
) -> None:
    x, y = _draw(seed, (2, 2, *((4, 3) if over_x else (3, 4))), (*batch, 4, 5))
    turned = y.swapaxes(-1, -2).copy() if over_y else y
    (found,) = evaluate(
        lambda x, y: Mil.matmul(x=x, y=y, transpose_x=over_x, transpose_y=over_y),
        {"x": x, "y": turned},
    )
    left = torch.from_numpy(x)
    _near(found, (left.mT if over_x else left) @ torch.from_numpy(y))


@few
@given(seeds, st.sampled_from([-1, 0, 1, 2]))
def test_softmax_and_cumsum_along_an_axis(evaluate: Evaluate, seed: int, axis: int) -> None:
    (x,) = _draw(seed, (2, 3, 4))
    x *= 50.0  # e^x alone would overflow

    def main(x: Any) -> Any:
        return (
            Mil.softmax(x=x, axis=axis),
            Mil.cumsum(x=x, axis=axis),
            Mil.cumsum(x=x, axis=axis, exclusive=True),
            Mil.cumsum(x=x, axis=axis, reverse=True),
        )

    tensor = torch.from_numpy(x)
    total = torch.cumsum(tensor, axis)
    rest = torch.cumsum(tensor.flip(axis), axis).flip(axis)
    expected = [torch.softmax(tensor, axis), total, total - tensor, rest]
    for found, other in zip(evaluate(main, {"x": x}), expected, strict=True):
        np.testing.assert_allclose(found, other.numpy(), rtol=1e-5, atol=1e-4)


@few
@given(seeds, st.sampled_from([[-1], [2], [1, 2], [-2, -1]]), st.sampled_from([1e-5, 0.5]))
def test_layer_norm(evaluate: Evaluate, seed: int, axes: list[int], epsilon: float) -> None:
    shape = (4,) if len(axes) == 1 else (3, 4)
    x, gamma, beta = _draw(seed, (2, 3, 4), shape, shape)

    def main(x: Any) -> Any:
        gained = Mil.layer_norm(x=x, axes=axes, gamma=gamma, beta=beta, epsilon=epsilon)
        return gained, Mil.layer_norm(x=x, axes=axes, epsilon=epsilon)

    gained, plain = evaluate(main, {"x": x})
    tensors = [torch.from_numpy(value) for value in (gamma, beta)]
    _near(gained, functional.layer_norm(torch.from_numpy(x), shape, *tensors, eps=epsilon))
    _near(plain, functional.layer_norm(torch.from_numpy(x), shape, eps=epsilon))


@few
@given(seeds, st.sampled_from([[0], [-1], [0, 2], [0, 1, 2]]), st.booleans(), st.booleans())
def test_reductions(
    evaluate: Evaluate, seed: int, axes: list[int], kept: bool, whole: bool
) -> None:
    (x,) = _draw(seed, (2, 3, 4))
    functions = {
        "reduce_sum": torch.sum,
        "reduce_max": torch.amax,
        "reduce_min": torch.amin,
        "reduce_mean": torch.mean,
    }
    if whole:
        x = (10.0 * x).astype(np.int32)
        del functions["reduce_mean"]

    def main(x: Any) -> Any:
        return tuple(getattr(Mil, name)(x=x, axes=axes, keep_dims=kept) for name in functions)

    for found, function in zip(evaluate(main, {"x": x}), functions.values(), strict=True):
        _near(found, function(torch.from_numpy(x), dim=axes, keepdim=kept))


def test_reduction_of_everything(evaluate: Evaluate) -> None:
    (x,) = _draw(0, (2, 3))
    (found,) = evaluate(lambda x: Mil.reduce_sum(x=x, keep_dims=True), {"x": x})
    _near(found, torch.from_numpy(x).sum(dim=(0, 1), keepdim=True))


@few
@given(seeds, st.sampled_from(["none", "added", "kept"]))
def test_attention(evaluate: Evaluate, seed: int, masking: str) -> None:
    query, key, value, bias = _draw(seed, (2, 3, 4, 8), (2, 3, 5, 8), (2, 3, 5, 6), (4, 5))
    kept = np.tri(4, 5, 1).astype(bool)
    mask = {"none": None, "added": bias, "kept": kept}[masking]
    extra = {} if mask is None else {"attn_mask": mask}

    def main(query: Any, key: Any, value: Any) -> Any:
        return Mil.scaled_dot_product_attention(query=query, key=key, value=value, **extra)

    (found,) = evaluate(main, {"query": query, "key": key, "value": value}, ios=18)
    tensors = [torch.from_numpy(tensor) for tensor in (query, key, value)]
    torch_mask = None if mask is None else torch.from_numpy(mask)
    _near(found, functional.scaled_dot_product_attention(*tensors, attn_mask=torch_mask))
