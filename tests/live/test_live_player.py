"""The player: nothing hangs, nothing is late by more than the machine makes it, nothing is lost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.clock import BAR_STEPS, BASE_TEMPO, BEAT_STEPS, SongClock, next_multiple
from kmidi_mlx.live.lateness import Lateness
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.sinks import MidiSink, PortLostError, Sink


class Recorder:
    """A sink that keeps what it is told, and may fail from the nth call on."""

    def __init__(self, lead_seconds: float = 0.0, fails_at: int | None = None) -> None:
        self.name = "recorder"
        self.lead_seconds = lead_seconds
        self.calls: list[tuple[float, str, int]] = []
        self.closed = False
        self.sounding: set[int] = set()
        self._fails_at = fails_at

    def _note(self, what: str, pitch: int) -> None:
        if self._fails_at is not None and len(self.calls) >= self._fails_at:
            raise PortLostError("gone.")
        self.calls.append((time.monotonic(), what, pitch))

    def note_on(self, pitch: int, velocity: int, at: float) -> None:
        self._note("on", pitch)
        assert pitch not in self.sounding
        self.sounding.add(pitch)

    def note_off(self, pitch: int, at: float) -> None:
        self._note("off", pitch)
        self.sounding.discard(pitch)

    def silence(self) -> None:
        self._note("silence", -1)
        self.sounding.clear()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def stage() -> Iterator[tuple[NoteRing, SongClock, Player, list[Sink]]]:
    lost: list[Sink] = []
    ring, clock = NoteRing(), SongClock()
    player = Player(ring, clock, lambda sink, error: lost.append(sink))
    player.start()
    yield ring, clock, player, lost
    player.stop()


def push(ring: NoteRing, *events: tuple[int, int, int, int]) -> None:
    for event in events:
        ring.push(PlannedEvent(*event))


def wait_for(condition: object, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.005)


def test_notes_are_sent_in_time_and_order(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    push(ring, (5, 60, 80, 1), (10, 64, 80, 2), (15, 60, 0, 1), (20, 64, 0, 2))
    start = time.monotonic()
    clock.start(start)
    wait_for(lambda: len(sink.calls) == 4)
    assert [(what, pitch) for _, what, pitch in sink.calls] == [
        ("on", 60),
        ("on", 64),
        ("off", 60),
        ("off", 64),
    ]
    for (at, _, _), step in zip(sink.calls, (5, 10, 15, 20), strict=True):
        assert at - start >= step / 100 - 1e-4  # never early
    assert player.lateness.count == 4
    assert player.sounding == 0


def test_a_sink_with_a_lead_is_told_earlier(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    late, early = Recorder(), Recorder(lead_seconds=0.2)
    player.add(late)
    player.add(early)
    assert player.lead_seconds == 0.2
    start = time.monotonic()
    clock.start(start)
    push(ring, (40, 60, 80, 1))
    wait_for(lambda: late.calls and early.calls)
    assert 0.2 - 1e-4 <= early.calls[0][0] - start < late.calls[0][0] - start
    assert late.calls[0][0] - start >= 0.4 - 1e-4


def test_an_old_end_does_not_end_a_newer_note(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    # the second note begins before the first one's end comes
    push(ring, (1, 60, 80, 1), (3, 60, 90, 2), (5, 60, 0, 1), (8, 62, 80, 3))
    clock.start(time.monotonic())
    wait_for(lambda: ("on", 62) in [call[1:] for call in sink.calls])
    assert [call[1:] for call in sink.calls] == [("on", 60), ("off", 60), ("on", 60), ("on", 62)]
    assert sink.sounding == {60, 62}


def test_pause_holds_and_silence_hushes(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    push(ring, (0, 60, 80, 1), (30, 60, 0, 1), (31, 62, 80, 2))
    clock.start(time.monotonic())
    wait_for(lambda: sink.sounding == {60})
    clock.pause(time.monotonic())
    player.silence()
    assert sink.sounding == set()
    time.sleep(0.4)
    assert [call[1] for call in sink.calls] == ["on", "off", "silence"]
    clock.start(time.monotonic())
    wait_for(lambda: sink.sounding == {62})
    assert [call[1:] for call in sink.calls].count(("off", 60)) == 1


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_a_lost_sink_is_told_and_the_others_play_on(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]], fails_at: int
) -> None:
    ring, clock, player, lost = stage
    broken, whole = Recorder(fails_at=fails_at), Recorder()
    player.add(broken)
    player.add(whole)
    push(ring, (0, 60, 80, 1), (2, 62, 80, 2), (4, 60, 0, 1), (6, 62, 0, 2))
    clock.start(time.monotonic())
    wait_for(lambda: len(whole.calls) == 4)
    assert whole.sounding == set()
    assert lost == [broken]
    assert broken.closed


def test_an_exception_in_the_thread_silences_everything(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    push(ring, (0, 60, 80, 1))
    clock.start(time.monotonic())
    wait_for(lambda: sink.sounding == {60})
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    monkeypatch.setattr(clock, "step_at", lambda now: 1 / 0)
    push(ring, (1, 62, 80, 2))
    wait_for(lambda: not player.is_alive())
    assert sink.sounding == set()
    assert sink.closed


def test_a_persons_keys_sound_at_once_where_they_are_wanted(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    _, clock, player, _ = stage
    piano, port = Recorder(lead_seconds=0.05), Recorder()
    player.add(piano)
    player.add(port, keys=False)
    # the clock stands still: a person plays whether there is music or not
    assert not clock.running
    begun = time.monotonic()
    player.play_now(60, 90)
    wait_for(lambda: piano.sounding == {60})
    assert piano.calls[0][0] - begun < 0.2
    player.play_now(60, 0)
    wait_for(lambda: piano.sounding == set())
    assert [call[1:] for call in piano.calls] == [("on", 60), ("off", 60)]
    assert port.calls == []


def test_keys_and_planned_notes_end_only_what_is_theirs(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    push(ring, (0, 60, 80, 1), (30, 60, 0, 1))
    clock.start(time.monotonic())
    wait_for(lambda: sink.sounding == {60})
    # the person strikes what sounds: it begins anew and is theirs from now on
    player.play_now(60, 100)
    wait_for(lambda: len(sink.calls) == 3)
    wait_for(lambda: len(ring) == 0 and clock.step_at(time.monotonic()) > 32)
    assert sink.sounding == {60}, "the planned end is not the end of the person's note"
    player.play_now(60, 0)
    wait_for(lambda: sink.sounding == set())
    player.play_now(60, 0)
    assert [call[1] for call in sink.calls] == ["on", "off", "on", "off"]


def test_silence_ends_keys_too_and_their_end_comes_to_nothing(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    _, _, player, _ = stage
    sink = Recorder()
    player.add(sink)
    player.play_now(60, 90)
    wait_for(lambda: sink.sounding == {60})
    player.silence()
    player.play_now(60, 0)
    player.play_now(62, 90)
    wait_for(lambda: sink.sounding == {62})
    assert [call[1:] for call in sink.calls] == [
        ("on", 60), ("off", 60), ("silence", -1), ("on", 62),
    ]  # fmt: skip


def test_who_starts_the_clock_wakes_the_player(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    sink = Recorder()
    player.add(sink)
    push(ring, (0, 60, 80, 1), (500, 60, 0, 1))
    late = []
    for _ in range(3):
        sink.calls.clear()
        time.sleep(0.03)  # it sleeps, and nothing is due
        begun = time.monotonic()
        clock.start(begun)
        player.wake()
        wait_for(lambda: sink.calls)
        late.append(sink.calls[0][0] - begun)
        clock.pause(time.monotonic())
        player.silence()
        ring.cut(0)
        clock.rewind(time.monotonic())
        push(ring, (0, 60, 80, 1), (500, 60, 0, 1))
    # without it, up to a quarter of a second
    assert sorted(late)[1] < 0.1


class Output:
    """A MIDI output that keeps the bytes."""

    name = "out"

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


def test_stop_sends_ends_pedal_and_silence(
    stage: tuple[NoteRing, SongClock, Player, list[Sink]],
) -> None:
    ring, clock, player, _ = stage
    output = Output()
    player.add(MidiSink(output, channel=2))
    push(ring, (0, 60, 80, 1))
    clock.start(time.monotonic())
    wait_for(lambda: output.sent)
    player.stop()
    assert output.sent[0] == bytes((0x92, 60, 80))
    assert output.sent[1:5] == [
        bytes((0x82, 60, 0)),
        bytes((0xB2, 64, 0)),
        bytes((0xB2, 123, 0)),
        bytes((0xB2, 120, 0)),
    ]
    assert output.closed


actions = st.lists(
    st.sampled_from(["plan", "pause", "start", "silence", "cut", "tempo", "remove", "wait"]),
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(actions)
def test_whatever_happens_nothing_sounds_in_the_end(plan: list[str]) -> None:
    ring, clock = NoteRing(), SongClock()
    player = Player(ring, clock)
    player.start()
    sinks = [Recorder(), Recorder(lead_seconds=0.02)]
    for sink in sinks:
        player.add(sink)
    note = 0
    for action in plan:
        now = time.monotonic()
        if action == "plan":
            step = int(max(clock.step_at(now), 0)) + 1
            last = ring.snapshot()[-1].step if len(ring) else 0
            note += 1
            first = max(step, last)
            push(ring, (first, 40 + note % 5, 80, note), (first + 2, 40 + note % 5, 0, note))
        elif action == "pause":
            clock.pause(now)
        elif action == "start":
            clock.start(now)
        elif action == "silence":
            player.silence()
        elif action == "cut":
            ring.cut(clock.step_at(now) + 1)
        elif action == "tempo":
            clock.set_tempo(300.0, now)
        elif action == "remove":
            player.remove(sinks[0])
        else:
            time.sleep(0.01)
    player.stop()
    assert all(not sink.sounding and sink.closed for sink in sinks)
    assert not player.is_alive()


def test_the_ring_is_bounded_and_ordered() -> None:
    ring = NoteRing(capacity=2)
    push(ring, (3, 60, 80, 1), (5, 60, 0, 1))
    assert ring.room == 0
    with pytest.raises(OverflowError):
        ring.push(PlannedEvent(6, 62, 80, 2))
    assert [event.step for event in ring.cut(4)] == [5]
    with pytest.raises(ValueError, match="comes before"):
        ring.push(PlannedEvent(2, 62, 80, 2))
    assert [event.step for event in ring.pop_due(3)] == [3]
    assert ring.next_step() == float("inf")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "pause", "tempo"]),
            st.floats(0, 5),
            st.floats(40, 300),
        ),
        max_size=8,
    )
)
def test_the_clock_never_jumps(changes: list[tuple[str, float, float]]) -> None:
    clock, now = SongClock(), 100.0
    for what, later, tempo in changes:
        now += later
        before = clock.step_at(now)
        if what == "tempo":
            clock.set_tempo(tempo, now)
        else:
            getattr(clock, what)(now)
        assert clock.step_at(now) == pytest.approx(before, abs=1e-6)
        if clock.running:
            ahead = clock.step_at(now) + 123.0
            assert clock.step_at(clock.time_of(ahead)) == pytest.approx(ahead, abs=1e-6)
            assert clock.seconds_of(100) == pytest.approx(BASE_TEMPO / clock.tempo)
        else:
            assert clock.time_of(before + 1) == float("inf")


def test_the_grid() -> None:
    assert (BEAT_STEPS, BAR_STEPS) == (50, 200)
    assert [next_multiple(step, 50) for step in (0, 0.1, 49.9, 50, 51)] == [0, 50, 50, 50, 100]


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=50), st.floats(1, 100))
def test_percentiles_are_right_to_a_bin(seconds: list[float], percent: float) -> None:
    lateness = Lateness()
    for value in seconds:
        lateness.add(value)
    ordered = sorted(seconds)
    exact = ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
    assert lateness.percentile_ms(percent) / 1e3 == pytest.approx(exact, rel=0.13)
    assert lateness.largest_ms == 1e3 * max(seconds)
    lateness.clear()
    assert lateness.percentile_ms(50) == 0.0
