"""The conductor: music is there in time, changes are heard from the next beat, nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from simulated_time import World

from kmidi_mlx.live.clock import BAR_STEPS, BEAT_STEPS
from kmidi_mlx.live.composer import Direction
from kmidi_mlx.music.event_stream import EventStream
from kmidi_mlx.music.events import TIME_SHIFT


@pytest.fixture
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        yield World(patch)


def steps_heard(world: World, since: float = 0.0) -> list[tuple[float, int, int]]:
    """What the port heard: moment, pitch, velocity."""
    return [row for row in world.sinks[0].heard if row[0] >= since]


def test_it_plays_ahead_and_in_time(world: World) -> None:
    world.play(0.2)
    assert world.clock.running
    world.run(5.0)
    assert world.underruns == 0
    assert len(world.sinks[0].heard) > 20
    assert world.conductor.lookahead_steps(world.now) >= 1.9 * BAR_STEPS or world.conductor.full
    assert world.conductor.composing
    assert world.player.lateness.percentile_ms(99) < 1.0
    # both sinks heard the same
    wanted = [row[1:] for row in world.sinks[0].heard]
    assert [row[1:] for row in world.sinks[1].heard][: len(wanted)] == wanted
    assert world.conductor.tokens_per_second == pytest.approx(
        world.tokens / (world.conductor._composer.written_step / 100),
        rel=0.5,  # type: ignore[union-attr]
    )


def test_a_rest_at_the_beginning_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that begins with three seconds of silence is heard at once, on its grid of beats."""
    rest, left = TIME_SHIFT + 99, [3]

    def resting(direction: Direction) -> EventStream[Any]:
        stream = world.make_stream(direction)
        write = stream.next_event

        def next_event() -> int:
            if not left[0]:
                return write()
            left[0] -= 1
            stream.feed([rest])
            return rest

        monkeypatch.setattr(stream, "next_event", next_event)
        return stream

    monkeypatch.setattr(world.conductor, "_make_stream", resting)
    begun = world.now
    world.play(3.0)
    first = world.played.rows_since(0)[0][0]
    assert 300 <= first < 400
    heard = world.sinks[0].heard[0][0]
    assert heard - begun < 1.0
    assert world.clock.step_at(heard) == pytest.approx(first, abs=1.0)


def test_stop_is_silence_and_play_begins_anew(world: World) -> None:
    world.play(3.0)
    first = list(world.sinks[0].heard)
    world.transport = "stopped"
    world.frame()
    assert all(not sink.sounding for sink in world.sinks)
    assert len(world.ring) == 0
    assert world.clock.step_at(world.now) == 0.0
    assert world.played.rows_since(0) == []
    assert not world.conductor.composing
    assert world.conductor.lookahead_steps(world.now) == np.inf
    count = len(world.sinks[0].heard)
    world.run(2.0)
    assert len(world.sinks[0].heard) == count
    begun = world.now
    world.play(4.0)
    again = steps_heard(world, begun)
    # the same seed, the same music
    played = [row[1:] for row in first if row[2]][:12]
    assert len(played) == 12
    assert [row[1:] for row in again if row[2]][:12] == played
    assert len(world.streams) == 2


def test_pause_holds_and_play_goes_on_where_it_was(world: World) -> None:
    world.play(3.0)
    world.transport = "paused"
    world.frame()
    assert all(not sink.sounding for sink in world.sinks)
    held = world.clock.step_at(world.now)
    count = len(world.sinks[0].heard)
    world.run(20.0)
    assert world.clock.step_at(world.now) == held
    assert len(world.sinks[0].heard) == count
    world.play(3.0)
    assert world.underruns == 0
    assert len(world.sinks[0].heard) > count
    assert len(world.streams) == 1
    assert 200 < world.clock.step_at(world.now) - held < 310


def test_pausing_what_has_not_begun_does_not_keep_it_from_playing(world: World) -> None:
    world.transport = "paused"
    world.frame()
    world.play(2.0)
    assert len(world.sinks[0].heard) > 5


def test_who_is_stopped_and_told_to_play_between_two_frames_plays_on(world: World) -> None:
    world.play(2.0)
    # silence comes at once, whatever the engine is doing
    world.clock.pause(world.now)
    world.player.silence()
    count = len(world.sinks[0].heard)
    world.run(2.0)
    assert len(world.sinks[0].heard) > count + 5


@pytest.mark.parametrize("polyphony", [64, 120, 128])
def test_more_notes_than_the_plan_holds_are_not_asked_for(world: World, polyphony: int) -> None:
    world.change("sampling", max_polyphony=polyphony)
    world.play(4.0)
    assert len(world.sinks[0].heard) > 20
    world.change("music", valence=-0.9)
    world.run(4.0)
    assert world.underruns == 0


def test_a_plan_of_sixteen_places_plays_too() -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, capacity=16)
        world.play(4.0)
        world.change("music", arousal=-0.9)
        world.run(2.0)
        assert len(world.sinks[0].heard) > 10


def test_a_change_is_heard_from_the_next_beat_and_what_is_before_stays(world: World) -> None:
    world.play(4.0)
    for turn in range(12):
        world.run(0.37)
        before, replans = world.plan(), world.conductor.replans
        step = world.clock.step_at(world.now)
        world.change("music", valence=0.9 if turn % 2 else -0.9)
        world.cuts.clear()
        world.frame()
        assert world.conductor.replans == replans + 1
        (cut,) = world.cuts
        assert cut % BEAT_STEPS == 0
        # the next beat, unless it is too near to be written in time
        margin = 100 * (0.055 + 1.5 * 0.06 + 0.03)
        assert step <= cut <= step + margin + BEAT_STEPS + 2
        kept = [event for event in before if event.step < cut]
        now = world.clock.step_at(world.now + 0.055)
        left = [event for event in kept if event.step > now]
        assert [event for event in world.plan() if event.step < cut] == left
        assert any(event.step >= cut for event in world.plan())
    assert world.underruns == 0


def test_what_comes_after_the_cut_obeys(world: World) -> None:
    """The stream of the tests follows chords; here it is asked for none but low notes."""
    world.play(4.0)
    world.change("sampling", lowest_pitch=30, highest_pitch=40)
    world.cuts.clear()
    world.run(0.5)
    cut = world.cuts[0]
    world.run(4.0)
    begun = world.clock.time_of(cut)
    late = [pitch for at, pitch, velocity in steps_heard(world) if velocity and at > begun]
    early = [pitch for at, pitch, velocity in steps_heard(world) if velocity and at < begun - 0.01]
    assert len(late) > 5
    assert all(30 <= pitch <= 40 for pitch in late)
    assert max(early) > 40


def test_the_tempo_needs_no_new_plan(world: World) -> None:
    world.play(3.0)
    plan, replans = world.plan()[5:20], world.conductor.replans
    world.change("music", tempo=240.0)
    world.frame()
    assert world.conductor.replans == replans
    assert world.plan()[: len(plan) // 2] != []
    assert all(event in world.plan() for event in plan)
    step = world.clock.step_at(world.now)
    world.run(1.0)
    assert world.clock.step_at(world.now) - step == pytest.approx(200.0, abs=5.0)


def test_a_storm_of_changes_is_carried_out_as_the_machine_can(world: World) -> None:
    world.play(4.0)
    replans = world.conductor.replans
    world.token_seconds = 0.002
    for turn in range(300):
        world.change("music", valence=-1 + turn % 200 / 100)
        world.frame()
    assert world.underruns == 0
    done = world.conductor.replans - replans
    # not more than ten a second, and the last word is heard
    assert 5 <= done <= 51
    world.run(1.0)
    assert world.conductor._direction.emotion == world.settings.emotion


def test_underruns_are_counted_when_they_happen_and_music_goes_on(world: World) -> None:
    world.play(3.0)
    assert world.underruns == 0
    world.slow = True
    # the engine is away for longer than was written ahead
    world.pass_time(12.0)
    count = len(world.sinks[0].heard)
    world.run(3.0)
    assert world.underruns == 1
    assert len(world.sinks[0].heard) > count
    # a machine that never keeps up: counted again and again, and something is heard
    world.token_seconds = 0.5
    world.run(30.0)
    assert world.underruns > 3
    world.token_seconds = 0.0005
    world.run(2.0)
    counted = world.underruns
    world.run(5.0)
    assert world.underruns == counted


def test_a_slow_replan_learns_its_margin(world: World) -> None:
    world.play(4.0)
    world.token_seconds = 0.004
    late: list[float] = []
    for turn in range(20):
        world.change("sampling", temperature=0.8 + turn / 100)
        world.run(0.8)
        late.append(world.conductor.replan_seconds)
    assert world.underruns == 0
    assert world.conductor.replans >= 15
    assert 0.0 < late[-1] < 0.2


def test_guidance_that_is_too_slow_is_left_out(world: World) -> None:
    world.change("sampling", guidance_scale=2.0)
    world.guidance = False
    world.play(2.0)
    assert world.conductor._direction.sampling.guidance_scale == 1.0
    world.guidance = True
    world.run(1.0)
    assert world.conductor._direction.sampling.guidance_scale == 2.0


def test_who_hardly_keeps_up_keeps_beats_of_what_is_planned(world: World) -> None:
    world.play(6.0)
    for load, kept in ((0.1, 0), (0.65, BEAT_STEPS)):
        world.token_seconds = load / world.conductor.tokens_per_second
        world.run(3.0)
        for turn in range(6):
            world.run(1.37)
            step = world.clock.step_at(world.now)
            world.change("music", valence=0.9 if turn % 2 else -0.9)
            world.cuts.clear()
            world.frame()
            (cut,) = world.cuts
            assert cut - step > kept
            # and a change is heard within a bar
            assert cut - step <= BAR_STEPS
    assert world.underruns == 0


def test_a_machine_that_cannot_follow_the_tempo_plays_slower(world: World) -> None:
    world.play(3.0)
    replans = world.conductor.replans
    for pace in (0.7, 1.0):
        world.pace = pace
        world.frame()
        step = world.clock.step_at(world.now)
        world.run(1.0)
        assert world.clock.step_at(world.now) - step == pytest.approx(100.0 * pace, abs=3.0)
    assert world.conductor.replans == replans


def test_a_duet_answers_after_a_pause_and_listens_again(world: World) -> None:
    world.change("music", mode="duet")
    world.play(1.0)
    assert world.clock.running
    assert not world.conductor.composing
    port, piano = world.sinks
    assert port.heard == []
    for pitch in (60, 64, 67, 72):
        world.key(pitch, 80)
        world.run(0.2)
        world.key(pitch, 0)
        world.run(0.05)
    ended = world.keyboard.last_time
    # who plays is heard at once
    assert [row[1] for row in piano.heard if row[2]] == [60, 64, 67, 72]
    world.run(6.0)
    answer = [row for row in port.heard if row[2]]
    assert len(answer) > 3
    # after a beat of silence, from the next beat on
    assert 0.5 <= answer[0][0] - ended < 1.3
    # as long as what was heard, in bars, and then it listens again
    assert answer[-1][0] - answer[0][0] <= 4.0
    assert not world.conductor.composing
    assert all(not sink.sounding for sink in world.sinks)
    count = len(port.heard)
    world.run(4.0)
    assert len(port.heard) == count
    # a second phrase is answered too
    world.key(50, 80)
    world.run(0.1)
    world.key(50, 0)
    world.run(3.0)
    assert len(port.heard) > count
    assert world.underruns == 0


def test_a_held_key_or_pedal_is_no_pause(world: World) -> None:
    world.change("music", mode="duet")
    world.play(0.5)
    world.keyboard.receive(bytes((0xB0, 64, 127)), world.now)
    world.key(60, 80)
    world.run(0.1)
    world.key(60, 0)
    world.run(5.0)
    assert not world.conductor.composing
    world.keyboard.receive(bytes((0xB0, 64, 0)), world.now)
    world.run(1.0)
    assert world.conductor.composing


def test_it_goes_on_when_a_person_plays_and_pauses(world: World) -> None:
    world.change("music", mode="continue")
    world.play(3.0)
    assert world.conductor.composing
    world.key(60, 90)
    world.run(0.3)
    assert not world.conductor.composing
    assert world.sinks[1].sounding == {60}
    world.key(60, 0)
    world.run(2.0)
    assert world.conductor.composing
    world.run(3.0)
    assert world.underruns == 0


def test_it_accompanies(world: World) -> None:
    world.change("music", mode="accompany")
    world.play(3.0)
    for turn in range(10):
        world.key(60 + turn, 90)
        world.run(0.3)
        world.key(60 + turn, 0)
        world.run(0.1)
        assert world.conductor.composing
    assert world.underruns == 0
    world.run(1.0)
    assert world.conductor._composer is not None
    given = [entry.event for entry in world.conductor._composer._log if entry.given]
    assert 69 in given, "the model has read what was played"


def test_keys_without_music_are_heard_and_not_kept(world: World) -> None:
    for _ in range(50):
        world.key(60, 90)
        world.run(0.05)
        world.key(60, 0)
        world.run(0.05)
    assert not world.conductor._heard
    piano = world.sinks[1]
    assert len(piano.heard) == 100
    assert piano.sounding == set()


def test_an_hour_keeps_its_size(world: World) -> None:
    """Twenty minutes at three times the tempo, with a change every ten seconds."""
    world.token_seconds = 0.0
    world.change("music", tempo=300.0)
    world.play(1.0)
    for turn in range(24):
        world.change("music", valence=-1.0 + turn / 12)
        world.run(2.0)
        assert len(world.conductor._written) <= 4 * BAR_STEPS + 2
        assert len(world.played._notes) < 2000
    assert world.underruns == 0
