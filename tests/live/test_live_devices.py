"""Ports, sound card and what is listened to follow the settings, whole or not at all."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from small_concert import wait_for

from kmidi_mlx.audio.files import write_wav
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import devices as devices_module
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.devices import Devices, about_devices
from kmidi_mlx.live.listening import FileListening
from kmidi_mlx.live.planned import NoteRing
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.session import Session, Settings
from kmidi_mlx.live.sinks import MidiSink
from kmidi_mlx.live.sound import SoundEngine, SoundFan
from kmidi_mlx.live_config import LiveCloudConfig, LiveConfig
from kmidi_mlx.music.midi_file import read_midi


class Synthesizer:
    """Takes MIDI on a TCP port."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"socket:127.0.0.1:{self._listener.getsockname()[1]}"
        self.messages: list[bytes] = []
        self.connections = 0
        self.ended = 0
        self._peer: socket.socket | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._peer = peer
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()

    def _read(self, peer: socket.socket) -> None:
        waiting = b""
        with peer:
            try:
                while data := peer.recv(4096):
                    waiting += data
                    while len(waiting) >= 3:
                        self.messages.append(waiting[:3])
                        waiting = waiting[3:]
            except OSError:
                pass
        self.ended += 1

    def unplug(self) -> None:
        wait_for(lambda: self._peer is not None)
        assert self._peer is not None
        self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


class Studio:
    """Devices with everything around them, but for an engine."""

    def __init__(self, folder: Path, started_with: str = "") -> None:
        self.session = Session(LiveConfig())
        self.ring, self.clock = NoteRing(), SongClock()
        self.player = Player(self.ring, self.clock, self.lost)
        self.fan = SoundFan()
        self.piano = SoundEngine(self.fan)
        self.listens: list[SoundFan | None] = []
        self.keys = 0
        self.devices = Devices(
            self.session, self.player, self.piano, self.fan, folder,
            Settings(cloud=LiveCloudConfig(listen=started_with)),
            self.listens.append, self.count_keys,
        )  # fmt: skip
        self.session.guard(self.devices.change)
        self.player.start()

    def lost(self, sink: Any, error: Exception) -> None:
        self.devices.lost_sink(sink, error)

    def count_keys(self) -> None:
        self.keys += 1

    def set(self, **values: Any) -> None:
        options = {name.replace("__", "."): value for name, value in values.items()}
        self.session.apply("set", options)

    def notice(self, topic: str) -> str:
        rows = self.session.state()["notices"]
        return "".join(row["text"] for row in rows if row["topic"] == topic)

    @property
    def outputs(self) -> list[MidiSink]:
        return [v.sink for v in self.player._voices if isinstance(v.sink, MidiSink)]


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    (tmp_path / "takes").mkdir()
    studio = Studio(tmp_path / "takes", str(tmp_path / "given.wav"))
    yield studio
    studio.devices.close()
    studio.player.stop()


@pytest.fixture
def synthesizer() -> Iterator[Synthesizer]:
    synthesizer = Synthesizer()
    yield synthesizer
    synthesizer.close()


def beep(path: Path, seconds: float = 1.0) -> Path:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 44_100)) / 44_100)
    write_wav(path, wave.astype(np.float32), 44_100)
    return path


def our_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return sorted(name for name in names if name.startswith("kmidi"))


def strike(studio: Studio, pitch: int) -> None:
    for sink in studio.outputs:
        sink.note_on(pitch, 90, time.monotonic())


def test_an_output_is_opened_played_on_and_closed(studio: Studio, synthesizer: Synthesizer) -> None:
    studio.set(ports__output=synthesizer.port, ports__channel=3)
    (output,) = studio.outputs
    # what a person plays into a programme is heard there already
    assert not studio.player._voices[-1].keys
    strike(studio, 60)
    wait_for(lambda: bytes((0x92, 60, 90)) in synthesizer.messages)
    studio.set(ports__output="")
    assert studio.outputs == []
    wait_for(lambda: synthesizer.ended == 1)
    assert synthesizer.messages[-1] == bytes((0xB2, 120, 0))
    assert studio.devices._output is None
    assert output.name == synthesizer.port


def test_another_channel_keeps_the_port_open_and_ends_notes_where_they_began(
    studio: Studio, synthesizer: Synthesizer
) -> None:
    studio.set(ports__output=synthesizer.port)
    (output,) = studio.outputs
    strike(studio, 60)
    studio.set(ports__channel=16)
    strike(studio, 64)
    output.note_off(60, 0.0)
    output.note_off(64, 0.0)
    output.silence()
    wait_for(lambda: len(synthesizer.messages) == 10)
    assert synthesizer.messages[:4] == [
        bytes((0x90, 60, 90)), bytes((0x9F, 64, 90)), bytes((0x80, 60, 0)), bytes((0x8F, 64, 0)),
    ]  # fmt: skip
    assert {message[0] for message in synthesizer.messages[4:]} == {0xB0, 0xBF}
    assert synthesizer.connections == 1
    assert studio.outputs == [output]


def test_a_file_stays_whole_when_the_channel_changes(studio: Studio, tmp_path: Path) -> None:
    studio.set(ports__output="file:out.mid")
    for pitch, channel in ((60, 1), (64, 2)):
        studio.set(ports__channel=channel)
        strike(studio, pitch)
        time.sleep(0.03)
        studio.outputs[0].note_off(pitch, 0.0)
    studio.set(ports__output="")
    notes = read_midi(tmp_path / "takes" / "out.mid")
    assert notes.pitch.tolist() == [60, 64]


def test_what_cannot_be_opened_leaves_everything_as_it_was(
    studio: Studio, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    beep(tmp_path / "takes" / "beep.wav")
    studio.set(ports__output=synthesizer.port, cloud__listen="beep.wav", sound__volume=0.5)
    (output,) = studio.outputs
    listening, settings = studio.devices._listening, studio.session.settings
    threads = our_threads()
    other = Synthesizer()
    for _ in range(5):
        with pytest.raises(KmidiError, match="no such sound file"):
            studio.set(
                ports__output=other.port, ports__input="socket:0", cloud__listen="none.wav",
                sound__volume=0.1,
            )  # fmt: skip
    assert studio.session.settings == settings
    assert studio.outputs == [output]
    assert studio.devices._listening is listening
    assert studio.devices._input is None
    assert studio.piano.volume == 0.5
    wait_for(lambda: other.ended == other.connections == 5)
    wait_for(lambda: our_threads() == threads)
    strike(studio, 61)
    wait_for(lambda: bytes((0x90, 61, 90)) in synthesizer.messages)
    other.close()


def test_an_output_that_is_lost_is_told_and_no_longer_asked_for(
    studio: Studio, synthesizer: Synthesizer
) -> None:
    studio.set(ports__output=synthesizer.port)
    synthesizer.unplug()

    def play() -> bool:
        studio.player.silence()
        return not studio.outputs

    wait_for(play)
    wait_for(lambda: studio.session.settings.ports.output == "")
    wait_for(lambda: "was lost" in studio.notice("output"))
    assert synthesizer.port in studio.notice("output")
    # plugged in again: the same name works, and the notice is taken back
    studio.set(ports__output=synthesizer.port)
    assert studio.notice("output") == ""
    assert len(studio.outputs) == 1


def test_a_keyboard_is_heard_and_lets_go_when_it_is_gone(studio: Studio) -> None:
    studio.set(ports__input="socket:0")
    assert studio.devices._input is not None
    _, _, port = studio.devices._input.name.rpartition(":")
    with socket.create_connection(("127.0.0.1", int(port))) as hands:
        hands.sendall(bytes((0x90, 60, 100, 0x90, 64, 100)))
        wait_for(lambda: studio.devices.keyboard.held == 2)
        assert [(key.pitch, key.velocity) for key in studio.devices.keyboard.drain()] == [
            (60, 100), (64, 100),
        ]  # fmt: skip
        assert studio.keys > 0
        studio.set(ports__input="")
        assert studio.devices.keyboard.held == 0
        assert {key.pitch for key in studio.devices.keyboard.drain()} == {60, 64}
    assert studio.devices._input is None


def test_a_file_is_mixed_in_and_the_cloud_hears_it(studio: Studio, tmp_path: Path) -> None:
    beep(tmp_path / "takes" / "beep.wav")
    studio.set(cloud__listen="beep.wav")
    listening = studio.devices._listening
    assert isinstance(listening, FileListening)
    assert studio.piano.beside is listening
    assert studio.listens == [listening.fan]
    block = studio.piano._block(0.0)
    assert np.abs(block).max() > 1000
    studio.set(cloud__listen="")
    assert studio.piano.beside is None
    assert studio.listens[-1] is None
    assert not listening._thread.is_alive()
    assert np.abs(studio.piano._block(0.0)).max() == 0


def test_another_machine_is_played_on_only_if_it_was_named_at_the_start(studio: Studio) -> None:
    for port in ("socket:192.0.2.7:9999", "socket:example.invalid:9999"):
        with pytest.raises(KmidiError, match="is another machine"):
            studio.set(ports__output=port)
    assert studio.outputs == []


def test_files_of_clients_are_those_of_the_folder_and_the_one_that_was_given(
    studio: Studio, tmp_path: Path
) -> None:
    beep(tmp_path / "given.wav")
    beep(tmp_path / "other.wav")
    (tmp_path / "takes" / "link.wav").symlink_to(tmp_path / "other.wav")
    for name in ("../other.wav", str(tmp_path / "other.wav"), "link.wav", "../given.wav"):
        with pytest.raises(KmidiError, match="is not in the folder"):
            studio.set(cloud__listen=name)
    studio.set(cloud__listen=str(tmp_path / "given.wav"))
    assert studio.devices._listening is not None


def test_a_file_that_breaks_off_is_told_and_no_longer_asked_for(
    studio: Studio, tmp_path: Path
) -> None:
    sound = np.zeros((88_200, 2), np.float32)
    sound[60_000] = np.nan
    soundfile.write(tmp_path / "takes" / "broken.wav", sound, 44_100, "FLOAT")
    studio.set(cloud__listen="broken.wav")

    def pull() -> bool:
        studio.piano._block(0.0)
        return studio.session.settings.cloud.listen == ""

    wait_for(pull)
    wait_for(lambda: "nothing is heard" in studio.notice("listening"))
    assert studio.piano.beside is None


class Card:
    """Takes the place of a sound card."""

    def __init__(self, fan: SoundFan, name: str, on_lost: Callable[[Exception], None]) -> None:
        if name == "none":
            raise KmidiError("there is no sound card called none.")
        self.name, self.on_lost, self.closed = name, on_lost, False

    def close(self) -> None:
        self.closed = True


def test_a_sound_card_is_changed_and_lost(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices_module, "SoundDevice", Card)
    studio.set(sound__device="default")
    first: Any = studio.devices._card
    studio.set(sound__device="other")
    second: Any = studio.devices._card
    assert first.closed
    assert (second.name, second.closed) == ("other", False)
    with pytest.raises(KmidiError, match="called none"):
        studio.set(sound__device="none")
    assert studio.devices._card is second
    second.on_lost(OSError("unplugged"))
    wait_for(lambda: studio.session.settings.sound.device == "")
    wait_for(lambda: "unplugged" in studio.notice("card"))
    assert second.closed


def test_closing_closes_all_and_one_that_fails_keeps_no_other_open(
    studio: Studio, synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beep(tmp_path / "takes" / "beep.wav")
    monkeypatch.setattr(devices_module, "SoundDevice", Card)
    studio.set(
        ports__output=synthesizer.port, ports__input="socket:0", cloud__listen="beep.wav",
        sound__device="default",
    )  # fmt: skip
    card: Any = studio.devices._card
    listening: Any = studio.devices._listening
    monkeypatch.setattr(studio.devices._input, "close", lambda: 1 / 0)
    studio.devices.close()
    assert card.closed
    assert not listening._thread.is_alive()
    wait_for(lambda: synthesizer.ended == 1)
    studio.devices.close()
    # what is lost now is nobody's business any more
    card.on_lost(OSError("late"))


def test_what_there_is_can_be_listed() -> None:
    assert set(about_devices()) == {"inputs", "outputs", "sound_inputs", "sound_outputs"}
