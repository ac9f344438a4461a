"""Ports of sockets and files, and of a machine that is a double; JACK's are in a file beside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mido
import mido.sockets
import pytest
from midi_doubles import Machine, machine

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.port_file import FileOutput
from kmidi_mlx.live.port_socket import parse_address
from kmidi_mlx.live.ports import list_ports, open_input, open_output
from kmidi_mlx.live.sinks import MidiOutput, MidiSink, PortLostError
from kmidi_mlx.music.midi_file import read_midi

__all__ = ["machine"]

ON, OFF = b"\x90\x3c\x50", b"\x80\x3c\x00"
HUSH = ["send b04000", "send b07b00", "send b07800"]


class Ear:
    """Takes what an input hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[bytes, float]] = []
        self.lost: list[Exception] = []

    def hear(self, message: bytes, moment: float) -> None:
        self.heard.append((message, moment))

    @property
    def messages(self) -> list[bytes]:
        return [message for message, _ in self.heard]


def wait_for(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send_until_lost(output: MidiOutput, seconds: float) -> float:
    """Send until the port says that it is lost; returns the longest time that sending took."""
    end = time.monotonic() + seconds
    longest = 0.0
    while True:
        assert time.monotonic() < end, "it was never lost"
        start = time.monotonic()
        try:
            output.send(ON)
        except PortLostError:
            return max(longest, time.monotonic() - start)
        longest = max(longest, time.monotonic() - start)
        time.sleep(0.005)


def send_without_end(output: MidiOutput, took: list[float]) -> None:
    """Send as fast as it goes and note how long each message takes."""
    while True:
        start = time.monotonic()
        try:
            output.send(ON)
        finally:
            took.append(time.monotonic() - start)


# sockets


def test_what_is_sent_to_a_socket_is_heard() -> None:
    ear = Ear()
    listening = open_input("socket:0", ear.hear, ear.lost.append)
    assert listening.name.startswith("socket:127.0.0.1:")
    output = open_output(listening.name)
    assert output.name == listening.name
    before = time.monotonic()
    output.send(ON)
    output.send(b"\xb3\x40\x7f")
    wait_for(lambda: len(ear.heard) == 2)
    assert all(before <= moment <= time.monotonic() for _, moment in ear.heard)
    output.close()
    # whoever goes leaves nothing behind, on the channels that it used
    wait_for(lambda: len(ear.heard) == 6)
    assert ear.messages[2:] == [b"\xb0\x40\0", b"\xb0\x7b\0", b"\xb3\x40\0", b"\xb3\x7b\0"]
    again = open_output(listening.name)
    again.send(OFF)
    wait_for(lambda: ear.messages[-1] == OFF)
    listening.close()
    listening.close()
    assert send_until_lost(again, 2.0) < 0.1
    again.close()
    again.close()
    assert ear.lost == []


def test_the_latest_that_connects_is_heard() -> None:
    ear = Ear()
    listening = open_input("socket:0", ear.hear, ear.lost.append)
    first = open_output(listening.name)
    first.send(ON)
    wait_for(lambda: ear.messages == [ON])
    second = open_output(listening.name)
    second.send(b"\x90\x40\x50")
    wait_for(lambda: ear.messages[1:] == [b"\xb0\x40\0", b"\xb0\x7b\0", b"\x90\x40\x50"])
    send_until_lost(first, 2.0)
    for port in (first, second, listening):
        port.close()


def test_another_librarys_socket_is_heard() -> None:
    ear = Ear()
    listening = open_input("socket:0", ear.hear, ear.lost.append)
    with mido.sockets.connect("127.0.0.1", int(listening.name.rpartition(":")[2])) as port:
        port.send(mido.Message("note_on", note=60, velocity=80))
        wait_for(lambda: ear.messages == [ON])
    listening.close()


def test_a_peer_that_closes_is_noticed_at_the_next_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        output = open_output(f"socket:{server.getsockname()[1]}")
        peer, _ = server.accept()
        peer.sendall(b"it may talk")
        output.send(ON)
        # all is read: the peer's system says good-bye and nothing else
        assert peer.recv(3) == ON
        peer.close()
        time.sleep(0.05)
        with pytest.raises(PortLostError, match="is gone or does not read"):
            output.send(ON)
        output.close()


def test_a_peer_that_does_not_read_never_holds_the_player() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        output = open_output(f"socket:{server.getsockname()[1]}")
        peer, _ = server.accept()
        took: list[float] = []
        with pytest.raises(PortLostError):
            send_without_end(output, took)
        # some thousand messages: no minutes of old music
        assert 1 < len(took) < 20_000
        assert max(took) < 0.25
        start = time.monotonic()
        with pytest.raises(PortLostError):
            output.send(OFF)
        output.close()
        assert time.monotonic() - start < 0.1
        peer.close()


def test_whoever_listens_and_fails_is_told() -> None:
    lost: list[Exception] = []

    def fail(message: bytes, moment: float) -> None:
        raise ValueError("no")

    listening = open_input("socket:0", fail, lost.append)
    output = open_output(listening.name)
    output.send(ON)
    wait_for(lambda: lost)
    assert isinstance(lost[0], ValueError)
    send_until_lost(output, 2.0)
    output.close()
    listening.close()
    assert len(lost) == 1


def test_an_input_may_be_closed_while_it_tells() -> None:
    ear = Ear()
    ports = []

    def hear_once(message: bytes, moment: float) -> None:
        ear.hear(message, moment)
        ports[0].close()

    ports.append(open_input("socket:0", hear_once, ear.lost.append))
    output = open_output(ports[0].name)
    output.send(ON + ON)
    wait_for(lambda: "kmidi port" not in [thread.name for thread in threading.enumerate()])
    assert ear.messages == [ON]
    assert ear.lost == []
    output.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8000", ("127.0.0.1", 8000)),
        (":8000", ("127.0.0.1", 8000)),
        ("piano.local:1", ("piano.local", 1)),
        ("[::1]:8000", ("::1", 8000)),
    ],
)
def test_addresses(text: str, wanted: tuple[str, int]) -> None:
    assert parse_address(text) == wanted


@pytest.mark.parametrize("text", ["", "host", "host:", "1:70000", "host:-1", "host:٣"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(KmidiError, match="write it as socket:HOST:PORT"):
        open_output(f"socket:{text}")


def test_a_port_that_is_taken_is_refused() -> None:
    ear = Ear()
    first = open_input("socket:0", ear.hear, ear.lost.append)
    with pytest.raises(KmidiError, match="cannot be listened on: Address already in use"):
        open_input(first.name, ear.hear, ear.lost.append)
    first.close()


# files


def test_a_file_keeps_what_was_sent_and_when(tmp_path: Path) -> None:
    path = tmp_path / "take.mid"
    output = open_output(f"file:{path}")
    assert output.name == f"file:{path}"
    time.sleep(0.05)
    output.send(ON)
    output.send(b"\xfe")
    time.sleep(0.2)
    output.send(OFF)
    output.send(b"\x90\x40\x20")
    time.sleep(0.3)
    output.send(b"\xc0\x05")
    output.send(b"\x90\x40\x00")
    output.close()
    output.close()
    notes = read_midi(path)
    assert notes.pitch.tolist() == [60, 64]
    assert notes.velocity.tolist() == [0x50, 0x20]
    assert notes.onset_seconds == pytest.approx([0.0, 0.2], abs=0.1)
    assert notes.offset_seconds == pytest.approx([0.2, 0.5], abs=0.2)
    kinds = [message.type for message in mido.MidiFile(path).tracks[0]]
    assert kinds.count("program_change") == 1
    assert kinds[-1] == "end_of_track"


def test_the_file_is_whole_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmidi_mlx.live.port_file._SAVE_SECONDS", 0.05)
    path = tmp_path / "take.mid"
    output = FileOutput(path)
    for count in range(1, 4):
        output.send(ON)
        output.send(OFF)
        wait_for(lambda count=count: len(read_midi(path)) == count)
    output.close()
    assert len(read_midi(path)) == 3


def test_a_disk_that_takes_no_more_loses_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmidi_mlx.live.port_file._SAVE_SECONDS", 0.05)
    output = FileOutput(tmp_path / "take.mid")

    def refuse(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kmidi_mlx.live.port_file._save", refuse)
    assert send_until_lost(output, 2.0) < 0.1
    with pytest.raises(PortLostError, match="No space left on device"):
        output.send(OFF)
    output.close()


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for name in (str(pipe), str(tmp_path), "/dev/null"):
        with pytest.raises(KmidiError, match="no regular file"):
            open_output(f"file:{name}")
    with pytest.raises(KmidiError, match="No such file or directory"):
        open_output(f"file:{tmp_path}/none/take.mid")
    for name in ("file:", "file:a\0b"):
        with pytest.raises(KmidiError, match="names no file"):
            open_output(name)
    with pytest.raises(KmidiError, match="cannot be listened to"):
        open_input("file:take.mid", lambda message, moment: None, lambda error: None)


def test_a_file_does_not_leave_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "takes"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    for name in ("../x.mid", f"{tmp_path}/x.mid", "link/x.mid"):
        with pytest.raises(KmidiError, match="leaves the folder"):
            open_output(f"file:{name}", folder)
    open_output("file:x.mid", folder).close()
    assert (folder / "x.mid").exists()


# the machine's ports


def test_a_port_is_found_by_a_part_of_its_name(machine: Machine) -> None:
    names = ["Grand Piano", "Small Synth", "Small Organ", "virtual"]
    assert list_ports() == {"inputs": names, "outputs": names}
    output = open_output("grand")
    assert output.name == "Grand Piano"
    output.send(ON)
    output.send(b"\xb1\x40\x7f")
    machine.wait_for("open Grand Piano", "send 903c50", "send b1407f")
    output.close()
    # what sounded is ended by the port itself
    machine.wait_for("send b1407f", "send 803c00", *HUSH)
    with pytest.raises(PortLostError, match="'Grand Piano' went away"):
        output.send(ON)


def test_a_name_that_says_too_little_is_refused(machine: Machine) -> None:
    with pytest.raises(KmidiError, match="part of several ports' names: Small Synth, Small Organ"):
        open_output("small")
    with pytest.raises(KmidiError, match="no MIDI port 'harp'; there are: Grand Piano, Small Syn"):
        open_output("harp")
    for name in ("", " ", "a\0b"):
        with pytest.raises(KmidiError, match="names no port"):
            open_output(name)
        with pytest.raises(KmidiError, match="names no port"):
            open_input(name, lambda message, moment: None, lambda error: None)


def test_ports_of_one_name_are_numbered_and_our_own_are_left_out(machine: Machine) -> None:
    machine.plug("Keys", "KmiDi", "Keys", "Keys 2")
    assert list_ports()["outputs"] == ["Keys", "Keys (2)", "Keys 2", "virtual"]
    output = open_output("Keys")
    assert output.name == "Keys"
    output.close()


def test_a_new_port_is_made(machine: Machine) -> None:
    output = open_output("virtual")
    assert output.name == "KmiDi"
    machine.wait_for("virtual KmiDi")
    output.close()


def test_what_comes_is_heard_until_the_port_is_closed(machine: Machine) -> None:
    ear = Ear()
    listening = open_input("piano", ear.hear, ear.lost.append)
    assert listening.name == "Grand Piano"
    before = time.monotonic()
    machine.come("903c50", "fe", "803c00")
    wait_for(lambda: ear.messages == [ON, b"\xfe", OFF])
    moments = [moment for _, moment in ear.heard]
    assert before <= moments[0] <= moments[-1] <= time.monotonic()
    listening.close()
    machine.come("903c50")
    time.sleep(0.1)
    assert len(ear.heard) == 3
    assert ear.lost == []


def test_a_device_that_is_unplugged_is_lost(machine: Machine) -> None:
    ear = Ear()
    output = open_output("piano")
    listening = open_input("piano", ear.hear, ear.lost.append)
    machine.plug("Small Synth")
    assert send_until_lost(output, 2.0) < 0.1
    wait_for(lambda: ear.lost)
    assert isinstance(ear.lost[0], PortLostError)
    output.close()
    listening.close()
    assert len(ear.lost) == 1


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_device_that_refuses_is_lost(machine: Machine) -> None:
    output = open_output("piano")
    machine.mode("refuse")
    assert send_until_lost(output, 2.0) < 0.1
    output.close()


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_library_that_hangs_holds_nobody(machine: Machine) -> None:
    lost = []
    ring, clock = NoteRing(), SongClock()
    player = Player(ring, clock, lambda sink, error: lost.append(error))
    player.start()
    player.add(MidiSink(open_output("piano")))
    machine.mode("hang")
    clock.start(time.monotonic())
    for step in range(0, 260, 4):
        ring.push(PlannedEvent(step, 60, 80, step))
        ring.push(PlannedEvent(step + 2, 60, 0, step))
        if ring.room < 4:
            wait_for(lambda: ring.room > 60)
    wait_for(lambda: lost, 6.0)
    machine.mode("")
    wait_for(lambda: not len(ring))
    player.stop()
    # the process that hung is ended by the system, and another one hushes the device
    wait_for(lambda: machine.log[-1] == "send bf7800")
    assert isinstance(lost[0], PortLostError)
    # 2 s of music were played meanwhile, in time
    assert player.lateness.largest_ms < 100


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_when_the_ports_process_dies_another_one_hushes_the_device(machine: Machine) -> None:
    output = open_output("piano")
    output.send(ON)
    machine.wait_for("send 903c50")
    machine.mode("die")
    output.send(ON)
    wait_for(lambda: machine.log[-1] == "send bf7800")
    assert [line for line in machine.log if line.startswith("send b0")] == HUSH
    with pytest.raises(PortLostError):
        output.send(ON)
    output.close()


@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_player_is_killed_the_notes_end(machine: Machine, number: int) -> None:
    program = (
        "import os, signal, time\n"
        "from kmidi_mlx.live.ports import open_output\n"
        "output = open_output('piano')\n"
        "output.send(bytes((0x90, 60, 80)))\n"
        "time.sleep(0.1)\n"
        f"os.killpg(0, {int(number)})\n"
        "time.sleep(9)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{machine.folder}:{root}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, start_new_session=True,
        check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -number
    machine.wait_for("send 903c50", "send 803c00", *HUSH)


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["rtmidi"], indirect=True)
def test_a_library_that_hangs_does_not_outlive_the_player(machine: Machine) -> None:
    machine.mode("hang")
    program = (
        "import os, signal, time\n"
        "from kmidi_mlx.live.ports import open_output\n"
        "open_output('piano').send(bytes((0x90, 60, 80)))\n"
        "time.sleep(0.1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{machine.folder}:{Path(__file__).parents[2]}"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    server = int((machine.folder / "pid").read_text())
    os.kill(server, 0)

    def is_gone() -> bool:
        try:
            os.kill(server, 0)
        except ProcessLookupError:
            return True
        # where nobody takes over orphans, what ended stays in the list
        return " Z" in Path(f"/proc/{server}/stat").read_text()

    wait_for(is_gone, 5.0)


def test_a_machine_without_a_library_or_a_system_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    Machine(tmp_path, "none")
    assert list_ports() == {"inputs": [], "outputs": []}
    with pytest.raises(KmidiError, match="pip install python-rtmidi"):
        open_output("virtual")
    (tmp_path / "rtmidi.py").write_text("API_MACOSX_CORE = 1\n")
    assert list_ports() == {"inputs": [], "outputs": []}
    for name in ("virtual", "piano"):
        with pytest.raises(KmidiError, match="no MIDI system runs on this machine"):
            open_input(name, lambda message, moment: None, lambda error: None)


def test_a_system_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "rtmidi.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr("kmidi_mlx.live.port_process._START_SECONDS", 0.3)
    assert list_ports() == {"inputs": [], "outputs": []}
    with pytest.raises(KmidiError, match="does not answer"):
        open_output("piano")
