"""End to end: the program as people start it, two models at work, steered from a real browser."""

from __future__ import annotations

import ipaddress
import json
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="pip install 'kmidi-mlx[live]'")
pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytest.importorskip("PIL.Image", reason="pip install pillow")

from browsing import (
    browser,
    drag_on_pad,
    faults,
    keep_picture,
    look,
    needs_browser,
    opened,
    until,
    watch,
)
from live_client import LiveClient
from live_program import TOKEN, MidiAccount, Program, status_of
from small_concert import GENERATOR, SPECTOCLOUD, save_checkpoint

pytestmark = needs_browser

__all__ = ["browser", "faults"]

DESKTOP = {"width": 1000, "height": 640}
# so long a context takes seconds to warm up, in which a page shows that it does
WARMING_UP = replace(GENERATOR, model=replace(GENERATOR.model, context_length=8192))
BEAT = 50

# What the page was told of the music, kept from now on.
WATCH_PLANS = """() => {
  window.plans = [];
  kmidi.link.addEventListener("plan", ({ detail }) => {
    plans.push(detail);
    if (plans.length > 200) plans.shift();
  });
}"""
# Every title of the veil from now on.
WATCH_VEIL = """() => {
  window.titles = [];
  const title = document.getElementById("veil-title");
  const note = () => titles.at(-1) !== title.textContent && titles.push(title.textContent);
  new MutationObserver(note).observe(title, { childList: true, subtree: true });
}"""


@pytest.fixture(scope="module")
def account() -> Iterator[MidiAccount]:
    listening = MidiAccount()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, account: MidiAccount) -> Iterator[Program]:
    folder = tmp_path_factory.mktemp("live")
    save_checkpoint(folder / "generator", WARMING_UP)
    save_checkpoint(folder / "spectocloud", SPECTOCLOUD)
    flags = {
        "--generator": "generator",
        "--spectocloud": "spectocloud",
        "--midi-out": f"socket:{account.port}",
    }
    # few clouds of few points: the browser draws without a graphics card beside it
    options = ("cloud.points=200", "loop.frames_per_second=15", "alerts.frames_per_second=1")
    started = Program(
        folder,
        *(part for flag in flags.items() for part in flag),
        *(part for option in options for part in ("--set", option)),
    )
    started.start()
    yield started
    started.close()


@pytest.fixture(scope="module")
def page(browser: Any, program: Program, faults: list[str]) -> Iterator[Any]:
    made = browser.new_page(viewport=DESKTOP)
    watch(made, faults)
    opened(made, program.url)
    made.evaluate(WATCH_PLANS)
    until(lambda: made.locator("#veil").is_hidden(), "the models are never ready", 60.0)
    yield made
    made.close()


@pytest.fixture
def playing(page: Any, program: Program) -> Any:
    """The page while music is heard."""
    program.ask("transport", action="play")
    until(lambda: plan(page)["steps_per_second"] > 0, "it does not play")
    return page


def plan(page: Any) -> dict[str, Any]:
    """The newest plan that the page was told."""
    until(lambda: page.evaluate("plans.length"), "the page is told no plan")
    newest: dict[str, Any] = page.evaluate("plans.at(-1)")
    return newest


def written(told: dict[str, Any], start: float, end: float) -> set[tuple[int, int, int]]:
    """Notes of a plan that begin between two steps."""
    return {(step, pitch, loud) for step, _, pitch, loud, _ in told["notes"] if start <= step < end}


def settled(page: Any) -> bool:
    """Whether the music ahead is long and was not written anew for most of a second."""
    told = page.evaluate("plans.slice(-8)")
    start, end = told[-1]["now_step"], min(last_step(each) for each in told)
    notes = [written(each, start, end) for each in told]
    return end > start + 4 * BEAT and all(each == notes[0] for each in notes)


def last_step(told: dict[str, Any]) -> int:
    return max((note[0] for note in told["notes"]), default=0)


def group(page: Any, title: str) -> None:
    """Open a group of the panel."""
    page.locator("#groups summary").filter(has_text=title).evaluate(
        "summary => (summary.parentElement.open = true)"
    )


def test_the_page_opens_and_its_key_goes_into_a_cookie(
    page: Any, program: Program, faults: list[str]
) -> None:
    assert page.title() == "KmiDi"
    assert page.url == f"http://127.0.0.1:{program.port}/"
    kept = [cookie for cookie in page.context.cookies() if cookie["value"] == TOKEN]
    assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in kept] == [(True, "Strict")]
    assert page.locator("#link").text_content() == "connected"
    assert not faults
    # nothing of this machine's folders is on show
    assert str(program.folder) not in page.locator("body").inner_text()


def test_music_is_heard_and_the_cloud_moves(playing: Any, account: MidiAccount) -> None:
    before = account.report()["on"]
    until(lambda: account.report()["on"] > before + 5, "no notes are sent")
    until(lambda: playing.evaluate("kmidi.cloud.felt !== null"), "no cloud is drawn")
    until(lambda: look(playing, "#stage").max() > 120, "the cloud is dark")
    first = look(playing, "#stage")
    until(
        lambda: (abs(look(playing, "#stage") - first).max(axis=2) > 12).mean() > 0.002,
        "it stands still",
    )
    until(lambda: look(playing, "#roll").max() > 200, "no notes are shown")
    keep_picture(playing, "live-desktop")


def test_a_drag_on_the_pad_changes_the_notes_from_the_next_beat_on(
    playing: Any, program: Program
) -> None:
    drag_on_pad(playing, (0.0, 0.0), (-0.8, -0.8))
    until(
        lambda: program.option("music.valence") == pytest.approx(-0.8, abs=0.03),
        "the feeling does not arrive",
    )
    until(lambda: settled(playing), "the plan is never settled")
    before = plan(playing)
    drag_on_pad(playing, (-0.8, -0.8), (0.9, 0.9))
    until(
        lambda: program.option("music.valence") == pytest.approx(0.9, abs=0.03),
        "the feeling does not arrive",
    )
    beat = BEAT * (int(before["now_step"]) // BEAT + 1)

    def changed() -> bool:
        after = plan(playing)
        end = min(last_step(before), last_step(after))
        return written(before, beat, end) != written(after, beat, end)

    until(changed, "the same notes follow")
    after = plan(playing)
    assert written(before, 0, beat) >= written(after, 0, beat)
    # the page is told of what ended in the last two bars
    earliest = after["now_step"] - 8 * BEAT
    assert written(before, earliest, beat) == written(after, earliest, beat)
    assert playing.locator("#pad").get_attribute("aria-valuetext").startswith("excited")


def test_no_note_is_missing_from_the_plan_around_now(playing: Any) -> None:
    until(lambda: settled(playing), "the plan is never settled")
    playing.evaluate("plans.length = 0")
    until(lambda: playing.evaluate("plans.length") > 25, "the page is told no plans")
    told = playing.evaluate("plans")
    followed = 0
    for before, after in pairwise(told):
        # what is due in the next message too is on its way to be heard, not gone
        due = written(before, before["now_step"] - 4 * BEAT, after["now_step"] + 5)
        assert due <= written(after, 0, last_step(before) + 1)
        followed += len(due)
    assert followed > 0


def test_what_is_set_in_the_panel_arrives(playing: Any, program: Program) -> None:
    group(playing, "Imagination")
    group(playing, "Cloud")
    playing.get_by_label("Tempo").focus()
    playing.keyboard.press("ArrowLeft")
    playing.get_by_label("Temperature").focus()
    playing.keyboard.press("ArrowRight")
    chords = playing.get_by_label("Chords, one a bar")
    chords.fill("C Am F G")
    chords.press("Enter")
    playing.get_by_role("button", name="New seed").click()
    playing.get_by_role("radio", name="600", exact=True).check(force=True)
    wanted = {
        "music.tempo": 119.0, "sampling.temperature": 0.86, "music.chords": "C Am F G",
        "cloud.points": 600,
    }  # fmt: skip

    def arrived() -> bool:
        options = {item["name"]: item["value"] for item in program.ask("describe")["options"]}
        return options.items() >= wanted.items() and options["music.seed"] != 0

    until(arrived, f"not all of {wanted} arrived")
    until(lambda: plan(playing)["steps_per_second"] == pytest.approx(99.2, abs=0.1), "no slower")
    chords.fill("C Am F Xyz")
    chords.press("Enter")
    fault = playing.locator(".fault:visible")
    until(lambda: fault.count() == 1, "the refusal is not shown")
    assert "Xyz" in fault.text_content()
    assert program.option("music.chords") == "C Am F G"
    chords.fill("C Am F G")
    chords.press("Enter")
    until(lambda: fault.count() == 0, "the refusal stays")
    program.ask("set", **{"cloud.points": 200})


def test_two_browsers_see_the_same(playing: Any, browser: Any, program: Program) -> None:
    other = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True).new_page()
    try:
        opened(other, program.url)
        until(lambda: other.evaluate("kmidi.cloud.felt !== null"), "the second gets no cloud")
        playing.get_by_role("button", name="gloomy", exact=True).click()
        until(
            lambda: (other.locator("#pad").get_attribute("aria-valuetext") or "")[:6] == "gloomy",
            "the second is not told",
        )
        assert program.ask("get_performance_stats")["clients"] >= 2
        assert other.evaluate("document.documentElement.scrollWidth") == 390
        for button in other.locator("#dock button:visible").all():
            box = button.bounding_box()
            assert 0 <= box["x"] <= 390 - box["width"]
            assert box["y"] + box["height"] <= 844
        until(lambda: look(other, "#stage").max() > 100, "the cloud is dark")
        keep_picture(other, "live-phone")
    finally:
        other.context.close()


def test_pause_is_silent_and_goes_on_where_it_was(playing: Any, account: MidiAccount) -> None:
    playing.locator("#pad").focus()
    playing.keyboard.press(" ")
    until(lambda: plan(playing)["steps_per_second"] == 0, "space does not pause")
    until(lambda: account.report()["sounding"] == 0, "notes go on sounding")
    held, heard = plan(playing), account.report()["on"]
    count = playing.evaluate("plans.length + plans.reduce((sum, plan) => sum + plan.time, 0)")
    until(
        lambda: (
            playing.evaluate("plans.length + plans.reduce((sum, plan) => sum + plan.time, 0)")
            != count
        ),
        "no more plans",
    )
    assert plan(playing)["now_step"] == held["now_step"]
    assert account.report()["on"] == heard
    playing.keyboard.press(" ")
    until(lambda: plan(playing)["steps_per_second"] > 0, "space does not play")
    until(lambda: account.report()["on"] > heard, "nothing more is heard")
    first = next(told for told in playing.evaluate("plans") if told["now_step"] > held["now_step"])
    assert first["now_step"] < held["now_step"] + 4 * BEAT


def test_a_recording_is_written(playing: Any, program: Program) -> None:
    record = playing.locator("#record")
    record.click()
    until(lambda: record.get_attribute("aria-pressed") == "true", "it does not record")
    takes = program.folder / "takes"
    until(lambda: list(takes.glob("*/clouds.kmc")), "nothing is written")
    (take,) = takes.iterdir()
    until(lambda: (take / "clouds.kmc").stat().st_size > 20_000, "no clouds are recorded")
    record.click()
    until(lambda: record.get_attribute("aria-pressed") == "false", "it does not stop")
    shown = playing.get_by_role("list", name="Files written")
    until(lambda: shown.get_by_role("listitem").count() == 4, "the files are not listed")
    assert {path.name for path in take.iterdir()} == {
        "music.mid", "sound.wav", "clouds.kmc", "take.json",
    }  # fmt: skip
    assert json.loads((take / "take.json").read_text())
    assert (take / "sound.wav").stat().st_size > 44_100
    keep_picture(playing, "live-recorded")

    # what was recorded can be listened to, and nothing outside of that folder
    group(playing, "Cloud")
    listens = playing.get_by_label("Listens to", exact=True)
    typed = playing.get_by_label("Listens to: A sound file")
    listens.select_option(label="A sound file")
    typed.fill("../generator/best.safetensors")
    typed.press("Enter")
    fault = playing.locator(".fault:visible", has_text="is not in the folder")
    until(lambda: fault.count() == 1, "the refusal is not shown")
    assert str(program.folder) not in fault.text_content()
    recorded = f"{take.name}/sound.wav"
    typed.fill(recorded)
    typed.press("Enter")
    until(lambda: program.option("cloud.listen") == recorded, "it does not listen")
    until(lambda: fault.count() == 0, "the refusal stays")
    until(lambda: listens.input_value() == recorded, "the file is not shown")
    listens.select_option(label="The music itself")
    until(lambda: program.option("cloud.listen") == "", "it goes on listening")


def test_keys_of_the_keyboard(playing: Any, program: Program) -> None:
    playing.locator("#pad").focus()
    before = program.option("music.arousal")
    playing.keyboard.press("ArrowDown")
    until(lambda: program.option("music.arousal") < before, "arrows do not move the feeling")
    was_on = playing.evaluate("kmidi.sound.on")
    playing.keyboard.press("m")
    until(lambda: playing.evaluate("kmidi.sound.on") is not was_on, "M changes no sound")
    playing.keyboard.press("h")
    until(lambda: playing.locator("#panel").is_hidden(), "H does not hide the panels")
    keep_picture(playing, "live-cloud-alone")
    playing.keyboard.press("h")
    playing.keyboard.press("?")
    until(lambda: playing.locator("#help").is_visible(), "? does not help")
    playing.keyboard.press("Escape")
    until(lambda: playing.locator("#help").is_hidden(), "the help stays")


def test_panic_and_stop_leave_silence(playing: Any, program: Program, account: MidiAccount) -> None:
    with LiveClient(program.port, TOKEN) as ears:
        ears.subscribe("sound")

        def loudness() -> int:
            ears.frames.clear()
            ears.read_until(lambda: len(ears.frames) >= 20, 20.0)
            return max(int(abs(frame.rows.astype(np.int32)).max()) for frame in ears.frames)

        until(lambda: loudness() > 100, "nothing is heard")
        playing.locator("#pad").focus()
        playing.keyboard.press("s")
        until(lambda: account.report()["sounding"] == 0, "notes go on sounding")
        until(lambda: loudness() == 0, "the sound does not end", 40.0)
    heard = account.report()
    assert heard["on"] > 20
    assert heard["twice"] == heard["hanging"] == 0
    assert heard["strange"] == []
    assert plan(playing)["notes"] == []
    assert "Play" in playing.locator("#play").text_content()


def test_it_comes_back_by_itself_and_shows_that_it_loads(
    playing: Any, browser: Any, program: Program, account: MidiAccount, faults: list[str]
) -> None:
    assert faults == []
    eager = browser.new_page(viewport=DESKTOP)
    opened(eager, program.url)
    eager.evaluate(WATCH_VEIL)
    program.end(signal.SIGKILL)
    until(lambda: playing.locator("#veil").is_visible(), "the loss is not shown")
    assert playing.locator("#veil-title").text_content() == "No connection to the player"
    assert playing.locator("#link").text_content() == "not connected"
    assert playing.locator("#panel").evaluate("element => element.inert")
    keep_picture(playing, "live-no-connection")
    hanging = account.report()["hanging"]

    # one page waits its time, the other is told to try at once
    program.start("--lan")
    until(
        lambda: (
            eager.evaluate("kmidi.link.reconnect()")
            or "Loading the models" in eager.evaluate("titles")
        ),
        "that it loads is not shown",
        60.0,
    )
    keep_picture(eager, "live-loading")
    until(
        lambda: playing.evaluate("document.body.dataset.link") == "open",
        "it does not come back by itself",
        30.0,
    )
    for each in (eager, playing):
        until(lambda each=each: each.locator("#veil").is_hidden(), "the veil stays", 60.0)
    eager.close()
    until(lambda: plan(playing)["steps_per_second"] > 0, "it does not play again")
    playing.get_by_role("button", name="tender", exact=True).click()
    until(lambda: program.ask("describe") and tender(program), "commands do not get through")

    # ended as by Ctrl-C or a service manager, while it plays
    until(lambda: account.report()["sounding"] > 0, "nothing sounds")
    visit_over_the_network(browser, program)
    assert program.end() == 0
    until(lambda: account.report()["open"] == 0, "the port stays open")
    assert account.report()["hanging"] == hanging


def tender(program: Program) -> bool:
    labels = program.ask("describe")["labels"]
    return [program.option(f"music.{name}") for name in ("valence", "arousal")] == labels["tender"]


def visit_over_the_network(browser: Any, program: Program) -> None:
    """As a phone would: by another address of this machine, with the token and without."""
    address = own_address()
    if address is None:
        return
    (told,) = [line for line in program.said if line.startswith("from other machines: ")]
    assert f":{program.port}/?token={TOKEN}" in told
    url = f"http://{address}:{program.port}/"
    assert status_of(url) == 401
    assert status_of(f"{url}?token={TOKEN[::-1]}") == 401
    phone = browser.new_context(viewport={"width": 360, "height": 740}).new_page()
    try:
        opened(phone, f"{url}?token={TOKEN}")
        assert phone.url == url
        until(lambda: phone.evaluate("kmidi.cloud.felt !== null"), "no cloud comes")
    finally:
        phone.context.close()


def own_address() -> str | None:
    """An address of this machine that others might reach; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a test address (RFC 5737); nothing is sent
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if ipaddress.ip_address(address).is_loopback else address


def test_the_artefacts_are_kept_out_of_git() -> None:
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().split()
    assert "/out/" in ignored
