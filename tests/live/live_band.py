"""A band for tests of recording: sound, clouds and notes in real time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundFan

BLOCK = 882


def cloud(sequence: int, at: float, points: int = 200) -> CloudFrame:
    return CloudFrame(sequence, at, np.full((points, 10), sequence % 7 / 8, np.float16), 0.5, -0.5)


class Band:
    """Makes sound, clouds and notes in real time; counts what it made and how long that took."""

    def __init__(self, recorder: Recorder, fan: SoundFan, clouds: CloudSlot) -> None:
        self.blocks: list[tuple[float, np.ndarray]] = []
        self.times: list[float] = []
        self.longest = 0.0
        self._parts = recorder, fan, clouds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play)

    def __enter__(self) -> Band:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _play(self) -> None:
        recorder, fan, clouds = self._parts
        origin = time.monotonic() + 0.04
        count = 0
        while not self._stopping.wait(max(0.0, origin - 0.04 + count / 50 - time.monotonic())):
            heard = origin + count * BLOCK / SAMPLE_RATE
            samples = np.arange(2 * BLOCK, dtype=np.int16).reshape(BLOCK, 2) + np.int16(count)
            begun = time.monotonic()
            fan.put(samples, heard)
            clouds.put(cloud(count, begun))
            recorder.sink.note_on(60 + count % 12, 80, begun)
            recorder.sink.note_off(60 + count % 12, begun + 0.01)
            self.longest = max(self.longest, time.monotonic() - begun)
            self.blocks.append((heard, samples))
            self.times.append(begun)
            count += 1


Parts = tuple[Recorder, SoundFan, CloudSlot]


def recording(tmp_path: Path) -> Iterator[Parts]:
    """A recorder below `takes`, with what it records; nothing may fail."""
    failures: list[str] = []
    fan, clouds = SoundFan(), CloudSlot()
    recorder = Recorder(tmp_path / "takes", fan, clouds, failures.append)
    yield recorder, fan, clouds
    recorder.close()
    assert recorder.name == ""
    assert failures == []
