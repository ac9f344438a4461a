"""The files of a take while they grow: whole at every moment, whatever ends the process.

Sound: a WAV whose header is brought up to date with every write; 64-bit sizes (EBU Tech 3306,
RF64) beyond 4 GiB. Music: a MIDI file that is replaced as a whole. Clouds: the binary frames of
the live protocol one after another, readable up to the last whole one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.live.cloud_slot import CloudFrame
from kmidi_mlx.live.protocol import pack_cloud

__all__ = [
    "ABOUT_FILE", "CLOUDS_FILE", "CLOUD_FILE_HEADER", "CLOUD_FILE_MAGIC", "CLOUD_FILE_VERSION",
    "MUSIC_FILE", "SOUND_FILE", "CloudFile", "MusicFile", "NoteEvent", "Reserve", "SoundFile",
]  # fmt: skip

ABOUT_FILE = "take.json"
MUSIC_FILE, SOUND_FILE, CLOUDS_FILE = "music.mid", "sound.wav", "clouds.kmc"
# room on the disk that a take keeps for its last words: half an hour of music, and more
_RESERVE_FILE, _RESERVE_BYTES = ".reserve", 1 << 17

#: Head of a file of clouds: magic, version, its own size, and the monotonic time of the take's
#: beginning, which the times of the frames count from.
CLOUD_FILE_HEADER = struct.Struct("<8sHHId8x")
CLOUD_FILE_MAGIC, CLOUD_FILE_VERSION = b"KMCLOUDS", 1

_CHANNELS, _SAMPLE_BYTES = 2, 2
_FRAME_BYTES = _CHANNELS * _SAMPLE_BYTES
# RIFF, size, WAVE; room for a ds64 chunk; a format chunk of 16 bytes; data, size
_WAV_HEADER = struct.Struct("<4sI4s 4sI 28s 4sIHHIIHH 4sI")
_SIZES_64 = struct.Struct("<QQQI")
_LARGEST_32 = 2**32 - 1
# Times of blocks are exact to the clock; less than this is rounding, not a gap.
_JITTER_SECONDS = 0.005

_TICKS_PER_SECOND = 1000
# 120 beats a minute, half a second each: a tick is a millisecond, as `write_midi` has it
_TICKS_PER_BEAT, _BEAT_MICROSECONDS = 500, 500_000
_END_OF_TRACK = b"\xff\x2f\x00"


def _create(path: Path) -> int:
    # exclusive: nobody's file is written over, and no link is followed
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write everything at a place, or raise: a disk that fills up takes a part first."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


class Reserve:
    """Room on the disk that is kept until it is needed, for the last writes to a full one.

    Args:
        folder: of the take.

    Raises:
        OSError: when there is not even that much room.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _RESERVE_FILE
        file = _create(self._path)
        try:
            _write_all(file, bytes(_RESERVE_BYTES), 0)
        finally:
            os.close(file)

    def release(self) -> None:
        """Give the room back; nothing happens a second time."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class SoundFile:
    """A growing WAV of 16 bits and two channels, in which every block lies at its time.

    Args:
        path: the file to make; must not be there yet.
        sample_rate: samples a second.

    Attributes:
        frames: samples a channel that were added so far.

    Raises:
        OSError: as all methods do, when the disk refuses.
    """

    def __init__(self, path: Path, sample_rate: int) -> None:
        self.frames = 0
        self._sample_rate = sample_rate
        self._sequence = -1
        self._pending: list[NDArray[np.int16]] = []
        # where the pending blocks begin, and where the file ends
        self._start = self._whole = 0
        self._file = _create(path)
        try:
            self._write_header()
        except OSError:
            self.release()
            raise

    def add(self, sequence: int, seconds: float, samples: NDArray[np.int16]) -> None:
        """Put a block where it belongs; what is missing before it is silence.

        Args:
            sequence: its number; one after the last follows it without a seam.
            seconds: time of its first sample since the beginning of the take; what lies before
                that is left out.
            samples: int16 (n, 2).
        """
        place = round(seconds * self._sample_rate)
        follows = self.frames > 0 and sequence == self._sequence + 1
        if follows and abs(place - self.frames) <= _JITTER_SECONDS * self._sample_rate:
            place = self.frames
        self._sequence = sequence
        late = max(0, self.frames - place)  # never over what is written
        samples, place = samples[late:], place + late
        if not len(samples):
            return
        if place != self.frames:
            self._write_pending()
            self._start = place
        self._pending.append(samples)
        self.frames = place + len(samples)

    def commit(self) -> None:
        """Write what was added, and then the header that speaks of it."""
        self._write_pending()
        self._write_header()

    def close(self, seconds: float | None) -> None:
        """End the file.

        Args:
            seconds: since the beginning of the take; the sound is cut there, or filled up with
                silence. None: where the disk took the last of it.
        """
        if seconds is not None:
            self._write_pending()
            self._whole = round(seconds * self._sample_rate)
        os.ftruncate(self._file, self._offset(self._whole))
        self._write_header()
        os.fsync(self._file)

    def release(self) -> None:
        """Give the file back as it is; nothing happens a second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write_pending(self) -> None:
        if self._pending:
            body = np.concatenate(self._pending).astype("<i2", copy=False)
            # forgotten first: what a full disk did not take is not tried again
            self._pending = []
            _write_all(self._file, body.data.cast("B"), self._offset(self._start))
            self._start = self._whole = self._start + len(body)

    def _offset(self, frame: int) -> int:
        return _WAV_HEADER.size + frame * _FRAME_BYTES

    def _write_header(self) -> None:
        size = self._whole * _FRAME_BYTES
        whole = _WAV_HEADER.size - 8 + size
        large = whole > _LARGEST_32
        sizes = _SIZES_64.pack(whole, size, self._whole, 0) if large else bytes(_SIZES_64.size)
        header = _WAV_HEADER.pack(
            b"RF64" if large else b"RIFF", _LARGEST_32 if large else whole, b"WAVE",
            b"ds64" if large else b"JUNK", _SIZES_64.size, sizes,
            b"fmt ", 16, 1, _CHANNELS, self._sample_rate, self._sample_rate * _FRAME_BYTES,
            _FRAME_BYTES, 8 * _SAMPLE_BYTES,
            b"data", _LARGEST_32 if large else size,
        )  # fmt: skip
        _write_all(self._file, header, 0)


@dataclass(frozen=True, slots=True)
class NoteEvent:
    """A note begins or ends.

    Attributes:
        at: moment, of `time.monotonic()`.
        pitch: MIDI pitch.
        velocity: 1-127; 0: the note ends.
    """

    at: float
    pitch: int
    velocity: int


class MusicFile:
    """A growing MIDI file of type 0 whose ticks are milliseconds.

    Args:
        path: the file to make.
        begin: moment of the beginning of the take; notes held then begin with it.
        held: velocity of the notes that sound already, by pitch.

    Raises:
        KmidiError: as `commit` and `close` do, when the disk refuses.
    """

    def __init__(self, path: Path, begin: float, held: dict[int, int]) -> None:
        self._path = path
        self._begin = begin
        self._sounding = held
        self._begun = False
        self._tick = 0
        tempo = b"\x00\xff\x51\x03" + _BEAT_MICROSECONDS.to_bytes(3, "big")
        self._track = bytearray(tempo + b"\x00\xc0\x00")  # and a piano
        self._replace(0)

    def add(self, events: Sequence[NoteEvent], until: float) -> None:
        """Append what was played.

        Args:
            events: in the order in which they were played.
            until: moment up to which the take goes; what comes later is left out.
        """
        for event in events:
            if event.at > until:
                continue
            if event.at > self._begin:
                self._begin_notes()
            tick = self._tick_of(event.at)
            # one key sounds once: struck again it ends first, and an end of nothing is nothing
            if self._sounding.pop(event.pitch, None) is not None and self._begun:
                self._append(tick, event.pitch, 0)
            if event.velocity:
                self._sounding[event.pitch] = event.velocity
                if self._begun:
                    self._append(tick, event.pitch, event.velocity)

    def commit(self, now: float) -> None:
        """Bring the file up to date; notes that sound last to this moment in it."""
        if now > self._begin:
            self._begin_notes()
        self._replace(self._tick_of(now))

    def close(self, end: float) -> None:
        """End the notes that sound and the track at a moment."""
        if end > self._begin:
            self._begin_notes()
            for pitch in sorted(self._sounding):
                self._append(self._tick_of(end), pitch, 0)
        self._sounding.clear()
        self._replace(self._tick_of(end))

    def _begin_notes(self) -> None:
        """Write the notes that were held when the take began, once."""
        if not self._begun:
            self._begun = True
            for pitch, velocity in sorted(self._sounding.items()):
                self._append(0, pitch, velocity)

    def _tick_of(self, moment: float) -> int:
        # an event that was sent late may be told after later ones
        return max(self._tick, round((moment - self._begin) * _TICKS_PER_SECOND))

    def _append(self, tick: int, pitch: int, velocity: int) -> None:
        status = 0x90 if velocity else 0x80
        self._track += _variable_length(tick - self._tick) + bytes((status, pitch, velocity))
        self._tick = tick

    def _replace(self, tick: int) -> None:
        end = _variable_length(tick - self._tick) + _END_OF_TRACK
        head = struct.pack(">4sIHHH", b"MThd", 6, 0, 1, _TICKS_PER_BEAT)
        size = struct.pack(">4sI", b"MTrk", len(self._track) + len(end))
        write_bytes_atomically(self._path, head + size + self._track + end)


def _variable_length(number: int) -> bytes:
    """A whole number as MIDI files write times: seven bits a byte, the last without the top bit."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(0x80 | number & 0x7F)
    return bytes(reversed(digits))


class CloudFile:
    """A growing file of clouds.

    Args:
        path: the file to make; must not be there yet.
        begin: monotonic time of the beginning of the take.

    Attributes:
        count: clouds so far.

    Raises:
        OSError: as all methods do, when the disk refuses.
    """

    def __init__(self, path: Path, begin: float) -> None:
        self.count = 0
        self._size = CLOUD_FILE_HEADER.size
        header = CLOUD_FILE_HEADER.pack(CLOUD_FILE_MAGIC, CLOUD_FILE_VERSION, self._size, 0, begin)
        self._file = _create(path)
        try:
            _write_all(self._file, header, 0)
        except OSError:
            self.release()
            raise

    def add(self, frames: Sequence[CloudFrame]) -> None:
        """Append clouds."""
        data = b"".join(map(pack_cloud, frames))
        _write_all(self._file, data, self._size)
        self._size += len(data)
        self.count += len(frames)

    def close(self) -> None:
        """End the file after its last whole cloud."""
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)

    def release(self) -> None:
        """Give the file back as it is; nothing happens a second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
