"""The composer over a stream of dice."""

from __future__ import annotations

import math

import pytest
from dice_stream import DiceStream
from listener import Listener, sounding_at_the_end

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import BAR_STEPS
from kmidi_mlx.live.composer import Composer, Direction
from kmidi_mlx.live.keyboard_merge import Keyboard, PlayedKey
from kmidi_mlx.live.planned import PlannedEvent
from kmidi_mlx.live_config import LiveMusicConfig
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY, event_steps

CALM = Direction(Emotion.of(0.2, -0.5))
WILD = Direction(
    Emotion.of(-0.5, 0.9), chords=(11, 38, 56), key=1, sampling=SamplingConfig(temperature=1.0)
)
TIGHT = SamplingConfig(
    max_polyphony=2, max_note_seconds=0.3, max_rest_seconds=0.2, lowest_pitch=60, highest_pitch=64
)


def write_to(composer: Composer, step: int) -> list[PlannedEvent]:
    planned: list[PlannedEvent] = []
    while composer.composing and composer.written_step < step:
        planned += composer.write()
    return planned


def test_planned_events_are_the_events_of_the_stream() -> None:
    composer, stream = Composer(DiceStream(), CALM, start=100), DiceStream(seed=0)
    planned = write_to(composer, 1500)
    stream.set_seed(0)
    events: list[int] = []
    while stream.steps < 1400:
        events.append(stream.next_event())
    notes = [
        (100 + int(step), event % 128, event < NOTE_OFF)
        for event, step in zip(events, event_steps(events), strict=True)
        if event < TIME_SHIFT
    ]
    assert [(e.step, e.pitch, e.velocity > 0) for e in planned] == notes
    assert len(notes) > 50
    velocities = [(event - VELOCITY) * 4 + 1 for event in events if event >= VELOCITY]
    assert {e.velocity for e in planned if e.velocity} <= set(velocities)
    identities = [e.note for e in planned if e.velocity]
    assert len(set(identities)) == len(identities)


def test_a_replan_with_nothing_new_writes_the_same() -> None:
    composer = Composer(DiceStream(), WILD)
    first = write_to(composer, 800)
    for begin in (200, 700, 430):
        step = next(event.step for event in first if event.step >= begin)
        assert composer.replan(step, WILD) == []
        assert composer.written_step == step
        again = write_to(composer, 800)
        assert again == [event for event in first if event.step >= step]


def test_what_sounds_at_a_new_plan_ends_in_it() -> None:
    composer, listener = Composer(DiceStream(), WILD), Listener()
    listener.push(write_to(composer, 800))
    listener.play_to(429)
    listener.cut(430)
    ends = {event.note for event in listener.plan}
    held = set(listener.sounding.values()) - ends
    assert held
    listener.push(composer.replan(430, CALM))
    listener.push(write_to(composer, 430 + 900))  # longer than any note may be
    assert held <= {event.note for event in listener.plan if not event.velocity}
    listener.play_to(1500)


def test_the_time_before_a_new_plan_is_kept() -> None:
    stream = DiceStream()
    composer = Composer(stream, CALM)
    for step in (200, 250, 250, 251, 600, 450):
        write_to(composer, step + 300)
        composer.replan(step, WILD)
        planned: list[PlannedEvent] = []
        while not planned:
            planned = composer.write()
        events = [event for event in stream.reads[1:] if event < 388]
        # what the model has read is what was planned, to the step
        assert event_steps(events).max() == stream.steps
        assert planned[0].step == stream.steps >= step


def test_chords_change_at_the_bar_line_to_the_event() -> None:
    direction = Direction(chords=(11, 38, 56))
    stream = DiceStream(4096, sampling=SamplingConfig())
    composer = Composer(stream, direction)
    write_to(composer, 5 * BAR_STEPS + 50)
    composer.replan(3 * BAR_STEPS + 50, Direction(chords=(20, 30)))
    write_to(composer, 8 * BAR_STEPS)
    steps = [0, *event_steps(stream.reads[1:]).tolist()]
    # the last is read ahead, before anyone knows that a bar begins
    for step, chord in zip(steps[:-1], stream.chords[:-1], strict=True):
        # each event is read with the chord of its time, so the next one is drawn by it
        expected = (11, 38, 56) if step < 3 * BAR_STEPS + 50 else (20, 30)
        assert chord == expected[step // BAR_STEPS % len(expected)], step


def test_a_new_seed_writes_other_music_and_the_same_seed_the_same() -> None:
    def events(seed: int) -> list[PlannedEvent]:
        composer = Composer(DiceStream(), CALM)
        write_to(composer, 600)
        composer.replan(200, Direction(CALM.emotion, seed=seed))
        return write_to(composer, 900)

    assert events(5) == events(5)
    assert events(5) != events(6)


def test_new_limits_hold_from_the_step_on() -> None:
    composer = Composer(DiceStream(), CALM)
    first = write_to(composer, 700)
    composer.replan(300, Direction(sampling=TIGHT))
    planned = write_to(composer, 1500)
    assert {event.pitch for event in planned if event.velocity} <= set(range(60, 65))
    assert {event.pitch for event in first if event.velocity} - set(range(60, 65))
    listener = Listener()
    listener.push([event for event in first if event.step < 300])
    listener.push(planned)
    for step in range(0, 1500, 10):
        listener.play_to(step)
    assert len(listener.sounding) <= 2


def test_what_was_not_written_in_time_is_rest() -> None:
    stream = DiceStream()
    composer = Composer(stream, CALM)
    write_to(composer, 300)
    composer.skip_to(200)
    assert 300 <= composer.written_step < 400
    composer.skip_to(500)
    assert composer.written_step == 500
    assert write_to(composer, 900)[0].step >= 500
    assert event_steps(stream.reads[1:])[-1] >= 500


def test_what_is_too_long_ago_is_refused() -> None:
    composer = Composer(DiceStream(40), CALM)
    assert composer.earliest_step == 0
    write_to(composer, 2000)
    earliest = composer.earliest_step
    assert 0 < earliest < composer.written_step
    with pytest.raises(KmidiError, match=f"step {earliest - 1}: the earliest .* is {earliest}"):
        composer.replan(earliest - 1, CALM)
    composer.replan(earliest, CALM)
    assert composer.written_step == earliest


def test_memory_is_bounded() -> None:
    stream = DiceStream(64)
    stream._read = lambda tokens: None  # type: ignore[method-assign]
    stream._forget = lambda count: None  # type: ignore[method-assign]
    composer = Composer(stream, WILD)
    for _ in range(3):
        write_to(composer, composer.written_step + 6000)
        composer.replan(composer.earliest_step, WILD)
        assert len(composer._log) <= 1025
        assert len(composer._plan) <= 64
        assert len(composer._open) <= 16
        assert len(stream._moments) <= 64
        assert len(stream._noise) <= 128


def test_directions_are_read_from_the_options() -> None:
    music = LiveMusicConfig(valence=-0.5, arousal=0.1, chords="C Am", key="A:min", seed=4)
    direction = Direction.of(music, TIGHT)
    assert direction.emotion == Emotion.of(-0.5, 0.1)
    assert direction.steering_at(199)[1:] == (2, 22)
    assert direction.steering_at(200).chord == 2 + 9 * 9 + 1
    assert direction.steering_at(400).chord == 2
    assert (direction.sampling, direction.seed, direction.mode) == (TIGHT, 4, "compose")
    assert Direction.of(LiveMusicConfig(), TIGHT).steering_at(7)[1:] == (0, 0)
    with pytest.raises(KmidiError, match="chord symbol 'Hm'"):
        Direction.of(LiveMusicConfig(chords="C Hm"), TIGHT)


def keys(*rows: tuple[float, int, int]) -> list[PlayedKey]:
    return [PlayedKey(*row) for row in rows]


def test_listening_reads_keys_as_they_come() -> None:
    stream = DiceStream()
    composer = Composer(stream, Direction(mode="duet"))
    assert not composer.composing
    assert composer.write() == []
    assert composer.feed_notes(keys((10.4, 60, 64), (10.6, 64, 66)), 20) == []
    assert composer.feed_notes(keys((30.0, 60, 0)), 40) == []
    # struck again while down, and shorter than a step
    assert composer.feed_notes(keys((44.9, 64, 1), (50.0, 67, 127), (50.1, 67, 0)), 60) == []
    heard = [
        TIME_SHIFT + 9, VELOCITY + 15, 60, TIME_SHIFT, VELOCITY + 16, 64, TIME_SHIFT + 18,
        NOTE_OFF + 60, TIME_SHIFT + 14, NOTE_OFF + 64, VELOCITY, 64, TIME_SHIFT + 4, VELOCITY + 31,
        67, TIME_SHIFT, NOTE_OFF + 67,
    ]  # fmt: skip
    assert [*stream.reads[1:], int(stream._last.item())] == heard
    composer.answer(100)
    planned = write_to(composer, 3 * BAR_STEPS)
    assert planned[0].step >= 100
    assert stream.reads[1 : len(heard) + 2] == [*heard, TIME_SHIFT + 48]
    # the key that is still down is not the composer's to end
    assert all(e.pitch != 64 or e.velocity for e in planned[:1])
    # as long as what was played, in whole bars: one
    assert not composer.composing
    listener = Listener()
    listener.push(planned)
    listener.play_to(100 + BAR_STEPS)
    assert listener.sounding == {}
    assert listener.played == planned
    assert planned[-1].step == 100 + BAR_STEPS


def test_whoever_plays_in_the_mode_continue_takes_over() -> None:
    composer = Composer(DiceStream(), Direction(mode="continue"))
    listener = Listener()
    listener.push(write_to(composer, 700))
    listener.play_to(300)
    assert listener.sounding
    listener.cut(350)
    ends = composer.feed_notes(keys((299, 20, 80)), 350)
    listener.push(ends)
    assert {e.step for e in ends} == {350}
    assert not any(e.velocity for e in ends)
    listener.play_to(360)
    assert listener.sounding == {}
    assert not composer.composing
    composer.feed_notes(keys((1000, 20, 0)), 1010)
    composer.answer(1050)
    later = write_to(composer, 4000)
    assert composer.composing
    assert all(e.step >= 1050 for e in later)


def test_an_answer_that_is_planned_anew_still_ends() -> None:
    composer = Composer(DiceStream(), Direction(mode="duet"))
    composer.feed_notes(keys((0, 60, 64), (50, 60, 0), (60, 61, 9), (330, 61, 0)), 350)
    composer.answer(400)
    listener = Listener()
    listener.push(write_to(composer, 10_000))
    end = 400 + 2 * BAR_STEPS
    assert not composer.composing
    assert listener.plan[-1].step == end
    listener.play_to(450)
    for step in (600, 500, end, 700):
        listener.cut(step)
        listener.push(composer.replan(step, Direction(Emotion.of(-1, 1), mode="duet")))
        listener.push(write_to(composer, 10_000))
        assert not composer.composing
        assert sounding_at_the_end(listener) == set()
        assert listener.plan[-1].step <= end
        # it is written anew, not just broken off
        assert step == end or any(e.velocity and e.step >= step for e in listener.plan)
    listener.cut(650)
    listener.push(composer.listen(650))
    assert listener.plan[-1].step <= 650
    assert sounding_at_the_end(listener) == set()


def test_the_model_accompanies_what_it_hears() -> None:
    stream = DiceStream()
    composer = Composer(stream, Direction(mode="accompany"))
    listener = Listener()
    listener.push(write_to(composer, 600))
    listener.play_to(300)
    ending = {event.note for event in listener.plan if event.step < 350}
    busy = next(p for p, note in listener.sounding.items() if note not in ending)
    free = next(p for p in range(40, 90) if p not in listener.sounding)
    listener.cut(350)
    ends = composer.feed_notes(keys((290, free, 100), (298, busy, 100)), 350)
    listener.push(ends)
    assert (350, busy, 0) in {(e.step, e.pitch, e.velocity) for e in ends}
    listener.push(write_to(composer, 800))
    events = stream.reads[1:]
    steps = event_steps(events).tolist()
    assert (290, free) in set(zip(steps, events, strict=True))
    assert (298, busy) in set(zip(steps, events, strict=True))
    before = [e for e in listener.played if e.step < 290 and e.velocity]
    assert {(e.step, e.pitch) for e in before} <= set(zip(steps, events, strict=True))
    # a note that goes on has its end where the key went up
    listener.play_to(340)
    listener.cut(400)
    listener.push(composer.feed_notes(keys((333.3, free, 0)), 400))
    write_to(composer, 500)
    events = stream.reads[1:]
    assert (333, NOTE_OFF + free) in set(zip(event_steps(events).tolist(), events, strict=True))


def test_only_a_person_knows_when_a_key_goes_up() -> None:
    stream = DiceStream()
    composer = Composer(stream, Direction(mode="accompany"))

    def ends_of_the_key() -> list[int]:
        events = stream.reads[1:]
        steps = event_steps(events).tolist()
        return [s for s, event in zip(steps, events, strict=True) if event == NOTE_OFF + 20]

    composer.feed_notes(keys((2, 20, 70)), 3)
    while not ends_of_the_key():
        composer.write()
    (guess,) = ends_of_the_key()
    composer.feed_notes(keys((guess - 1, 22, 70)), guess + 10)
    assert ends_of_the_key() == []
    composer.feed_notes(keys((guess + 5, 20, 0)), guess + 20)
    write_to(composer, guess + 100)
    assert ends_of_the_key()[0] == guess + 5


def test_nothing_is_planned_before_the_end_of_a_note_that_was_struck_away() -> None:
    composer, listener = Composer(DiceStream(), Direction(mode="accompany")), Listener()
    while not sounding_at_the_end(listener):
        listener.push(composer.write())
    listener.push(write_to(composer, listener.plan[-1].step + 1))
    (pitch, *_) = {e.pitch for e in listener.plan if e.note in sounding_at_the_end(listener)}
    now = composer.written_step
    listener.play_to(now - 1)
    ends = composer.feed_notes(keys((now, pitch, 70)), now + 200)
    assert (now + 200, pitch) in {(e.step, e.pitch) for e in ends}
    listener.push(ends)
    listener.push(write_to(composer, now + 400))  # would go backwards


def test_composing_hears_no_keys() -> None:
    composer, other = Composer(DiceStream(), CALM), Composer(DiceStream(), CALM)
    write_to(composer, 400)
    assert composer.feed_notes(keys((90, 60, 60)), 400) == []
    write_to(other, 400)
    other.replan(400, CALM)
    assert write_to(composer, 800) == write_to(other, 800)


def test_a_long_absence_is_told_in_short() -> None:
    stream = DiceStream()
    composer = Composer(stream, Direction(mode="duet"))
    composer.feed_notes(keys((10, 60, 64), (40, 60, 0)), 50)
    composer.feed_notes(keys((360_000, 60, 64), (360_040, 60, 0)), 360_041)
    assert stream.steps == 40 + 1000 + 40
    composer.answer(360_100)
    assert write_to(composer, 360_200)[0].step >= 360_100


def test_keys_that_are_none_are_refused_and_change_nothing() -> None:
    composer = Composer(DiceStream(), Direction(mode="accompany"))
    write_to(composer, 300)
    log = list(composer._log)
    for key in ((1.0, 128, 1), (1.0, 1, 128), (math.nan, 1, 1)):
        with pytest.raises(KmidiError, match="go from 0 to 127"):
            composer.feed_notes(keys((1.0, 60, 60), key), 200)
    assert list(composer._log) == log
    assert Keyboard().phrase_steps(50) == 0
