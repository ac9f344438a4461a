"""Operations that move elements, against numpy and PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as Mil
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kmidi_mlx.errors import KmidiError

Evaluate = Callable[..., list[Any]]

few = settings(max_examples=12, deadline=None)
X = np.arange(120, dtype=np.float32).reshape(2, 3, 4, 5)


def _same(found: Any, expected: Any) -> None:
    assert found.shape == tuple(expected.shape)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_shapes(evaluate: Evaluate) -> None:
    def main(x: Any) -> Any:
        return (
            Mil.reshape(x=x, shape=[6, -1]),
            Mil.reshape(x=x, shape=[0, 4, 3, 0]),
            Mil.expand_dims(x=Mil.reshape(x=x, shape=[6, 20]), axes=[0, -1]),
            Mil.squeeze(x=Mil.reshape(x=x, shape=[1, 120, 1]), axes=[0]),
            Mil.squeeze(x=Mil.reshape(x=x, shape=[1, 120, 1])),
        )

    flat, inherited, expanded, one, both = evaluate(main, {"x": X})
    _same(flat, X.reshape(6, 20))
    _same(inherited, X.reshape(2, 4, 3, 5))
    _same(expanded, X.reshape(1, 6, 20, 1))
    _same(one, X.reshape(120, 1))
    _same(both, X.reshape(120))


@few
@given(st.permutations(range(4)), st.lists(st.integers(0, 3), unique=True, min_size=1))
def test_axes_change_places_and_direction(
    evaluate: Evaluate, perm: list[int], axes: list[int]
) -> None:
    def main(x: Any) -> Any:
        return Mil.transpose(x=x, perm=perm), Mil.reverse(x=x, axes=axes), Mil.reverse(x=x)

    turned, reversed_, all_reversed = evaluate(main, {"x": X})
    _same(turned, X.transpose(perm))
    _same(reversed_, np.flip(X, axes))
    _same(all_reversed, np.flip(X))


@st.composite
def _cuts(draw: st.DrawFn, size: int) -> slice | int:
    """One element of an axis, or a slice that is not empty: no runtime knows empty tensors."""
    if draw(st.booleans()):
        return draw(st.integers(-size, size - 1))
    return draw(st.slices(size).filter(lambda cut: len(range(*cut.indices(size))) > 0))


@few
@given(st.tuples(*map(_cuts, X.shape)))
def test_slices(evaluate: Evaluate, where: tuple[slice | int, ...]) -> None:
    cuts = [slice(cut, None) if isinstance(cut, int) else cut for cut in where]

    def main(x: Any) -> Any:
        return Mil.slice_by_index(
            x=x,
            begin=[cut.start or 0 for cut in cuts],
            end=[cut.stop or 0 for cut in cuts],
            stride=[cut.step or 1 for cut in cuts],
            begin_mask=[cut.start is None for cut in cuts],
            end_mask=[cut.stop is None for cut in cuts],
            squeeze_mask=[isinstance(cut, int) for cut in where],
        )

    # a program cannot return a scalar
    (found,) = evaluate(lambda x: Mil.add(x=main(x), y=np.zeros(1, np.float32)), {"x": X})
    _same(found, X[where] + np.zeros(1, np.float32))


def test_slices_of_a_size(evaluate: Evaluate) -> None:
    def main(x: Any) -> Any:
        return Mil.slice_by_size(x=x, begin=[0, 1, 0, 2], size=[2, 1, -1, 3])

    _same(evaluate(main, {"x": X})[0], X[:, 1:2, :, 2:])


@few
@given(st.integers(-4, 3))
def test_pieces_and_joints(evaluate: Evaluate, axis: int) -> None:
    size = X.shape[axis]

    def main(x: Any) -> Any:
        head, tail = Mil.split(x=x, split_sizes=[1, size - 1], axis=axis)
        equal = Mil.split(x=x, num_splits=size, axis=axis)
        return (
            tail,
            equal[-1],
            Mil.concat(values=[tail, head], axis=axis),
            Mil.concat(values=[x], axis=axis),
            Mil.stack(values=[x, Mil.reverse(x=x)], axis=axis),
            Mil.tile(x=x, reps=[1, 2, 1, 3]),
        )

    tail, last, rolled, alone, stacked, tiled = evaluate(main, {"x": X})
    expected = np.split(X, [1], axis)[1]
    _same(tail, expected)
    _same(last, np.take(X, [size - 1], axis))
    _same(rolled, np.roll(X, -1, axis))
    _same(alone, X)
    _same(stacked, np.stack([X, np.flip(X)], axis))
    _same(tiled, np.tile(X, (1, 2, 1, 3)))


@few
@given(st.integers(-4, 3), st.integers(0, 1000))
def test_gather(evaluate: Evaluate, axis: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, X.shape[axis], (2, 3)).astype(np.int32)
    along = rng.integers(0, X.shape[axis], X.shape).astype(np.int32)

    def main(x: Any, indices: Any, along: Any) -> Any:
        return (
            Mil.gather(x=x, indices=indices, axis=axis),
            Mil.gather_along_axis(x=x, indices=along, axis=axis),
        )

    taken, beside = evaluate(main, {"x": X, "indices": wanted, "along": along})
    _same(taken, np.take(X, wanted, axis))
    _same(beside, torch.gather(torch.from_numpy(X), axis, torch.from_numpy(along).long()))


@pytest.mark.parametrize(("axis", "batch_dims"), [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)])
def test_gather_for_each_of_a_batch(evaluate: Evaluate, axis: int, batch_dims: int) -> None:
    indices = np.random.default_rng(0).integers(0, 3, (2, 3, 2)).astype(np.int32)

    def main(x: Any, indices: Any) -> Any:
        return Mil.gather(x=x, indices=indices, axis=axis, batch_dims=batch_dims)

    (found,) = evaluate(main, {"x": X, "indices": indices})
    for batch in np.ndindex(*X.shape[:batch_dims]):
        _same(found[batch], np.take(X[batch], indices[batch], axis - batch_dims))


@pytest.mark.parametrize("index", [-1, 3])
@pytest.mark.parametrize("name", ["gather", "gather_along_axis"])
def test_gather_refuses_what_is_not_there(evaluate: Evaluate, name: str, index: int) -> None:
    inputs = {"x": X[0, :, 0], "i": np.full((3, 5), index, np.int32)}
    with pytest.raises(KmidiError, match=f"{name}.*an index outside the 3 elements"):
        evaluate(lambda x, i: getattr(Mil, name)(x=x, indices=i, axis=0), inputs)


@few
@given(st.integers(-1, 4), st.integers(-1, 4))
def test_bands(evaluate: Evaluate, lower: int, upper: int) -> None:
    (found,) = evaluate(lambda x: Mil.band_part(x=x, lower=lower, upper=upper), {"x": X})
    expected = torch.from_numpy(X)
    if lower >= 0:
        expected = expected.triu(-lower)
    if upper >= 0:
        expected = expected.tril(upper)
    _same(found, expected)


def test_padding(evaluate: Evaluate) -> None:
    def main(x: Any) -> Any:
        return (
            Mil.pad(x=x, pad=[0, 0, 2, 1]),
            Mil.pad(x=x, pad=[0, 0, 0, 0, 1, 0, 0, 2], constant_val=7.0),
            Mil.pad(x=x, pad=[1, 2], mode="reflect"),
            Mil.pad(x=x, pad=[1, 2], mode="replicate"),
        )

    zeros, sevens, mirrored, repeated = evaluate(main, {"x": X})
    tensor = torch.from_numpy(X)
    _same(zeros, functional.pad(tensor, (2, 1)))
    _same(sevens, functional.pad(tensor, (0, 2, 1, 0), value=7.0))
    _same(mirrored, functional.pad(tensor, (1, 2, 0, 0), mode="reflect"))
    _same(repeated, functional.pad(tensor, (1, 2, 0, 0), mode="replicate"))


def test_tensors_from_numbers(evaluate: Evaluate) -> None:
    def main(end: Any) -> Any:
        count = Mil.squeeze(x=end)
        return (
            Mil.range_1d(start=1, end=7, step=count),
            Mil.fill(shape=Mil.concat(values=[end, end], axis=0), value=1.5),
        )

    # what the program declares is flexible, so it is refused; with constants all is known
    with pytest.raises(KmidiError, match="flexible"):
        evaluate(main, {"end": np.array([2], np.int32)})
    found = evaluate(
        lambda x: (
            Mil.add(x=x, y=Mil.range_1d(start=1, end=7, step=2)),
            Mil.mul(x=Mil.fill(shape=[2, 3], value=1.5), y=2.0),
        ),
        {"x": np.zeros(3, np.int32)},
    )
    _same(found[0], np.array([1, 3, 5]))
    _same(found[1], np.full((2, 3), 3.0))
