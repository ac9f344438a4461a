"""Standard MIDI files: read any of them as Notes, write Notes as one.

The reader follows "Standard MIDI Files 1.0" (MIDI Manufacturers Association, RP-001) and decides
where the standard leaves a choice:

- Channel 10 (drums) is left out; all other channels and tracks become one piece.
- A note-off ends the oldest note that sounds on its track, channel and pitch. A note without one
  ends with its track. A note of no length lasts 10 ms.
- The sustain pedal (controller 64, down from 64 on) acts on its channel, in every track. A note
  that ends while it is down goes on to its release or to the next onset of the pitch on that
  channel; a pedal that is never released is held to the last note event.
- The tracks of a type 2 file are independent patterns: they follow one another.
- Whatever comes after the last track that the header speaks of is ignored.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import mido
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_bytes import MAX_FILE_BYTES, MidiEvents, read_events
from kmidi_mlx.music.notes import MAX_DURATION_SECONDS, Notes, separate_repeats

__all__ = ["parse_midi", "read_midi", "write_midi"]

_NOTE_OFF, _NOTE_ON, _CONTROL_CHANGE = 0x80, 0x90, 0xB0
_SUSTAIN_PEDAL, _PEDAL_DOWN = 64, 64
_DRUM_CHANNEL = 9
_DEFAULT_TEMPO = 500_000  # microseconds a quarter note: 120 beats a minute
_FRAME_RATES = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # SMPTE frames a second
_SHORTEST_SECONDS = 0.01
_TICKS_PER_SECOND = 1000
_SLOWEST_BPM, _FASTEST_BPM = 4.0, 1000.0


def read_midi(path: str | os.PathLike[str]) -> Notes:
    """Read a MIDI file (types 0, 1, 2; metrical or SMPTE time; plain or RIFF).

    Args:
        path: the file, at most 8 MiB.

    Returns:
        Its notes outside the drum channel, with the sustain pedal applied; possibly none.

    Raises:
        KmidiError: if there is no such file, or it cannot be read, or is no sound MIDI file.
    """
    path = Path(path)
    if path.is_dir():
        raise KmidiError(f"{path} is a folder; name a MIDI file.")
    if path.exists() and not path.is_file():
        raise KmidiError(f"{path} is no regular file; name a MIDI file.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise KmidiError(f"{path} cannot be read: {reason}.") from error
    return parse_midi(data, str(path))


def parse_midi(data: bytes, name: str = "MIDI data") -> Notes:
    """Read the bytes of a MIDI file; see `read_midi`.

    Args:
        data: the whole file, at most 8 MiB.
        name: what to call it in errors.

    Raises:
        KmidiError: if it is no sound MIDI file, or lasts longer than 24 hours.
    """
    events = read_events(data, name)
    tempo_tick, tick, end_tick = events.tempo_tick, events.tick, events.end_tick
    tempo = events.tempo
    if events.file_type == 2:
        # One pattern after the other; each begins with the standard's tempo until it sets its own.
        begin_tick = np.concatenate(([0], np.cumsum(end_tick)[:-1]))
        tempo_tick = np.concatenate((begin_tick, tempo_tick + begin_tick[events.tempo_track]))
        tempo = np.concatenate((np.full(len(begin_tick), _DEFAULT_TEMPO), tempo))
        tick, end_tick = tick + begin_tick[events.track], end_tick + begin_tick
    note_on, off_tick = _pair(events, tick, end_tick)
    on_tick = tick[note_on]

    ticks = np.concatenate((on_tick, off_tick))
    seconds = _seconds(ticks, tempo_tick, tempo, events.division, name)
    if len(seconds) and not seconds.max() <= MAX_DURATION_SECONDS:
        raise KmidiError(
            f"{name} lasts {seconds.max() / 3600:.0f} hours, which no piece does: "
            f"a time in it is damaged (at most {MAX_DURATION_SECONDS / 3600:.0f} hours are read)."
        )
    onset, offset = seconds[: len(note_on)], seconds[len(note_on) :]
    offset = np.where(offset > onset, offset, onset + _SHORTEST_SECONDS)
    pitch, velocity = events.number[note_on], events.value[note_on]
    order = np.argsort(onset, kind="stable")  # in the order of pitch they are already
    return Notes(pitch[order], velocity[order], onset[order], offset[order])


def write_midi(notes: Notes, path: str | os.PathLike[str], *, tempo: float = 120.0) -> None:
    """Write notes as a MIDI file of type 0, for a piano on channel 1.

    A tick is 1 ms, so that the 10 ms grid of events is exact: grid notes read back are the same.
    On one channel a pitch cannot overlap itself: a note that sounds when its pitch is struck again
    ends there, as in `encode`. The file appears whole or not at all.

    Args:
        notes: what to write; without notes the file is a valid, silent one.
        path: the file to write or replace; its folder has to exist.
        tempo: beats a minute, 4-1000, rounded so that a beat is a whole number of milliseconds.
            It does not change when notes sound, only where an editor draws the bars.

    Raises:
        KmidiError: for a tempo out of range, or if the file cannot be written.
    """
    if not _SLOWEST_BPM <= tempo <= _FASTEST_BPM:
        raise KmidiError(
            f"tempo is {tempo} beats a minute; "
            f"it has to be from {_SLOWEST_BPM:g} to {_FASTEST_BPM:g}."
        )
    beat_ticks = round(60 * _TICKS_PER_SECOND / tempo)
    onset = np.floor(notes.onset_seconds * _TICKS_PER_SECOND + 0.5).astype(np.int64)
    offset = np.floor(notes.offset_seconds * _TICKS_PER_SECOND + 0.5).astype(np.int64)
    offset = np.maximum(offset, onset + 1)
    pitch, velocity, onset, offset = separate_repeats(notes.pitch, notes.velocity, onset, offset)
    tick = np.concatenate((offset, onset))
    order = np.argsort(tick, kind="stable")
    delta = np.diff(tick[order], prepend=0)
    sounds = np.concatenate((np.zeros_like(velocity), velocity))[order]

    track = mido.MidiTrack()
    track.append(mido.MetaMessage("set_tempo", tempo=beat_ticks * 1_000_000 // _TICKS_PER_SECOND))
    track.append(mido.Message("program_change", program=0))
    for key, loudness, ticks in zip(
        np.concatenate((pitch, pitch))[order].tolist(), sounds.tolist(), delta.tolist(), strict=True
    ):
        kind = "note_on" if loudness else "note_off"
        track.append(mido.Message(kind, note=key, velocity=loudness, time=ticks))
    midi = mido.MidiFile(type=0, ticks_per_beat=beat_ticks)
    midi.tracks.append(track)
    content = io.BytesIO()
    midi.save(file=content)
    write_bytes_atomically(Path(path), content.getvalue())


def _pair(
    events: MidiEvents, tick: NDArray[np.int64], end_tick: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the notes: the event that starts each, and the tick at which it stops sounding.

    They are in the order of pitch, channel, track and place in the track.
    """
    kind, channel = events.status & 0xF0, events.status & 0x0F
    value, track = events.value, events.track
    is_note = ((kind == _NOTE_ON) | (kind == _NOTE_OFF)) & (channel != _DRUM_CHANNEL)
    is_start = is_note & (kind == _NOTE_ON) & (value > 0)
    note = is_note.nonzero()[0]
    # Tracks lie one after the other, so a stable sort by the rest of the key groups by all of it.
    # Sorting 16-bit numbers is several times faster.
    key = events.number.astype(np.uint16) << 4 | channel
    note = note[np.argsort(key[note], kind="stable")]
    note_key, note_track, starts = key[note], track[note], is_start[note]
    is_first = np.ones(len(note), bool)
    is_first[1:] = (note_key[1:] != note_key[:-1]) | (note_track[1:] != note_track[:-1])
    first = is_first.nonzero()[0]
    stops = ~starts & ~_unmatched(first, starts)

    note_on, note_off = note[starts], note[stops]
    on_count, off_count = (np.add.reduceat(x, first, dtype=np.int64) for x in (starts, stops))
    on_end, off_end = np.cumsum(on_count), np.cumsum(off_count)
    # The k-th end of a group belongs to its k-th start.
    partner = np.arange(len(note_on))
    partner += np.repeat(off_end - off_count - on_end + on_count, on_count)
    ended = partner < np.repeat(off_end, on_count)

    pedal = (kind == _CONTROL_CHANGE) & (events.number == _SUSTAIN_PEDAL)
    press = pedal & (value >= _PEDAL_DOWN)
    if press.any():
        tick = _sustained(tick, channel, key, is_note, is_start, press, pedal & ~press)
    off_tick = end_tick[track[note_on]]
    off_tick[ended] = tick[note_off[partner[ended]]]
    return note_on, off_tick


def _unmatched(first: NDArray[np.int64], starts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the ends that come when nothing sounds in their group; groups begin at `first`."""
    sizes = np.append(first[1:], len(starts)) - first
    change = np.where(starts, 1, -1)
    balance = np.cumsum(change)
    balance -= np.repeat(balance[first] - change[first], sizes)
    if balance.min(initial=0) >= 0:
        return np.zeros(len(starts), bool)
    # Lowering each group below the one before restarts the running minimum.
    balance -= np.repeat(np.arange(len(first)) * (2 * len(starts) + 2), sizes)
    lowest_before = np.minimum.accumulate(balance - change)
    unmatched: NDArray[np.bool_] = ~starts & (balance < lowest_before)
    return unmatched


def _sustained(
    tick: NDArray[np.int64],
    channel: NDArray[np.integer],
    key: NDArray[np.integer],
    is_note: NDArray[np.bool_],
    is_start: NDArray[np.bool_],
    press: NDArray[np.bool_],
    release: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Move the ends of notes to where the pedal, or the next onset of the key, lets them end.

    Args:
        tick: (events,) time of every event, all tracks.
        channel: (events,) 0-15.
        key: (events,) pitch * 16 + channel.
        is_note: (events,) which start or end a note.
        is_start: (events,) which start a note.
        press: (events,) which press the sustain pedal, at least one.
        release: (events,) which release it.

    Returns:
        int64 (events,), for each that ends a note the tick at which it stops sounding.
    """
    has_pedal = np.zeros(16, bool)
    has_pedal[channel[press]] = True
    stream = ((is_note | press | release) & has_pedal[channel]).nonzero()[0]
    # All tracks in one stream, as a synthesiser receives them; then channel after channel.
    stream = stream[np.argsort(tick[stream], kind="stable")]
    stream = stream[np.argsort(channel[stream], kind="stable")]
    at, on, press, release = tick[stream], channel[stream], press[stream], release[stream]
    latest = np.maximum.accumulate(np.where(press | release, np.arange(len(stream)), 0))
    held = press[latest] & (on[latest] == on)
    following = _next(release)
    is_released = release[following] & (on[following] == on)
    let_go = np.where(is_released, at[following], tick.max())
    stop = tick.copy()
    stop[stream] = np.where(held, let_go, at)

    note = stream[is_note[stream]]
    note = note[np.argsort(key[note], kind="stable")]
    starts, note_key, note_stop = is_start[note], key[note], stop[note]
    following = _next(starts)
    is_struck_again = starts[following] & (note_key[following] == note_key)
    np.minimum(note_stop, tick[note][following], out=note_stop, where=is_struck_again)
    stop[note] = note_stop
    return stop


def _next(marked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return for each place the first one marked from there on, or else the last place."""
    stretch_end = np.append(marked.nonzero()[0], len(marked) - 1)
    stretch_begin = np.concatenate(([-1], stretch_end[:-1]))
    return np.repeat(stretch_end, stretch_end - stretch_begin)


def _seconds(
    tick: NDArray[np.int64],
    tempo_tick: NDArray[np.int64],
    tempo: NDArray[np.int64],
    division: int,
    name: str,
) -> NDArray[np.float64]:
    """Turn ticks into seconds by the tempo map, or by the frame rate of SMPTE time.

    Sums are kept in whole numbers (ticks times microseconds) and divided once, so that times on
    a round grid come out as the nearest float of the exact value.
    """
    frames, ticks_per_frame = 256 - (division >> 8), division & 0xFF
    is_smpte = division >= 0x8000
    if not division or (is_smpte and not (frames in _FRAME_RATES and ticks_per_frame)):
        raise KmidiError(f"{name} is damaged: its time division {division:#06x} means nothing.")
    if is_smpte:
        return tick / (_FRAME_RATES[frames] * ticks_per_frame)
    order = np.argsort(tempo_tick, kind="stable")
    change_tick = np.concatenate(([0.0], tempo_tick[order]))
    change_tempo = np.concatenate(([float(_DEFAULT_TEMPO)], tempo[order]))
    in_force = np.append(change_tick[1:] > change_tick[:-1], True)
    change_tick, change_tempo = change_tick[in_force], change_tempo[in_force]
    elapsed = np.zeros(len(change_tick))
    np.cumsum(np.diff(change_tick) * change_tempo[:-1], out=elapsed[1:])
    # One tempo for all is the common case.
    current = np.searchsorted(change_tick, tick, side="right") - 1 if len(elapsed) > 1 else 0
    microseconds = elapsed[current] + (tick - change_tick[current]) * change_tempo[current]
    seconds: NDArray[np.float64] = microseconds / (1e6 * division)
    return seconds
