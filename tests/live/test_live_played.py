"""What was played: what sounded lately, and no more than that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live import played as played_module
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.played import PlayedLog

START = 500.0


@pytest.fixture
def clock() -> SongClock:
    clock = SongClock()
    clock.start(START)
    return clock


def test_notes_of_a_window(clock: SongClock) -> None:
    log = PlayedLog(clock)
    log.note_on(60, 80, START + 1.0)
    log.note_off(60, START + 1.5)
    log.note_on(64, 90, START + 2.0)
    log.note_on(67, 100, START + 3.5)
    log.note_off(67, START + 3.9)
    notes = log.notes_until(START + 4.0, 3.0)
    assert notes.pitch.tolist() == [60, 64, 67]
    assert notes.velocity.tolist() == [80, 90, 100]
    # what began before is heard from the beginning on, what sounds still ends now
    np.testing.assert_allclose(notes.onset_seconds, [0.0, 1.0, 2.5])
    np.testing.assert_allclose(notes.offset_seconds, [0.5, 3.0, 2.9])
    assert log.notes_until(START + 4.0, 2.5).pitch.tolist() == [64, 67]
    assert len(log.notes_until(START + 0.5, 3.0)) == 0
    assert log.notes_until(START + 3.0, 0.5).offset_seconds.tolist() == pytest.approx([0.5])


def test_rows_are_in_steps_whatever_the_tempo(clock: SongClock) -> None:
    log = PlayedLog(clock)
    log.note_on(60, 80, START + 1.0)
    clock.set_tempo(240.0, START + 2.0)
    log.note_off(60, START + 2.5)
    log.note_on(64, 90, START + 3.0)
    assert log.rows_since(0) == [[100, 300, 60, 80, 1], [400, None, 64, 90, 1]]
    assert log.rows_since(300) == [[400, None, 64, 90, 1]]
    assert log.sounding == {64: 400.0}


def test_a_pitch_that_is_struck_again_is_two_notes(clock: SongClock) -> None:
    log = PlayedLog(clock)
    log.note_on(60, 80, START)
    log.note_on(60, 90, START + 1.0)
    log.note_off(60, START + 2.0)
    log.note_off(60, START + 3.0)
    assert log.rows_since(0) == [[0, 100, 60, 80, 1], [100, 200, 60, 90, 1]]


def test_silence_ends_and_clear_forgets(clock: SongClock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Now:
        @staticmethod
        def monotonic() -> float:
            return START + 2.0

    monkeypatch.setattr(played_module, "time", Now)
    log = PlayedLog(clock)
    log.note_on(60, 80, START)
    log.note_on(64, 80, START + 1.0)
    log.silence()
    assert log.sounding == {}
    assert [row[1] for row in log.rows_since(0)] == [200, 200]
    # an end that comes after all does not move it
    log.note_off(60, START + 9.0)
    assert log.rows_since(0)[0][1] == 200
    log.note_on(65, 80, START + 3.0)
    log.clear()
    log.note_off(65, START + 4.0)
    assert log.rows_since(0) == []
    assert log.sounding == {}
    assert len(log.notes_until(START + 5.0, 8.0)) == 0


def test_an_hour_with_a_key_held_is_bounded_and_the_key_stays(clock: SongClock) -> None:
    log = PlayedLog(clock)
    log.note_on(40, 80, START)
    now = START
    most = 0
    for index in range(20_000):
        now = START + 1.0 + index * 0.18
        log.note_on(60 + index % 12, 80, now)
        log.note_off(60 + index % 12, now + 0.17)
        most = max(most, len(log._notes))
    assert now - START > 3600
    # twelve seconds of notes, and the key
    assert most <= 12 / 0.18 + 3
    assert log.sounding == {40: 0.0}
    assert 40 in log.notes_until(now, 4.0).pitch


def test_a_long_note_that_ended_just_now_is_not_forgotten(clock: SongClock) -> None:
    log = PlayedLog(clock)
    log.note_on(40, 80, START)
    log.note_off(40, START + 20.0)
    log.note_on(60, 80, START + 20.5)
    assert log.notes_until(START + 21.0, 4.0).pitch.tolist() == [40, 60]
    # two bars at the slowest tempo are kept for the page
    log.note_on(61, 80, START + 31.9)
    assert 40 in [row[2] for row in log.rows_since(0)]


events = st.lists(st.tuples(st.floats(0.0, 1.5), st.integers(60, 63), st.booleans()), max_size=60)


@settings(max_examples=40, deadline=None)
@given(events, st.floats(0.1, 10.0), st.floats(0.0, 2.0))
def test_it_agrees_with_a_list_of_everything(
    told: list[tuple[float, int, bool]], seconds: float, later: float
) -> None:
    clock = SongClock()
    clock.start(START)
    log = PlayedLog(clock)
    now = START
    everything: list[list[float]] = []
    sounding: dict[int, list[float]] = {}
    for wait, pitch, begins in told:
        now += wait
        if pitch in sounding:
            sounding.pop(pitch)[2] = now
        if begins:
            log.note_on(pitch, 70, now)
            sounding[pitch] = [pitch, now, np.inf]
            everything.append(sounding[pitch])
        else:
            log.note_off(pitch, now)
    now += later
    start = now - seconds
    wanted = sorted(
        (max(0.0, on - start), pitch, min(off, now) - start)
        for pitch, on, off in everything
        if on < now and min(off, now) > max(on, start)
    )
    notes = log.notes_until(now, seconds)
    found = zip(
        notes.onset_seconds.tolist(), notes.pitch.tolist(), notes.offset_seconds.tolist(),
        strict=True,
    )  # fmt: skip
    flat = [value for row in sorted(found) for value in row]
    assert flat == pytest.approx([value for row in wanted for value in row])
    assert set(log.sounding) == set(sounding)
