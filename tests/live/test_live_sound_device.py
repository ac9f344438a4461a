"""Sound cards of a double: what is played, what is heard, and cards that are not or go away."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sound_card_double import CardsDouble, Stream

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import sound_device
from kmidi_mlx.live.listening import InputListening, listen_to
from kmidi_mlx.live.sinks import PortLostError
from kmidi_mlx.live.sound import SoundFan
from kmidi_mlx.live.sound_device import SoundDevice, list_devices

RATE, BLOCK = 44_100, 882
CARDS = [("Built-in Microphone", 1, 0), ("Built-in Output", 0, 2), ("USB Headset", 2, 1)]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> CardsDouble:
    library = CardsDouble(list(CARDS))
    library.default.device = [0, 1]
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    monkeypatch.setattr(sound_device, "_broken", False)
    monkeypatch.setattr(sound_device, "_opened", 0)
    return library


def ignore(error: Exception) -> None:
    pytest.fail(f"lost: {error}")


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.002)


class Source(threading.Thread):
    """A kilohertz, on time."""

    def __init__(self, fan: SoundFan) -> None:
        super().__init__(daemon=True)
        self.fan = fan
        self.given = 0
        self.stopping = threading.Event()
        self.start()

    def run(self) -> None:
        begun = time.monotonic()
        while not self.stopping.wait(max(0.0, begun + self.given / RATE - time.monotonic())):
            wave = 16_000 * np.sin(2 * np.pi * 1000 * (self.given + np.arange(BLOCK)) / RATE)
            block = np.repeat(wave[:, None], 2, axis=1).astype(np.int16)
            self.fan.put(block, begun + self.given / RATE + 0.04)
            self.given += BLOCK

    def stop(self) -> None:
        self.stopping.set()
        self.join()


def test_devices_are_listed_the_usual_one_first(cards: CardsDouble) -> None:
    cards.default.device = [2, 2]
    assert list_devices() == {
        "inputs": ["USB Headset", "Built-in Microphone"],
        "outputs": ["USB Headset", "Built-in Output"],
    }
    # what is plugged in later is found
    cards.cards.append(("BlackHole 16ch", 16, 16))
    assert "BlackHole 16ch" in list_devices()["inputs"]
    assert cards.initialised == 1
    # one name for the same card, whatever reaches it
    cards.cards.append(("USB Headset", 2, 2))
    assert list_devices()["inputs"].count("USB Headset") == 1


def test_listing_never_raises(cards: CardsDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, list[str]] = {"inputs": [], "outputs": []}
    cards.apis = [{}]
    assert list_devices() == nothing
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert list_devices() == nothing


@pytest.mark.parametrize("rates", [(), (48_000,)])
@pytest.mark.parametrize("name", ["default", "headset"])
def test_a_card_plays_what_the_fan_hands_out(
    cards: CardsDouble, name: str, rates: tuple[int, ...]
) -> None:
    cards.rates = rates
    fan = SoundFan()
    source = Source(fan)
    device = SoundDevice(fan, name, ignore)
    (stream,) = cards.streams
    wait_for(lambda: sum(map(len, stream.written)) > 0.8 * stream.samplerate)
    device.close()
    device.close()
    source.stop()
    assert device.name == ("Built-in Output" if name == "default" else "USB Headset")
    assert stream.closed
    assert stream.samplerate == (48_000 if rates else 44_100)
    played = np.concatenate(stream.written)
    assert played.shape[1] == (2 if name == "default" else 1)
    begin = int(np.argmax(np.abs(played[:, 0]) > 0.1))
    # silence first, so that blocks may come late
    assert 0.03 < begin / stream.samplerate < 0.15
    sound = played[begin + 500 : begin + 500 + int(0.5 * stream.samplerate), 0]
    index = np.arange(len(sound))
    turns = np.exp(-2j * np.pi * 1000 * index / stream.samplerate)
    assert 2 * np.abs((sound * turns).mean()) == pytest.approx(16_000 / 32_768, rel=0.02)
    if device.gaps == device.underruns == 0:
        # nothing else is heard than the kilohertz: no clicks
        rest = np.sqrt(np.mean(sound**2) - np.abs((sound * turns).mean()) ** 2 * 2)
        assert rest < 0.02


def test_a_pause_of_the_source_is_no_underrun(cards: CardsDouble) -> None:
    fan = SoundFan()
    device = SoundDevice(fan, "", ignore)
    (stream,) = cards.streams
    for _ in range(2):
        source = Source(fan)
        wait_for(lambda: source.given > 5 * BLOCK)  # noqa: B023
        source.stop()
        time.sleep(0.35)
    written = len(stream.written)
    device.close()
    assert written > 10
    assert device.underruns == 0


def test_a_card_that_starved_is_counted(
    cards: CardsDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "capacity", 4096)  # 93 ms
    fan = SoundFan()
    device = SoundDevice(fan, "", ignore)
    moment = time.monotonic()
    for gap in (0.0, 0.0, 0.12, 0.0):
        time.sleep(gap)
        moment += gap
        fan.put(np.zeros((BLOCK, 2), np.int16), moment)
        moment += BLOCK / RATE
    wait_for(lambda: device.underruns)
    device.close()
    assert device.gaps == 1


def test_a_microphone_is_heard_at_its_time(cards: CardsDouble) -> None:
    cards.rates = (48_000,)
    listening = listen_to("input", ignore)
    assert isinstance(listening, InputListening)
    assert listening.name == "Built-in Microphone"
    reader = listening.fan.reader(100)
    begun = time.monotonic()
    blocks = [reader.read(2.0) for _ in range(20)]
    listening.close()
    listening.close()
    assert cards.streams[0].closed
    samples = np.concatenate([block.samples for block in blocks if block])
    assert (samples[:, 0] == samples[:, 1]).all()
    spectrum = np.abs(np.fft.rfft(samples[:, 0] * np.hanning(len(samples))))
    assert spectrum.argmax() * RATE / len(samples) == pytest.approx(1000, abs=3)
    for index, block in enumerate(blocks):
        assert block is not None
        assert block.time_monotonic == pytest.approx(begun + 0.02 * index, abs=0.1)
    assert listening.overruns == 0


def test_what_there_is_not_is_one_sentence(cards: CardsDouble) -> None:
    with pytest.raises(KmidiError, match="no sound card called 'Bose'; there are: Built-in Out"):
        SoundDevice(SoundFan(), "Bose", ignore)
    cards.cards.append(("Built-in Line", 2, 0))
    with pytest.raises(KmidiError, match="fits more than one microphone or input: Built-in"):
        listen_to("input:built", ignore)
    listen_to("input:built-in microphone", ignore).close()
    cards.refuse = True
    with pytest.raises(KmidiError, match="cannot be opened: Device unavailable; it may be in use"):
        listen_to("input:Headset", ignore)
    assert all(stream.closed for stream in cards.streams)
    cards.cards.clear()
    with pytest.raises(KmidiError, match="no microphone or input; plug one in"):
        listen_to("input", ignore)
    assert cards.initialised == 1


def test_a_missing_package_or_library_is_said(
    cards: CardsDouble, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(KmidiError, match=r"pip install 'kmidi-mlx\[sound\]'"):
        SoundDevice(SoundFan(), "default", ignore)
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sounddevice")
    with pytest.raises(KmidiError, match="apt-get install libportaudio2"):
        listen_to("input", ignore)


@pytest.mark.parametrize("how", ["unplugged", "stuck"])
@pytest.mark.parametrize("which", ["card", "microphone"])
def test_what_goes_away_is_said_once(
    cards: CardsDouble, monkeypatch: pytest.MonkeyPatch, how: str, which: str
) -> None:
    monkeypatch.setattr(sound_device, "_GONE_SECONDS", 0.2)
    lost: list[Exception] = []

    def on_lost(error: Exception) -> None:
        lost.append(error)
        device.close()

    fan = SoundFan()
    source = Source(fan)
    device: SoundDevice | InputListening
    if which == "card":
        device = SoundDevice(fan, "Headset", on_lost)
    else:
        device = listen_to("input:Headset", on_lost)  # type: ignore[assignment]
    time.sleep(0.1)
    assert lost == []
    if how == "unplugged":
        cards.plugged = False
    else:
        cards.stuck_at = time.monotonic()
    wait_for(lambda: lost)
    device.close()
    source.stop()
    (error,) = lost
    assert isinstance(error, PortLostError)
    assert str(error).startswith("USB Headset went away; choose another")
    # it can be used again when it is back
    cards.plugged, cards.stuck_at = True, 0.0
    again = SoundDevice(fan, "Headset", ignore)
    again.close()


def test_a_driver_that_hangs_holds_up_nobody(
    cards: CardsDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_device, "_CLOSING_SECONDS", 0.1)
    left: list[object] = []
    monkeypatch.setattr(sound_device.atexit, "unregister", left.append)
    device = SoundDevice(SoundFan(), "", ignore)
    cards.may_close.clear()
    begun = time.monotonic()
    device.close()
    assert time.monotonic() - begun < 1.0
    # the process may end without asking the driver again
    assert left == [cards._exit_handler]
    assert list_devices() == {"inputs": [], "outputs": []}
    with pytest.raises(KmidiError, match="start kmidi again"):
        SoundDevice(SoundFan(), "", ignore)
    cards.may_close.set()


@pytest.mark.parametrize("lost", [False, True])
def test_a_jack_server_that_is_gone_is_not_asked_to_end(
    cards: CardsDouble, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    left: list[object] = []
    said: list[Exception] = []
    monkeypatch.setattr(sound_device.atexit, "unregister", left.append)
    cards.apis = [{"name": "ALSA"}, {"name": "JACK Audio Connection Kit"}]

    def abort() -> None:
        raise AssertionError("PortAudio aborts the process here")

    monkeypatch.setattr(cards, "_terminate", abort)
    device = SoundDevice(SoundFan(), "", said.append)
    if lost:
        cards.plugged = False
        wait_for(lambda: said)
    device.close()
    assert list_devices()["inputs"]
    assert left == [cards._exit_handler] * lost
