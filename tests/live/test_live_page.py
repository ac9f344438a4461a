"""The page in a real browser: what a person sees, does and hears, with a double behind it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="pip install 'kmidi-mlx[live]'")
pytest.importorskip("playwright.sync_api", reason="pip install playwright")

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
from stage_double import PlayingDouble

from kmidi_mlx.live import server as server_module
from kmidi_mlx.live.server import Server

WEB = Path(server_module.__file__).parent / "web"
TOKEN = "a-token-for-the-page"
__all__ = ["browser", "faults"]

DESKTOP = {"width": 1000, "height": 640}


@pytest.fixture(scope="module")
def stage() -> Iterator[PlayingDouble]:
    # few clouds a second: the browser draws without a graphics card beside it
    double = PlayingDouble(frames_per_second=12)
    double.session.apply("set", {"cloud.points": 600})
    double.start()
    yield double
    double.stop()


@pytest.fixture(scope="module")
def server(stage: PlayingDouble) -> Iterator[Server]:
    serving = Server(stage, token=TOKEN)
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture(scope="module")
def page(browser: Any, server: Server, faults: list[str]) -> Iterator[Any]:
    made = browser.new_page(viewport=DESKTOP)
    watch(made, faults)
    opened(made, server.url)
    yield made
    keep_picture(made, "page")
    made.close()


def emotions(stage: PlayingDouble) -> list[tuple[float, float]]:
    sent = [arguments for command, arguments in stage.applied if command == "update_emotion"]
    return [(arguments["valence"], arguments["arousal"]) for arguments in sent]


@needs_browser
def test_the_page_loads_without_a_complaint(page: Any, faults: list[str]) -> None:
    until(lambda: page.evaluate("kmidi.cloud.felt !== null"), "no cloud was drawn")
    assert page.title() == "KmiDi"
    assert page.locator("#veil").is_hidden()
    assert page.locator("#mood-word").text_content()
    assert "no network is at work" in page.locator("#notices").text_content()
    assert not faults


@needs_browser
def test_the_cloud_moves_and_shines(page: Any) -> None:
    until(lambda: page.evaluate("kmidi.cloud.felt !== null"), "no cloud was drawn")
    time.sleep(0.5)
    before = look(page, "#stage")
    assert before.max() > 150
    assert (before.max(axis=2) > 40).mean() > 0.005
    until(
        lambda: (abs(look(page, "#stage") - before).max(axis=2) > 12).mean() > 0.005,
        "it stands still",
    )


@needs_browser
def test_the_roll_shows_notes_left_and_right_of_now(page: Any) -> None:
    until(lambda: look(page, "#roll").max() > 200, "no notes are shown")
    roll = look(page, "#roll")
    lit = roll[24:].max(axis=2) > 90
    now = int(0.45 * roll.shape[1])
    assert lit[:, : now - 8].any()
    assert lit[:, now + 8 :].any()


@needs_browser
def test_dragging_the_pad_sends_where_it_was_dragged(page: Any, stage: PlayingDouble) -> None:
    count = len(emotions(stage))
    drag_on_pad(page, (0.0, 0.0), (-0.5, 0.7))
    until(
        lambda: (
            len(emotions(stage)) > count
            and emotions(stage)[-1] == pytest.approx((-0.5, 0.7), abs=0.02)
        ),
        f"the last emotion is {emotions(stage)[-1:]}",
    )
    assert stage.session.settings.music.valence == pytest.approx(-0.5, abs=0.02)
    assert page.locator("#pad").get_attribute("aria-valuetext").startswith("tense: valence -0.5")


@needs_browser
def test_arrows_and_presets_move_the_feeling(page: Any, stage: PlayingDouble) -> None:
    page.get_by_role("button", name="calm", exact=True).click()
    until(lambda: emotions(stage)[-1] == (0.5, -0.6), "the preset was not sent")
    page.locator("#pad").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowUp")
    until(lambda: emotions(stage)[-1] == pytest.approx((0.55, -0.4)), "the arrows were not sent")


@needs_browser
def test_keys_play_pause_and_help(page: Any, stage: PlayingDouble) -> None:
    page.locator("#pad").focus()
    page.keyboard.press(" ")
    until(lambda: stage.session.transport == "paused", "space does not pause")
    until(lambda: "Go on" in page.locator("#play").text_content(), "the button says nothing of it")
    page.keyboard.press(" ")
    until(lambda: stage.session.transport == "playing", "space does not play")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    keep_picture(page, "help")
    page.keyboard.press("Escape")
    assert page.locator("#help").is_hidden()


@needs_browser
def test_a_setting_is_sent_and_a_refusal_is_said_beside_it(page: Any, stage: PlayingDouble) -> None:
    page.get_by_label("Tempo").focus()
    page.keyboard.press("ArrowRight")
    until(lambda: stage.session.settings.music.tempo == 121.0, "the tempo was not sent")
    stage.session.apply("set", {"sampling.highest_pitch": 60})
    lowest = page.get_by_label("Lowest note")
    until(lambda: page.get_by_label("Highest note").input_value() == "60", "not told of a change")
    lowest.focus()
    page.keyboard.press("End")
    fault = page.locator(".fault:visible")
    until(lambda: fault.count() == 1, "the refusal is not shown")
    assert "above highest_pitch 60" in fault.text_content()
    until(lambda: lowest.input_value() == "21", "the refused value stays")


@needs_browser
def test_sound_reaches_the_audio_thread(page: Any) -> None:
    if not page.evaluate("kmidi.sound.on"):
        page.locator("#sound").click()
    until(lambda: page.evaluate("kmidi.sound.report.blocks") > 40, "no blocks arrive")
    until(lambda: page.evaluate("kmidi.sound.report.playing"), "nothing is played")
    report = page.evaluate("kmidi.sound.report")
    lag = page.evaluate("kmidi.link.clock.now() - kmidi.sound.report.heardTime")
    assert 0.0 < report["bufferedSeconds"] < 0.5
    assert 0.0 < lag < 1.5
    # a busy machine may be late now and then, not most of the time
    assert report["underruns"] < report["blocks"] / 10
    page.keyboard.press("m")
    until(lambda: not page.evaluate("kmidi.sound.on"), "sound stays on")


@needs_browser
def test_devices_are_chosen_or_typed(page: Any, stage: PlayingDouble) -> None:
    page.evaluate("for (const group of document.querySelectorAll('details')) group.open = true")
    ports = lambda: stage.session.settings.ports  # noqa: E731
    keyboard = page.get_by_label("Keyboard", exact=True)
    until(lambda: keyboard.locator("option").count() == 4, "the ports are not offered")
    keyboard.select_option("Stage Piano")
    until(lambda: ports().input == "Stage Piano", "the keyboard was not sent")
    channel = page.get_by_label("MIDI channel")
    assert channel.is_hidden()
    page.get_by_label("Play on", exact=True).select_option(label="Another program, by network")
    page.keyboard.type("socket:9000")
    page.keyboard.press("Enter")
    until(lambda: ports().output == "socket:9000", "what was typed was not sent")
    until(channel.is_visible, "the channel cannot be chosen")
    feel = page.get_by_label("Let what is heard set the emotion")
    assert feel.is_disabled()
    page.get_by_label("Listens to", exact=True).select_option(label="Microphone")
    until(lambda: stage.session.settings.cloud.listen == "input:Microphone", "it does not listen")
    until(feel.is_enabled, "it cannot set the emotion")
    # chosen elsewhere, and gone by now: still shown
    stage.session.apply("set", {"ports.input": "", "sound.device": "Old Speakers"})
    until(lambda: keyboard.input_value() == "", "not told of a change")
    card = page.get_by_label("Sound card of the player")
    until(lambda: card.input_value() == "Old Speakers", "the card is not shown")
    page.get_by_label("With a keyboard").select_option("duet")
    hint = page.get_by_text("Without a keyboard there is nobody to answer")
    until(hint.is_visible, "a duet with nobody is not explained")
    stage.session.apply(
        "set",
        {"ports.output": "", "cloud.listen": "", "sound.device": "", "music.mode": "compose"},
    )


@needs_browser
def test_notices_fold_into_their_sign(page: Any, stage: PlayingDouble) -> None:
    stage.session.notice("practice", "warning", "The notes are practice.")
    stage.session.notice("fps", "warning", "9 clouds a second are drawn, below 55.")
    notice = page.locator(".notice", has_text="The notes are practice.")
    sign = page.get_by_role("button", name="Notice: The notes are practice.")
    until(sign.is_visible, "it is not shown")
    sign.click()
    until(notice.locator("p").is_hidden, "it does not fold")
    assert sign.get_attribute("aria-expanded") == "false"
    sign.click()
    until(notice.locator("p").is_visible, "it does not unfold")
    assert "9 clouds" not in page.locator("#notices").text_content()
    stage.session.notice("practice", "warning", None)
    stage.session.notice("fps", "warning", None)
    until(lambda: notice.count() == 0, "it stays")


@needs_browser
def test_what_gives_way_on_purpose_alarms_nobody(page: Any, stage: PlayingDouble) -> None:
    stage.session.apply("transport", {"action": "play"})
    stage.quality = (4, "a cloud every 6th frame")
    quality = page.locator(".strip dd").nth(0)
    until(lambda: quality.text_content() == "music first", "the strip does not say it")
    assert quality.get_attribute("data-grade") == "eased"
    assert "a cloud every 6th frame" in quality.get_attribute("aria-label")
    grades = page.locator(".strip dd").evaluate_all("cells => cells.map((c) => c.dataset.grade)")
    assert grades[1] == "eased"
    assert "bad" not in grades
    stage.quality = (0, "everything")
    until(lambda: quality.text_content() == "full", "the strip does not take it back")


@needs_browser
def test_sound_is_offered_until_somebody_plays_it(page: Any, stage: PlayingDouble) -> None:
    if page.evaluate("kmidi.sound.on"):
        page.locator("#sound").click()
    page.evaluate("localStorage.clear()")
    page.reload()
    wake = page.locator("#wake")
    until(wake.is_visible, "it is not offered")
    stage.session.apply("set", {"sound.device": "Speakers"})
    until(wake.is_hidden, "it is offered although a sound card plays")
    stage.session.apply("set", {"sound.device": ""})
    until(wake.is_visible, "it is not offered again")
    wake.click()
    until(lambda: page.evaluate("kmidi.sound.on"), "it is not turned on")
    until(wake.is_hidden, "it is still offered")


SINE_WITH_A_GAP = """async () => {
  const context = new OfflineAudioContext(2, 44100, 44100);
  await context.audioWorklet.addModule("sound-worklet.js");
  const options = {numberOfInputs: 0, outputChannelCount: [2]};
  const node = new AudioWorkletNode(context, "stream-player", options);
  node.connect(context.destination);
  const block = (k) => {
    const data = new Int16Array(2 * 882);
    for (let i = 0; i < 882; i += 1) {
      data[2 * i] = data[2 * i + 1] = 16000 * Math.sin(0.03 * (882 * k + i) + (k > 9 ? 2 : 0));
    }
    node.port.postMessage({block: data.buffer, sequence: k, time: 0.02 * k, sampleRate: 44100});
  };
  // Blocks 8 and 9 are lost, and the stream ends while it plays.
  context.suspend(0).then(() => {
    for (let k = 0; k < 18; k += 1) if (k !== 8 && k !== 9) block(k);
    setTimeout(() => context.resume(), 200);
  });
  const rendered = (await context.startRendering()).getChannelData(0);
  let step = 0, loudest = 0;
  for (let i = 1; i < rendered.length; i += 1) {
    step = Math.max(step, Math.abs(rendered[i] - rendered[i - 1]));
    loudest = Math.max(loudest, Math.abs(rendered[i]));
  }
  let last = rendered.length;
  while (last && rendered[last - 1] === 0) last -= 1;
  return {step, loudest, seconds: last / 44100};
}"""


@needs_browser
def test_gaps_and_the_end_of_the_stream_do_not_click(page: Any) -> None:
    heard = page.evaluate(SINE_WITH_A_GAP)
    assert heard["loudest"] == pytest.approx(16000 / 32768, rel=0.02)
    assert 0.3 < heard["seconds"] < 0.34
    # the sine itself moves by 0.03 of its height a sample, a fade of 6 ms adds little
    assert heard["step"] < 1.4 * 0.03 * heard["loudest"]


@needs_browser
def test_every_control_has_a_name(page: Any) -> None:
    page.evaluate("for (const group of document.querySelectorAll('details')) group.open = true")
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    wanted = {"button", "slider", "textbox", "combobox", "checkbox", "radio", "radiogroup"}
    controls = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in wanted
    ]
    assert len(controls) > 30
    assert [control for control in controls if not control[1].strip()] == []


@needs_browser
def test_the_cloud_survives_a_lost_context(page: Any) -> None:
    page.evaluate(
        "window.loss = document.getElementById('cloud').getContext('webgl2')"
        ".getExtension('WEBGL_lose_context'); loss.loseContext()"
    )
    until(lambda: not page.evaluate("kmidi.cloud.drawing"), "the loss is not noticed")
    page.evaluate("loss.restoreContext()")
    until(lambda: page.evaluate("kmidi.cloud.drawing"), "it does not come back")
    until(lambda: look(page, "#stage").max() > 120, "nothing is drawn any more")


@needs_browser
@pytest.mark.parametrize(
    ("width", "height", "motion"), [(390, 844, "no-preference"), (360, 640, "reduce")]
)
def test_a_phone_has_all_within_reach(
    browser: Any, server: Server, faults: list[str], width: int, height: int, motion: str
) -> None:
    view = {"width": width, "height": height}
    page = browser.new_page(viewport=view, has_touch=True, reduced_motion=motion)
    watch(page, faults)
    opened(page, server.url)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("document.getElementById('panel').scrollWidth") <= width
    pad = page.locator("#pad").bounding_box()
    assert pad["width"] > 0.85 * width
    assert pad["height"] > 200
    assert page.locator("#stage").bounding_box()["y"] < page.locator("#pad").bounding_box()["y"]
    for button in page.locator("#dock button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
        assert min(box["width"], box["height"]) >= 40
    # the camera stands still for people who want no motion
    assert page.evaluate("kmidi.cloud.camera.swings") is (motion != "reduce")
    keep_picture(page, f"phone-{width}")
    page.close()


@needs_browser
def test_it_comes_back_when_the_server_does(browser: Any, stage: PlayingDouble) -> None:
    first = Server(stage, token=TOKEN)
    first.start()
    page = browser.new_page(viewport={"width": 800, "height": 500})
    opened(page, first.url)
    first.stop()
    until(lambda: page.locator("#veil").is_visible(), "the loss is not shown")
    assert "No connection" in page.locator("#veil-title").text_content()
    assert page.locator("#panel").evaluate("element => element.inert")
    keep_picture(page, "no-connection")
    second = Server(stage, port=first.port, token=TOKEN)
    second.start()
    until(lambda: page.evaluate("document.body.dataset.link") == "open", "it does not come back")
    until(lambda: page.locator("#veil").is_hidden(), "the veil stays")
    count = len(emotions(stage))
    page.get_by_role("button", name="tender", exact=True).click()
    until(lambda: len(emotions(stage)) > count, "commands do not get through")
    page.close()
    second.stop()


@needs_browser
def test_a_page_whose_key_is_of_yesterday_is_told_so(browser: Any, stage: PlayingDouble) -> None:
    first = Server(stage, token=TOKEN)
    first.start()
    page = browser.new_page(viewport={"width": 800, "height": 500})
    opened(page, first.url)
    first.stop()
    second = Server(stage, port=first.port, token="a-token-of-tomorrow")
    second.start()
    title = page.locator("#veil-title")
    until(lambda: "key" in (title.text_content() or ""), "the reason is not told")
    page.close()
    second.stop()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    for path in WEB.iterdir():
        text = path.read_text()
        assert len(text.splitlines()) < 400, path.name
        urls = set(re.findall(r"https?://[^\s\"'`)]+", text))
        assert urls <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.search(r"\b(eval|innerHTML|document\.write)\b", text), path.name
    html = (WEB / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == [""]
