"""A take under way: its threads take what is played, heard and seen, and write it."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.live.sound import FanReader, SoundFan
from kmidi_mlx.live.take_files import (
    ABOUT_FILE,
    CLOUDS_FILE,
    MUSIC_FILE,
    SOUND_FILE,
    CloudFile,
    MusicFile,
    NoteEvent,
    Reserve,
    SoundFile,
)

__all__ = ["BEGIN_SECONDS", "TAKE_FORMAT", "TAKE_VERSION", "TakeSink", "Taking", "reason_of"]

TAKE_FORMAT, TAKE_VERSION = "kmidi take", 1

#: A take begins so long after its start: sound is made ahead of its time, and all of what is heard
#: then has to be still to come.
BEGIN_SECONDS = 0.2
_WRITE_SECONDS = 0.1
_COMMIT_SECONDS = 2.0
# What waits for a slow disk: forty seconds of sound, ten of clouds. More is lost and counted.
_SOUND_BLOCKS, _CLOUDS = 2000, 600
_CLOUD_WAIT_SECONDS = 0.2


class TakeSink:
    """Takes note of what is played; a sink of the player, also while nothing is recorded."""

    name = "take"
    lead_seconds = 0.0

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        self._events: list[NoteEvent] | None = None

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        """Take note of a beginning."""
        with self._lock:
            self._held[pitch] = velocity
            self._add(NoteEvent(at, pitch, velocity))

    def note_off(self, pitch: int, at: float) -> None:
        """Take note of an end."""
        with self._lock:
            self._held.pop(pitch, None)
            self._add(NoteEvent(at, pitch, 0))

    def silence(self) -> None:
        """Take note that everything has ended."""
        now = time.monotonic()
        with self._lock:
            for pitch in self._held:
                self._add(NoteEvent(now, pitch, 0))
            self._held.clear()

    def close(self) -> None:
        """As `silence`."""
        self.silence()

    def begin(self) -> dict[int, int]:
        """Collect events from now on; returns the velocity of what sounds, by pitch."""
        with self._lock:
            self._events = []
            return dict(self._held)

    def drain(self) -> list[NoteEvent]:
        """Return what was collected since the last time."""
        with self._lock:
            events = self._events or []
            if self._events is not None:
                self._events = []
            return events

    def end(self) -> None:
        """Collect no more."""
        with self._lock:
            self._events = None

    def _add(self, event: NoteEvent) -> None:
        if self._events is not None:
            self._events.append(event)


class Taking(threading.Thread):
    """One take under way: takes, writes, and leaves whole files behind in any case.

    Args:
        path: folder of the take; exists and is empty.
        about: what else is to be known about it.
        sound: what is heard.
        clouds: what is seen.
        sink: what is played.
        on_failed: told in one sentence when the disk refused.

    Raises:
        KmidiError: or OSError, when the disk refuses at once.
    """

    def __init__(
        self,
        path: Path,
        about: dict[str, Any],
        sound: SoundFan | None,
        clouds: CloudSlot,
        sink: TakeSink,
        on_failed: Callable[[Taking, str], None],
    ) -> None:
        super().__init__(name="kmidi recorder", daemon=True)
        self.path = path
        self._sink = sink
        self._on_failed = on_failed
        self._slot = clouds
        self._stopping = threading.Event()
        self._problem = ""
        self._end = float("inf")
        self._waiting: deque[CloudFrame] = deque()
        self._lost_clouds = 0
        self._early: CloudFrame | None = None
        self._begin = time.monotonic() + BEGIN_SECONDS
        self._reader: FanReader | None = None
        self._sound_file: SoundFile | None = None
        self._about = {
            "format": TAKE_FORMAT,
            "version": TAKE_VERSION,
            "name": path.name,
            "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
            "sample_rate": None if sound is None else sound.sample_rate,
            "finished": False,
            "seconds": None,
            "about": about,
        }
        with ExitStack() as undo:
            undo.callback(sink.end)
            held = sink.begin()
            # listening first: making files may take its time
            if sound is not None:
                self._reader = sound.reader(_SOUND_BLOCKS)
                undo.callback(self._reader.close)
            self._write_about()
            self._reserve = Reserve(path)
            self._cloud_file = CloudFile(path / CLOUDS_FILE, self._begin)
            undo.callback(self._cloud_file.release)
            if sound is not None:
                self._sound_file = SoundFile(path / SOUND_FILE, sound.sample_rate)
                undo.callback(self._sound_file.release)
            self._music_file = MusicFile(path / MUSIC_FILE, self._begin, held)
            undo.pop_all()
        self._collector = threading.Thread(
            target=self._collect_clouds, name="kmidi recorder of clouds", daemon=True
        )

    @property
    def files(self) -> list[str]:
        """Files of the take, relative to the folder of takes."""
        names = [ABOUT_FILE, MUSIC_FILE, CLOUDS_FILE]
        if self._sound_file is not None:
            names.insert(2, SOUND_FILE)
        return [f"{self.path.name}/{name}" for name in names]

    def finish(self, timeout: float) -> None:
        """End the take now and wait until it is written, or raise `KmidiError`."""
        self._end = max(self._begin, time.monotonic())
        self._stopping.set()
        self.join(timeout)
        if self.is_alive():
            raise KmidiError(f"the disk is slow: {self.path.name} is still being written.")
        if self._problem:
            raise KmidiError(self._problem)

    def run(self) -> None:
        """Write until the take ends, or the disk does."""
        self._collector.start()
        try:
            committed = time.monotonic()
            while not self._stopping.wait(_WRITE_SECONDS):
                now = time.monotonic()
                self._write(now)
                if now - committed >= _COMMIT_SECONDS:
                    committed = now
                    self._music_file.commit(now)
            self._collector.join()
            self._write(self._end)
            self._close()
        except (OSError, KmidiError) as error:
            self._salvage(error)
        finally:
            self._release()
        if self._problem:
            self._on_failed(self, self._problem)

    def _collect_clouds(self) -> None:
        newest = self._slot.newest
        after = -1 if newest is None else newest.sequence - 1
        while not self._stopping.is_set():
            frame = self._slot.get(after, _CLOUD_WAIT_SECONDS)
            if frame is None:
                continue
            after = frame.sequence
            if len(self._waiting) < _CLOUDS:
                self._waiting.append(frame)
            else:
                self._lost_clouds += 1

    def _write(self, until: float) -> None:
        """Write what has come up to a moment."""
        self._music_file.add(self._sink.drain(), until)
        if self._reader is not None and self._sound_file is not None:
            while (block := self._reader.read(0.0)) is not None:
                seconds = block.time_monotonic - self._begin
                self._sound_file.add(block.sequence, seconds, block.samples)
            self._sound_file.commit()
        self._cloud_file.add(self._take_clouds())

    def _take_clouds(self) -> list[CloudFrame]:
        frames = []
        while self._waiting:
            frame = self._waiting.popleft()
            if frame.time_monotonic <= self._begin:
                # what is seen when the take begins is its first cloud
                self._early = replace(frame, time_monotonic=self._begin)
            elif frame.time_monotonic <= self._end:
                frames.append(frame)
        if self._early is not None and (frames or self._stopping.is_set()):
            frames.insert(0, self._early)
            self._early = None
        return frames

    def _close(self) -> None:
        seconds = self._end - self._begin
        self._music_file.close(self._end)
        if self._sound_file is not None:
            self._sound_file.close(seconds)
        self._cloud_file.close()
        lost = 0 if self._reader is None else self._reader.lost
        self._about |= {
            "finished": True,
            "seconds": round(seconds, 6),
            "clouds": self._cloud_file.count,
            "lost": {"sound_blocks": lost, "clouds": self._lost_clouds},
        }
        self._write_about()

    def _salvage(self, error: Exception) -> None:
        """Make the files whole as far as they came; each by itself, as the disk allows."""
        self._problem = (
            f"the recording {self.path.name} ended: {reason_of(error).rstrip('.')}; what came "
            "before is kept."
        )
        end = min(self._end, time.monotonic())
        self._reserve.release()
        # what may free room comes first
        actions: list[Callable[[], None]] = [
            self._cloud_file.close,
            lambda: self._music_file.close(end),
        ]
        if self._sound_file is not None:
            actions.insert(1, self._sound_file.commit)
        for action in actions:
            with suppress(OSError, KmidiError):
                action()
        self._about["problem"] = self._problem
        with suppress(KmidiError):
            self._write_about()

    def _release(self) -> None:
        self._stopping.set()
        self._reserve.release()
        self._sink.end()
        if self._reader is not None:
            self._reader.close()
        if self._sound_file is not None:
            self._sound_file.release()
        self._cloud_file.release()

    def _write_about(self) -> None:
        text = json.dumps(self._about, indent=2, ensure_ascii=False) + "\n"
        write_bytes_atomically(self.path / ABOUT_FILE, text.encode())


def reason_of(error: Exception) -> str:
    """Return why something was refused, as the end of a sentence."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}."
    return str(error)
