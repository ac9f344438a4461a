"""What gives way when the machine is too slow, in a stated order, so that the music never does.

First clouds become fewer (the page moves smoothly between them), then they have fewer points, then
guidance is left out, at last the music is written farther ahead. The step that is needed follows
from what the pieces of work were measured to cost; a step back up waits until it is sure to hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LADDER", "Costs", "Quality", "QualityControl"]

#: Share of the time that may be planned; the rest is for what is not foreseen.
MOST_LOAD = 0.85
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
        guidance: whether guidance is used where it is asked for.
        lookahead: factor on how far ahead the music is written.
        text: what gives way, for people.
    """

    every: int = 1
    points: int = 3000
    guidance: bool = True
    lookahead: float = 1.0
    text: str = "everything"


#: All steps, the best first.
LADDER = (
    Quality(),
    Quality(2, text="a cloud every 2nd frame"),
    Quality(3, text="a cloud every 3rd frame"),
    Quality(4, text="a cloud every 4th frame"),
    Quality(6, text="a cloud every 6th frame"),
    Quality(6, 1200, text="a cloud every 6th frame, of 1200 points"),
    Quality(6, 600, text="a cloud every 6th frame, of 600 points"),
    Quality(6, 200, text="a cloud every 6th frame, of 200 points"),
    Quality(6, 200, False, text="a cloud every 6th frame, of 200 points, no guidance"),
    Quality(12, 200, False, 1.5, "a cloud every 12th frame, no guidance, music farther ahead"),
    Quality(30, 200, False, 2.0, "two clouds a second, no guidance, music far ahead"),
)


@dataclass
class Costs:
    """What pieces of work cost on this machine now.

    Attributes:
        cloud_seconds: seconds of a cloud by points.
        plain_seconds: seconds of a token without guidance.
        guided_seconds: seconds of a token with guidance.
        tokens_per_second: tokens that a second of music takes at its tempo.
        frame_seconds: what a frame costs besides.
    """

    cloud_seconds: dict[int, float] = field(default_factory=dict)
    plain_seconds: float = 0.0
    guided_seconds: float = 0.0
    tokens_per_second: float = 0.0
    frame_seconds: float = 0.0005

    def load(self, quality: Quality, points: int, guided: bool, frames_per_second: int) -> float:
        """Share of the time that a step takes; above 1 it cannot be kept up.

        Args:
            quality: the step.
            points: asked for.
            guided: whether guidance is asked for.
            frames_per_second: of the loop.
        """
        token = self.guided_seconds if guided and quality.guidance else self.plain_seconds
        cloud = _cost_of(self.cloud_seconds, min(points, quality.points))
        return (
            self.tokens_per_second * token
            + frames_per_second / quality.every * cloud
            + frames_per_second * self.frame_seconds
        )


class QualityControl:
    """Chooses the step of the ladder.

    Args:
        frames_per_second: of the loop.

    Attributes:
        level: index into `LADDER`.
    """

    def __init__(self, frames_per_second: int) -> None:
        self.level = 0
        self._frames_per_second = frames_per_second
        self._better_since: float | None = None
        self._held_until = 0.0
        self._worsened = -math.inf

    @property
    def quality(self) -> Quality:
        """The step in force."""
        return LADDER[self.level]

    def update(self, now: float, costs: Costs, points: int, guided: bool, short: bool) -> bool:
        """Look at the costs again.

        Args:
            now: seconds that only grow.
            costs: as measured.
            points: asked for.
            guided: whether guidance is asked for.
            short: whether less music is written ahead than there should be.

        Returns:
            Whether the step has changed.
        """
        before = self.level
        needed = self._needed(costs, points, guided)
        if short:
            self._held_until = now + _SECONDS_AFTER_SHORTAGE
            if now - self._worsened >= _SECONDS_TO_RECOVER:
                # the costs say that it fits, and it does not
                needed = max(needed, min(self.level + 1, len(LADDER) - 1))
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
        return self.level != before

    def _needed(self, costs: Costs, points: int, guided: bool) -> int:
        for level, quality in enumerate(LADDER):
            # what nobody asked for need not give way
            if costs.load(quality, points, guided, self._frames_per_second) <= MOST_LOAD:
                return level
        return len(LADDER) - 1


def _cost_of(seconds: Mapping[int, float], points: int) -> float:
    """Seconds of a cloud of so many points; where that was not measured, of the next larger."""
    larger = [seconds[known] for known in sorted(seconds) if known >= points]
    return larger[0] if larger else max(seconds.values(), default=0.0)
