"""The composer: turns a stream of events into planned notes that may be planned anew.

What a person plays becomes part of the same stream, so the model continues from what was heard and
not only from what it wrote. Everything that is remembered is bounded; it can go on for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import BAR_STEPS
from kmidi_mlx.live.keyboard_merge import (
    FedEvent,
    GivenNote,
    Keyboard,
    PlayedKey,
    Sounding,
    merge,
    rests,
)
from kmidi_mlx.live.planned import PlannedEvent
from kmidi_mlx.live_config import LiveMusicConfig
from kmidi_mlx.music.chords import UNKNOWN, parse_chord, parse_key
from kmidi_mlx.music.event_stream import REWINDABLE, EventStream, Steering
from kmidi_mlx.music.events import NOTE_OFF, TIME_SHIFT, VELOCITY, VELOCITY_BINS

__all__ = ["Composer", "Direction"]

_VELOCITIES_PER_BIN = 128 // VELOCITY_BINS


@dataclass(frozen=True)
class Direction:
    """What the composer is asked for.

    Attributes:
        emotion: None: the unconditional model.
        chords: ids of `kmidi_mlx.music.chords`, one a bar, over and over; empty: free.
        key: key id; 0: free.
        sampling: how events are drawn and what is playable.
        seed: of what is drawn.
        mode: what a keyboard is for, see `Composer.feed_notes`.
        style: another one: the model's weights have changed.
    """

    emotion: Emotion | None = None
    chords: tuple[int, ...] = ()
    key: int = UNKNOWN
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    mode: str = "compose"
    style: int = 0

    @classmethod
    def of(cls, music: LiveMusicConfig, sampling: SamplingConfig, style: int = 0) -> Direction:
        """Read the options of the live application.

        Raises:
            KmidiError: for a chord or key symbol that is not understood.
        """
        return cls(
            emotion=Emotion.of(music.valence, music.arousal),
            chords=tuple(parse_chord(symbol) for symbol in music.chords.split()),
            key=parse_key(music.key) if music.key.strip() else UNKNOWN,
            sampling=sampling,
            seed=music.seed,
            mode=music.mode,
            style=style,
        )

    def begins_guidance(self, before: Direction) -> bool:
        """Whether it asks for guidance and `before` did not; the whole context is then read."""
        return before.sampling.guidance_scale == 1.0 != self.sampling.guidance_scale

    def steering_at(self, step: int) -> Steering:
        """What the model is told at a score step."""
        chord = self.chords[step // BAR_STEPS % len(self.chords)] if self.chords else UNKNOWN
        return Steering(self.emotion, chord, self.key)


class _Entry(NamedTuple):
    """One event of the stream and what is so after it; `event` is -1 before the first.

    `given` marks what a person did, as opposed to what the model wrote.
    """

    event: int
    step: int
    velocity_bin: int
    sounding: Mapping[int, Sounding]
    given: bool


class Composer:
    """Writes planned events, and writes them anew from any step that is not too long ago.

    A planned event is returned once and stays planned until `replan`, `feed_notes` or `listen` is
    called for a step that is not after it. Whoever keeps the plan takes back all events at and
    after that step, then adds what the call returns and what is written from then on. Whatever is
    called when: steps never go backwards, every note that began in the plan ends in it exactly
    once, and at a pitch one note sounds at a time.

    Args:
        stream: fresh, or after a prompt; the composer alone reads it from now on.
        direction: what is asked for.
        start: score step at which writing begins.

    Attributes:
        composing: whether it writes; if not, it listens and `write` gives nothing.
    """

    def __init__(self, stream: EventStream[Any], direction: Direction, start: int = 0) -> None:
        self._stream = stream
        self._direction = direction
        self._keyboard = Keyboard()
        # what sounds at the end of a prompt is nobody's to end
        sounding = {pitch: Sounding(start, theirs=True) for pitch in stream.struck}
        base = _Entry(-1, start, -1, sounding, given=False)
        self._log: deque[_Entry] = deque([base], maxlen=REWINDABLE + 1)
        # what was planned since the earliest step, and what sounded then, pitches by identity
        self._plan: deque[PlannedEvent] = deque()
        self._open: dict[int, int] = {}
        self._floor = start
        self._until = math.inf
        self._closed = -math.inf
        self.composing = direction.mode != "duet"
        stream.set_sampling(direction.sampling)
        stream.set_seed(direction.seed)

    @property
    def written_step(self) -> int:
        """Score step before which nothing more will be planned, unless it is planned anew."""
        return max(self._log[-1].step, self._floor)

    @property
    def earliest_step(self) -> int:
        """Earliest score step from which can be planned anew."""
        oldest = self._log[-1 - self._reach]
        return oldest.step + (oldest.event >= 0)

    @property
    def remembered(self) -> int:
        """Number of events that the model looks back on now, at least 1."""
        return self._stream.remembered

    @property
    def _reach(self) -> int:
        return min(self._stream.rewindable, len(self._log) - 1)

    def write(self) -> list[PlannedEvent]:
        """Write one event of the stream, if composing.

        Returns:
            What it plans: nothing for a velocity or a rest, else one event; where an answer ends,
            the ends of all notes that sound.
        """
        if not self.composing:
            return []
        self._rest_until(self._floor)
        steering = self._direction.steering_at(self.written_step)
        if self._stream.steering != steering:
            # the event that is being computed does not know that another bar has begun
            self._rewind(0)
            self._stream.set_emotion(steering.emotion)
            self._stream.set_harmony(steering.chord, steering.key)
        before = self._log[-1]
        event = self._stream.next_event()
        self._follow(event)
        if self._log[-1].step >= self._until:
            return self.listen(int(self._until))
        return self._planned(event, before)

    def _planned(self, event: int, before: _Entry) -> list[PlannedEvent]:
        planned = []
        if event < NOTE_OFF:
            velocity = before.velocity_bin * _VELOCITIES_PER_BIN + 1
            identity = _identity(before.step, event)
            planned = [PlannedEvent(before.step, event, velocity, identity)]
        elif event < TIME_SHIFT:
            pitch = event - NOTE_OFF
            note = before.sounding[pitch]
            if not note.theirs:
                planned = [PlannedEvent(before.step, pitch, 0, _identity(note.onset, pitch))]
        self._plan.extend(planned)
        while self._plan and self._plan[0].step < self.earliest_step:
            _apply(self._plan.popleft(), self._open)
        return planned

    def replan(
        self, step: int, direction: Direction, remembered: int | None = None
    ) -> list[PlannedEvent]:
        """Plan anew from a step on; what was planned before it stays, and so does what sounds.

        Something begins or ends at the step if anything was to follow. It is drawn with the noise
        of what it replaces: where that had an event at the step and the direction is unchanged, the
        same is written again, as long as the model remembers as much as it did.

        Args:
            step: score step, `earliest_step` or later; what is beyond `written_step` is not yet
                written and needs no taking back.
            direction: what is asked for from then on. The mode `duet` listens from then on, any
                other that is new writes.
            remembered: where the style changes, events that the model still looks back on then,
                if more are too many to be read again in time.

        Returns:
            Events to plan right away: ends of notes.

        Raises:
            KmidiError: when the step is too long ago.
        """
        self._check(step)
        self._reopen(step)
        if self.composing:
            self._cut(step)
        before, self._direction = self._direction, direction
        if direction.sampling != before.sampling:
            self._stream.set_sampling(direction.sampling)
        if direction.style != before.style and not direction.begins_guidance(before):
            self._stream.read_again(remembered)
        if direction.seed != before.seed:
            self._stream.set_seed(direction.seed)
        if direction.mode != before.mode:
            self._keyboard.begin_phrase()
            self._until = math.inf
            if direction.mode == "duet":
                self._close(step)
            else:
                self.answer(step)
        return self._reconcile(step)

    def skip_to(self, step: int) -> None:
        """Plan nothing before a step: time went by without music, as the plan had run out."""
        written = self.written_step
        if step > written:
            self._take_back(step)
            self._floor = step
            self._until = max(self._until, step)

    def listen(self, step: int) -> list[PlannedEvent]:
        """Stop writing: what is planned from `step` on is dropped and what sounds ends there.

        Args:
            step: score step, `earliest_step` or later.

        Returns:
            Events to plan right away: the ends of the composer's notes, at `step`.

        Raises:
            KmidiError: when the step is too long ago.
        """
        self._check(step)
        self._reopen(step)
        if self.composing:
            self._cut(step)
            self._close(step)
        return self._reconcile(step)

    def answer(self, step: int) -> None:
        """Write again, from `step` on, going on from what was heard.

        In a duet the answer is as long as what was played since the last one, in whole bars, and
        then it listens again; else it goes on until it is told to `listen` or, in the mode
        `continue`, until somebody plays.

        Args:
            step: score step; what was heard or planned later than that comes first.
        """
        if self.composing:
            return
        self.composing = True
        self._floor = max(step, self.written_step)
        if self._direction.mode == "duet":
            bars = max(1, math.ceil(self._keyboard.phrase_steps(step) / BAR_STEPS))
            self._until = self._floor + bars * BAR_STEPS
        self._keyboard.begin_phrase()

    def feed_notes(self, keys: Sequence[PlayedKey], step: int) -> list[PlannedEvent]:
        """Hear what a person plays; the model reads it at once.

        By mode: `compose` ignores it. `duet` and `continue` stop writing at `step` if they were,
        and listen until `answer`; whether a person has paused is not for the composer to say.
        `accompany` goes on: what was planned from `step` on is written anew, under what is played.

        Times are rounded to steps, velocities to bins. A key is in the music from its own time on,
        among the composer's notes before `step`, and a note may be unfinished for as long as it is
        held. A note of the composer on a pitch that is played ends at `step`.

        Args:
            keys: keys that went down or up since the last call, in order of time, none in the
                future; what is before `earliest_step` counts as played then.
            step: score step from which the plan is free, `earliest_step` or later; the plan before
                it is kept.

        Returns:
            Events to plan right away: ends of the composer's notes, at `step`.

        Raises:
            KmidiError: when the step is too long ago or a key is none.
        """
        self._check(step)
        hears = self._direction.mode != "compose"
        notes = self._keyboard.read(keys, self.earliest_step) if hears else []
        self._reopen(step)
        if self.composing and not notes:
            self._cut(step)
        elif notes:
            written = self.written_step
            self._add(notes, step if self.composing else math.inf)
            if self.composing:
                self._floor = max(min(step, written), self._log[-1].step)
                if self._direction.mode != "accompany":
                    self._close(step)
        return self._reconcile(step)

    def _check(self, step: int) -> None:
        if step < self.earliest_step:
            raise KmidiError(
                f"cannot plan anew from step {step}: the earliest that can be taken back is "
                f"{self.earliest_step}."
            )

    def _reopen(self, step: int) -> None:
        """A stop that still lies ahead of a change is not yet a fact."""
        if not self.composing and step <= self._closed:
            self.composing = True
            self._until = self._closed

    def _reconcile(self, step: int) -> list[PlannedEvent]:
        """End, at a step, the planned notes that the stream no longer knows as sounding."""
        while self._plan and self._plan[-1].step >= step:
            self._plan.pop()
        sounding = dict(self._open)
        for event in self._plan:
            _apply(event, sounding)
        for pitch, note in self._log[-1].sounding.items():
            if not note.theirs:
                sounding.pop(_identity(note.onset, pitch), None)
        ends = [PlannedEvent(step, pitch, 0, note) for note, pitch in sounding.items()]
        if ends:
            self._floor = max(self._floor, step)
        self._plan.extend(ends)
        return ends

    def _add(self, notes: Sequence[GivenNote], step: float) -> None:
        """Put a person's notes into the music; of the composer's, those before `step` are kept."""
        heard = self._take_back(min(note.step for note in notes))
        last = self._log[-1]
        kept: list[GivenNote] = []
        sounding = last.sounding
        for entry in heard:
            note = _note_of(entry, sounding)
            sounding = entry.sounding
            if note and (note.theirs or note.step < step):
                kept.append(note)
        self._feed(merge([*kept, *notes], last.step, last.velocity_bin, last.sounding))

    def _close(self, step: int) -> None:
        """Write no more from a step on, and let the model read that its notes end there."""
        self.composing = False
        self._until = math.inf
        self._closed = step
        self._floor = max(self._floor, step)
        sounding = self._log[-1].sounding
        pitches = [pitch for pitch, note in sounding.items() if not note.theirs]
        if pitches:
            self._rest_until(step)
            now = self._log[-1].step
            self._feed([FedEvent(pitch + NOTE_OFF, now, theirs=False) for pitch in pitches])

    def _cut(self, step: int) -> None:
        """Take back what was written at and after a step."""
        written = self.written_step
        self._take_back(step)
        self._floor = min(step, written)

    def _take_back(self, step: int) -> list[_Entry]:
        """Take back all from a step on, and the time that leads there: the last is a note."""
        count = 0
        while count < self._reach:
            entry = self._log[-1 - count]
            if entry.step < step and entry.event < TIME_SHIFT:
                break
            count += 1
        return self._rewind(count)

    def _rewind(self, count: int) -> list[_Entry]:
        taken = [self._log.pop() for _ in self._stream.rewind(count)]
        return taken[::-1]

    def _rest_until(self, step: int) -> None:
        if step > self._log[-1].step:
            self._feed(rests(self._log[-1].step, step))

    def _feed(self, events: Sequence[FedEvent]) -> None:
        self._stream.feed([fed.event for fed in events])
        for fed in events:
            self._follow(fed.event, fed)

    def _follow(self, event: int, fed: FedEvent | None = None) -> None:
        """Keep account of what the stream read."""
        _, step, velocity_bin, sounding, _ = self._log[-1]
        given = fed is not None and fed.theirs
        if event < NOTE_OFF:
            sounding = {**sounding, event: Sounding(step, given)}
        elif event < TIME_SHIFT:
            sounding = {p: note for p, note in sounding.items() if p != event - NOTE_OFF}
        elif event < VELOCITY:
            step = fed.step if fed else step + event - TIME_SHIFT + 1
        else:
            velocity_bin = event - VELOCITY
        self._log.append(_Entry(event, step, velocity_bin, sounding, given))


def _identity(onset: int, pitch: int) -> int:
    """A pitch begins once at a step, so this is no other note's, whenever it is planned anew."""
    return onset * 128 + pitch


def _apply(event: PlannedEvent, sounding: dict[int, int]) -> None:
    """Bring what sounds, pitches by identity, up to date."""
    if event.velocity:
        sounding[event.note] = event.pitch
    else:
        sounding.pop(event.note, None)


def _note_of(entry: _Entry, sounding: Mapping[int, Sounding]) -> GivenNote | None:
    """The beginning or end of a note that is a fact, `sounding` being what sounded before."""
    if entry.event >= TIME_SHIFT:
        return None
    if entry.event < NOTE_OFF:
        return GivenNote(entry.step, entry.event, entry.velocity_bin, entry.given)
    pitch = entry.event - NOTE_OFF
    theirs = sounding[pitch].theirs
    # one player's note that the other's ended: a guess of the model, or a pitch struck by both
    return GivenNote(entry.step, pitch, None, theirs) if theirs == entry.given else None
