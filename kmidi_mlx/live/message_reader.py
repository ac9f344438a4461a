"""Raw MIDI bytes as they come from a wire, cut into messages."""

from __future__ import annotations

__all__ = ["MessageReader"]

# data bytes after each status; system exclusive and what is undefined is left out
_DATA_BYTES = {
    **{kind | channel: 2 for kind in (0x80, 0x90, 0xA0, 0xB0, 0xE0) for channel in range(16)},
    **{kind | channel: 1 for kind in (0xC0, 0xD0) for channel in range(16)},
    0xF1: 1,
    0xF2: 2,
    0xF3: 1,
    0xF6: 0,
}
_REAL_TIME = 0xF8
_UNDEFINED_REAL_TIME = (0xF9, 0xFD)
_SYSTEM = 0xF0


class MessageReader:
    """Cuts a stream of bytes into messages, by the rules of "MIDI 1.0 Detailed Specification".

    Running status is written out; real-time messages, which may come amid others, are given where
    they come; system exclusive messages and bytes that belong to nothing are left out.
    """

    def __init__(self) -> None:
        self._status: int | None = None
        self._data = bytearray()

    def read(self, data: bytes) -> list[bytes]:
        """Read the next bytes, however they are cut.

        Returns:
            The messages that are complete by now, each 1-3 bytes.
        """
        messages = []
        for byte in data:
            if byte >= _REAL_TIME:
                if byte not in _UNDEFINED_REAL_TIME:
                    messages.append(bytes((byte,)))
                continue
            if byte >= 0x80:
                self._status = byte if byte in _DATA_BYTES else None
                self._data.clear()
            else:
                self._data.append(byte)
            if self._status is None:
                self._data.clear()
            elif len(self._data) == _DATA_BYTES[self._status]:
                messages.append(bytes((self._status, *self._data)))
                self._data.clear()
                if self._status >= _SYSTEM:
                    self._status = None
        return messages
