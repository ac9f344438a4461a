"""Real ports: those of a JACK server with its dummy driver, which the tests start and kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from port_ears import OFF, ON, Ear, wait_for

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.keyboard import KeyboardInput
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.ports import list_ports, open_input, open_output
from kmidi_mlx.live.sinks import MidiSink, PortLostError

pytest.importorskip("rtmidi", reason="pip install python-rtmidi")
pytestmark = pytest.mark.skipif(
    shutil.which("jackd") is None or shutil.which("jack_connect") is None,
    reason="apt-get install --no-install-recommends jackd2",
)


def jack(program: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=10, check=False
    )
    return done.stdout.splitlines()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    # the same name each time: JACK keeps room for eight, and frees a killed one's by its name only
    name = f"kmidi-ports-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    monkeypatch.setenv("JACK_DEFAULT_SERVER", name)
    process = subprocess.Popen(
        ["jackd", "--no-realtime", "--name", name, "-d", "dummy", "-r", "44100", "-p", "256"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: "system:playback_1" in jack("jack_lsp"))
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            # it waits for clients that were killed
            process.kill()
            process.wait()
    for left in Path("/dev/shm").glob(f"*{name}*"):
        left.unlink()


def test_a_new_port_is_seen_and_heard_by_others(server: subprocess.Popen[bytes]) -> None:
    ear = Ear()
    output = open_output("virtual")
    listening = open_input("virtual", ear.hear, ear.lost.append)
    assert output.name == listening.name == "KmiDi"
    wait_for(lambda: len([port for port in jack("jack_lsp") if "KmiDi" in port]) == 2)
    # our own are not offered to ourselves
    assert list_ports() == {"inputs": ["virtual"], "outputs": ["virtual"]}
    ports = sorted(port for port in jack("jack_lsp") if "KmiDi" in port)
    assert ports == ["KmiDi-01:KmiDi", "KmiDi:KmiDi"]
    jack("jack_connect", *ports[::-1])
    took = []
    for count in range(1, 21):
        before = time.monotonic()
        output.send(ON if count % 2 else OFF)
        wait_for(lambda count=count: len(ear.heard) == count)
        took.append(ear.heard[-1][1] - before)
    assert ear.messages == [ON, OFF] * 10
    # two cycles of the server are 12 ms
    assert sorted(took)[10] < 0.03
    output.send(ON)
    output.close()
    wait_for(lambda: ear.messages[-4:] == [OFF, b"\xb0\x40\0", b"\xb0\x7b\0", b"\xb0\x78\0"])
    listening.close()
    wait_for(lambda: not [port for port in jack("jack_lsp") if "KmiDi" in port])
    assert ear.lost == []


@pytest.fixture
def synth(server: subprocess.Popen[bytes]) -> Iterator[tuple[Ear, Callable[[bytes], None]]]:
    """Another program: a keyboard and a synthesiser, by the library itself."""
    import rtmidi

    ear = Ear()
    hears = rtmidi.MidiIn(rtmidi.API_UNIX_JACK, name="Other Synth")
    hears.open_virtual_port("in")
    hears.set_callback(lambda event, data: ear.hear(bytes(event[0]), time.monotonic()))
    plays = rtmidi.MidiOut(rtmidi.API_UNIX_JACK, name="Other Keys")
    plays.open_virtual_port("out")
    yield ear, plays.send_message
    hears.delete()
    plays.delete()


def test_a_named_port_is_played_on_and_listened_to(
    synth: tuple[Ear, Callable[[bytes], None]],
) -> None:
    heard, press = synth
    assert list_ports() == {
        "inputs": ["Other Keys:out", "virtual"],
        "outputs": ["Other Synth:in", "virtual"],
    }
    with pytest.raises(KmidiError, match="there are: Other Synth:in"):
        open_output("keys")
    output = open_output("synth")
    assert output.name == "Other Synth:in"
    output.send(ON)
    wait_for(lambda: heard.messages == [ON])

    keyboard, lost = KeyboardInput(), []
    listening = open_input("other keys", keyboard.receive, lost.append)
    before = time.monotonic()
    press(b"\xb0\x40\x7f")
    press(ON)
    press(OFF)
    press(b"\xe0\x00\x40")
    press(b"\xfe")
    press(b"\xb0\x40\x00")
    events = []
    wait_for(lambda: events.extend(keyboard.drain()) or len(events) == 2)
    assert [(event.pitch, event.velocity) for event in events] == [(60, 80), (60, 0)]
    assert before <= events[0].time <= events[1].time <= time.monotonic()
    listening.close()
    output.close()
    wait_for(lambda: heard.messages[1:] == [OFF, b"\xb0\x40\0", b"\xb0\x7b\0", b"\xb0\x78\0"])
    assert lost == []


def test_a_program_that_goes_is_a_port_that_is_lost(server: subprocess.Popen[bytes]) -> None:
    ear = Ear()
    # a JACK client of another process, that can be killed
    program = "import rtmidi, time; out = rtmidi.MidiOut(rtmidi.API_UNIX_JACK, name='Brief')\n"
    program += "out.open_virtual_port('out'); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: "Brief:out" in list_ports()["inputs"])
    listening = open_input("brief", ear.hear, ear.lost.append)
    other.kill()
    other.wait()
    wait_for(lambda: ear.lost)
    assert isinstance(ear.lost[0], PortLostError)
    listening.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_hangs_never_holds_the_player(
    server: subprocess.Popen[bytes], number: int
) -> None:
    ear, lost = Ear(), []
    ring, clock = NoteRing(), SongClock()
    player = Player(ring, clock, lambda sink, error: lost.append((time.monotonic(), error)))
    player.start()
    player.add(MidiSink(open_output("virtual")))
    listening = open_input("virtual", ear.hear, ear.lost.append)
    clock.start(time.monotonic())
    killed = None
    for step in range(0, 170, 2):
        ring.push(PlannedEvent(step, 60, 80, step))
        ring.push(PlannedEvent(step + 1, 60, 0, step))
        if ring.room < 120:
            wait_for(lambda: ring.room > 124)
        if step > 20 and killed is None:
            server.send_signal(number)
            killed = time.monotonic()
    wait_for(lambda: lost and ear.lost and not len(ring))
    start = time.monotonic()
    player.stop()
    listening.close()
    assert time.monotonic() - start < 0.5
    assert killed is not None
    assert isinstance(lost[0][1], PortLostError)
    assert lost[0][0] - killed < 3.0
    assert player.lateness.largest_ms < 100
