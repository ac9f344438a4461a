"""What can be played on: the interface, and the sink that drives a MIDI output."""

from __future__ import annotations

from typing import Protocol

from kmidi_mlx.errors import KmidiError

__all__ = ["MidiOutput", "MidiSink", "PortLostError", "Sink"]

_NOTE_OFF, _NOTE_ON, _CONTROL_CHANGE = 0x80, 0x90, 0xB0
_SUSTAIN, _ALL_SOUND_OFF, _ALL_NOTES_OFF = 64, 120, 123


class PortLostError(KmidiError):
    """A device went away: unplugged, closed by its program, or refused what was sent."""


class Sink(Protocol):
    """Plays notes. Methods are called by the player's thread only.

    Attributes:
        name: for people.
        lead_seconds: how long before it is to be heard an event has to be told.
    """

    name: str
    lead_seconds: float

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Begin a note; `at` is the moment of `time.monotonic()` at which it is to be heard."""

    def note_off(self, pitch: int, at: float) -> None:
        """End a note."""

    def silence(self) -> None:
        """End everything now, also what was told for later."""

    def close(self) -> None:
        """Give the device back; no more calls follow."""


class MidiOutput(Protocol):
    """Anything that takes raw MIDI messages."""

    name: str

    def send(self, message: bytes) -> None:
        """Send one message at once.

        Raises:
            PortLostError: when the port is no longer there.
        """

    def close(self) -> None:
        """Close the port."""


class MidiSink:
    """Plays on a MIDI output.

    Args:
        output: where to send.
        channel: 0-15.

    Attributes:
        channel: may be changed at any time; notes end on the channel that they began on.
    """

    lead_seconds = 0.0

    def __init__(self, output: MidiOutput, channel: int = 0) -> None:
        self.name = output.name
        self._output = output
        self.channel = channel
        self._began: dict[int, int] = {}
        self._used = {channel}

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Send NOTE ON now: the player calls when it is time."""
        channel = self._began[pitch] = self.channel
        self._used.add(channel)
        self._output.send(bytes((_NOTE_ON | channel, pitch, velocity)))

    def note_off(self, pitch: int, at: float) -> None:
        """Send NOTE OFF now."""
        channel = self._began.pop(pitch, self.channel)
        self._output.send(bytes((_NOTE_OFF | channel, pitch, 0)))

    def silence(self) -> None:
        """Send pedal up, all notes off, all sound off, on every channel that was played on."""
        used, self._used = self._used, {self.channel}
        for channel in sorted(used | self._used):
            for controller in (_SUSTAIN, _ALL_NOTES_OFF, _ALL_SOUND_OFF):
                self._output.send(bytes((_CONTROL_CHANGE | channel, controller, 0)))

    def close(self) -> None:
        """Close the port."""
        self._output.close()
