"""The archive around the tensors: what is written is read back, what is damaged is refused."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import read_torch_file, widened, write_torch_file
from kmidi_mlx.torch_pickler import DTYPES

KINDS = sorted(set(DTYPES) - {"bfloat16"})
WEIGHTS = {
    "blocks.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(-1.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
METADATA: dict[str, Any] = {
    "model": "midi_generator",
    "metric": 3.293831051882385,
    "step": 2**40,
    "synthetic": False,
    "config": {"model": {"layers": [0, 2], "name": "ünïcode"}, "nothing": None},
}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def bits(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.dtype.name, array.shape, array.tobytes()


# --- round trip ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_everything_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.pt"
    kinds = data.draw(st.lists(st.sampled_from(KINDS), max_size=4))
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    weights = {
        f"layer.{number}": data.draw(arrays_of.arrays(np.dtype(kind), shapes))
        for number, kind in enumerate(kinds)
    }
    metadata = data.draw(st.dictionaries(st.text(), json_values, max_size=4))
    write_torch_file(path, weights, metadata)
    stored = read_torch_file(path)
    assert stored.metadata == metadata
    assert list(stored.arrays) == list(weights)
    for name, array in weights.items():
        assert bits(stored.arrays[name]) == bits(array)
    assert stored.widened == ()


def test_views_and_the_other_byte_order_are_written_right(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = {
        "turned": base.T,
        "part": base[1:3, ::2],
        "back": base[::-1],
        "big": base.astype(">f4"),
    }
    write_torch_file(tmp_path / "a.pt", views, {})
    stored = read_torch_file(tmp_path / "a.pt")
    for name, view in views.items():
        assert np.array_equal(stored.arrays[name], view)
        assert stored.arrays[name].flags.c_contiguous


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_torch_file(tmp_path / name / "best.pt", WEIGHTS, METADATA)
    one, two = ((tmp_path / name / "best.pt").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("limit", [zipfile.ZIP64_LIMIT, 100])
def test_numbers_are_aligned_and_the_archive_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)  # the layout of records above 2 GB
    path = tmp_path / "best.pt"
    weights = {f"w{size}": np.arange(size, dtype=np.float32) for size in (1, 3, 16, 100, 1000)}
    write_torch_file(path, weights, {})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        entries = archive.infolist()
    assert {entry.filename.partition("/")[0] for entry in entries} == {"best"}
    for entry in entries:
        lengths = struct.unpack("<HH", whole[entry.header_offset + 26 : entry.header_offset + 30])
        assert (entry.header_offset + 30 + sum(lengths)) % 64 == 0
    stored = read_torch_file(path)
    assert all(np.array_equal(stored.arrays[name], weights[name]) for name in weights)


def test_bfloat16_is_widened_exactly() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    wide = widened(patterns)
    assert wide.dtype == np.float32
    assert np.array_equal(wide.view(np.uint32), patterns.astype(np.uint32) * 65536)
    assert widened(np.array(0x3FC0, np.uint16)).shape == ()
    assert widened(np.array([0x3FC0, 0xC000, 0x7F80], np.uint16)).tolist() == [1.5, -2.0, np.inf]


def test_bfloat16_in_a_file_is_told(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    numbers = np.array([0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0], "<u2").tobytes()
    stored = read_torch_file(archive(described("BFloat16Storage"), {"data/0": numbers}))
    assert stored.widened == ("weight",)
    assert stored.arrays["weight"].dtype == np.float32
    assert stored.arrays["weight"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_file_needs_little_more_memory_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    weights = {f"w{number}": np.ones((500, 500), np.float32) for number in range(8)}  # 8 MB
    tracemalloc.start()
    try:
        write_torch_file(path, weights, {})
        assert tracemalloc.get_traced_memory()[1] < 1e6
        stored = read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1.1 * path.stat().st_size
    finally:
        tracemalloc.stop()
    assert len(stored.arrays) == 8


# --- writing that fails --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "metadata", "complaint"),
    [
        ({"a": np.zeros(2, np.complex64)}, {}, "numbers of the kind complex64"),
        ({"a": np.array(["x"])}, {}, "numbers of the kind str"),
        ({}, {"a": {1, 2}}, r"cannot keep \{1, 2\}"),
        ({}, {"a": np.float64(1).dtype}, "cannot keep dtype"),
        ({}, {"a": 2**200}, "a number as large as"),
        ({}, {"a": "\ud800"}, "half a sign"),
    ],
)
def test_what_cannot_be_kept_leaves_the_old_file(
    tmp_path: Path, weights: dict[str, Any], metadata: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "best.pt"
    write_torch_file(path, WEIGHTS, METADATA)
    before = path.read_bytes()
    with pytest.raises(KmidiError, match=complaint):
        write_torch_file(path, weights, metadata)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


def test_metadata_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(KmidiError, match="nested so deeply"):
        write_torch_file(tmp_path / "a.pt", {}, endless)


def test_a_failure_halfway_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pt"
    write_torch_file(path, WEIGHTS, METADATA)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile._ZipWriteFile, "write", full)
    with pytest.raises(KmidiError, match=r"cannot write .*best\.pt: No space left"):
        write_torch_file(path, {"other": np.ones(3)}, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.pt"]


# --- reading what is damaged ---------------------------------------------------------------------


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match=r"no such checkpoint: .*best\.pt"):
        read_torch_file(tmp_path / "best.pt")
    with pytest.raises(KmidiError, match="cannot read"):
        read_torch_file(tmp_path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_torch_file(path, WEIGHTS, METADATA)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(KmidiError, match=r"is truncated|is not a PyTorch file"):
            read_torch_file(path)


def test_a_changed_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_torch_file(path, WEIGHTS, METADATA)
    whole = bytearray(path.read_bytes())
    whole[whole.index(WEIGHTS["blocks.0.weight"].tobytes()) + 5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(KmidiError, match=r"the checksum of record data/0 does not fit"):
        read_torch_file(path)


def test_changed_bytes_never_escape(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    write_torch_file(path, WEIGHTS, METADATA)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    interesting = np.flatnonzero(whole != ord("Z"))
    for _ in range(600):
        changed = whole.copy()
        places = rng.choice(interesting, rng.integers(1, 4))
        changed[places] = rng.integers(0, 256, len(places))
        path.write_bytes(changed.tobytes())
        try:
            stored = read_torch_file(path)
        except KmidiError:
            continue
        # a byte that means nothing, or a name: never other numbers
        assert [bits(array) for array in stored.arrays.values()] == [
            bits(array) for array in WEIGHTS.values()
        ]


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(100), r"before 1\.6; read it with"),
        (b"\x80\x02}q\x00.", "is not a PyTorch file"),
        (b"", "is not a PyTorch file"),
        (bytes(1000), "is not a PyTorch file"),
        (b"PK\x03\x04" + bytes(1000), "is truncated"),
        (b"PK\x05\x06" + bytes(18), "not one that torch.save wrote"),
        (b"PK\x05\x06" + b"\xff" * 18, "is not a PyTorch file"),
    ],
)
def test_files_of_another_kind_are_an_error(tmp_path: Path, start: bytes, complaint: str) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(start)
    with pytest.raises(KmidiError, match=complaint):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"key": "1"}, "record data/1 of weight is missing"),
        ({"key": "../0"}, "is missing"),
        ({"count": 7}, "reaches beyond its numbers"),
        ({"count": 5}, "reaches beyond its numbers"),
        ({"offset": 1}, "reaches beyond its numbers"),
        ({"offset": 2**40}, "reaches beyond its numbers"),
        ({"shape": (3, 3)}, "reaches beyond its numbers"),
        ({"strides": (4, 1)}, "reaches beyond its numbers"),
        ({"kind": "DoubleStorage"}, "reaches beyond its numbers"),
        ({"offset": -1}, "no usable shape"),
        ({"strides": (3, -1)}, "no usable shape"),
        ({"strides": (1,)}, "no usable shape"),
        ({"shape": (2, 3.0)}, "no usable shape"),
        ({"shape": (2, True)}, "no usable shape"),
        ({"shape": [2, 3]}, "no usable shape"),
        ({"shape": (1,) * 17, "strides": (1,) * 17}, "no usable shape"),
        ({"count": -6}, "refers to what is no storage"),
        ({"count": 2**60}, "refers to what is no storage"),
        ({"kind": "ComplexFloatStorage"}, r"'torch\.ComplexFloatStorage', which kmidi does not"),
        ({"kind": "float32"}, "refers to what is no storage"),
        ({"shape": (2**20, 2**20), "strides": (0, 0)}, "claims 4398.0 GB of tensors but holds"),
        ({"shape": (10**6, 10), "strides": (0, 0)}, "claims 0.0 GB of tensors but holds"),
    ],
)
def test_tensors_that_cannot_be_are_refused(
    archive: Callable[..., Path],
    described: Callable[..., bytes],
    changes: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(KmidiError, match=complaint):
        read_torch_file(archive(described(**changes)))


def test_views_of_all_kinds_are_read(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    numbers = np.arange(6, dtype="<f4")

    def read(**changes: Any) -> Any:
        return read_torch_file(
            archive(described(**changes), {"data/0": numbers.tobytes()})
        ).arrays["weight"].tolist()  # fmt: skip

    assert read() == [[0, 1, 2], [3, 4, 5]]
    assert read(shape=(3, 2), strides=(1, 3)) == [[0, 3], [1, 4], [2, 5]]
    assert read(offset=5, shape=(), strides=()) == 5
    assert read(offset=1, shape=(2,), strides=(3,)) == [1, 4]
    assert read(shape=(2, 2), strides=(0, 1)) == [[0, 1], [0, 1]]
    assert read(offset=6, shape=(0, 5), strides=(9, 9)) == []


def test_odd_bytes_of_a_bool_are_true(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    content = described("BoolStorage", count=4, shape=(4,), strides=(1,))
    stored = read_torch_file(archive(content, {"data/0": b"\x00\x01\x02\xff"}))
    assert stored.arrays["weight"].tolist() == [False, True, True, True]
    assert stored.arrays["weight"].tobytes() == b"\x00\x01\x01\x01"


def test_an_archive_that_torch_would_not_write_is_refused(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    records = {"data/0": bytes(24)}
    with pytest.raises(KmidiError, match="is compressed, which PyTorch never does"):
        read_torch_file(archive(described(), records, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(KmidiError, match="on a big-endian machine"):
        read_torch_file(archive(described(), records | {"byteorder": b"big"}))
    with pytest.raises(KmidiError, match="byteorder is absurdly long"):
        read_torch_file(archive(described(), records | {"byteorder": b"little" * 1000}))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive(described(), records | {"data.pkl": b"N."})
    with pytest.raises(KmidiError, match="two records have the same name"):
        read_torch_file(path)


def test_records_that_share_their_bytes_are_a_trap(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    path = archive(described(), {f"data/{number}": bytes(24) for number in range(50)})
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02")
    while at >= 0:  # every entry of the directory claims a thousand bytes
        whole[at + 20 : at + 28] = struct.pack("<II", 1000, 1000)
        at = whole.find(b"PK\x01\x02", at + 1)
    path.write_bytes(whole)
    with pytest.raises(KmidiError, match="claim more bytes than it has"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        (b"N", "holds no state_dict; save one"),
        (b"](K\x01e", "holds no state_dict; save one"),
        (b"}(X\x05\x00\x00\x00modelNX\x05\x00\x00\x00epochK\x03u", r"found model, epoch\); save"),
        (b"}K\x01Ns", r"found 1\)"),
        (b"}(X\x0a\x00\x00\x00state_dict}X\x08\x00\x00\x00metadataK\x01u", "metadata are no dict"),
        (
            b"}(X\x0a\x00\x00\x00state_dict}X\x08\x00\x00\x00metadata}K\x01Nsu",
            "a name that is none",
        ),
        (
            b"}(X\x0a\x00\x00\x00state_dict}X\x08\x00\x00\x00metadata}X\x01\x00\x00\x00a"
            b"ctorch\nfloat32\nsu",
            "more than plain values",
        ),
    ],
)
def test_what_is_no_state_dict_is_told(
    archive: Callable[..., Path], tree: bytes, complaint: str
) -> None:
    with pytest.raises(KmidiError, match=complaint):
        read_torch_file(archive(b"\x80\x02" + tree + b"."))


def test_a_state_dict_of_numbered_tensors_is_refused(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    numbered = described().replace(b"X\x06\x00\x00\x00weight", b"K\x01")
    with pytest.raises(KmidiError, match="holds no state_dict"):
        read_torch_file(archive(numbered))


def test_a_checksum_that_was_not_computed_is_accepted(
    archive: Callable[..., Path], described: Callable[..., bytes]
) -> None:
    path = archive(described())
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)
    whole[at + 16 : at + 20] = bytes(4)
    path.write_bytes(whole)
    assert read_torch_file(path).arrays["weight"].shape == (2, 3)
