"""MIDI over TCP: raw MIDI bytes, as other programs send and take them.

For programs on this machine or on a network that is trusted: nothing is encrypted, and nobody is
asked who they are. Without a host, ports are this machine's own.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Callable

from kmidi_mlx.errors import KmidiError, system_reason
from kmidi_mlx.live.message_reader import MessageReader
from kmidi_mlx.live.sinks import PortLostError

__all__ = ["SocketInput", "SocketOutput", "parse_address"]

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 3.0
# The player waits no longer than this for a peer whose buffers are full.
_SEND_SECONDS = 0.005
# A message takes over a kilobyte of it until it is acknowledged, which may take 40 ms: room for the
# ends of a hundred notes at once, and still a peer that stands still is noticed within seconds.
_SEND_BUFFER_BYTES = 16_384
_UNACKNOWLEDGED_MS = 2000
_SUSTAIN, _ALL_NOTES_OFF = 64, 123


def parse_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, or PORT alone, which is this machine's.

    Raises:
        KmidiError: when it is neither.
    """
    host, _, port = text.rpartition(":")
    # only the digits that everybody types, not all that Unicode knows
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise KmidiError(f"socket:{text} names no TCP port; write it as socket:HOST:PORT.")
    return host.removeprefix("[").removesuffix("]") or _LOOPBACK, int(port)


class SocketOutput:
    """Plays on a program that listens on a TCP port: a `sinks.MidiOutput`.

    Args:
        address: HOST:PORT or PORT.

    Raises:
        KmidiError: when nobody listens there.
    """

    def __init__(self, address: str) -> None:
        host, port = parse_address(address)
        self.name = f"socket:{_shown(host, port)}"
        try:
            self._socket = socket.create_connection((host, port), _CONNECT_SECONDS)
        except OSError as error:
            raise KmidiError(
                f"nothing can be reached at {self.name}: {system_reason(error).lower()}; "
                "start the program that listens there first."
            ) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        if sys.platform == "linux":  # a cable that was pulled is noticed
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        self._socket.setblocking(False)
        self._lost = False
        self._sending = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send a message; waits some milliseconds at the most.

        Raises:
            PortLostError: when the peer is gone or does not read.
        """
        with self._sending:
            try:
                if self._lost:
                    raise BrokenPipeError
                self._notice_end()
                self._send_all(message)
            except OSError as error:
                # part of a message may have gone: nothing sensible can follow on this wire
                self._lost = True
                raise PortLostError(
                    f"{self.name} is gone or does not read what it is sent; "
                    "start its program again and choose the port anew."
                ) from error

    def close(self) -> None:
        """Close the connection; what was sent still arrives."""
        with self._sending, contextlib.suppress(OSError):
            self._lost = True
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()

    def _notice_end(self) -> None:
        """Raise when the peer has closed: else only the next but one message would tell."""
        with contextlib.suppress(BlockingIOError):
            while data := self._socket.recv(4096):
                del data  # whatever it says is not for us
            raise BrokenPipeError

    def _send_all(self, message: bytes) -> None:
        deadline = time.monotonic() + _SEND_SECONDS
        while message:
            try:
                message = message[self._socket.send(message) :]
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                select.select([], [self._socket], [], left)


class SocketInput:
    """Listens on a TCP port for a program that plays.

    One program at a time; the latest that connects is heard. When it goes, its pedal is lifted and
    its notes are ended by messages of ours, and the port waits for the next.

    Args:
        address: HOST:PORT or PORT; port 0: any that is free.
        on_message: called with each message and its moment of `time.monotonic()`, in a thread of
            this port.
        on_lost: called once, in that thread, if listening fails or `on_message` raises.

    Attributes:
        name: with the TCP port that is listened on.

    Raises:
        KmidiError: when the port cannot be listened on.
    """

    def __init__(
        self,
        address: str,
        on_message: Callable[[bytes, float], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=4)
        except OSError as error:
            raise KmidiError(
                f"socket:{_shown(host, port)} cannot be listened on: "
                f"{system_reason(error).lower()}; choose another port."
            ) from error
        self._listener.setblocking(False)
        self.name = f"socket:{_shown(host, self._listener.getsockname()[1])}"
        self._on_message, self._on_lost = on_message, on_lost
        self._wake, self._woken = socket.socketpair()
        self._peer: socket.socket | None = None
        self._reader = MessageReader()
        self._channels: set[int] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="kmidi port", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port; nothing is called any more when this returns."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._wake.send(b".")
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._wake.close()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception as error:  # whoever listens is told, and the port is closed
            if not self._closed:
                self._on_lost(error)
        finally:
            for part in (self._listener, self._woken, self._peer):
                if part is not None:
                    part.close()

    def _turn(self) -> None:
        watched = [self._listener, self._woken, *([self._peer] if self._peer else [])]
        ready = select.select(watched, [], [])[0]
        now = time.monotonic()
        if self._peer is not None and self._peer in ready:
            try:
                data = self._peer.recv(4096)
            except OSError:
                data = b""
            for message in self._reader.read(data):
                if message[0] < 0xF0:
                    self._channels.add(message[0] & 0x0F)
                self._tell(message, now)
            if not data:
                self._leave()
        if self._listener in ready:
            with contextlib.suppress(OSError):  # gone again already
                newest, _ = self._listener.accept()
                # a peer that lost its power never says good-bye: the next one has to be let in
                self._leave()
                newest.setblocking(False)
                self._peer = newest

    def _leave(self) -> None:
        if self._peer is None:
            return
        self._peer.close()
        self._peer = None
        self._reader = MessageReader()
        for channel in sorted(self._channels):
            for controller in (_SUSTAIN, _ALL_NOTES_OFF):
                self._tell(bytes((0xB0 | channel, controller, 0)), time.monotonic())
        self._channels.clear()

    def _tell(self, message: bytes, moment: float) -> None:
        if not self._closed:
            self._on_message(message, moment)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
