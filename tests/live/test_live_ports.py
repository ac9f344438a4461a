"""Ports of sockets and files; those of a machine are in files beside."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import mido
import mido.sockets
import pytest
from port_ears import OFF, ON, Ear, send_until_lost, wait_for

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.port_file import FileOutput
from kmidi_mlx.live.port_socket import parse_address
from kmidi_mlx.live.ports import open_input, open_output
from kmidi_mlx.live.sinks import MidiOutput, PortLostError
from kmidi_mlx.music.midi_file import read_midi


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
    with pytest.raises(KmidiError, match="cannot be listened on: address already in use; choose"):
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
