"""The file of weights, as Apple's own library writes it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.libmilstoragepython import _BlobStorageWriter as BlobWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.mil.values import Type
from kmidi_torch.export.mil.weights import WeightFile

# dtype to what writes it, how numpy holds it, and its range
WRITERS: dict[str, tuple[str, Any, int, int]] = {
    "fp32": ("write_float_data", np.float32, -1000, 1000),
    "fp16": ("write_fp16_data", np.float16, -1000, 1000),
    "int8": ("write_int8_data", np.int8, -128, 127),
    "uint8": ("write_uint8_data", np.uint8, 0, 255),
    "int16": ("write_int16_data", np.int16, -32768, 32767),
    "uint16": ("write_uint16_data", np.uint16, 0, 65535),
    "int32": ("write_int32_data", np.int32, -(2**31), 2**31 - 1),
    "uint32": ("write_uint32_data", np.uint32, 0, 2**32 - 1),
    "int4": ("write_int4_data", np.int8, -8, 7),
    "uint1": ("write_uint1_data", np.uint8, 0, 1),
    "uint2": ("write_uint2_data", np.uint8, 0, 3),
    "uint3": ("write_uint3_data", np.uint8, 0, 7),
    "uint4": ("write_uint4_data", np.uint8, 0, 15),
    "uint6": ("write_uint6_data", np.uint8, 0, 63),
}


def _write(path: Path, dtype: str, values: Any) -> int:
    writer = BlobWriter(str(path))
    # in fp16 the library takes bits
    stored = values.view(np.uint16) if dtype == "fp16" else values
    offset: int = getattr(writer, WRITERS[dtype][0])(stored)
    return offset


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(sorted(WRITERS)), st.integers(1, 40))
def test_what_apple_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: str, count: int
) -> None:
    _, kind, low, high = WRITERS[dtype]
    drawn = data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    values = np.array(drawn, kind)
    path = tmp_path_factory.mktemp("weights") / "weight.bin"
    offset = _write(path, dtype, values)
    found = WeightFile(path).read(offset, Type(dtype, (count, 1)))
    assert found.dtype == (np.float32 if dtype == "fp16" else kind)
    np.testing.assert_array_equal(found, values[:, None])


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, int]:
    path = tmp_path / "weight.bin"
    return path, _write(path, "fp32", np.arange(12, dtype=np.float32))


Tamper = Callable[[bytearray, int], Any]


def _pack(layout: str, place: int, value: int) -> Tamper:
    return lambda data, record: struct.pack_into(layout, data, record + place, value)


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (lambda data, record: data.__delitem__(slice(20, None)), "cut off"),
        (lambda data, record: data.__delitem__(slice(-4, None)), "out of reach"),
        (lambda data, record: struct.pack_into("<I", data, 4, 3), "version 3"),
        (lambda data, record: struct.pack_into("<I", data, 0, 0), "hold 0 blobs"),
        (_pack("<I", 0, 0xDEADBEEE), "no record"),
        (_pack("<I", 4, 14), "data type 14"),
        (_pack("<Q", 8, 44), "44 bytes"),
        (_pack("<Q", 16, 65), "out of reach"),
        (_pack("<Q", 16, 64), "out of reach"),
        (_pack("<Q", 24, 3), "3 bits too many"),
    ],
)
def test_a_damaged_file_is_refused(file: tuple[Path, int], tamper: Tamper, match: str) -> None:
    path, record = file
    data = bytearray(path.read_bytes())
    tamper(data, record)
    path.write_bytes(data)
    with pytest.raises(KmidiError, match=match):
        WeightFile(path).read(record, Type("fp32", (3, 4)))


def test_what_is_declared_otherwise_is_refused(file: tuple[Path, int]) -> None:
    path, record = file
    weights = WeightFile(path)
    for kind in (Type("fp16", (24,)), Type("fp32", (11,)), Type("int32", (12,))):
        with pytest.raises(KmidiError, match="the blob at byte 64"):
            weights.read(record, kind)
    for offset in (0, record + 4, 2**20):
        with pytest.raises(KmidiError, match="no place"):
            weights.read(offset, Type("fp32", (12,)))
    with pytest.raises(KmidiError, match="cannot read"):
        WeightFile(path.with_name("other.bin"))
