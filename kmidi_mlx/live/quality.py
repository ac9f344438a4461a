"""What gives way when the machine is too slow, in a stated order, so that the music never does.

First clouds become fewer (the page moves smoothly between them), then they have fewer points; where
the network may be replaced, the engine that taught it then draws instead, which costs a tenth; then
guidance is left out, then the music is written farther ahead, and at last it is played slower. The
step that is needed follows from what the pieces of work were measured to cost; a step back up waits
until it is sure to hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LADDER", "REPLACING_LADDER", "Costs", "Quality", "QualityControl", "Wishes"]

# Share of a new measurement in what is remembered.
_COST_SMOOTHING = 0.05
# Where even the last step is too much, what saves less than this is not worth it.
_WORTH_SAVING = 0.03
# A better step has to hold for so long before it is taken, and a worse one is kept for so long
# after the music ran short.
_SECONDS_BEFORE_BETTER = 5.0
_SECONDS_AFTER_SHORTAGE = 20.0
# What a worse step brings shows after so long.
_SECONDS_TO_RECOVER = 4.0


@dataclass(frozen=True)
class Quality:
    """One step of the ladder.

    Attributes:
        every: a cloud every so many frames.
        points: of a cloud at the most.
        network: whether the network draws, if it is asked for.
        guidance: whether guidance is used where it is asked for.
        lookahead: factor on how far ahead the music is written.
        pace: factor on the tempo.
        text: what gives way, for people.
    """

    every: int = 1
    points: int = 3000
    network: bool = True
    guidance: bool = True
    lookahead: float = 1.0
    pace: float = 1.0
    text: str = "everything"


_FEWER_CLOUDS = (
    Quality(),
    Quality(2, text="a cloud every 2nd frame"),
    Quality(3, text="a cloud every 3rd frame"),
    Quality(4, text="a cloud every 4th frame"),
    Quality(6, text="a cloud every 6th frame"),
    Quality(6, 1200, text="a cloud every 6th frame, of 1200 points"),
    Quality(6, 600, text="a cloud every 6th frame, of 600 points"),
)
_SMALL = "a cloud every 6th frame, of 200 points"
#: All steps, the best first, where whoever draws goes on drawing.
LADDER = (
    *_FEWER_CLOUDS,
    Quality(6, 200, text=_SMALL),
    Quality(6, 200, guidance=False, text=f"{_SMALL}, no guidance"),
    Quality(12, 200, True, False, 1.5, 1.0, "5 clouds a second, no guidance, music farther ahead"),
    Quality(30, 200, True, False, 2.0, 1.0, "2 clouds a second, no guidance, music far ahead"),
    Quality(30, 200, True, False, 2.0, 0.85, "2 clouds a second, no guidance, 85 % of the tempo"),
    Quality(30, 200, True, False, 2.0, 0.7, "2 clouds a second, no guidance, 70 % of the tempo"),
)
_ENGINE = "the engine draws instead of the network"
#: All steps where the engine may draw instead of the network.
REPLACING_LADDER = (
    *_FEWER_CLOUDS,
    Quality(2, 1200, False, text=f"{_ENGINE}, every 2nd frame"),
    Quality(4, 600, False, text=f"{_ENGINE}, every 4th frame, 600 points"),
    Quality(4, 600, False, False, text=f"{_ENGINE}, every 4th frame, 600 points, no guidance"),
    Quality(12, 200, False, False, 1.5, 1.0, f"{_ENGINE}, 5 times a second, music farther ahead"),
    Quality(30, 200, False, False, 2.0, 1.0, f"{_ENGINE}, 2 times a second, music far ahead"),
    Quality(30, 200, False, False, 2.0, 0.85, f"{_ENGINE}, 2 times a second, 85 % of the tempo"),
    Quality(30, 200, False, False, 2.0, 0.7, f"{_ENGINE}, 2 times a second, 70 % of the tempo"),
)


@dataclass(frozen=True)
class Wishes:
    """What a person asks for, as far as it costs time.

    Attributes:
        points: of a cloud.
        network: whether the network is to draw.
        replaceable: whether the engine may draw instead where it has to.
        drawn: whether anything is drawn at all.
        guided: whether guidance is used.
    """

    points: int
    network: bool = True
    replaceable: bool = False
    drawn: bool = True
    guided: bool = False

    @property
    def ladder(self) -> tuple[Quality, ...]:
        """The steps that there are."""
        return REPLACING_LADDER if self.network and self.replaceable else LADDER


@dataclass
class Costs:
    """What pieces of work cost on this machine now.

    Attributes:
        cloud_seconds: seconds of a cloud by points; of the network (True) and the engine (False).
        plain_seconds: seconds of a token without guidance.
        guided_seconds: seconds of a token with guidance.
        tokens_per_second: tokens that a second of music takes at the tempo that is asked for.
        frame_seconds: what a frame costs besides.
    """

    cloud_seconds: dict[bool, dict[int, float]] = field(default_factory=dict)
    plain_seconds: float = 0.0
    guided_seconds: float = 0.0
    tokens_per_second: float = 0.0
    frame_seconds: float = 0.0005

    def music_load(self, quality: Quality, wishes: Wishes) -> float:
        """Share of the time that writing takes at a step of the ladder."""
        guided = wishes.guided and quality.guidance
        token = self.guided_seconds if guided else self.plain_seconds
        return quality.pace * self.tokens_per_second * token

    def cloud_load(self, quality: Quality, wishes: Wishes, frames_per_second: int) -> float:
        """Share of the time that drawing takes at a step of the ladder.

        Args:
            quality: the step.
            wishes: what is asked for.
            frames_per_second: of the loop.
        """
        if not wishes.drawn:
            return 0.0
        drawing = self.cloud_seconds.get(wishes.network and quality.network, {})
        cloud = _cost_of(drawing, min(wishes.points, quality.points))
        return frames_per_second / quality.every * (cloud + self.frame_seconds)

    def drew(self, network: bool, points: int, seconds: float) -> None:
        """Take note of what a cloud took; clouds that are not drawn now are rated alike.

        Else what a busy machine made dear would stay so for ever, as nobody tries it again.
        """
        change = _change(self.cloud_seconds[network][points], seconds)
        for by_points in self.cloud_seconds.values():
            for known in by_points:
                by_points[known] *= change

    def wrote(self, guided: bool, seconds: float) -> None:
        """Take note of what a token took; one without guidance, or with it, is rated alike."""
        change = _change(self.guided_seconds if guided else self.plain_seconds, seconds)
        self.guided_seconds *= change
        self.plain_seconds *= change


class QualityControl:
    """Chooses the step of the ladder.

    Args:
        frames_per_second: of the loop.
        most_load: share of the time that may be planned.
        most_drawing: share of the time that drawing may take.

    Attributes:
        level: number of the step; 0 is everything.
        quality: the step in force.
    """

    def __init__(
        self, frames_per_second: int, most_load: float = 0.9, most_drawing: float = 0.5
    ) -> None:
        self.level = 0
        self.quality = LADDER[0]
        self._frames_per_second = frames_per_second
        self._most_load = most_load
        self._most_drawing = most_drawing
        self._better_since: float | None = None
        self._held_until = 0.0
        self._worsened = -math.inf

    def update(self, now: float, costs: Costs, wishes: Wishes, short: bool) -> bool:
        """Look at the costs again.

        Args:
            now: seconds that only grow.
            costs: as measured.
            wishes: what is asked for.
            short: whether less music is written ahead than there should be.

        Returns:
            Whether the step has changed.
        """
        before = self.quality
        ladder = wishes.ladder
        self.level = min(self.level, len(ladder) - 1)
        needed = self._needed(costs, wishes)
        if short:
            self._held_until = now + _SECONDS_AFTER_SHORTAGE
            if now - self._worsened >= _SECONDS_TO_RECOVER:
                # the costs say that it fits, and it does not
                needed = max(needed, min(self.level + 1, len(ladder) - 1))
        if needed > self.level:
            self.level = needed
            self._better_since = None
            self._worsened = now
        elif needed == self.level or now < self._held_until:
            self._better_since = None
        elif self._better_since is None:
            self._better_since = now
        elif now - self._better_since >= _SECONDS_BEFORE_BETTER:
            self.level = needed
            self._better_since = None
        self.quality = ladder[self.level]
        return self.quality != before

    def _needed(self, costs: Costs, wishes: Wishes) -> int:
        """The first step that can be afforded, or else the first that saves about the most."""
        drawing = [
            costs.cloud_load(step, wishes, self._frames_per_second) for step in wishes.ladder
        ]
        loads = [
            costs.music_load(step, wishes) + share
            for step, share in zip(wishes.ladder, drawing, strict=True)
        ]
        most_load = max(self._most_load, min(loads) + _WORTH_SAVING)
        most_drawing = max(self._most_drawing, min(drawing))
        fits = (
            level
            for level, (load, share) in enumerate(zip(loads, drawing, strict=True))
            if load <= most_load and share <= most_drawing
        )
        return next(fits, len(wishes.ladder) - 1)


def _cost_of(seconds: Mapping[int, float], points: int) -> float:
    """Seconds of a cloud of so many points; where that was not measured, of the next larger."""
    larger = [seconds[known] for known in sorted(seconds) if known >= points]
    return larger[0] if larger else max(seconds.values(), default=0.0)


def _change(before: float, seconds: float) -> float:
    """Factor by which a measurement moves what a piece of work is thought to cost."""
    # one piece that had to wait for a page fault says nothing about the next
    return 1.0 + _COST_SMOOTHING * (min(seconds, 4.0 * before) / before - 1.0)
