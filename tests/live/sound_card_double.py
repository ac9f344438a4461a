"""A double of the package sounddevice: cards of a test's choice, played by the real clock."""

from __future__ import annotations

import threading
import time
import types
from typing import Any

import numpy as np


class PortAudioError(Exception):
    pass


class Stream:
    """A card's buffer, which empties or fills with time."""

    capacity = 8192

    def __init__(self, library: CardsDouble, kind: str, options: dict[str, Any]) -> None:
        self.samplerate = float(options["samplerate"])
        self.channels = options["channels"]
        self.device = options["device"]
        self.written: list[np.ndarray] = []
        self.closed = False
        self._library = library
        self._kind = kind
        self._begun: float | None = None
        self._passed = self._missed = 0
        library.streams.append(self)

    def start(self) -> None:
        if self._library.refuse:
            raise PortAudioError("Error starting stream: Device unavailable [PaErrorCode -9985]")
        self._begun = time.monotonic()

    @property
    def active(self) -> bool:
        return self._library.plugged and not self.closed

    @property
    def _due(self) -> int:
        assert self._begun is not None
        now = self._library.stuck_at or time.monotonic()
        return int((now - self._begun) * self.samplerate) // 256 * 256

    @property
    def write_available(self) -> int:
        due = self._due
        # the card goes on where there is nothing to play
        self._missed = max(self._missed, due - self._passed)
        return self.capacity - (self._passed + self._missed - due)

    @property
    def read_available(self) -> int:
        return max(0, self._due - self._passed)

    def write(self, samples: np.ndarray) -> bool:
        room = self.write_available
        assert len(samples) <= room, "this write would wait"
        assert samples.shape[1] == self.channels
        assert samples.dtype == np.float32
        assert samples.flags.c_contiguous
        self.written.append(samples.copy())
        self._passed += len(samples)
        return room == self.capacity

    def read(self, count: int) -> tuple[np.ndarray, bool]:
        assert count <= self.read_available, "this read would wait"
        index = self._passed + np.arange(count)
        self._passed += count
        wave = 0.5 * np.sin(2 * np.pi * 1000 * index / self.samplerate)
        return np.repeat(wave[:, None], self.channels, axis=1).astype(np.float32), False

    def abort(self) -> None:
        if not self._library.plugged:
            raise PortAudioError("Stream is stopped [PaErrorCode -9983]")

    def close(self) -> None:
        self._library.may_close.wait()
        self.closed = True


class CardsDouble(types.ModuleType):
    """The module; a test sets its attributes."""

    PortAudioError = PortAudioError

    def __init__(self, cards: list[tuple[str, int, int]], rates: tuple[int, ...] = ()) -> None:
        super().__init__("sounddevice")
        self.cards = cards
        self.rates = rates
        self.apis = [{"name": "Core Audio"}]
        self.default = types.SimpleNamespace(device=[0, 0])
        self.streams: list[Stream] = []
        self.initialised = 1
        self.plugged = True
        self.refuse = False
        self.stuck_at = 0.0
        self.may_close = threading.Event()
        self.may_close.set()

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index, "name": name, "max_input_channels": inputs,
                "max_output_channels": outputs, "default_samplerate": 48_000.0,
            }
            for index, (name, inputs, outputs) in enumerate(self.cards)
        ]  # fmt: skip

    def query_hostapis(self) -> list[dict[str, Any]]:
        return self.apis

    def _check(self, samplerate: float, **more: Any) -> None:
        if self.rates and samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    check_input_settings = check_output_settings = _check

    def InputStream(self, latency: float, dtype: str, **options: Any) -> Stream:  # noqa: N802
        self._check(options["samplerate"])
        return Stream(self, "input", options)

    def OutputStream(self, latency: float, dtype: str, **options: Any) -> Stream:  # noqa: N802
        self._check(options["samplerate"])
        return Stream(self, "output", options)

    def _terminate(self) -> None:
        assert all(stream.closed for stream in self.streams)
        self.initialised -= 1

    def _initialize(self) -> None:
        self.initialised += 1

    def _exit_handler(self) -> None:
        raise AssertionError("not in a test")
