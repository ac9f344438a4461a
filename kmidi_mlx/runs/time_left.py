"""How long a run will still take, from what its parts have taken so far."""

from __future__ import annotations

from statistics import median

from kmidi_mlx.console import in_words
from kmidi_mlx.runs.schedule import Pace

__all__ = ["TimeLeft"]

STEPS, EVALUATIONS, SAVES = "steps", "evaluations", "saves"
# After so many steps it is said how long the run will take; the first, which compiles, not counted.
_STEPS_TO_ESTIMATE = 5
# it is said again when a part that was not known makes the rest longer by so much
_WORTH_SAYING = 1.1


class TimeLeft:
    """Adds up steps, evaluations with their samples, and saves; each counts once it was measured.

    Args:
        pace: of the run.
        may_stop: whether the run ends earlier when nothing is learnt any more.
        after_seconds: that what comes after the last step takes.
    """

    def __init__(self, pace: Pace, may_stop: bool, after_seconds: float = 0.0) -> None:
        self._pace = pace
        self._may_stop = may_stop and pace.least_steps < pace.total_steps
        self._after_seconds = after_seconds
        self._measured: dict[str, list[float]] = {STEPS: [], EVALUATIONS: [], SAVES: []}
        self._said: list[str] = []

    def add(self, part: str, seconds: float) -> None:
        """Take what one of the steps, evaluations or saves took."""
        # the first few tell enough, and of steps there may be millions
        if len(self._measured[part]) <= _STEPS_TO_ESTIMATE:
            self._measured[part].append(seconds)

    def seconds(self, done: int) -> float:
        """Return how long what is left after `done` steps takes, of what was measured."""
        return self._sum(done, [part for part, taken in self._measured.items() if taken])

    def _sum(self, done: int, parts: list[str]) -> float:
        left = self._left(done)
        usual = {
            part: median(taken[1:] if part == STEPS and len(taken) > 1 else taken)
            for part, taken in self._measured.items()
            if part in parts
        }
        return sum(left[part] * usual[part] for part in parts) + self._after_seconds

    def _left(self, done: int) -> dict[str, int]:
        """How many of each are left; a run ends with an evaluation and a save."""
        pace = self._pace
        return {
            STEPS: pace.total_steps - done,
            EVALUATIONS: -(-pace.total_steps // pace.eval_every) - done // pace.eval_every,
            SAVES: pace.total_steps // pace.save_every - done // pace.save_every + 1,
        }

    def news(self, done: int) -> str | None:
        """Say how long it will take, first after some steps, again when more of it is known.

        Args:
            done: steps of the run.

        Returns:
            A line for people; None: there is nothing worth saying.
        """
        known = [part for part, taken in self._measured.items() if taken]
        enough = len(self._measured[STEPS]) > _STEPS_TO_ESTIMATE and done < self._pace.total_steps
        if not enough or known == self._said:
            return None
        before, self._said = self._said, known
        if before and self._sum(done, known) < _WORTH_SAYING * self._sum(done, before):
            return None
        left = self._left(done)
        told = _listed([f"{left[part]:,} {part}" for part in known])
        note = f"about {in_words(self._sum(done, known))} here for the {told} that are left"
        unknown = [part for part in self._measured if part not in known]
        if unknown:
            note += f", {_listed(unknown)} not counted yet"
        if self._may_stop:
            note += "; it stops earlier when the validation loss no longer falls"
        return note


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
