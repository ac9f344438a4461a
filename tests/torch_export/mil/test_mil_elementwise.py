"""Operations on each element, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as Mil
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch.nn import functional

from kmidi_mlx.errors import KmidiError

Evaluate = Callable[..., list[Any]]

SIGNED = np.array([[-3.5, -1.0, -0.3, 0.0], [0.25, 0.9, 2.5, 40.0]], np.float32)
POSITIVE = np.array([[1e-6, 0.01, 0.5], [1.0, 3.0, 900.0]], np.float32)

UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "identity": torch.clone,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sin": torch.sin,
    "square": torch.square,
    "tanh": torch.tanh,
}
BINARY: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "sub": torch.sub,
}


def _near(found: Any, expected: torch.Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_allclose(found, expected.numpy(), rtol=3e-6, atol=1e-6)


def test_functions_of_one_tensor(evaluate: Evaluate) -> None:
    found = evaluate(lambda x: tuple(getattr(Mil, name)(x=x) for name in UNARY), {"x": SIGNED})
    for value, function in zip(found, UNARY.values(), strict=True):
        _near(value, function(torch.from_numpy(SIGNED)))


def test_functions_of_positive_numbers(evaluate: Evaluate) -> None:
    def main(x: Any) -> Any:
        return (
            Mil.sqrt(x=x),
            Mil.log(x=x),
            Mil.log(x=x, epsilon=0.25),
            Mil.rsqrt(x=x),
            Mil.rsqrt(x=x, epsilon=0.5),
            Mil.inverse(x=x),
            Mil.inverse(x=x, epsilon=0.5),
            Mil.pow(x=x, y=1.75),
        )

    x = torch.from_numpy(POSITIVE)
    expected = [x**0.5, x.log(), (x + 0.25).log(), x**-0.5, (x + 0.5) ** -0.5, 1 / (x + 1e-4),
                1 / (x + 0.5), x**1.75]  # fmt: skip
    for value, other in zip(evaluate(main, {"x": POSITIVE}), expected, strict=True):
        _near(value, other)


def test_gelu_clip_and_negation(evaluate: Evaluate) -> None:
    def main(x: Any) -> Any:
        return (
            Mil.gelu(x=x),
            Mil.gelu(x=x, mode="TANH_APPROXIMATION"),
            Mil.clip(x=x, alpha=-0.5, beta=1.5),
            Mil.cast(x=Mil.logical_not(x=Mil.cast(x=x, dtype="bool")), dtype="fp32"),
        )

    x = torch.from_numpy(SIGNED)
    exact, tanh, clipped, negated = evaluate(main, {"x": SIGNED})
    _near(exact, functional.gelu(x))
    _near(tanh, functional.gelu(x, approximate="tanh"))
    assert np.abs(exact - tanh).max() > 1e-4
    _near(clipped, torch.clip(x, -0.5, 1.5))
    _near(negated, (x == 0).float())
    with pytest.raises(KmidiError, match=r"gelu.*SIGMOID_APPROXIMATION"):
        evaluate(lambda x: Mil.gelu(x=x, mode="SIGMOID_APPROXIMATION"), {"x": SIGNED})


@settings(max_examples=15, deadline=None)
@given(mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4), st.booleans())
def test_functions_of_two_tensors_broadcast(evaluate: Evaluate, shapes: Any, whole: bool) -> None:
    rng = np.random.default_rng(0)
    # few values, so that some are equal; no zeros to divide by
    x, y = (rng.integers(-3, 4, shape) * 2 + 1 for shape in shapes.input_shapes)
    dtype = np.int32 if whole else np.float32
    inputs = {"x": x.astype(dtype), "y": y.astype(dtype)}

    def main(x: Any, y: Any) -> Any:
        # what compares gives booleans, which no program may return
        results = [getattr(Mil, name)(x=x, y=y) for name in BINARY]
        return tuple(Mil.cast(x=result, dtype="int32") for result in results)

    first, second = (torch.from_numpy(value) for value in inputs.values())
    for found, function in zip(evaluate(main, inputs), BINARY.values(), strict=True):
        expected = function(first, second).to(torch.int32)
        np.testing.assert_array_equal(found, expected.numpy())


def test_division_is_of_floats_alone(evaluate: Evaluate) -> None:
    (found,) = evaluate(lambda x: Mil.real_div(x=x, y=3.0), {"x": SIGNED})
    _near(found, torch.from_numpy(SIGNED) / 3.0)
    with pytest.raises(KmidiError, match=r"real_div.*int32"):
        evaluate(lambda x: Mil.real_div(x=x, y=3), {"x": np.arange(4, dtype=np.int32)})


def test_logic_and_choice(evaluate: Evaluate) -> None:
    x, y = np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 0, 1], np.int32)

    def main(x: Any, y: Any) -> Any:
        p, q = Mil.cast(x=x, dtype="bool"), Mil.cast(x=y, dtype="bool")
        pairs = [Mil.logical_and(x=p, y=q), Mil.logical_or(x=p, y=q), Mil.logical_xor(x=p, y=q)]
        chosen = Mil.select(cond=p, a=np.float32([1, 2, 3, 4]), b=np.float32([-1, -2, -3, -4]))
        return (*(Mil.cast(x=pair, dtype="int32") for pair in pairs), chosen)

    both, either, one, chosen = evaluate(main, {"x": x, "y": y})
    assert (both.tolist(), either.tolist(), one.tolist()) == (
        [0, 0, 0, 1],
        [0, 1, 1, 1],
        [0, 1, 1, 0],
    )
    assert chosen.tolist() == [-1, -2, 3, 4]


def test_casts_truncate_and_refuse_what_does_not_fit(evaluate: Evaluate) -> None:
    x = np.array([-2.9, -0.5, 0.5, 2.9], np.float32)
    (found,) = evaluate(lambda x: Mil.cast(x=x, dtype="int32"), {"x": x})
    assert found.dtype == np.int32
    assert found.tolist() == [-2, 0, 0, 2]

    def narrowed(x: Any) -> Any:
        return Mil.cast(x=Mil.cast(x=x, dtype="int16"), dtype="int32")

    places = np.array([0, 32_767], np.int32)
    assert evaluate(narrowed, {"x": places})[0].tolist() == places.tolist()
    with pytest.raises(KmidiError, match=r"cast.*int16"):
        evaluate(narrowed, {"x": places + 1})
    with pytest.raises(KmidiError, match=r"cast.*int32"):
        evaluate(lambda x: Mil.cast(x=x, dtype="int32"), {"x": np.float32([np.nan])})
