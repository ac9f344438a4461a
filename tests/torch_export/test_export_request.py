"""Where an export lands: nothing that is no export is replaced, and everybody may read it."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_config import AdapterConfig
from kmidi_mlx.config_file import config_to_dict
from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.precision import PRECISIONS
from kmidi_torch.export.request import open_request, replacing
from kmidi_torch.export.subject import Subject
from kmidi_torch.loading import load_generator
from kmidi_torch.models import lora


def flags(checkpoint: Path, out: Path) -> argparse.Namespace:
    return argparse.Namespace(model="spectocloud", checkpoint=checkpoint, out=out, adapters=[])


def test_a_folder_that_is_no_package_is_not_replaced(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    out = tmp_path / "mine.mlpackage"
    out.mkdir()
    (out / "notes.txt").write_text("keep")
    given = flags(tiny_checkpoints["spectocloud"], out)
    with pytest.raises(KmidiError, match=r"no \.mlpackage package and would not be replaced"):
        open_request(given, ".mlpackage", folder=True)
    (out / "Manifest.json").write_text("{}")
    assert open_request(given, ".mlpackage", folder=True).out == out


@pytest.mark.parametrize("before", [False, True])
def test_what_is_made_is_as_readable_as_any_file(tmp_path: Path, before: bool) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "best.mlpackage"
    if before:
        out.mkdir()
        (out / "old").write_bytes(b"")
    with replacing(out) as draft:
        (draft.path / "weights").mkdir(parents=True, mode=0o700)
        (draft.path / "weights" / "weight.bin").touch(mode=0o600)
        draft.proved = True
    modes = {path.name: path.stat().st_mode for path in [out, *out.rglob("*")]}
    assert modes == {
        "best.mlpackage": (tmp_path / "folder").stat().st_mode,
        "weights": (tmp_path / "folder").stat().st_mode,
        "weight.bin": (tmp_path / "file").stat().st_mode,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.mlpackage", "file", "folder"]


def test_a_model_is_exported_with_its_adapters(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoints["midi_generator"], base)
    loaded = load_generator(base)
    config = replace(loaded.config, adapter=AdapterConfig("lora", "base", 2, 4.0, 0.0, ("qkv:v",)))
    lora.attach(loaded.model, ("qkv:v",), 2, 4.0)
    learnt = {name: value + 1.0 for name, value in lora.adapter_weights(loaded.model).items()}
    checkpoint.save_arrays(
        base / checkpoint.ADAPTERS / "mine" / checkpoint.ADAPTER,
        learnt,
        {"model": "midi_generator", "config": config_to_dict(config)},
    )
    plain, adapted, out = (
        open_request(
            argparse.Namespace(
                model="midi_generator",
                checkpoint=base,
                out=None,
                adapters=asked,
                sampling=False,
                points=None,
            ),
            ".pt2",
        )
        for asked in ([], ["mine:0.5"], ["mine", "mine:-1"])
    )
    assert (plain.out.name, adapted.out.name) == ("best.pt2", "best-mine.pt2")
    assert Subject.of(adapted, PRECISIONS["fp32"]).metadata()["adapters"] == ["mine:0.5"]
    assert "adapters" not in Subject.of(plain, PRECISIONS["fp32"]).metadata()
    one, two, same = (each.loaded.model.state_dict() for each in (plain, adapted, out))
    changed = [name for name, value in one.items() if not value.equal(two[name])]
    assert changed == [f"blocks.{number}.attention.qkv.weight" for number in range(len(changed))]
    assert changed
    assert all((same[name] - value).abs().max() < 1e-6 for name, value in one.items())
