"""Doubles of the MIDI libraries, for the process that serves a port.

They are written as modules into a folder that this process finds first. What the machine is like
is said by files: `ports` (a name a line), `mode` (what sending does), `incoming` (messages that
come, in hexadecimal, a line each); `log` keeps what was done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_COMMON = """
import ctypes, os, signal, sys, threading, time
from pathlib import Path

FOLDER = Path(__file__).parent
API_MACOSX_CORE = 1
# the only system that this double knows
sys.platform = "darwin"
(FOLDER / "pid").write_text(str(os.getpid()))

def log(*words):
    with (FOLDER / "log").open("a") as file:
        file.write(" ".join(words) + "\\n")

def names():
    return (FOLDER / "ports").read_text().splitlines()

def send(message):
    mode = (FOLDER / "mode").read_text()
    if mode == "hang":
        # with the interpreter's lock, as the real one
        ctypes.PyDLL(None).sleep(60)
    if mode == "die":
        (FOLDER / "mode").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "refuse":
        raise OSError("no")
    log("send", bytes(message).hex())

def listen(hear):
    def follow():
        done = 0
        while True:
            lines = (FOLDER / "incoming").read_text().split()
            for line in lines[done:]:
                hear(list(bytes.fromhex(line)))
            done = len(lines)
            time.sleep(0.005)
    threading.Thread(target=follow, daemon=True).start()
"""

_PYTHON_RTMIDI = """
class Client:
    def __init__(self, api, name):
        assert (api, name) == (API_MACOSX_CORE, "KmiDi")
    def get_ports(self):
        return names()
    def open_port(self, port, name):
        log("open", names()[port])
    def open_virtual_port(self, name):
        log("virtual", name)

class MidiOut(Client):
    def send_message(self, message):
        send(message)

class MidiIn(Client):
    def ignore_types(self, sysex, timing, active_sense):
        assert sysex and timing and not active_sense
    def set_callback(self, callback):
        listen(lambda message: callback((message, 0.0), None))
"""

_RTMIDI2 = """
class Client:
    def __init__(self, clientname, api):
        assert (api, clientname) == (API_MACOSX_CORE, "KmiDi")
    @property
    def ports(self):
        return names()
    def open_port(self, port):
        log("open", names()[port])
    def open_virtual_port(self, port_name):
        log("virtual", port_name)

class MidiOut(Client):
    def send_raw(self, *message):
        send(message)

class MidiIn(Client):
    def ignore_types(self, midi_sysex, midi_time, midi_sense):
        assert midi_sysex and midi_time and not midi_sense
    def __setattr__(self, name, value):
        assert name == "callback"
        listen(lambda message: value(message, 0.0))
"""

_MISSING = 'raise ImportError("not installed")\n'


class Machine:
    """A machine with MIDI ports that are as the test says."""

    def __init__(self, folder: Path, library: str) -> None:
        self.folder = folder
        texts = {"rtmidi": _COMMON + _PYTHON_RTMIDI, "rtmidi2": _COMMON + _RTMIDI2}
        for name, text in texts.items():
            (folder / f"{name}.py").write_text(text if name == library else _MISSING)
        self.plug("Grand Piano", "Small Synth", "Small Organ")
        self.mode("")
        (folder / "incoming").write_text("")
        (folder / "log").write_text("")

    def plug(self, *names: str) -> None:
        (self.folder / "new").write_text("\n".join(names))
        (self.folder / "new").replace(self.folder / "ports")

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def come(self, *messages: str) -> None:
        with (self.folder / "incoming").open("a") as file:
            file.write("\n".join(messages) + "\n")

    @property
    def log(self) -> list[str]:
        return (self.folder / "log").read_text().splitlines()

    def wait_for(self, *lines: str) -> None:
        end = time.monotonic() + 5
        while list(lines) != self.log[-len(lines) :]:
            assert time.monotonic() < end, self.log
            time.sleep(0.005)


@pytest.fixture(params=["rtmidi", "rtmidi2"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield Machine(tmp_path, request.param)
    # nothing of a port is left over, and what is still ending does not find the next test's double
    end = time.monotonic() + 8
    while "kmidi port" in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < end
        time.sleep(0.005)
