"""The weights of the package: they open, they are what their cards say, and they do their work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlx.utils import tree_flatten

from kmidi_mlx import checkpoint
from kmidi_mlx.models import loading
from kmidi_mlx.shipped import in_force, usual_checkpoint

LOADERS = {
    "spectocloud": (loading.load_spectocloud, 12_124_200),
    "emotion_recognizer": (loading.load_recognizer, 327_731),
}


def shipped(model: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """What stands in for a model in a folder without any."""
    monkeypatch.chdir(folder)
    found = in_force(usual_checkpoint(model))
    assert found.is_absolute()
    return found


def texts(value: Any) -> list[str]:
    """All text in nested values."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("model", sorted(LOADERS))
def test_they_open_and_say_where_they_come_from(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shipped(model, monkeypatch, tmp_path)
    load, parameters = LOADERS[model]
    loaded = load(usual_checkpoint(model), packed=False)
    assert loaded.path.parent == folder
    assert sum(value.size for _, value in tree_flatten(loaded.model.parameters())) == parameters
    known = loaded.metadata
    assert known["data_licences"] == ["MIT"]
    assert known["synthetic"] is False
    assert known["step"] > 0
    assert loaded.notice is None
    # nothing of the machine that trained them
    assert not [text for text in texts(known) if text.startswith(("/", "~"))]


def test_they_are_small_enough_to_come_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = [shipped(model, monkeypatch, tmp_path) / checkpoint.BEST for model in LOADERS]
    assert sum(file.stat().st_size for file in files) < 45_000_000
