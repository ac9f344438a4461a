"""A port that writes what it is sent into a MIDI file."""

from __future__ import annotations

import atexit
import contextlib
import queue
import struct
import threading
import time
from pathlib import Path
from typing import BinaryIO

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.sinks import PortLostError

__all__ = ["FileOutput"]

# 500 ticks a beat of half a second: a tick is 1 ms
_TICKS_PER_BEAT = 500
_TICKS_PER_SECOND = 1000
_HEADER = struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, _TICKS_PER_BEAT, b"MTrk", 0)
_LENGTH_AT = len(_HEADER) - 4
_TRACK_AT = len(_HEADER)
_TEMPO = b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big")
_END = b"\x00\xff\x2f\x00"
_SAVE_SECONDS = 1.0
# closing waits this long for the disk; a slower one gets the rest of its time at the program's end
_CLOSE_SECONDS = 0.25
_EXIT_SECONDS = 5.0
_SYSTEM = 0xF0


class FileOutput:
    """Keeps messages with their times in a .mid file: a `sinks.MidiOutput`.

    A thread of its own writes, so that a slow disk delays nobody; the file is whole once a second
    and after closing. Time 0 is the first message; system messages, which such a file cannot keep,
    are left out.

    Args:
        path: the file to write or replace.

    Raises:
        KmidiError: when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path}"
        # opening a pipe would wait for its reader
        if path.exists() and not path.is_file():
            raise KmidiError(f"cannot write {path}: it is no regular file; give another name.")
        try:
            # closed by the thread that writes
            self._file: BinaryIO = path.open("wb")
            self._file.write(_HEADER + _TEMPO)
            _save(self._file)
        except OSError as error:
            raise KmidiError(f"cannot write {path}: {error.strerror or error}.") from error
        self._messages: queue.SimpleQueue[tuple[float, bytes] | None] = queue.SimpleQueue()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._write, name="kmidi file port", daemon=True)
        self._thread.start()
        atexit.register(self._finish, _EXIT_SECONDS)

    def send(self, message: bytes) -> None:
        """Keep a message with the present time.

        Raises:
            PortLostError: when the disk took no more.
        """
        if self._failure is not None:
            raise PortLostError(
                f"{self.name} cannot be written any more: "
                f"{self._failure.strerror or self._failure}."
            )
        self._messages.put((time.monotonic(), message))

    def close(self) -> None:
        """Complete the file; a disk that takes longer than a moment completes it by itself."""
        self._finish(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            atexit.unregister(self._finish)

    def _finish(self, seconds: float) -> None:
        self._messages.put(None)
        self._thread.join(seconds)

    def _write(self) -> None:
        try:
            self._keep_writing()
        except OSError as error:
            self._failure = error
        # what the disk did not take before it does not take now
        with contextlib.suppress(OSError):
            self._file.close()

    def _keep_writing(self) -> None:
        start: float | None = None
        tick = 0
        saved = time.monotonic()
        dirty = False
        while True:
            try:
                item = self._messages.get(timeout=_SAVE_SECONDS)
            except queue.Empty:
                item = (0.0, b"")
            if item is None:
                break
            moment, message = item
            if message and message[0] < _SYSTEM:
                start = moment if start is None else start
                now = max(tick, round((moment - start) * _TICKS_PER_SECOND))
                self._file.write(_variable_length(now - tick) + message)
                tick, dirty = now, True
            if dirty and time.monotonic() - saved >= _SAVE_SECONDS:
                _save(self._file)
                saved, dirty = time.monotonic(), False
        _save(self._file)


def _save(file: BinaryIO) -> None:
    """Make the file whole as it is; writing goes on where it was."""
    here = file.tell()
    file.write(_END)
    file.seek(_LENGTH_AT)
    file.write(struct.pack(">I", here + len(_END) - _TRACK_AT))
    file.flush()
    file.seek(here)


def _variable_length(value: int) -> bytes:
    """A number as such files write it: seven bits a byte, the last without its top bit."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F | 0x80)
    return bytes(reversed(parts))
