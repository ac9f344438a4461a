"""The bytes of a Standard MIDI File as arrays of events.

A loop in Python of a few hundred turns finds where the events start, the rest is array work: a
third of a millisecond for a pop song, where mido, which makes an object of every event, takes
0.1 s. A C++ parser (symusic) is faster still, but loses what is needed here: notes without an end,
the channel of a note and of a pedal, exact times, SMPTE time, RIFF files. Nothing is allocated
beyond a fixed multiple of the real size, whatever a header says.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = ["MAX_FILE_BYTES", "MidiEvents", "read_events"]

# Room for a million notes; reading takes up to 50 bytes of memory for each byte of the file.
MAX_FILE_BYTES = 8 * 2**20

_PADDING = 8
_LONGEST_DELTA = 4  # bytes of a variable-length number
_SYSEX, _ESCAPE, _META = 0xF0, 0xF7, 0xFF
_META_END_OF_TRACK, _META_SET_TEMPO = 0x2F, 0x51

# Bytes of a message by its status byte; 0 where the length is written in it, or undefined.
_SIZES = bytes(
    [0] * 0x80
    + [3] * 0x40  # note off, note on, key pressure, control change
    + [2] * 0x20  # program change, channel pressure
    + [3] * 0x10  # pitch bend
    + [0, 2, 3, 2, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0]
)
# Bytes of a message of two data bytes by the byte after its delta time; 0 for any other message.
_PLAIN_SIZES = bytes([2] * 0x80 + [3] * 0x40 + [0] * 0x20 + [3] * 0x10 + [0] * 0x10)
_LONGEST_PLAIN = 5  # two bytes of delta time and three of message
_STRIDE = 16  # plain events that are passed in one go, a power of two


@dataclass(frozen=True, eq=False)
class MidiEvents:
    """The channel messages and tempo events of a file, track after track, each in its order.

    Attributes:
        file_type: 0, 1 or 2.
        division: the header's field as it is: ticks a quarter note, or (bit 15) frames.
        track: int64 (n,), number of the track of each channel message, from 0.
        tick: int64 (n,), its time since the start of the track.
        status: uint8 (n,), status byte 0x80-0xEF, running status filled in.
        number: uint8 (n,), first data byte 0-127: pitch, controller, ...
        value: uint8 (n,), second data byte 0-127: velocity, ...; 0 where there is none.
        tempo_track: int64 (m,), track of each tempo event.
        tempo_tick: int64 (m,), its time since the start of the track.
        tempo: int64 (m,), microseconds a quarter note, 1-16777215.
        end_tick: int64 (tracks,), time of the last event of each track.
    """

    file_type: int
    division: int
    track: NDArray[np.int64]
    tick: NDArray[np.int64]
    status: NDArray[np.uint8]
    number: NDArray[np.uint8]
    value: NDArray[np.uint8]
    tempo_track: NDArray[np.int64]
    tempo_tick: NDArray[np.int64]
    tempo: NDArray[np.int64]
    end_tick: NDArray[np.int64]


def read_events(data: bytes, name: str) -> MidiEvents:
    """Parse a Standard MIDI File, also one wrapped in RIFF (RMID).

    Args:
        data: the file, at most MAX_FILE_BYTES.
        name: what to call it in errors.

    Raises:
        KmidiError: if it is no MIDI file, cut short, or damaged.
    """
    if len(data) > MAX_FILE_BYTES:
        raise KmidiError(
            f"{name} has more than {MAX_FILE_BYTES // 2**20} MiB, too much for a MIDI file of "
            "one piece; split it."
        )
    data = _unwrapped(data)
    file_type, division, bounds = _find_tracks(data, name)
    # Padded, so that the last event may be looked at as if it had all its bytes.
    data = data[: bounds[-1][1] if bounds else 0] + bytes(_PADDING)
    position, track = _walk(data, bounds, name)
    buffer = np.frombuffer(data, np.uint8)
    delta, at = _delta_times(buffer, position)
    elapsed = np.zeros(len(delta) + 1, np.int64)
    np.cumsum(delta, out=elapsed[1:])
    edges = np.searchsorted(track, np.arange(len(bounds) + 1))
    before_track = elapsed[edges]
    tick = elapsed[1:] - before_track[track]

    status = buffer[at]
    is_channel = status < 0xF0
    channel, system = is_channel.nonzero()[0], (~is_channel).nonzero()[0]
    status, channel_at = status[channel], at[channel]
    own_status = status >= 0x80
    # A message without a status has that of the latest one before it.
    written = own_status.nonzero()[0]
    status = np.repeat(status[written], np.append(written[1:], len(status)) - written)
    channel_at += own_status
    number, value = buffer[channel_at], buffer[channel_at + 1]
    value *= (status & 0xE0) != 0xC0
    broken = (number | value) >= 0x80
    if broken.any():
        first = int(channel[np.argmax(broken)])
        raise _damaged(name, int(track[first]), int(position[first]))

    at = at[system]
    is_tempo = (buffer[at] == _META) & (buffer[at + 1] == _META_SET_TEMPO)
    at, tempo_event = at[is_tempo], system[is_tempo]
    tempo = buffer[at[:, None] + np.arange(3, 6)] @ np.array([65536, 256, 1])
    wrong = (buffer[at + 2] != 3) | (tempo == 0)
    if wrong.any():
        first = int(tempo_event[np.argmax(wrong)])
        raise _damaged(name, int(track[first]), int(position[first]))
    return MidiEvents(
        file_type=file_type,
        division=division,
        track=track[channel],
        tick=tick[channel],
        status=status,
        number=number,
        value=value,
        tempo_track=track[tempo_event],
        tempo_tick=tick[tempo_event],
        tempo=tempo,
        end_tick=before_track[1:] - before_track[:-1],
    )


def _unwrapped(data: bytes) -> bytes:
    """Return the MIDI file inside a RIFF file of form RMID, or the data as it is."""
    if data[:4] != b"RIFF" or data[8:12] != b"RMID":
        return data
    start = 12
    while start + 8 <= len(data):
        size = struct.unpack_from("<I", data, start + 4)[0]
        if data[start : start + 4] == b"data":
            return data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2
    return b""


def _find_tracks(data: bytes, name: str) -> tuple[int, int, list[tuple[int, int]]]:
    """Read the header and return (file type, division, [start, end) of every track's events)."""
    if data[:4] != b"MThd" or len(data) < 14:
        raise KmidiError(f"{name} is not a MIDI file: it has no MThd header.")
    header_size, file_type, tracks, division = struct.unpack_from(">IHHH", data, 4)
    if not 6 <= header_size <= len(data) - 8 or file_type > 2:
        raise KmidiError(
            f"{name} is no MIDI file that can be read: its header has {header_size} bytes of "
            f"type {file_type}; it needs at least 6, all of them there, of type 0, 1 or 2."
        )
    bounds: list[tuple[int, int]] = []
    start = 8 + header_size
    while len(bounds) < tracks:
        if start + 8 > len(data):
            raise KmidiError(
                f"{name} is cut short: its header speaks of {tracks} tracks, "
                f"{len(bounds)} are there."
            )
        kind, size = struct.unpack_from(">4sI", data, start)
        start += 8
        if start + size > len(data):
            raise KmidiError(
                f"{name} is cut short: track {len(bounds) + 1} should have {size} bytes, "
                f"{len(data) - start} are there."
            )
        if kind == b"MTrk":
            bounds.append((start, start + size))
        start += size
    return file_type, division, bounds


def _walk(
    data: bytes, bounds: list[tuple[int, int]], name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each event starts (with its delta time), and its track, both (events,).

    Where an event starts depends on all those before it, so this is a loop in Python, but one that
    takes `_STRIDE` plain events at a time.
    """
    hops = _plain_hops(data, bounds)
    far = memoryview(hops[-1])
    leaps: list[int] = []
    singles: list[int] = []
    for number, (start, end) in enumerate(bounds):
        at, running_size = start, 0
        while at < end:
            # Without a status of its own a plain event needs a running one of two data bytes.
            if running_size == 2 and far[at] != at:
                leaps.append(at)
                at = far[at]
            else:
                singles.append(at)
                at, running_size = _after_event(data, at, end, running_size)
        if at != end:
            raise _damaged(name, number, singles[-1])
    position = np.array(leaps, np.intp)
    # Shorter and shorter hops fill in the events between two leaps, some of them more than once.
    for hop in hops[-2::-1]:
        position = np.concatenate((position, hop[position]))
    is_start = np.zeros(len(data), bool)
    is_start[position] = True
    is_start[singles] = True
    position = np.flatnonzero(is_start)
    edges = np.searchsorted(position, [edge for bound in bounds for edge in bound])
    return position, np.repeat(np.arange(len(bounds)), edges[1::2] - edges[::2])


def _plain_hops(data: bytes, bounds: list[tuple[int, int]]) -> NDArray[np.int32]:
    """Return for each byte where it leads by 1, 2, 4, … `_STRIDE` plain events from there.

    Plain is a channel message of two data bytes, its status written or not, after a delta time of
    one or two bytes. Where none can start, and so near the end of a track that it might end there
    or beyond, a byte leads to itself.
    """
    buffer = np.frombuffer(data, np.uint8)[:-2]
    body = np.frombuffer(data.translate(_PLAIN_SIZES), np.uint8)
    is_long = buffer >= 0x80
    size = np.where(is_long, body[2:], body[1:-1])
    is_plain = size > 0
    is_plain[:-1] &= ~(is_long[:-1] & is_long[1:])
    for _, end in bounds:
        is_plain[end - _LONGEST_PLAIN : end] = False
    size += 1
    size += is_long
    size *= is_plain
    hops = np.empty((_STRIDE.bit_length(), len(buffer)), np.int32)
    np.add(np.arange(len(buffer), dtype=np.int32), size, out=hops[0])
    for hop, twice in itertools.pairwise(hops):
        # Only bytes outside the tracks can lead outside the data; "raise" would copy to be safe.
        np.take(hop, hop, out=twice, mode="clip")
    return hops


def _after_event(data: bytes, at: int, end: int, running_size: int) -> tuple[int, int]:
    """Return where the event after the one at `at` starts, and the data bytes of running status.

    The former is `end` after the end of the track, and beyond `end` for what cannot be read.
    """
    delta_at = at
    while data[at] >= 0x80:
        at += 1
    at += 1
    if at - delta_at > _LONGEST_DELTA:
        return end + 1, running_size
    status = data[at]
    if status < 0x80:
        return (at + running_size if running_size else end + 1), running_size
    if status < 0xF0:
        return at + _SIZES[status], _SIZES[status] - 1
    return _after_system_event(data, at, end), running_size


def _after_system_event(data: bytes, at: int, end: int) -> int:
    """Return where the event that follows a status byte of 0xF0 or more starts.

    It is `end` after the end of the track, and beyond `end` for what cannot be read.
    """
    status = data[at]
    if status not in (_META, _SYSEX, _ESCAPE):
        return at + _SIZES[status] if _SIZES[status] else end + 1
    kind = data[at + 1]
    at += 2 if status == _META else 1
    length = 0
    for byte in data[at : at + 4]:
        at += 1
        length = length << 7 | byte & 0x7F
        if byte < 0x80:
            break
    else:
        return end + 1
    at += length
    return end if status == _META and kind == _META_END_OF_TRACK and at <= end else at


def _delta_times(
    buffer: NDArray[np.uint8], position: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Read the variable-length numbers at `position`; return them and where the bytes after are."""
    byte = buffer[position]
    at = position + 1
    value = (byte & 0x7F).astype(np.int64)
    going_on = (byte >= 0x80).nonzero()[0]
    while len(going_on):
        byte = buffer[at[going_on]]
        at[going_on] += 1
        value[going_on] = value[going_on] << 7 | (byte & 0x7F)
        going_on = going_on[byte >= 0x80]
    return value, at


def _damaged(name: str, track: int, position: int) -> KmidiError:
    return KmidiError(
        f"{name} is damaged: no MIDI event can be read at byte {position} of track {track + 1}."
    )
