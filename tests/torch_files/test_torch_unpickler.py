"""Hostile pickles: everything that could run code is refused, and nothing runs."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import read_torch_file
from kmidi_mlx.torch_unpickler import LARGEST_PICKLE, StoredTensor, from_pickle

HERE = Path("best.pt")


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def read(instructions: bytes, protocol: int = 4) -> Any:
    return from_pickle(pickle.PROTO + bytes([protocol]) + instructions + pickle.STOP, HERE)


class Trap:
    """Leaves a file behind when it is unpickled by Python's own pickle."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


# --- code ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_call_of_os_system_is_named_and_never_runs(
    tmp_path: Path, archive: Callable[..., Path], protocol: int
) -> None:
    mark = tmp_path / "sprung"
    content = pickle.dumps({"state_dict": {"weight": Trap(mark)}}, protocol)
    module = os.system.__module__
    # the two oldest protocols stumble over an instruction that torch never writes
    found = rf"{module}\.system" if protocol > 1 else rf"{module}\.system|pickle instruction"
    with pytest.raises(KmidiError, match=rf"made\.pt holds code \(({found}).*\) and is not opened"):
        read_torch_file(archive(content))
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # the trap works


def traps(command: str) -> dict[str, bytes]:
    """Programs that run a command when Python's pickle reads them."""
    call = text(command) + pickle.TUPLE1 + pickle.REDUCE
    stacked = text("os") + text("system") + pickle.STACK_GLOBAL
    return {
        "global": b"cos\nsystem\n" + call,
        "stack_global": stacked + call,
        "inst": b"(" + text(command) + b"ios\nsystem\n",
        "obj": b"(" + stacked + text(command) + b"o",
        "eval": b"cbuiltins\neval\n" + text(f"__import__('os').system({command!r})") + b"\x85R",
        "python 2": b"c__builtin__\neval\n" + text(f"__import__('os').system({command!r})")
        + b"\x85R",
        "getattr": b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("get") + b"tR("
        + text("system") + b"tR" + call,
        "beside weights": b"}" + text("a") + b"cos\nsystem\n" + call + b"s",
        "thrown away": b"cos\nsystem\n" + call + b"}",
        "state": b"ccollections\nOrderedDict\n)R}" + text("keys") + stacked + call + b"sb",
        "memo": stacked + pickle.MEMOIZE + b"0" + b"h\x00" + call,
        "new object": b"csubprocess\nPopen\n(](" + text("sh") + text("-c") + text(command)
        + b"et\x81",
    }  # fmt: skip


@pytest.mark.parametrize("kind", traps(""))
def test_every_way_to_code_is_closed(tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "sprung"
    instructions = traps(f"touch {mark}")[kind]
    loaded = set(sys.modules)
    with pytest.raises(KmidiError, match=r"holds code .* and is not opened"):
        read(instructions)
    assert not mark.exists()
    assert set(sys.modules) == loaded
    if kind not in ("getattr", "new object"):  # those would need more care to work
        pickle.loads(pickle.PROTO + b"\x02" + instructions + pickle.STOP)
        assert mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch\nload",
        "torch.hub\nload",
        "torch._utils\n_rebuild_tensor_v2.__globals__",
        "torch._utils\n_import_dotted_name",
        "torch.storage\n_load_from_bytes",
        "collections\nOrderedDict.__init__.__globals__",
        "collections\nCounter",
        "numpy\nload",
        "kmidi_mlx.torch_file\nos.system",
        "argparse\nNamespace",
    ],
)
def test_no_other_name_is_known(name: str) -> None:
    full = name.replace("\n", ".")
    with pytest.raises(KmidiError, match=r"holds code|which kmidi does not read") as caught:
        read(f"c{name}\n".encode())
    assert full in str(caught.value)
    module, _, attribute = name.partition("\n")
    with pytest.raises(KmidiError, match=r"holds code|which kmidi does not read"):
        read(text(module) + text(attribute) + pickle.STACK_GLOBAL)


def test_every_instruction_ends_in_a_value_or_an_error() -> None:
    # objects of classes, extension codes, buffers, persistent names, duplicates, sets, bytes …
    known = 0
    for before in (b"", b"}", b"]", b"(", b"}K\x01K\x02", b"))", b"cos\n", b"K\x01" * 4):
        for code in range(256):
            for after in (b"", bytes(300), b"\xff" * 300, b"a\nb\n" * 3):
                content = b"\x80\x04" + before + bytes([code]) + after + b"."
                try:
                    from_pickle(content, HERE)
                    known += 1
                except KmidiError:
                    pass
    assert known > 10


@pytest.mark.parametrize(
    ("instructions", "complaint"),
    [
        (b"ccollections\nOrderedDict\n]\x85R", "calls collections.OrderedDict in an unknown way"),
        (b"ctorch\nFloatStorage\n)R", "calls torch.FloatStorage in an unknown way"),
        (text("system") + b")R", "calls what is no function"),
        (b"ccollections\nOrderedDict\n}R", "calls what is no function"),
        (b"]}b", "sets attributes of what has none"),
        (b"ccollections\nOrderedDict\n}b", "sets attributes of what has none"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "sets attributes of what has none"),
        (b"(icollections\nOrderedDict\n", "makes an object"),
        (b"))))\x93", "names what has no name"),
        (b")K\x01a", "appends to what is no list"),
        (b"]K\x01K\x02s", "fills what is no dict"),
        (b"}(K\x01u", "fills what is no dict"),
        (b"})K\x01s", "neither text nor a number"),
        (text("storage") + b"Q", "refers to what is no storage"),
        (b"(" + text("module") + b"NNNt" + b"Q", "refers to what is no storage"),
        (b"\x8b\xff\xff\xff\x7f", "absurdly large number"),
        (b"\x8b\xff\xff\xff\xff", "absurdly large number"),
        (b"\x80\xff", "unknown pickle protocol"),
        (pickle.dumps("\ud800", 2)[2:-1], "is damaged"),
    ],
)
def test_what_makes_no_sense_is_told(instructions: bytes, complaint: str) -> None:
    with pytest.raises(KmidiError, match=complaint):
        read(instructions)


def test_attributes_of_a_state_dict_are_left_alone() -> None:
    plain = read(b"ccollections\nOrderedDict\n)R}" + text("items") + text("no method") + b"sb")
    assert type(plain) is dict
    assert list(plain.items()) == []


# --- bombs ---------------------------------------------------------------------------------------


def test_numbers_of_the_memo_take_no_memory() -> None:
    assert read(b"}r\xff\xff\xff\xffj\xff\xff\xff\xff") == {}


@pytest.mark.parametrize("nested", [b"]", b"}K\x01", b"("])
def test_a_pickle_nested_without_end_is_no_danger(
    archive: Callable[..., Path], nested: bytes
) -> None:
    closing = {b"]": b"a", b"}K\x01": b"s", b"(": b"t"}[nested]
    depth = 50_000
    inside = nested * depth + b"N" + closing * depth
    with pytest.raises(KmidiError, match="metadata"):
        read_torch_file(
            archive(b"}" + text("state_dict") + b"}s" + text("metadata") + inside + b"s.", {})
        )
    with pytest.raises(KmidiError, match="holds no state_dict"):
        read_torch_file(archive(b"}" + text("a") + inside + b"s.", {}))
    if nested == b"(":  # hashing it would end the process
        with pytest.raises(KmidiError, match="neither text nor a number"):
            read(b"}" + inside + b"Ns")
        with pytest.raises(KmidiError, match="names what has no name"):
            read(inside + text("x") + b"\x93")


def test_a_laughing_pickle_is_not_copied_out(archive: Callable[..., Path]) -> None:
    laughs = b"]\x94" + b"".join(
        b"](" + b"h" + bytes([level]) + b"h" + bytes([level]) + b"e\x94" for level in range(60)
    )
    content = laughs + b"}" + text("state_dict") + b"}s" + text("metadata") + b"}"
    content += text("x") + b"h\x3c" + b"ss."
    with pytest.raises(KmidiError, match="metadata are endless"):
        read_torch_file(archive(content, {}))


def test_values_that_hold_themselves_are_not_copied_out(archive: Callable[..., Path]) -> None:
    content = b"}" + text("state_dict") + b"}s" + text("metadata") + b"}\x94" + text("x")
    with pytest.raises(KmidiError, match="metadata are endless"):
        read_torch_file(archive(content + b"h\x00ss.", {}))


def test_a_description_longer_than_any_model_is_refused(archive: Callable[..., Path]) -> None:
    with pytest.raises(KmidiError, match="which no file of weights needs"):
        from_pickle(bytes(LARGEST_PICKLE + 1), HERE)
    with pytest.raises(KmidiError, match=r"record data\.pkl is absurdly long"):
        read_torch_file(archive(bytes(LARGEST_PICKLE + 1), {}))


# --- what is meant -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_come_back(protocol: int) -> None:
    value = {
        "text": "ünïcode",
        "long": "x" * 300,
        "numbers": [0, 1, -1, 255, 256, 65_536, -(2**31), 2**31, 2**63, -(2**90), 0.1, -1e300],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "flags": [True, False, None],
        "nested": {"a": {"b": [{}]}},
        "again": "text",
        7: "key",
    }
    assert from_pickle(pickle.dumps(value, protocol), HERE) == value


def test_a_tensor_is_described(described: Callable[..., bytes]) -> None:
    tensor = from_pickle(described(), HERE)["weight"]
    assert isinstance(tensor, StoredTensor)
    assert (tensor.dtype, tensor.shape, tensor.strides) == ("float32", (2, 3), (3, 1))


def test_every_truncation_is_an_error(described: Callable[..., bytes]) -> None:
    whole = described()
    for length in range(len(whole)):
        with pytest.raises(KmidiError, match="damaged"):
            from_pickle(whole[:length], HERE)


def test_changed_bytes_never_escape(described: Callable[..., bytes]) -> None:
    rng = np.random.default_rng(0)
    whole = np.frombuffer(described() + pickle.dumps({"a": [1, (2.0, "x")]}, 4), np.uint8)
    outcomes = set()
    for _ in range(5000):
        changed = whole.copy()
        places = rng.integers(0, len(whole), rng.integers(1, 4))
        changed[places] = rng.integers(0, 256, len(places))
        try:
            from_pickle(changed.tobytes(), HERE)
            outcomes.add("read")
        except KmidiError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_the_standard_library_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, described: Callable[..., bytes]
) -> None:
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    assert from_pickle(described(), HERE)
