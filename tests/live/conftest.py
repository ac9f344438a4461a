"""A stage and a server for the tests of the live application."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import TOKEN
from stage_double import StageDouble

from kmidi_mlx.live.server import Server


@pytest.fixture
def stage() -> StageDouble:
    return StageDouble()


@pytest.fixture
def web(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html><title>page</title>")
    (folder / "page.js").write_text("export const x = 1;\n")
    (tmp_path / "secret.txt").write_text("not for you")
    return folder


@pytest.fixture
def server(stage: StageDouble, web: Path) -> Iterator[Server]:
    errors: list[Exception] = []
    server = Server(stage, token=TOKEN, web=web, clients=8, on_error=errors.append)
    server.start()
    yield server
    server.stop()
    assert errors == []
