"""What stands in for a checkpoint that is not there, and that it can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmidi_mlx import shipped
from kmidi_mlx.checkpoint import BEST
from kmidi_mlx.shipped import in_force, usual_checkpoint


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with weights of one model, and an empty folder to work in."""
    folder = tmp_path / "package" / "midi_generator"
    folder.mkdir(parents=True)
    (folder / BEST).touch()
    monkeypatch.setattr(shipped, "_SHIPPED", folder.parent)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_the_package_stands_in_for_what_nobody_has_trained(ours: Path) -> None:
    usual = usual_checkpoint("midi_generator")
    assert usual == Path("checkpoints/midi_generator")
    assert in_force(usual) == ours
    usual.mkdir(parents=True)
    assert in_force(usual) == ours
    # what is in there is somebody's, finished or not
    (usual / "config.yaml").touch()
    assert in_force(usual) == usual


def test_every_other_path_stands_for_itself(ours: Path) -> None:
    for path in (
        "checkpoints/spectocloud", "checkpoints/mine", "midi_generator", "other/midi_generator",
        f"checkpoints/midi_generator/{BEST}", str(Path.cwd() / "checkpoints" / "midi_generator"),
    ):  # fmt: skip
        assert in_force(Path(path)) == Path(path)
