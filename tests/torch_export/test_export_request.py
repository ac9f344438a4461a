"""Where an export lands: nothing that is no export is replaced, and everybody may read it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kmidi_mlx.errors import KmidiError
from kmidi_torch.export.request import open_request, replacing


def flags(checkpoint: Path, out: Path) -> argparse.Namespace:
    return argparse.Namespace(model="spectocloud", checkpoint=checkpoint, out=out)


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
