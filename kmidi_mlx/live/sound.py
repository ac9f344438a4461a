"""What is heard: notes become blocks of sound at their time, for everybody who listens.

One synthesis for all: what the speakers play is what the cloud hears and what is recorded. A block
is made a little before it is to be heard and carries that moment, so that nobody has to guess.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.sampler import Sampler
from kmidi_mlx.live.thread_priority import hurry

__all__ = ["SAMPLE_RATE", "FanReader", "HeardBeside", "SoundBlock", "SoundEngine", "SoundFan"]

SAMPLE_RATE = 44_100
# A block is ready this long before it is to be heard.
_AHEAD_SECONDS = 0.040
# The player may be late by as much before a note is.
_SPARE_SECONDS = 0.015
# A machine that slept or stalled for longer goes on from now instead of catching up.
_LONGEST_STALL_SECONDS = 0.25
_FULL_SCALE = 32_767


@dataclass(frozen=True, eq=False)
class SoundBlock:
    """Sound of a moment.

    Attributes:
        sequence: number of the block, ascending by 1.
        time_monotonic: moment at which its first sample is to be heard, of `time.monotonic()`.
        samples: int16 (n, 2), left and right; not to be written to.
    """

    sequence: int
    time_monotonic: float
    samples: NDArray[np.int16]


class FanReader:
    """One listener's queue of blocks; where it is full the oldest are lost.

    Args:
        fan: where the blocks come from.
        blocks: that it holds.

    Attributes:
        lost: number of blocks that this listener did not take in time.
    """

    def __init__(self, fan: SoundFan, blocks: int) -> None:
        self.lost = 0
        self._fan = fan
        self._blocks: deque[SoundBlock] = deque()
        self._capacity = blocks
        self._changed = threading.Condition()

    def put(self, block: SoundBlock) -> None:
        """Add a block; never waits."""
        with self._changed:
            if len(self._blocks) == self._capacity:
                self._blocks.popleft()
                self.lost += 1
            self._blocks.append(block)
            self._changed.notify()

    def read(self, timeout: float) -> SoundBlock | None:
        """Return the next block, or None when there was none within `timeout` seconds."""
        with self._changed:
            if not self._blocks and timeout > 0:
                self._changed.wait_for(lambda: self._blocks, timeout)
            return self._blocks.popleft() if self._blocks else None

    def close(self) -> None:
        """Listen no more."""
        self._fan.forget(self)


class SoundFan:
    """Hands every block to every listener.

    Args:
        sample_rate: samples a second.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE) -> None:
        self.sample_rate = sample_rate
        self._lock = threading.Lock()
        self._readers: list[FanReader] = []
        self._sequence = 0

    def put(self, samples: NDArray[np.int16], time_monotonic: float) -> None:
        """Hand out the next block; never waits for a listener.

        Args:
            samples: int16 (n, 2); belongs to the listeners from now on.
            time_monotonic: moment at which it begins to be heard.
        """
        samples.flags.writeable = False
        with self._lock:
            block = SoundBlock(self._sequence, time_monotonic, samples)
            self._sequence += 1
            for reader in self._readers:
                reader.put(block)

    def reader(self, blocks: int = 16) -> FanReader:
        """Return a new listener's queue, which starts with the next block.

        Args:
            blocks: that wait for it at the most.
        """
        reader = FanReader(self, blocks)
        with self._lock:
            self._readers.append(reader)
        return reader

    def forget(self, reader: FanReader) -> None:
        """Hand nothing more to a listener."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)


class HeardBeside(Protocol):
    """Sound that is mixed in, such as a file that is listened to."""

    def pull(self, count: int) -> NDArray[np.float32]:
        """Return its next samples, float32 (count, 2); never waits."""

    def heard(self, samples: NDArray[np.float32], time_monotonic: float) -> None:
        """Take note that these samples are heard from a moment on."""


class SoundEngine(threading.Thread):
    """Plays notes on the package's piano, block by block; a sink of the player.

    Args:
        fan: gets the sound.
        block_ms: milliseconds of a block.
        polyphony: voices at once.
        volume: share of full loudness, 0 to 1.

    Attributes:
        volume: may be changed at any time, and so may `beside`.
        beside: sound that is mixed in; None: none.
        blocks: that were made.
        stalls: times that it fell behind and went on from now.
    """

    def __init__(
        self, fan: SoundFan, block_ms: float = 20.0, polyphony: int = 64, volume: float = 0.8
    ) -> None:
        super().__init__(name="kmidi sound", daemon=True)
        # a thread and a sink are both known by their name
        self.name = "piano"
        self.volume = volume
        self.beside: HeardBeside | None = None
        self.blocks = 0
        self.stalls = 0
        self.lead_seconds = _AHEAD_SECONDS + _SPARE_SECONDS
        self._fan = fan
        self._count = max(1, round(block_ms * fan.sample_rate / 1000.0))
        self._sampler = Sampler(sample_rate=fan.sample_rate, polyphony=polyphony)
        self._loudness = volume
        self._told: deque[tuple[int, int, float]] = deque()
        # told for later than the block under way: by moment, which a stall does not shift
        self._later: list[tuple[float, int, int, int]] = []
        self._count_told = itertools.count()
        self._stopping = threading.Event()
        # moment at which the sampler's first sample is heard
        self._origin = 0.0

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Begin a note; any thread may call."""
        self._told.append((pitch, velocity, at))

    def note_off(self, pitch: int, at: float) -> None:
        """End a note; any thread may call."""
        self._told.append((pitch, 0, at))

    def silence(self) -> None:
        """Let everything go now, also what was told for later; any thread may call."""
        self._told.append((-1, 0, 0.0))

    def close(self) -> None:
        """Let everything go; the engine itself goes on until `stop`."""
        self.silence()

    def set_polyphony(self, voices: int) -> None:
        """Change the number of voices at once."""
        self._sampler.polyphony = voices

    def stop(self) -> None:
        """End the thread; returns when it has ended."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Make blocks until stopped."""
        hurry()
        self._origin = time.monotonic() + _AHEAD_SECONDS
        while True:
            heard = self._origin + self._sampler.position / self._fan.sample_rate
            wait = heard - _AHEAD_SECONDS - time.monotonic()
            if wait < -_LONGEST_STALL_SECONDS:
                self._origin -= wait
                self.stalls += 1
                continue
            if self._stopping.wait(max(0.0, wait)):
                return
            self._fan.put(self._block(heard), heard)
            self.blocks += 1

    def _block(self, heard: float) -> NDArray[np.int16]:
        self._hear()
        # a change is spread over a block, so that it does not click
        wanted = self.volume
        volume = np.linspace(self._loudness, wanted, self._count, dtype=np.float32)
        self._loudness = wanted
        mixed = self._sampler.render_block(self._count) * volume[:, None]
        beside = self.beside
        if beside is not None:
            other = beside.pull(self._count)
            beside.heard(other, heard)
            mixed += other * volume[:, None]
        np.clip(mixed, -1.0, 1.0, out=mixed)
        return (mixed * _FULL_SCALE).astype(np.int16)

    def _hear(self) -> None:
        """Hand the sampler what was told and is to be heard within the next block."""
        while self._told:
            pitch, velocity, at = self._told.popleft()
            if pitch < 0:
                self._later.clear()
                self._sampler.silence()
            else:
                heapq.heappush(self._later, (at, next(self._count_told), pitch, velocity))
        end = self._sampler.position + self._count
        while self._later:
            at, _, pitch, velocity = self._later[0]
            sample = round((at - self._origin) * self._fan.sample_rate)
            if sample >= end:
                return
            heapq.heappop(self._later)
            if velocity:
                self._sampler.note_on(pitch, velocity, sample)
            else:
                self._sampler.note_off(pitch, sample)
