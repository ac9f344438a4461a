"""What the tests of ports share: an ear, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable

from kmidi_mlx.live.sinks import MidiOutput, PortLostError

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


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
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
