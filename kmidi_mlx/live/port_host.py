"""A process of its own for one MIDI port of the machine; `port_process` starts it and talks to it.

MIDI libraries are kept out of the process that plays. They hold the interpreter while they wait:
with a JACK server that hangs or has died, sending never returns and every thread stands still.
Some abort the process where others raise, and they print. Here such a failure costs the port and
nothing else. And the other way round: when the process that plays is killed, this one sees the end
of its input, ends the notes that sound, and goes.

Run as `python -P port_host.py list|output|input|silence [NAME]`; it imports nothing of the
package. `silence` ends whatever sounds on a port whose process died.
Output: one line of JSON, then frames: float64 time, uint8 length, message; no length: a beat,
which says that the port is well. Input: frames of uint8 length and message; its end ends all.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

BEAT_SECONDS = 0.25
HEADER = struct.Struct("<dB")
PORT_NAME = "KmiDi"

# a call into the library that takes longer than this ends the process, by the system's alarm
_LONGEST_CALL_SECONDS = 3.0
_DEAD_AFTER_SECONDS = 1.0
# time for the last messages to leave the library's own queue: two cycles of a slow JACK server
_DRAIN_SECONDS = 0.05
_APIS = {
    "darwin": ("API_MACOSX_CORE",),
    "linux": ("API_LINUX_ALSA", "API_UNIX_JACK"),
}
_NO_LIBRARY = (
    "MIDI ports need a library: pip install python-rtmidi "
    "(or rtmidi2, where there is no wheel of it); socket:HOST:PORT works without."
)
_NO_SYSTEM = (
    "no MIDI system runs on this machine (on Linux: ALSA's sequencer, modprobe snd-seq, or a JACK "
    "server); socket:HOST:PORT works without."
)


class _RefusedError(Exception):
    """Its one sentence is for people."""


class _Library(Protocol):
    """What is used of python-rtmidi and of rtmidi2; a device is a client of a MIDI system."""

    module: Any

    def device(self, kind: str, api: int) -> Any:
        """Make a client."""

    def names(self, device: Any) -> list[str]:
        """Names of the ports that it can be connected to."""

    def open(self, device: Any, index: int) -> None:
        """Connect to one of them."""

    def send(self, device: Any, message: bytes) -> None:
        """Send a message."""

    def listen(self, device: Any, hear: Callable[[bytes], None]) -> None:
        """Call `hear` with each message; also with Active Sensing, by which cables are missed."""


class _PythonRtmidi:
    def __init__(self) -> None:
        self.module: Any = importlib.import_module("rtmidi")

    def device(self, kind: str, api: int) -> Any:
        make = self.module.MidiIn if kind == "input" else self.module.MidiOut
        return make(api, name=PORT_NAME)

    def names(self, device: Any) -> list[str]:
        # the library says None for a port that went away while it was counting
        return [name or "" for name in device.get_ports()]

    def open(self, device: Any, index: int) -> None:
        device.open_port(index, PORT_NAME)

    def send(self, device: Any, message: bytes) -> None:
        device.send_message(message)

    def listen(self, device: Any, hear: Callable[[bytes], None]) -> None:
        device.ignore_types(sysex=True, timing=True, active_sense=False)
        device.set_callback(lambda event, data: hear(bytes(event[0])))


class _Rtmidi2:
    def __init__(self) -> None:
        self.module: Any = importlib.import_module("rtmidi2")
        # elsewhere it ends the process where a system does not run; and python-rtmidi has wheels
        if sys.platform != "darwin":
            raise ImportError

    def device(self, kind: str, api: int) -> Any:
        make = self.module.MidiIn if kind == "input" else self.module.MidiOut
        return make(PORT_NAME, api=api)

    def names(self, device: Any) -> list[str]:
        return [str(name) for name in device.ports]

    def open(self, device: Any, index: int) -> None:
        device.open_port(index)

    def send(self, device: Any, message: bytes) -> None:
        device.send_raw(*message)

    def listen(self, device: Any, hear: Callable[[bytes], None]) -> None:
        device.ignore_types(midi_sysex=True, midi_time=True, midi_sense=False)
        device.callback = lambda message, seconds: hear(bytes(message))


def _library() -> _Library:
    for library in (_PythonRtmidi, _Rtmidi2):
        with contextlib.suppress(ImportError):
            return library()
    raise _RefusedError(_NO_LIBRARY)


class _System:
    """The MIDI systems that run here, with a client of each."""

    def __init__(self, kind: str) -> None:
        self.library = _library()
        self.devices: list[tuple[str, Any]] = []
        for api in _APIS.get(sys.platform, ()):
            # asked without it, ALSA's library complains at length
            if api == "API_LINUX_ALSA" and not Path("/dev/snd/seq").exists():
                continue
            with contextlib.suppress(Exception):  # this system does not run
                number = getattr(self.library.module, api)
                self.devices.append((api, self.library.device(kind, number)))

    def names(self) -> list[tuple[str, Any, int, str]]:
        """Find ports: system, client, number, name; without our own; equal names are numbered."""
        found: list[tuple[str, Any, int, str]] = []
        count: dict[str, int] = {}
        for api, device in self.devices:
            for index, name in enumerate(self.library.names(device)):
                if not name or name.startswith(PORT_NAME):
                    continue
                count[name] = count.get(name, 0) + 1
                shown = name if count[name] == 1 else f"{name} ({count[name]})"
                found.append((api, device, index, shown))
        return found

    def find(self, wanted: str) -> tuple[str, Any, int, str]:
        """Find the port of that name, or the only one whose name holds `wanted`."""
        if not self.devices:
            raise _RefusedError(_NO_SYSTEM)
        found = self.names()
        exact = [port for port in found if port[3] == wanted]
        near = exact or [port for port in found if wanted.casefold() in port[3].casefold()]
        if len(near) == 1:
            return near[0]
        listed = ", ".join(port[3] for port in near or found) or "none"
        if near:
            raise _RefusedError(f"{wanted!r} is part of several ports' names: {listed}; say which.")
        raise _RefusedError(
            f"there is no MIDI port {wanted!r}; there are: {listed}; "
            "`virtual` makes one for other programs to connect to."
        )


class _Port:
    """One open port."""

    def __init__(self, kind: str, wanted: str) -> None:
        self._system = _System(kind)
        self._library = self._system.library
        self._watched: str | None = None
        if wanted == "virtual":
            if not self._system.devices:
                raise _RefusedError(_NO_SYSTEM)
            api, self._device = self._system.devices[0]
            self.name = PORT_NAME
            self._device.open_virtual_port(PORT_NAME)
        else:
            api, self._device, index, self.name = self._system.find(wanted)
            self._library.open(self._device, index)
            self._watched = self.name
        self._frames = _jack_frames() if api == "API_UNIX_JACK" else None
        self._last_frames = -1
        self._moved = time.monotonic()
        self._sounding: set[tuple[int, int]] = set()
        self._channels: set[int] = set()

    def listen(self, hear: Callable[[bytes], None]) -> None:
        self._library.listen(self._device, hear)

    def send(self, message: bytes) -> None:
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if kind in (0x80, 0x90) and len(message) == 3:
            self._channels.add(channel)
            # noted before it sounds
            if kind == 0x90 and message[2]:
                self._sounding.add((channel, message[1]))
        self._library.send(self._device, message)
        if kind == 0x80 or (kind == 0x90 and len(message) == 3 and not message[2]):
            self._sounding.discard((channel, message[1]))

    def silence(self) -> None:
        """End what sounds, and hush where anything was played."""
        for channel, pitch in sorted(self._sounding):
            self._library.send(self._device, bytes((0x80 | channel, pitch, 0)))
        self.hush(self._channels)

    def hush(self, channels: Iterable[int]) -> None:
        """Pedal up, all notes off, all sound off."""
        for channel in channels:
            for controller in (64, 123, 120):
                self._library.send(self._device, bytes((0xB0 | channel, controller, 0)))

    def is_well(self) -> bool:
        """Tell whether the port is still there and its system at work."""
        if self._watched is not None and not self._is_listed():
            return False
        if self._frames is not None:
            frames, now = self._frames(), time.monotonic()
            if frames != self._last_frames:
                self._last_frames, self._moved = frames, now
            return now - self._moved < _DEAD_AFTER_SECONDS
        return True

    def _is_listed(self) -> bool:
        return self._watched in [port[3] for port in self._system.names()]


def _jack_frames() -> Callable[[], int]:
    """Watch a JACK server: the frames it has processed; of a dead one they stand still.

    Its clients' library still lists all ports of a server that died, and takes messages for it.
    """
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    # the very library that the MIDI library has loaded: there may be several on a machine
    path = next((line.split(maxsplit=5)[5] for line in maps if "/libjack" in line), None)
    if path is None:
        raise _RefusedError("JACK's library is not found; install python-rtmidi from its wheel.")
    jack = ctypes.CDLL(path)
    jack.jack_client_open.restype = ctypes.c_void_p
    jack.jack_client_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]
    jack.jack_last_frame_time.restype = ctypes.c_uint32
    jack.jack_last_frame_time.argtypes = [ctypes.c_void_p]
    no_start_server = 1
    client = jack.jack_client_open(f"{PORT_NAME} watch".encode(), no_start_server, None)
    if not client:
        raise _RefusedError("the JACK server takes no more clients; close a program that uses it.")
    return lambda: int(jack.jack_last_frame_time(client))


def _list(answer: int) -> None:
    found: dict[str, list[str]] = {}
    for kind in ("input", "output"):
        system = _System(kind)
        if not system.devices:
            raise _RefusedError(_NO_SYSTEM)
        found[f"{kind}s"] = [*(port[3] for port in system.names()), "virtual"]
    _tell(answer, found)


def _silence(wanted: str, answer: int) -> None:
    port = _Port("output", wanted)
    port.hush(range(16))
    time.sleep(_DRAIN_SECONDS)
    _tell(answer, {"name": port.name})


def _tell(answer: int, what: dict[str, Any]) -> None:
    os.write(answer, json.dumps(what).encode() + b"\n")


def _serve(kind: str, wanted: str, answer: int) -> None:
    """Open a port and serve it until the input ends or the port is gone."""
    port = _Port(kind, wanted)
    _tell(answer, {"name": port.name})
    os.set_blocking(answer, False)
    if kind == "input":
        port.listen(lambda message: _hear(answer, message))
    next_beat = 0.0
    waiting = b""
    try:
        while True:
            signal.setitimer(signal.ITIMER_REAL, _LONGEST_CALL_SECONDS)
            if time.monotonic() >= next_beat:
                if not port.is_well():
                    return
                with contextlib.suppress(BlockingIOError):
                    os.write(answer, HEADER.pack(time.monotonic(), 0))
                next_beat = time.monotonic() + BEAT_SECONDS
            if not select.select([0], [], [], max(0.0, next_beat - time.monotonic()))[0]:
                continue
            data = os.read(0, 65_536)
            if not data:
                return
            waiting += data
            while waiting and len(waiting) > waiting[0]:
                port.send(waiting[1 : 1 + waiting[0]])
                waiting = waiting[1 + waiting[0] :]
    finally:
        port.silence()
        time.sleep(_DRAIN_SECONDS)


def _hear(answer: int, message: bytes) -> None:
    if len(message) > 255:
        return
    try:
        os.write(answer, HEADER.pack(time.monotonic(), len(message)) + message)
    except OSError:
        # nobody reads: what is lost may be the end of a note, so that the port is lost
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Do what the arguments say; see the top of the file."""
    # nothing else may write where the answers go, and libraries print
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_CALL_SECONDS)
    try:
        if arguments[0] == "list":
            _list(answer)
        elif arguments[0] == "silence":
            _silence(arguments[1], answer)
        else:
            _serve(arguments[0], arguments[1], answer)
    except _RefusedError as error:
        _tell(answer, {"error": str(error)})
    except Exception as error:  # a library may raise anything; before the port is open it is told
        with contextlib.suppress(OSError):
            _tell(answer, {"error": f"the MIDI system refused: {error}."})
    finally:
        # not the usual end: libraries wait for their servers there
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
