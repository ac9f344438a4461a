"""The page: the chooser of styles, and that everything has its place on a phone and a desk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'kmidi-mlx[live]'")
pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from browsing import browser, faults, keep_picture, needs_browser, opened, until, watch
from stage_double import StageDouble

from kmidi_mlx.live.server import Server

__all__ = ["browser", "faults"]


@pytest.fixture(scope="module")
def stage() -> StageDouble:
    return StageDouble()


@pytest.fixture(scope="module")
def server(stage: StageDouble) -> Iterator[Server]:
    serving = Server(stage, token="a-token-for-the-page")
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def page(browser: Any, server: Server, faults: list[str]) -> Iterator[Any]:
    made = browser.new_page(viewport={"width": 1280, "height": 800})
    watch(made, faults)
    opened(made, server.url)
    yield made
    keep_picture(made, "style")
    made.close()


def loaded(stage: StageDouble) -> list[dict[str, Any]]:
    return [arguments for command, arguments in stage.applied if command == "load_adapter"]


@needs_browser
def test_a_style_is_chosen_weighed_and_taken_off(
    page: Any, stage: StageDouble, faults: list[str]
) -> None:
    style = page.get_by_label("Style", exact=True)
    until(style.is_disabled, "there is nothing to choose from")
    assert "kmidi finetune" in style.locator("xpath=..").inner_text()
    assert page.locator(".amounts input").count() == 0
    # taught while the page is open
    stage.adapters = {"evening blues": 0.0, "mine": 0.0, "<b>yours": 0.0}
    stage.session.touch()
    until(style.is_enabled, "the new ones were not seen")
    assert style.locator("option").all_inner_texts() == [
        "none", "<b>yours", "evening blues", "mine",
    ]  # fmt: skip

    style.select_option("mine")
    until(lambda: loaded(stage) == [{"name": "mine", "scale": 1, "alone": True}], "not sent")
    amount = page.get_by_label("Amount of the style")
    until(amount.is_visible, "no slider came")
    amount.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    until(lambda: stage.adapters["mine"] == pytest.approx(0.7), "the slider is not heard")
    assert amount.get_attribute("aria-valuetext") == "70 %"
    keep_picture(page, "style-chosen")

    # what others do is seen
    stage.apply("load_adapter", {"name": "evening blues", "scale": 0.4})
    other = page.get_by_label("Amount of evening blues")
    until(other.is_visible, "the other one is not shown")
    assert other.input_value() == "0.4"
    assert style.input_value() not in ("", "mine", "evening blues")
    style.select_option("none")
    until(lambda: not any(stage.adapters.values()), "they were not taken off")
    until(lambda: page.locator(".amounts input").count() == 0, "sliders are left")
    assert style.input_value() == ""
    assert faults == []


@needs_browser
def test_what_is_refused_is_said_there_and_nothing_changes(page: Any, stage: StageDouble) -> None:
    stage.adapters = {"gone": 0.0, "mine": 0.5}
    stage.session.touch()
    style = page.get_by_label("Style", exact=True)
    until(lambda: style.input_value() == "mine", "the state is not followed")
    del stage.adapters["gone"]
    style.select_option("gone")
    fault = page.get_by_text("there is no adapter called 'gone'.")
    until(fault.is_visible, "nothing is said")
    until(lambda: style.input_value() == "mine", "it shows what does not play")


@needs_browser
def test_every_word_of_the_pad_has_its_button(page: Any) -> None:
    words = page.locator("#presets button").all_inner_texts()
    assert len(words) == len(set(words)) > 9
    for word in ("pleased", "frustrated", "sleepy"):
        page.get_by_role("button", name=word, exact=True).click()
        until(lambda: page.locator("#mood-word").inner_text() == word, f"no {word}")  # noqa: B023
    # whatever the point is on, the page says a word that has a button
    for place in ((0.05, 0.05), (0.5, 0.1), (0.1, 0.5), (0.9, 0.9), (0.3, 0.85), (0.25, 0.15)):
        box = page.locator("#pad").bounding_box()
        page.mouse.click(box["x"] + box["width"] * place[0], box["y"] + box["height"] * place[1])
        assert page.locator("#mood-word").inner_text() in words


@needs_browser
def test_the_strip_of_a_slow_machine_has_one_line_at_a_desk(page: Any, stage: StageDouble) -> None:
    usual = stage.stats
    slow = {
        "quality": 13, "frame_ms_p50": 131.7, "frame_ms_p99": 282.3, "token_ms_p50": 17.4,
        "token_ms_p99": 152.7, "lateness_ms_p99": 34.9, "fps": 2.1, "draws": "network",
    }  # fmt: skip
    stage.stats = lambda: {**usual(), **slow}  # type: ignore[method-assign]
    until(lambda: "music first" in page.locator(".strip").inner_text(), "figures are not shown")
    tops = page.evaluate(
        "[...document.querySelectorAll('.strip > div')].filter(e => e.offsetHeight)"
        ".map(e => e.offsetTop)"
    )
    assert len(tops) >= 9
    assert max(tops) - min(tops) < 5


@needs_browser
def test_on_a_phone_it_fits_and_there_is_help(
    browser: Any, server: Server, stage: StageDouble, faults: list[str]
) -> None:
    stage.adapters = {"a style with a name that is long enough to need some room": 0.7}
    phone = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    watch(phone, faults)
    opened(phone, server.url)
    amount = phone.get_by_label("Amount of the style")
    until(amount.is_visible, "the style is not shown")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    for shown in (phone.get_by_label("Style", exact=True), amount):
        shown.scroll_into_view_if_needed()
        box = shown.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    phone.get_by_role("button", name="Help", exact=True).tap()
    until(phone.get_by_role("dialog").is_visible, "no help")
    keep_picture(phone, "style-phone")
    phone.close()
