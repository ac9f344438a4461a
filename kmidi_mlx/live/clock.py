"""Where the music is: score time against the monotonic clock, at a tempo that may change.

Score time is counted in the steps that the model writes, 10 ms each at `BASE_TEMPO`. The model
knows no beats; the grid of beats is what people steer by: changes are heard from the next beat,
chords last a bar, and the tempo stretches all of it.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

from kmidi_mlx.music.events import STEPS_PER_SECOND

__all__ = ["BAR_STEPS", "BASE_TEMPO", "BEATS_PER_BAR", "BEAT_STEPS", "SongClock", "next_multiple"]

#: Beats a minute at which a step lasts 10 ms, as written.
BASE_TEMPO = 120.0
BEATS_PER_BAR = 4
BEAT_STEPS = round(STEPS_PER_SECOND * 60 / BASE_TEMPO)
BAR_STEPS = BEATS_PER_BAR * BEAT_STEPS


@dataclass(frozen=True)
class _Anchor:
    """One moment of which step and time are known; other moments follow at `pace` steps a second.

    Replaced as a whole, so that a reader never sees half a change.
    """

    step: float
    time: float
    pace: float
    running: bool

    def step_at(self, now: float) -> float:
        return self.step + (now - self.time) * self.pace if self.running else self.step


class SongClock:
    """Maps score steps to moments of `time.monotonic()` and back; any thread may ask or change.

    Args:
        tempo: beats a minute, above 0.

    Attributes:
        tempo: beats a minute.
    """

    def __init__(self, tempo: float = BASE_TEMPO) -> None:
        self._changing = threading.Lock()
        self.tempo = tempo
        self._anchor = _Anchor(0.0, 0.0, self._pace(tempo), running=False)

    @staticmethod
    def _pace(tempo: float) -> float:
        return STEPS_PER_SECOND * tempo / BASE_TEMPO

    @property
    def running(self) -> bool:
        """Whether time passes."""
        return self._anchor.running

    def step_at(self, now: float) -> float:
        """Score step of a moment; while paused the step that was reached."""
        return self._anchor.step_at(now)

    def time_of(self, step: float) -> float:
        """Moment of a score step at the present tempo; infinite while paused."""
        anchor = self._anchor
        if not anchor.running:
            return math.inf
        return anchor.time + (step - anchor.step) / anchor.pace

    def seconds_of(self, steps: float) -> float:
        """How long a number of steps lasts at the present tempo."""
        return steps / self._anchor.pace

    def start(self, now: float) -> None:
        """Let time pass from here on; nothing if it does already."""
        with self._changing:
            anchor = self._anchor
            if not anchor.running:
                self._anchor = _Anchor(anchor.step, now, anchor.pace, running=True)

    def pause(self, now: float) -> None:
        """Hold at the step that was reached."""
        with self._changing:
            anchor = self._anchor
            self._anchor = _Anchor(anchor.step_at(now), now, anchor.pace, running=False)

    def rewind(self, now: float) -> None:
        """Go back to step 0 and hold there."""
        with self._changing:
            self._anchor = _Anchor(0.0, now, self._anchor.pace, running=False)

    def seek(self, step: float, now: float) -> None:
        """Be at another step from a moment on."""
        with self._changing:
            anchor = self._anchor
            self._anchor = _Anchor(step, now, anchor.pace, anchor.running)

    def set_tempo(self, tempo: float, now: float) -> None:
        """Change the tempo; the step of this moment stays.

        Args:
            tempo: beats a minute, above 0.
            now: the moment.
        """
        with self._changing:
            anchor = self._anchor
            self.tempo = tempo
            self._anchor = _Anchor(anchor.step_at(now), now, self._pace(tempo), anchor.running)


def next_multiple(step: float, grid: int) -> int:
    """First step of a grid that is not before `step`, such as the next beat."""
    return math.ceil(step / grid) * grid
