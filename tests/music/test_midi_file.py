from __future__ import annotations

import errno
import io
import os
import struct
import time
from collections import defaultdict
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_bytes import MAX_FILE_BYTES
from kmidi_mlx.music.midi_file import parse_midi, read_midi
from kmidi_mlx.music.notes import Notes

PIECES = Path(__file__).parents[2] / "kmidi_mlx" / "assets" / "pop909"
Event = tuple[int, bytes]
Row = tuple[int, int, float, float]


# --- a small builder of MIDI bytes: an event is (ticks since the last one, bytes) ---


def number(value: int) -> bytes:
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F | 0x80)
    return bytes(reversed(digits))


def on(pitch: int, velocity: int = 80, channel: int = 0) -> bytes:
    return bytes([0x90 | channel, pitch, velocity])


def off(pitch: int, channel: int = 0) -> bytes:
    return bytes([0x80 | channel, pitch, 0])


def pedal(value: int, channel: int = 0) -> bytes:
    return bytes([0xB0 | channel, 64, value])


def tempo(microseconds: int) -> bytes:
    return b"\xff\x51\x03" + microseconds.to_bytes(3, "big")


def chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def track(*events: Event, end_delta: int = 0) -> bytes:
    body = b"".join(number(delta) + message for delta, message in events)
    return chunk(b"MTrk", body + number(end_delta) + b"\xff\x2f\x00")


def header(file_type: int, tracks: int, division: int = 480) -> bytes:
    return chunk(b"MThd", struct.pack(">HHH", file_type, tracks, division))


def file_of(*tracks: bytes, file_type: int | None = None, division: int = 480) -> bytes:
    kind = file_type if file_type is not None else int(len(tracks) > 1)
    return header(kind, len(tracks), division) + b"".join(tracks)


def rows(notes: Notes) -> list[Row]:
    return [
        (pitch, velocity, round(onset, 9), round(offset, 9))
        for pitch, velocity, onset, offset in zip(
            notes.pitch.tolist(),
            notes.velocity.tolist(),
            notes.onset_seconds.tolist(),
            notes.offset_seconds.tolist(),
            strict=True,
        )
    ]


def read(data: bytes) -> list[Row]:
    return rows(parse_midi(data))


ONE_NOTE = track((0, on(60)), (480, off(60)))


# --- what a file means ---


def test_one_note() -> None:
    assert read(file_of(ONE_NOTE)) == [(60, 80, 0.0, 0.5)]


def test_tracks_of_type_1_sound_together() -> None:
    second = track((240, on(72, 90, channel=1)), (480, off(72, channel=1)))
    assert read(file_of(ONE_NOTE, second)) == [(60, 80, 0.0, 0.5), (72, 90, 0.25, 0.75)]


def test_patterns_of_type_2_follow_one_another_each_at_its_own_tempo() -> None:
    first = track((0, tempo(1_000_000)), (0, on(60)), (480, off(60)), end_delta=480)
    assert read(file_of(first, ONE_NOTE, file_type=2)) == [
        (60, 80, 0.0, 1.0),
        (60, 80, 2.0, 2.5),
    ]


def test_running_status_of_two_and_of_one_data_byte() -> None:
    body = bytes(
        [
            *(0, 0x90, 60, 80, 0, 64, 81, 120, 60, 0, 0, 64, 0),  # velocity 0 ends a note
            *(0, 0xC0, 5, 0, 6, 0, 7),  # three program changes
            *(0, 0xD0, 5, 0, 6),  # two channel pressures
            *(0, 0xFF, 0x06, 2, 0x80, 0x90),  # a marker does not cancel the status
            *(0, 7),
            *(0, 0x90, 61, 82, 120, 61, 0, 0, 0xFF, 0x2F, 0),
        ]
    )
    assert read(file_of(chunk(b"MTrk", body))) == [
        (60, 80, 0.0, 0.125),
        (64, 81, 0.0, 0.125),
        (61, 82, 0.125, 0.25),
    ]


def test_tempo_changes_count_in_every_track() -> None:
    conductor = track((0, tempo(600_000)), (480, tempo(300_000)), (480, tempo(900_000)))
    notes = track((240, on(60)), (480, off(60)), (240, on(61)), (480, off(61)))
    assert read(file_of(conductor, notes)) == [(60, 80, 0.3, 0.75), (61, 80, 0.9, 1.8)]


def test_the_last_of_two_tempos_at_one_tick_holds() -> None:
    data = track((0, tempo(900_000)), (0, tempo(600_000)), (0, on(60)), (480, off(60)))
    assert read(file_of(data)) == [(60, 80, 0.0, 0.6)]


@pytest.mark.parametrize(
    ("frames", "rate"), [(24, 24.0), (25, 25.0), (29, 30_000 / 1001), (30, 30.0)]
)
def test_smpte_time_ignores_tempo(frames: int, rate: float) -> None:
    division = (256 - frames) << 8 | 40
    data = track((0, tempo(900_000)), (0, on(60)), (400, off(60)))
    assert read(file_of(data, division=division)) == [(60, 80, 0.0, round(10 / rate, 9))]


def test_riff_wrapped_file() -> None:
    midi = file_of(ONE_NOTE)
    info = b"DISP" + struct.pack("<I", 3) + b"abc\0"
    content = b"RMID" + info + b"data" + struct.pack("<I", len(midi)) + midi
    assert read(b"RIFF" + struct.pack("<I", len(content)) + content) == [(60, 80, 0.0, 0.5)]
    with pytest.raises(KmidiError, match="no MThd"):
        parse_midi(b"RIFF" + struct.pack("<I", 4) + b"RMID")


def test_drums_are_left_out_and_their_pedal_with_them() -> None:
    drums = track((0, pedal(127, 9)), (0, on(36, 99, 9)), (480, off(36, 9)))
    assert read(file_of(drums, ONE_NOTE)) == [(60, 80, 0.0, 0.5)]


def test_a_note_off_ends_the_oldest_note_of_its_track_channel_and_pitch() -> None:
    events = ((0, on(60, 10)), (480, on(60, 20)), (480, off(60)), (480, off(60)))
    assert read(file_of(track(*events))) == [(60, 10, 0.0, 1.0), (60, 20, 0.5, 1.5)]
    other_channel = ((0, on(60, 10)), (0, on(60, 20, 1)), (480, off(60, 1)), (480, off(60)))
    assert read(file_of(track(*other_channel))) == [(60, 10, 0.0, 1.0), (60, 20, 0.0, 0.5)]
    other_track = track((120, on(60, 20)), (120, off(60)))
    assert read(file_of(ONE_NOTE, other_track)) == [(60, 80, 0.0, 0.5), (60, 20, 0.125, 0.25)]


def test_a_note_off_of_silence_is_ignored() -> None:
    data = track(
        (0, off(60)), (0, on(60)), (480, off(60)), (0, off(60)), (10, on(60)), (38, off(60))
    )
    assert read(file_of(data)) == [
        (60, 80, 0.0, 0.5),
        (60, 80, round(490 / 960, 9), round(528 / 960, 9)),
    ]


def test_a_note_that_nobody_ends_lasts_to_the_end_of_its_track() -> None:
    hung = track((0, on(60)), (480, on(64)), (480, off(64)), end_delta=480)
    longer = track((0, on(72, channel=1)), (1920, off(72, channel=1)))
    assert read(file_of(hung, longer)) == [
        (60, 80, 0.0, 1.5),
        (72, 80, 0.0, 2.0),
        (64, 80, 0.5, 1.0),
    ]
    assert read(file_of(track((480, on(60))))) == [(60, 80, 0.5, 0.51)]


def test_a_note_of_no_length_lasts_one_hundredth_of_a_second() -> None:
    assert read(file_of(track((480, on(60)), (0, off(60))))) == [(60, 80, 0.5, 0.51)]


def test_other_events_and_unknown_chunks_are_skipped() -> None:
    noise = track(
        (0, b"\xff\x03\x05piano"),
        (0, b"\xff\x7f\x81\x00" + bytes(128)),
        (0, b"\xf0\x03\x01\x02\xf7"),
        (0, b"\xf7\x02\x01\x02"),
        (0, b"\xe0\x00\x40"),
        (0, b"\xa0\x3c\x40"),
        (0, on(60)),
        (480, off(60)),
    )
    data = header(1, 1) + chunk(b"XFIH", b"skip me") + noise
    assert read(data) == [(60, 80, 0.0, 0.5)]
    longer_header = chunk(b"MThd", struct.pack(">HHHH", 0, 1, 480, 0))
    assert read(longer_header + ONE_NOTE) == [(60, 80, 0.0, 0.5)]


def test_what_comes_after_the_last_track_is_ignored() -> None:
    assert read(file_of(ONE_NOTE) + b"junk, MTrk and more") == [(60, 80, 0.0, 0.5)]
    after_end = chunk(b"MTrk", b"\x00" + on(60) + b"\x60" + off(60) + b"\x00\xff\x2f\x00\xff\xff")
    assert read(file_of(after_end)) == [(60, 80, 0.0, 0.1)]


def test_a_track_without_an_end_event_is_read() -> None:
    assert read(file_of(chunk(b"MTrk", b"\x00" + on(60) + b"\x60" + off(60)))) == [
        (60, 80, 0.0, 0.1)
    ]


@pytest.mark.parametrize("data", [header(0, 0), file_of(track()), file_of(chunk(b"MTrk", b""))])
def test_a_file_without_notes_is_read_as_such(data: bytes) -> None:
    assert len(parse_midi(data)) == 0


# --- the pedal ---


def test_the_pedal_holds_notes_until_its_release() -> None:
    data = track(
        (0, on(60)), (240, pedal(64)), (240, off(60)), (480, pedal(63)), (0, on(62)), (480, off(62))
    )
    assert read(file_of(data)) == [(60, 80, 0.0, 1.0), (62, 80, 1.0, 1.5)]


def test_the_pedal_lets_go_where_the_pitch_is_struck_again() -> None:
    data = track(
        (0, pedal(127)),
        (0, on(60)),
        (240, off(60)),
        (240, on(60)),
        (240, off(60)),
        (720, pedal(0)),
    )
    assert read(file_of(data)) == [(60, 80, 0.0, 0.5), (60, 80, 0.5, 1.5)]


def test_the_pedal_acts_on_its_channel_in_every_track() -> None:
    feet = track((0, pedal(100, 1)), (1440, pedal(0, 1)))
    left = track((0, on(48, channel=1)), (480, off(48, channel=1)))
    assert read(file_of(feet, left, ONE_NOTE)) == [(48, 80, 0.0, 1.5), (60, 80, 0.0, 0.5)]


def test_a_note_ended_before_the_pedal_at_the_same_tick_is_not_held() -> None:
    before = track((0, on(60)), (480, off(60)), (0, pedal(127)), (480, pedal(0)))
    after = track((0, on(60)), (480, pedal(127)), (0, off(60)), (480, pedal(0)))
    assert read(file_of(before)) == [(60, 80, 0.0, 0.5)]
    assert read(file_of(after)) == [(60, 80, 0.0, 1.0)]


def test_a_pedal_that_is_never_released_holds_to_the_last_event() -> None:
    data = track((0, pedal(127)), (0, on(60)), (480, off(60)), (0, on(64)), (480, off(64)))
    assert read(file_of(data)) == [(60, 80, 0.0, 1.0), (64, 80, 0.5, 1.0)]


def test_a_pedal_that_is_only_released_or_never_used_changes_nothing() -> None:
    data = track((0, pedal(0)), (0, on(60)), (240, pedal(10)), (240, off(60)))
    assert read(file_of(data)) == [(60, 80, 0.0, 0.5)]
    assert read(file_of(track((0, pedal(0))))) == []


# --- against a slow reading of the merged stream of events ---


def reference_read(data: bytes) -> list[Row]:
    """Sort all events by time with mido, then one after another as a synthesiser would."""
    midi = mido.MidiFile(file=io.BytesIO(data))
    stream = []
    for index, events in enumerate(midi.tracks):
        tick = 0
        for message in events:
            tick += message.time
            stream.append((tick, index, message))
    stream.sort(key=lambda item: item[0])
    seconds_of: dict[int, float] = {}
    last_tick, now, per_tick = 0, 0.0, 0.5 / midi.ticks_per_beat
    notes: list[dict[str, float]] = []
    keys: dict[tuple[int, int, int], list[dict[str, float]]] = defaultdict(list)
    held: dict[int, list[dict[str, float]]] = defaultdict(list)
    down: dict[int, bool] = defaultdict(bool)
    track_end: dict[int, float] = {}
    last_message = 0.0
    for tick, index, message in stream:
        now += (tick - last_tick) * per_tick
        last_tick = tick
        seconds_of[tick] = now
        track_end[index] = now
        if message.type == "set_tempo":
            per_tick = message.tempo / 1e6 / midi.ticks_per_beat
        if message.is_meta or not hasattr(message, "channel"):
            continue
        last_message, channel = now, message.channel
        if message.type == "control_change" and message.control == 64:
            if down[channel] and message.value < 64:
                for note in held.pop(channel, []):
                    note["end"] = now
            down[channel] = message.value >= 64
        elif message.type == "note_on" and message.velocity and channel != 9:
            for note in [n for n in held[channel] if n["pitch"] == message.note]:
                note["end"] = now
                held[channel].remove(note)
            note = {"pitch": message.note, "velocity": message.velocity, "start": now, "end": -1}
            note["track"] = index
            notes.append(note)
            keys[index, channel, message.note].append(note)
        elif message.type in ("note_on", "note_off") and keys[index, channel, message.note]:
            note = keys[index, channel, message.note].pop(0)
            note["end"] = now
            if down[channel]:
                held[channel].append(note)
    for held_notes in held.values():
        for note in held_notes:
            note["end"] = last_message
    for sounding in keys.values():
        for note in sounding:
            note["end"] = track_end[int(note["track"])]
    found = [
        (int(n["pitch"]), int(n["velocity"]), n["start"], max(n["end"], n["start"])) for n in notes
    ]
    return sorted((p, v, round(a, 9), round(b if b > a else a + 0.01, 9)) for p, v, a, b in found)


channel_events = st.one_of(
    st.builds(on, st.integers(60, 62), st.sampled_from([0, 1, 80]), st.sampled_from([0, 1, 9])),
    st.builds(off, st.integers(60, 62), st.sampled_from([0, 1, 9])),
    st.builds(pedal, st.sampled_from([0, 63, 64, 127]), st.integers(0, 1)),
    # a whole number of half microseconds a tick: both ways to add up agree to the nanosecond
    st.builds(tempo, st.sampled_from([240_000, 480_048, 1_152_000])),
)
tracks_of_events = st.lists(
    st.lists(st.tuples(st.sampled_from([0, 0, 1, 96, 200]), channel_events), max_size=14),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(tracks_of_events)
def test_reading_equals_the_slow_reference(tracks: list[list[Event]]) -> None:
    data = file_of(*(track(*events) for events in tracks), file_type=1, division=96)
    assert sorted(read(data)) == reference_read(data)


@pytest.mark.parametrize("piece", ["331.mid", "169.mid"])
def test_real_pieces_equal_the_slow_reference(piece: str) -> None:
    data = (PIECES / piece).read_bytes()
    mine, reference = sorted(read(data)), reference_read(data)
    assert [row[:2] for row in mine] == [row[:2] for row in reference]
    assert np.allclose([row[2:] for row in mine], [row[2:] for row in reference], atol=1e-6)


# --- what is refused ---

LIES = {
    "empty": (b"", "no MThd"),
    "text": (b"Dear reader, this is no music at all.", "no MThd"),
    "half a header": (header(0, 1)[:10], "no MThd"),
    "a header of 4 GiB": (b"MThd\xff\xff\xff\xff" + bytes(6), "header has 4294967295 bytes"),
    "a short header": (b"MThd\0\0\0\4" + bytes(10), "header has 4 bytes"),
    "type 7": (header(7, 1) + ONE_NOTE, "type 7"),
    "a track too long": (header(0, 1) + b"MTrk\xff\xff\xff\xff" + ONE_NOTE[8:], "track 1 should"),
    "cut in a track": (file_of(ONE_NOTE, ONE_NOTE)[:-5], "track 2 should have"),
    "cut between tracks": (header(1, 2) + ONE_NOTE, "speaks of 2 tracks, 1 are there"),
    "65535 tracks": (header(1, 65535) + ONE_NOTE, "speaks of 65535 tracks"),
    "division 0": (file_of(ONE_NOTE, division=0), "division 0x0000"),
    "SMPTE of 23 frames": (file_of(ONE_NOTE, division=0xE928), "division 0xe928"),
    "SMPTE of 0 ticks": (file_of(ONE_NOTE, division=0xE700), "division 0xe700"),
    "no status": (file_of(chunk(b"MTrk", b"\x00\x3c\x50\x00\xff\x2f\x00")), "track 1"),
    "status of another track": (
        file_of(ONE_NOTE, chunk(b"MTrk", b"\x00\x3c\x50\x00\xff\x2f\x00")),
        "track 2",
    ),
    "a data byte over 127": (file_of(track((0, on(200)), (9, off(60)))), "damaged"),
    "an undefined status": (file_of(track((0, b"\xf4"), (0, on(60)))), "damaged"),
    "a delta of five bytes": (
        file_of(chunk(b"MTrk", b"\x81\x81\x81\x81\x00" + on(60) + b"\x00\xff\x2f\x00")),
        "damaged",
    ),
    "a text of 256 MiB": (file_of(track((0, b"\xff\x01\xff\xff\xff\x7f"))), "damaged"),
    "a length of five bytes": (file_of(track((0, b"\xf0\x81\x81\x81\x81\x00"))), "damaged"),
    "an event over the end": (file_of(chunk(b"MTrk", b"\x00\x90\x3c")), "damaged"),
    "an end over the end": (file_of(chunk(b"MTrk", b"\x00\xff\x2f\x09")), "damaged"),
    "tempo 0": (file_of(track((0, tempo(0)), (0, on(60)), (9, off(60)))), "damaged"),
    "a tempo of two bytes": (file_of(track((0, b"\xff\x51\x02\x05\x00"))), "damaged"),
    "a note of three days": (file_of(track((0, on(60)), (2**28 - 1, off(60)))), "hours"),
    "years of silence": (
        file_of(track(*[(2**28 - 1, off(1))] * 4000, (0, on(60)), (1, off(60)))),
        "hours",
    ),
    "a hung note of three days": (file_of(track((0, on(60)), end_delta=2**28 - 1)), "hours"),
    "too large": (bytes(MAX_FILE_BYTES + 1), "8 MiB"),
}


@pytest.mark.parametrize("case", LIES)
def test_damaged_data_is_refused_in_one_sentence(case: str) -> None:
    data, words = LIES[case]
    started = time.perf_counter()
    with pytest.raises(KmidiError, match=words) as caught:
        parse_midi(data, "piece.mid")
    assert time.perf_counter() - started < 1.0
    message = str(caught.value)
    assert message.startswith("piece.mid ")
    assert message.endswith(".")
    assert "\n" not in message


VALID = file_of(
    track((0, tempo(400_000)), (960, tempo(700_000)), (0, b"\xff\x03\x03abc")),
    track(
        *((0, pedal(127)), (0, on(60)), (480, on(64, 70)), (10, off(60)), (200, pedal(0))),
        *((0, b"\xc0\x05"), (0, b"\xf0\x02\x01\xf7"), (300, off(64)), (0, on(70, 1, 9))),
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(VALID)),
    st.binary(max_size=8),
)
def test_corrupted_files_give_notes_or_an_error(
    changes: list[tuple[int, int]], cut: int, inserted: bytes
) -> None:
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    data[cut:cut] = inserted
    for damaged in (bytes(data), bytes(data[:cut]), bytes(data[: len(VALID)])):
        started = time.perf_counter()
        try:
            notes = parse_midi(damaged)
        except KmidiError:
            pass
        else:
            again = Notes.build(
                notes.pitch, notes.velocity, notes.onset_seconds, notes.offset_seconds
            )
            assert notes.equals(again)
        assert time.perf_counter() - started < 1.0


def test_files_that_are_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(KmidiError, match="No such file"):
        read_midi(tmp_path / "missing.mid")
    with pytest.raises(KmidiError, match="is a folder"):
        read_midi(tmp_path)
    with pytest.raises(KmidiError, match="cannot be read"):
        read_midi("a\0b.mid")
    pipe = tmp_path / "pipe.mid"
    os.mkfifo(pipe)
    with pytest.raises(KmidiError, match="no regular file"):
        read_midi(pipe)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.mid"
    path.write_bytes(file_of(ONE_NOTE))

    def refuse(*_: object, **__: object) -> None:  # the superuser may read everything
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(KmidiError, match="Permission denied"):
        read_midi(path)


def test_a_hundred_thousand_notes_are_read_at_once() -> None:
    events = [
        event for i in range(100_000) for event in ((1, on(i % 88 + 21)), (20, off(i % 88 + 21)))
    ]
    data = file_of(track(*events))
    started = time.perf_counter()
    notes = parse_midi(data)
    assert time.perf_counter() - started < 20.0  # 0.2 s on an idle core
    assert len(notes) == 100_000
    assert notes.duration_seconds == pytest.approx(100_000 * 21 / 960)
