"""Makes files like those of `torch.save` out of hand-written pickles."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# compared with the real torch.save and torch.load where PyTorch is installed (extra `torch`)
collect_ignore_glob = [] if find_spec("torch") else ["test_torch_interchange.py"]

NUMBERS = bytes(range(24))  # six float32


def pushes(value: Any) -> bytes:
    """Instructions that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


@pytest.fixture(scope="session")
def described() -> Callable[..., bytes]:
    """A function that writes the pickle of a state dict of one tensor, right or wrong."""

    def write(
        kind: str = "FloatStorage",
        key: str = "0",
        count: Any = 6,
        offset: Any = 0,
        shape: Any = (2, 3),
        strides: Any = (3, 1),
    ) -> bytes:
        return (
            b"\x80\x02}" + pushes("weight") + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + pushes("storage") + b"ctorch\n" + kind.encode() + b"\n" + pushes(key) + pushes("cpu")
            + pushes(count) + b"tQ" + pushes(offset) + pushes(shape) + pushes(strides)
            + b"\x89ccollections\nOrderedDict\n)RtRs."
        )  # fmt: skip

    return write


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """A function that puts a pickle and records into a zip file as `torch.save` does."""

    def write(
        description: bytes,
        records: Mapping[str, bytes] | None = None,
        name: str = "made.pt",
        compression: int = zipfile.ZIP_STORED,
    ) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as made:
            made.writestr("made/data.pkl", description)
            for record, data in ({"data/0": NUMBERS} if records is None else records).items():
                made.writestr(f"made/{record}", data)
        return path

    return write
