"""The conductor: has the music written ahead, and written anew when a person changes their mind.

It stands between the session, which says what is wanted, and the composer, which writes. All of it
runs in the thread of the engine; the player takes the notes from the ring at their time.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from kmidi_mlx.live.clock import BAR_STEPS, BEAT_STEPS, SongClock, next_multiple
from kmidi_mlx.live.composer import Composer, Direction
from kmidi_mlx.live.keyboard import KeyEvent
from kmidi_mlx.live.keyboard_merge import PlayedKey
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.session import Settings
from kmidi_mlx.music.event_stream import EventStream

__all__ = ["Conductor"]

MakeStream = Callable[[Direction], EventStream[Any]]

# Music is there for so many beats before the first note is heard.
_BEATS_BEFORE_START = 4
# Changes that come faster than this are heard as one.
_REPLAN_INTERVAL = 0.1
# Of the time that replanning takes: what it may take as a share of all, at most.
_MOST_REPLANNING = 1 / 3
_SPARE_SECONDS = 0.03
# Reading the context again may take so many times as long as it usually does. Of the music that is
# ahead, it is to take so much; what is older is forgotten then, but for so many events.
_SLOWEST_READING, _READING_SHARE, _LEAST_REMEMBERED = 1.5, 0.35, 256
# Until so much is written that reading it again is heard by nobody, it waits so long for other
# changes to come beside it, and then so long again alone.
_PATIENT_SECONDS = 5.0
# Tokens until something new is in the plan: its loudness, a note or two.
_TOKENS_TO_A_NOTE = 4
# Who writes at less than this share of the time is far ahead again at once; whoever needs most
# of it keeps so many beats more of what is planned, for a dense passage may come.
_EASY, _HARD, _MOST_KEPT = 0.2, 0.6, 2.0
_SMOOTHING = 0.1
# Places in the ring that are kept free: ends of notes come all at once.
_SPARE_PLACES = 8
# A person who has let go of all keys for so many beats has paused, but not in less than this.
_PAUSE_BEATS, _SHORTEST_PAUSE = 1.0, 0.4
_COUNTED_STEPS = 4 * BAR_STEPS
# Where music has run out it rests, so that not every single note comes too late.
_SHORTEST_REST, _LONGEST_REST = BEAT_STEPS / 2, 2.0 * BAR_STEPS


class Hands(Protocol):
    """What a keyboard knows of the person at it."""

    @property
    def held(self) -> int:
        """Number of keys that are down or kept by the pedal."""

    @property
    def last_time(self) -> float:
        """Moment at which something last happened."""


class Conductor:
    """Keeps the plan filled; only the engine's thread may use it, but for `hear`.

    Args:
        make_stream: a fresh stream for a direction.
        clock, ring, player, played: of the same performance.
        on_underrun: called when music was due and none was written.
        on_token: called with the seconds that each token took.
        on_style: called when the model is to play in another style from now on.
        style: version of the style that the model plays in already.

    Attributes:
        playing: `playing`, `paused` or `stopped`, as carried out.
        replan_seconds: what planning anew takes, by what it took.
        replans: number of times that it was done.
        reading_seconds: what it takes in addition for every event where the context is read again,
            as for another style, by whether there is guidance.
        hands: the keyboard, if there is one.
    """

    def __init__(
        self,
        make_stream: MakeStream,
        clock: SongClock,
        ring: NoteRing,
        player: Player,
        played: PlayedLog,
        on_underrun: Callable[[], None] = lambda: None,
        on_token: Callable[[float], None] = lambda seconds: None,
        on_style: Callable[[], None] = lambda: None,
        style: int = 0,
    ) -> None:
        self.playing = "stopped"
        self.replan_seconds = 0.05
        self.reading_seconds = {False: 0.0, True: 0.0}
        self.hands: Hands | None = None
        self.replans = 0
        self._make_stream = make_stream
        self._clock = clock
        self._ring = ring
        self._player = player
        self._played = played
        self._on_underrun = on_underrun
        self._on_token = on_token
        self._on_style = on_style
        self._style = style
        # what has to be ahead before the context can be read again, and since when that is waited
        # for; 0: it is not
        self._needed_steps = 0.0
        self._waits_since = -math.inf
        self._composer: Composer | None = None
        self._direction = Direction()
        self._waits_for_start = False
        # the first note is still to come
        self._begins = False
        self._replanned = -math.inf
        # the last rest's end and length in steps
        self._rested, self._rest = -math.inf, _SHORTEST_REST
        self._heard: deque[KeyEvent] = deque()
        self._to_answer = False
        # where in the score how many tokens had been written, over the last bars
        self._written: deque[tuple[int, int]] = deque()
        self._tokens = 0
        self._tokens_per_step = 0.0
        self._token_seconds = 0.0

    def hear(self, key: KeyEvent) -> None:
        """Take a key of a person's keyboard; any thread may call."""
        self._heard.append(key)

    @property
    def composing(self) -> bool:
        """Whether music is to be written, as opposed to listened to."""
        return self.playing != "stopped" and self._composer is not None and self._composer.composing

    @property
    def tokens_per_second(self) -> float:
        """Tokens that a second of this music takes at its tempo; 0 where nothing is written."""
        return self._tokens_per_step / self._clock.seconds_of(1.0) if self.composing else 0.0

    def lookahead_steps(self, now: float) -> float:
        """Steps of music written ahead; infinite when nothing is to be written."""
        if not self.composing or self._composer is None:
            return math.inf
        return self._composer.written_step - self._clock.step_at(now)

    @property
    def needed_steps(self) -> float:
        """Steps of music that have to be ahead for what is waited for; 0: nothing is."""
        return self._needed_steps if self.composing else 0.0

    def obey(
        self,
        settings: Settings,
        transport: str,
        guidance: bool = True,
        pace: float = 1.0,
        style: int = 0,
    ) -> None:
        """Do what is wanted now, if it is not done already.

        Args:
            settings: in force.
            transport: `playing`, `paused` or `stopped`.
            guidance: False: the machine is too slow for it.
            pace: share of the tempo that the machine can follow.
            style: another one: the model is to play in another style.

        More notes together than half of the plan has places for are not asked for.
        """
        tempo = pace * settings.music.tempo
        if tempo != self._clock.tempo:
            self._clock.set_tempo(tempo, time.monotonic())
            self._player.wake()
        sampling = settings.sampling
        if sampling.max_polyphony > self._most_polyphony:
            sampling = replace(sampling, max_polyphony=self._most_polyphony)
        if not guidance and sampling.guidance_scale != 1.0:
            sampling = replace(sampling, guidance_scale=1.0)
        direction = Direction.of(settings.music, sampling, style)
        if self._composer is None:
            self._wear(style)
        if transport != self.playing:
            self._change_transport(transport, direction)
        elif transport == "playing" and not self._clock.running:
            # held by others, and told to play again before anybody looked
            self._waits_for_start = True
        if self._composer is None:
            self._heard.clear()
            return
        if direction == self._direction:
            self._needed_steps = 0.0
        elif self._may_replan():
            direction = self._possible(direction)
            if direction != self._direction:
                self._replan(direction)
        self._attend()

    def write(self, until_steps: float, deadline: float = math.inf) -> int:
        """Write until so much is ahead, the plan is full, or time is up.

        Args:
            until_steps: steps ahead of now.
            deadline: moment after which nothing more is begun.

        Returns:
            Number of tokens written.
        """
        count = 0
        composer = self._composer
        while composer is not None and composer.composing:
            now = time.monotonic()
            if now >= deadline or self.lookahead_steps(now) >= until_steps:
                break
            if self.full:
                break
            self._skip_what_is_past(composer, now)
            begun = time.perf_counter()
            self._push(composer.write())
            seconds = time.perf_counter() - begun
            self._token_seconds += _SMOOTHING * (seconds - self._token_seconds)
            self._on_token(seconds)
            self._count(composer.written_step)
            count += 1
        self._start_when_ready()
        return count

    @property
    def full(self) -> bool:
        """Whether the plan has no room for more, whatever time it covers."""
        return self._ring.room <= self._places

    @property
    def _most_polyphony(self) -> int:
        """Notes whose ends still fit into the plan beside as much music."""
        return max(1, self._ring.capacity // 2 - _SPARE_PLACES)

    @property
    def _places(self) -> int:
        return self._direction.sampling.max_polyphony + _SPARE_PLACES

    def _count(self, step: int) -> None:
        self._tokens += 1
        if not self._written or step > self._written[-1][0]:
            self._written.append((step, self._tokens))
        while step - self._written[0][0] > _COUNTED_STEPS:
            self._written.popleft()
        first_step, first = self._written[0]
        if step - first_step >= BAR_STEPS // 2:
            self._tokens_per_step = (self._tokens - first) / (step - first_step)

    def _skip_what_is_past(self, composer: Composer, now: float) -> None:
        if not self._clock.running:
            return
        due = self._clock.step_at(now + self._player.lead_seconds)
        if composer.written_step < due:
            self._on_underrun()
            # a rest that ends on a beat gives time to get ahead; one after the other, ever longer
            again = due - self._rested < _COUNTED_STEPS
            self._rest = min(2.0 * self._rest, _LONGEST_REST) if again else _SHORTEST_REST
            with self._ring.changed:
                self._rested = next_multiple(due + self._rest, BEAT_STEPS)
                composer.skip_to(self._rested)
                self._written.clear()

    def _push(self, events: list[PlannedEvent]) -> None:
        for event in events:
            self._ring.push(event)

    def _change_transport(self, transport: str, direction: Direction) -> None:
        now = time.monotonic()
        self.playing = transport
        if transport == "playing":
            if self._composer is None:  # also where it was paused before it had begun
                self._begin(direction)
            self._waits_for_start = True
            return
        self._clock.pause(now)
        self._waits_for_start = False
        if transport == "stopped":
            with self._ring.changed:
                self._ring.cut(-math.inf)
            self._clock.rewind(now)
            self._composer = None
            self._written.clear()
            self._played.clear()
        self._player.silence()

    def _begin(self, direction: Direction) -> None:
        self._direction = direction
        self._heard.clear()
        self._to_answer = False
        self._written.clear()
        self._rested = -math.inf
        self._begins = True
        self._needed_steps = 0.0
        self._composer = Composer(self._make_stream(direction), direction)

    def _start_when_ready(self) -> None:
        if not self._waits_for_start:
            return
        composer = self._composer
        if self._begins and composer is not None and composer.composing:
            # nobody wants to wait for a rest to end before anything is heard
            silent = self._ring.next_step() if len(self._ring) else composer.written_step
            self._clock.seek(silent - silent % BEAT_STEPS, time.monotonic())
            if not len(self._ring):
                return
            self._begins = False
        enough = _BEATS_BEFORE_START * BEAT_STEPS
        if self.full or self.lookahead_steps(time.monotonic()) >= enough:
            self._waits_for_start = False
            self._clock.start(time.monotonic() + self._player.lead_seconds)
            self._player.wake()

    def _may_replan(self) -> bool:
        """Whether a change may be carried out now: a storm of them must not use up the time."""
        interval = max(_REPLAN_INTERVAL, self.replan_seconds / _MOST_REPLANNING)
        waited = time.monotonic() - self._replanned
        if waited < interval:
            return False
        # after a change the plan is short: first a little music, then the next change
        return self.lookahead_steps(time.monotonic()) >= BEAT_STEPS or waited > 4 * interval

    def _free_from(self, margin: float, grid: int) -> int:
        """Take back the plan from the next line of a grid on, and return its step."""
        composer = self._composer
        assert composer is not None
        with self._ring.changed:
            now = time.monotonic()
            soonest = self._clock.step_at(now + margin if self._clock.running else now)
            step = max(next_multiple(max(0.0, soonest), grid), composer.earliest_step)
            self._ring.cut(step)
        return step

    @property
    def _margin(self) -> float:
        """Seconds from now that are too near to be planned anew."""
        first_note = _TOKENS_TO_A_NOTE * self._token_seconds
        return self._player.lead_seconds + first_note + _SPARE_SECONDS

    @property
    def _replan_margin(self) -> float:
        kept = self._clock.seconds_of(self._kept_beats * BEAT_STEPS)
        return self._margin + 1.5 * self.replan_seconds + kept

    @property
    def _kept_beats(self) -> float:
        """Beats that a change leaves as planned, where writing takes much of the time."""
        load = self.tokens_per_second * self._token_seconds
        return _MOST_KEPT * min(1.0, max(0.0, (load - _EASY) / (_HARD - _EASY)))

    def _replan(self, direction: Direction) -> None:
        composer = self._composer
        assert composer is not None
        begun = time.monotonic()
        guided = direction.sampling.guidance_scale != 1.0
        events = self._events_to_read(direction, self._readable(guided))
        reading = events * self.reading_seconds[guided]
        margin = self._replan_margin + _SLOWEST_READING * reading
        step = self._free_from(margin, BEAT_STEPS)
        if direction.mode != self._direction.mode:
            self._to_answer = False
        self._direction = direction
        self._wear(direction.style)
        self._push(composer.replan(step, direction, events or None))
        self._written.clear()
        self.replans += 1
        self._replanned = time.monotonic()
        seconds = self._replanned - begun
        if events:
            self._needed_steps = 0.0
            for_event = seconds / events
            self.reading_seconds[guided] += 0.5 * (for_event - self.reading_seconds[guided])
        else:
            self.replan_seconds += 0.3 * (seconds - self.replan_seconds)

    def _wear(self, style: int) -> None:
        if style != self._style:
            self._on_style()
            self._style = style

    def _events_to_read(self, direction: Direction, most: int = _LEAST_REMEMBERED) -> int:
        """Events that the model has to read again for a direction.

        Args:
            direction: what is asked for.
            most: that are read for another style; guidance reads all.
        """
        before, composer = self._direction, self._composer
        assert composer is not None
        if direction.begins_guidance(before):
            return composer.remembered
        return 0 if direction.style == before.style else min(composer.remembered, most)

    def _readable(self, guided: bool) -> int:
        """Events that there is time to read."""
        if not self._clock.running or not self.reading_seconds[guided]:
            return sys.maxsize
        ahead = self._clock.seconds_of(self.lookahead_steps(time.monotonic()))
        seconds = _READING_SHARE * ahead / _SLOWEST_READING
        # it is infinite where nothing is to be written
        events = min(seconds / self.reading_seconds[guided], 1e9)
        return max(_LEAST_REMEMBERED, int(events))

    def _possible(self, direction: Direction) -> Direction:
        """What of a direction can be carried out now; reading the context again may have to wait.

        Nothing can be written meanwhile, so enough music has to be ahead. Other changes shorten
        the plan: they hold up one that waits for some time, and then wait themselves.
        """
        before, now = self._direction, time.monotonic()
        events = self._events_to_read(direction)
        if not events or not self._clock.running:
            self._needed_steps = 0.0
            return direction
        reading = events * self.reading_seconds[direction.sampling.guidance_scale != 1.0]
        margin = self._replan_margin + _SLOWEST_READING * reading
        if not self._needed_steps:
            self._waits_since = now
        self._needed_steps = margin / self._clock.seconds_of(1.0) + 2 * BEAT_STEPS
        waited = now - self._waits_since
        if self.full or self.lookahead_steps(now) >= self._needed_steps:
            return direction
        if waited > _PATIENT_SECONDS:
            # where it is out of reach it is done all the same, and may be heard as a rest
            return direction if waited > 2 * _PATIENT_SECONDS else before
        sampling = direction.sampling
        if direction.begins_guidance(before):
            sampling = replace(sampling, guidance_scale=1.0)
        return replace(direction, style=before.style, sampling=sampling)

    def _attend(self) -> None:
        """Let the composer hear what a person plays, and answer when they have paused."""
        composer, mode = self._composer, self._direction.mode
        assert composer is not None
        if mode == "compose" or not self._clock.running:
            self._heard.clear()
            return
        if self._heard and (mode != "accompany" or self._may_replan()):
            now = time.monotonic()
            keys = []
            while self._heard:
                key = self._heard.popleft()
                step = self._clock.step_at(min(key.time, now))
                keys.append(PlayedKey(max(0.0, step), key.pitch, key.velocity))
            margin = self._player.lead_seconds + _SPARE_SECONDS
            if mode == "accompany":
                margin = self._margin + 1.5 * self.replan_seconds
            step = self._free_from(margin, BEAT_STEPS if mode == "accompany" else 1)
            self._push(composer.feed_notes(keys, step))
            self._written.clear()
            self._to_answer = self._to_answer or any(key.velocity for key in keys)
            self._replanned = time.monotonic()
        if mode != "accompany" and self._to_answer and not composer.composing and self._paused():
            self._to_answer = False
            margin = self._margin + self.replan_seconds
            step = self._clock.step_at(time.monotonic() + margin)
            composer.answer(max(next_multiple(step, BEAT_STEPS), composer.earliest_step))

    def _paused(self) -> bool:
        if self.hands is None or self.hands.held:
            return False
        quiet = max(_SHORTEST_PAUSE, self._clock.seconds_of(_PAUSE_BEATS * BEAT_STEPS))
        return time.monotonic() - self.hands.last_time >= quiet
