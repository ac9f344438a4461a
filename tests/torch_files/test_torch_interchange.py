"""Compared with the real `torch.save` and `torch.load`, both ways."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.torch_file import read_torch_file, write_torch_file
from kmidi_mlx.torch_pickler import DTYPES

SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
KINDS = sorted(set(DTYPES) - {"bfloat16"})


def bits(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.dtype.name, array.shape, array.tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_torch_loads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "ours.pt"
    weights = {
        kind: data.draw(arrays_of.arrays(np.dtype(kind), SHAPES))
        for kind in data.draw(st.lists(st.sampled_from(KINDS), unique=True, max_size=5))
    }
    metadata = {"a": [1, 2.5, None, True, "ü"], "b": {"c": -(2**40), "d": {}, "e": []}}
    write_torch_file(path, weights, metadata)
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert loaded["metadata"] == metadata
        assert list(loaded["state_dict"]) == list(weights)
        for name, array in weights.items():
            tensor = loaded["state_dict"][name]
            assert tensor.is_contiguous()
            assert bits(tensor.numpy()) == bits(array)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_we_read_what_torch_saves(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "theirs.pt"
    tensors = OrderedDict(
        (kind, torch.from_numpy(data.draw(arrays_of.arrays(np.dtype(kind), SHAPES))))
        for kind in data.draw(st.lists(st.sampled_from(KINDS), unique=True, max_size=5))
    )
    protocol = data.draw(st.integers(2, 5))
    torch.save({"state_dict": tensors, "epoch": 3}, path, pickle_protocol=protocol)
    stored = read_torch_file(path)
    assert stored.metadata == {}
    assert list(stored.arrays) == list(tensors)
    for name, tensor in tensors.items():
        assert bits(stored.arrays[name]) == bits(tensor.numpy())


def test_views_shared_storages_and_parameters_are_read(tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {
        "whole": base,
        "tied": base,
        "turned": base.permute(2, 0, 1),
        "part": base[1:, ::2, 3],
        "row": base[2, 1],
        "scalar": base[1, 2, 3],
        "repeated": torch.ones(3, 1).expand(3, 7),
        "parameter": torch.nn.Parameter(base.clone()),
        "frozen": torch.nn.Parameter(base.clone(), requires_grad=False),
        "empty": torch.zeros(0, 4),
        "buffer": torch.arange(5),
    }
    torch.save(tensors, tmp_path / "a.pt")
    stored = read_torch_file(tmp_path / "a.pt")
    assert stored.arrays.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert bits(stored.arrays[name]) == bits(tensor.detach().numpy().copy(order="C"))


def test_bfloat16_is_widened_as_torch_does(tmp_path: Path) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    torch.save({"w": every.reshape(256, 256).T, "f": torch.ones(2)}, tmp_path / "a.pt")
    stored = read_torch_file(tmp_path / "a.pt")
    assert stored.widened == ("w",)
    ours = stored.arrays["w"].view(np.uint32)
    theirs = every.reshape(256, 256).T.float().numpy().copy(order="C").view(np.uint32)
    # the compare of bits includes NaN, infinities and the smallest numbers
    assert np.array_equal(ours, theirs)


def test_a_module_and_its_optimizer_beside_it_are_read(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 3)).sum().backward()
    optimizer.step()
    torch.save(
        {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1},
        tmp_path / "a.pt",
    )
    torch.save(model.state_dict(), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        stored = read_torch_file(tmp_path / name)
        for key, tensor in model.state_dict().items():
            assert bits(stored.arrays[key]) == bits(tensor.numpy())


def test_other_ways_of_saving(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    tensors = {"w": torch.arange(6.0)}
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors, path)
    finally:
        torch.serialization.set_crc32_options(computed)
    assert read_torch_file(path).arrays["w"].tolist() == list(range(6))

    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with pytest.raises(KmidiError, match=r"of PyTorch's format before 1\.6; read it with"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.nn.Linear(2, 2), r"holds code \(torch\.nn\.modules\.linear\.Linear\)"),
        ({"w": torch.ones(2).to_sparse()}, "_rebuild_sparse_tensor'?, which kmidi does not read"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage'?, which kmidi does"),
        ({"w": torch.ones(2, dtype=torch.float8_e4m3fn)}, "no usable shape|does not read"),
        ({"state_dict": {}, "metadata": {"path": Path("a")}}, r"holds code \(pathlib"),
        ({"w": [torch.ones(2)]}, "holds no state_dict"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, value: Any, complaint: str) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(KmidiError, match=complaint):
        read_torch_file(tmp_path / "a.pt")


def test_records_above_two_gigabytes_are_laid_out_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    weights = {"a": np.arange(1000, dtype=np.float32), "b": np.arange(3, dtype=np.float32)}
    write_torch_file(tmp_path / "a.pt", weights, {"step": 3})
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(
        np.array_equal(loaded["state_dict"][name].numpy(), weights[name]) for name in weights
    )
    reader = torch._C.PyTorchFileReader(str(tmp_path / "a.pt"))
    assert all(reader.get_record_offset(f"data/{number}") % 64 == 0 for number in (0, 1))
