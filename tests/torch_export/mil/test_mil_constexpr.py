"""Weights that are stored smaller, built by hand, against what Apple's reference says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as Mil
from coremltools.converters.mil.mil import types
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil import Program

Build = Callable[..., Path]
Array = Any

few = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 1000)
floats = st.sampled_from([np.float16, np.float32])


def _weight(build: Build, make: Callable[[], Any], shape: tuple[int, ...], ios: int) -> Array:
    """The weight as a program computes with it."""
    x = np.zeros(shape, np.float32)

    def main(x: Any) -> Any:
        return Mil.add(x=x, y=Mil.cast(x=make(), dtype="fp32"), name="weight")

    return Program.open(build(main, {"x": x}, ios)).run({"x": x})["weight"]


@few
@given(seeds, floats, st.sampled_from([0, 1, -1]), st.booleans(), st.booleans())
def test_affine(build: Build, seed: int, kind: Any, axis: int, signed: bool, single: bool) -> None:
    rng = np.random.default_rng(seed)
    stored = np.int8 if signed else np.uint8
    data = rng.integers(np.iinfo(stored).min, np.iinfo(stored).max + 1, (6, 5)).astype(stored)
    size = () if single else (data.shape[axis],)
    scale = rng.uniform(0.01, 0.1, size).astype(kind)
    zero = rng.integers(0, 9, size).astype(stored)

    def make() -> Any:
        return Mil.constexpr_affine_dequantize(
            quantized_data=data, zero_point=stored(zero) if single else zero,
            scale=kind(scale) if single else scale, axis=np.int32(axis),
        )  # fmt: skip

    shape = (1, 1) if single else (-1, 1) if axis == 0 else (1, -1)
    expected = scale.astype(np.float32).reshape(shape) * (
        data.astype(np.float32) - zero.astype(np.float32).reshape(shape)
    )
    found = _weight(build, make, data.shape, 17)
    np.testing.assert_array_equal(found, expected.astype(kind).astype(np.float32))


@few
@given(seeds, floats, st.sampled_from([(1, 1), (6, 1), (3, 2), (1, 4)]), st.booleans())
def test_blocks(build: Build, seed: int, kind: Any, blocks: tuple[int, int], shifted: bool) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(-8, 8, (6, 8)).astype(types.np_int4_dtype)
    scale = rng.uniform(0.01, 0.1, blocks).astype(kind)
    offset = rng.integers(-8, 8, blocks).astype(types.np_int4_dtype)
    extra = {"offset": offset} if shifted else {}

    def make() -> Any:
        return Mil.constexpr_blockwise_shift_scale(data=data, scale=scale, **extra)

    wide = np.ones((6 // blocks[0], 8 // blocks[1]), np.float32)
    expected = data.astype(np.float32) - shifted * np.kron(offset.astype(np.float32), wide)
    expected = expected * np.kron(scale.astype(np.float32), wide)
    found = _weight(build, make, data.shape, 18)
    np.testing.assert_array_equal(found, expected.astype(kind).astype(np.float32))


@few
@given(seeds, floats, st.sampled_from([1, 2, 4, 6, 8]))
def test_one_table(build: Build, seed: int, kind: Any, bits: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=2**bits).astype(kind)
    indices = rng.integers(0, 2**bits, (3, 7)).astype(np.uint8)
    # lowest bits first, as the reference says
    single = [(index >> bit) & 1 for index in indices.ravel().tolist() for bit in range(bits)]
    packed = np.packbits(single, bitorder="little")

    def make() -> Any:
        return Mil.constexpr_lut_to_dense(
            indices=packed, lut=table, shape=np.array([3, 7], np.uint32)
        )

    found = _weight(build, make, (3, 7), 17)
    np.testing.assert_array_equal(found, table[indices].astype(np.float32))


@few
@given(seeds, floats, st.sampled_from([(1, 1), (3, 1), (2, 4)]))
def test_tables_of_groups(build: Build, seed: int, kind: Any, groups: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    tables = rng.normal(size=(*groups, 16, 1)).astype(kind)
    indices = rng.integers(0, 16, (6, 8)).astype(types.np_uint4_dtype)

    def make() -> Any:
        return Mil.constexpr_lut_to_dense(indices=indices, lut=tables)

    found = _weight(build, make, (6, 8), 18)
    for row, column in np.ndindex(6, 8):
        table = tables[row * groups[0] // 6, column * groups[1] // 8, :, 0]
        assert found[row, column] == np.float32(table[int(indices[row, column])])


def test_vectors_of_tables_are_refused(build: Build) -> None:
    tables = np.zeros((1, 1, 4, 2), np.float32)
    indices = np.zeros((4, 6), types.np_uint2_dtype)

    def make() -> Any:
        return Mil.constexpr_lut_to_dense(indices=indices, lut=tables, vector_axis=np.int32(0))

    with pytest.raises(KmidiError, match="vectors of 2 numbers"):
        _weight(build, make, (8, 6), 18)
