"""A real browser for tests of the page: its flags, looking at it, pictures of it."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu-compositing", "--enable-unsafe-swiftshader",
    "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
#: Where pictures are kept, for people to look at; git ignores it.
ARTEFACTS = Path(
    os.environ.get("KMIDI_ARTEFACTS") or Path(__file__).parents[2] / "out" / "screenshots"
)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, started."""
    playwright_api = pytest.importorskip(
        "playwright.sync_api", reason="pip install 'kmidi-mlx[dev]'"
    )
    with playwright_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """What pages complained about so far."""
    return []


def watch(page: Any, faults: list[str]) -> None:
    """Take note of what the page complains about."""
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)


def opened(page: Any, url: str) -> None:
    """Open an address and wait until it is connected and its panel is there."""
    page.goto(url)
    until(lambda: page.evaluate("document.body.dataset.link") == "open", "no connection")
    until(lambda: page.locator("#groups details").count() > 3, "the panel is not built")


def until(holds: Callable[[], Any], otherwise: str, seconds: float = 20.0) -> None:
    """Wait; the page's own policy forbids the browser's way of waiting for a function."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def look(page: Any, selector: str) -> NDArray[np.int16]:
    """Pixels (height, width, 3) of an element as they are shown."""
    image = pytest.importorskip("PIL.Image", reason="pip install pillow")
    data = page.screenshot(clip=page.locator(selector).bounding_box())
    return np.asarray(image.open(io.BytesIO(data)).convert("RGB"), np.int16)


def keep_picture(page: Any, name: str) -> None:
    """Keep a picture of the page as it is."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{name}.png"))


def drag_on_pad(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag the point of the emotion pad from one (valence, arousal) to another."""
    box = page.locator("#pad").bounding_box()

    def place(valence: float, arousal: float) -> tuple[float, float]:
        return (
            box["x"] + box["width"] * (valence + 1) / 2,
            box["y"] + box["height"] * (1 - arousal) / 2,
        )

    page.mouse.move(*place(*start))
    page.mouse.down()
    page.mouse.move(*place(*end), steps=6)
    page.mouse.up()
