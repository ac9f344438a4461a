from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.keyboard import KeyboardInput, KeyEvent
from kmidi_mlx.music.midi_file import read_midi

# (what, channel, number, value)
MESSAGES = st.lists(
    st.one_of(
        st.tuples(st.just(0x90), st.integers(0, 2), st.integers(60, 63), st.integers(0, 127)),
        st.tuples(st.just(0x80), st.integers(0, 2), st.integers(60, 63), st.just(0)),
        st.tuples(st.just(0xB0), st.integers(0, 2), st.just(64), st.sampled_from([0, 63, 64, 127])),
        st.tuples(
            st.just(0xB0), st.integers(0, 2), st.sampled_from([1, 120, 121, 123, 127]), st.just(0)
        ),
        st.just((0xFF, 0, 0, 0)),
        st.just((0xFE, 0, 0, 0)),
    ),
    max_size=40,
)


def feed(keyboard: KeyboardInput, *messages: Sequence[int], start: float = 0.0) -> list[KeyEvent]:
    """Send raw messages, a second apart, and take what came of them."""
    for index, message in enumerate(messages):
        keyboard.receive(bytes(message), start + index)
    return keyboard.drain()


def still(moment: float = 0.0) -> KeyboardInput:
    """A keyboard whose clock stands."""
    return KeyboardInput(clock=lambda: moment)


def raw(what: int, channel: int, number: int, value: int) -> bytes:
    return bytes((what,)) if what >= 0xF0 else bytes((what | channel, number, value))


@settings(max_examples=150)
@given(MESSAGES)
def test_beginnings_and_ends_alternate_and_all_ends_in_the_end(
    messages: list[tuple[int, int, int, int]],
) -> None:
    keyboard = still()
    sounding: set[int] = set()
    events: list[KeyEvent] = []
    for index, message in enumerate(messages):
        keyboard.receive(raw(*message), float(index))
        fresh = keyboard.drain()
        events += fresh
        for event in fresh:
            assert (event.pitch in sounding) == (event.velocity == 0)
            (sounding.discard if event.velocity == 0 else sounding.add)(event.pitch)
        assert keyboard.held == len(sounding)
    keyboard.release_all(float(len(messages)))
    for event in keyboard.drain():
        assert event.velocity == 0
        sounding.remove(event.pitch)
    assert not sounding
    assert keyboard.held == 0
    assert [event.time for event in events] == sorted(event.time for event in events)


def slow_sounding(messages: list[tuple[int, int, int, int]], pitch: int) -> bool:
    """Whether a pitch sounds after all messages, by looking at each channel on its own."""
    for channel in range(3):
        down = pedal = kept = False
        for what, at, number, value in messages:
            if what == 0xFF:
                down = pedal = kept = False
            if at != channel:
                continue
            if what == 0x90 and number == pitch and value:
                down, kept = True, False
            elif what in (0x80, 0x90) and number == pitch:
                kept = kept or (down and pedal)
                down = False
            elif what == 0xB0 and number in (64, 121):
                pedal = number == 64 and value >= 64
                kept = kept and pedal
            elif what == 0xB0 and number >= 120:
                down = kept = False
        if down or kept:
            return True
    return False


@settings(max_examples=150)
@given(MESSAGES)
def test_what_sounds_is_what_a_slow_reading_says(
    messages: list[tuple[int, int, int, int]],
) -> None:
    keyboard = still()
    for message in messages:
        keyboard.receive(raw(*message), 0.0)
    sounding = set()
    for event in keyboard.drain():
        (sounding.add if event.velocity else sounding.discard)(event.pitch)
    assert sounding == {pitch for pitch in range(60, 64) if slow_sounding(messages, pitch)}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(60, 63), st.integers(1, 127)), max_size=30))
def test_notes_are_those_of_a_midi_file_of_the_same_messages(
    tmp_path_factory: pytest.TempPathFactory, touches: list[tuple[int, int]]
) -> None:
    # each touch moves a key the other way; an even velocity moves the pedal too
    down: set[int] = set()
    messages: list[mido.Message] = []
    pedal = False
    for pitch, velocity in touches:
        if velocity % 2 == 0:
            pedal = not pedal
            messages.append(mido.Message("control_change", control=64, value=127 * pedal, time=1))
        kind = "note_off" if pitch in down else "note_on"
        down ^= {pitch}
        messages.append(mido.Message(kind, note=pitch, velocity=velocity, time=1))
    messages += [mido.Message("note_off", note=pitch, time=1) for pitch in sorted(down)]
    messages.append(mido.Message("control_change", control=64, value=0, time=1))
    path = tmp_path_factory.mktemp("keys") / "keys.mid"
    mido.MidiFile(type=0, ticks_per_beat=500, tracks=[mido.MidiTrack(messages)]).save(path)

    keyboard, now = still(), 0
    begun: dict[int, tuple[float, int]] = {}
    notes = []
    for message in messages:
        now += message.time
        keyboard.receive(bytes(message.bytes()), now / 1000)
    for event in keyboard.drain():
        if event.velocity:
            begun[event.pitch] = event.time, event.velocity
        else:
            onset, velocity = begun.pop(event.pitch)
            notes.append((round(onset, 6), event.pitch, round(event.time, 6), velocity))
    assert not begun
    wanted = read_midi(path)
    arrays = (wanted.onset_seconds, wanted.pitch, wanted.offset_seconds, wanted.velocity)
    rounded = [array.round(6).tolist() for array in arrays]
    assert sorted(notes) == sorted(zip(*rounded, strict=True))


def test_the_pedal_lengthens_notes_of_its_channel() -> None:
    keyboard = still()
    events = feed(
        keyboard,
        (0xB1, 64, 127),
        (0x91, 60, 80),
        (0x92, 62, 70),
        (0x81, 60, 0),
        (0x82, 62, 0),
        (0x91, 60, 90),
        (0x91, 60, 0),
        (0xB1, 64, 10),
    )
    assert events == [
        KeyEvent(1.0, 60, 80),
        KeyEvent(2.0, 62, 70),
        KeyEvent(4.0, 62, 0),
        KeyEvent(5.0, 60, 0),
        KeyEvent(5.0, 60, 90),
        KeyEvent(7.0, 60, 0),
    ]
    assert keyboard.last_time == 7.0


def test_what_is_for_no_piano_changes_nothing() -> None:
    keyboard = still()
    strange = [b"", b"\x90", b"\x90\x3c", b"\x90\x3c\x40\x00", b"\x90\x80\x40", b"\xc0\x05"]
    strange += [b"\xe0\x00\x40", b"\xf8", b"\x99\x3c\x40", b"\x3c\x40\x40", b"\xb0\x07\x40"]
    assert feed(keyboard, *strange, (0x80, 60, 0)) == []
    assert keyboard.held == 0
    # an end moves a key, as far as one can tell; nothing else did
    assert keyboard.last_time == len(strange)
    assert still().last_time == -math.inf


def test_a_cable_that_was_pulled_ends_what_is_held() -> None:
    now = 10.0
    keyboard = KeyboardInput(clock=lambda: now)
    keyboard.receive(b"\x90\x3c\x40", 9.0)
    keyboard.receive(b"\xfe", 10.0)
    now = 10.9
    assert len(keyboard.drain()) == 1
    keyboard.receive(b"\xfe", 10.9)
    now = 11.85
    assert keyboard.drain() == []
    now = 12.0
    assert keyboard.drain() == [KeyEvent(10.9, 60, 0)]
    now = 20.0
    # plugged in again: a keyboard that sends no such thing is trusted
    keyboard.receive(b"\x90\x3c\x40", 19.0)
    now = 100.0
    assert [event.velocity for event in keyboard.drain()] == [64]
    assert keyboard.held == 1


def test_a_moment_that_lies_before_becomes_the_latest() -> None:
    keyboard = still()
    keyboard.receive(b"\x90\x3c\x40", 5.0)
    keyboard.receive(b"\x80\x3c\x00", 4.0)
    assert [event.time for event in keyboard.drain()] == [5.0, 5.0]


def test_memory_is_bounded_and_every_end_is_kept() -> None:
    keyboard = still()
    for index in range(20_000):
        keyboard.receive(bytes((0x90, index % 128, 64)), 0.0)
    keyboard.release_all(1.0)
    events = keyboard.drain()
    assert len(events) <= 4096 + 128
    begun = [event.pitch for event in events if event.velocity]
    assert sorted(begun) == sorted(event.pitch for event in events if not event.velocity)
    # and goes on afterwards
    assert len(feed(keyboard, (0x90, 60, 64), start=2.0)) == 1


def test_threads_do_not_tear_it() -> None:
    keyboard = KeyboardInput()
    events: list[KeyEvent] = []

    def play(channel: int) -> None:
        for index in range(500):
            keyboard.receive(bytes((0x90 | channel, 60 + index % 5, 64)), float(index))
            keyboard.receive(bytes((0x80 | channel, 60 + index % 5, 0)), float(index))

    threads = [threading.Thread(target=play, args=(channel,)) for channel in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        events += keyboard.drain()
    for thread in threads:
        thread.join()
    events += keyboard.drain()
    assert keyboard.held == 0
    sounding: set[int] = set()
    for event in events:
        assert (event.pitch in sounding) == (event.velocity == 0)
        (sounding.discard if event.velocity == 0 else sounding.add)(event.pitch)
    assert not sounding
    # what was not struck again began once for each touch
    assert sum(event.velocity > 0 for event in events) == 1500
