"""Who plays a plan, in tests: says when the composer wrongs him."""

from __future__ import annotations

from kmidi_mlx.live.planned import PlannedEvent


class Listener:
    """The plan and what came of it: the player's side, which says when it was wronged."""

    def __init__(self) -> None:
        self.plan: list[PlannedEvent] = []
        self.sounding: dict[int, int] = {}
        self.ended: set[int] = set()
        self.played: list[PlannedEvent] = []
        self.now = -1

    def push(self, events: list[PlannedEvent]) -> None:
        for event in events:
            assert event.step > self.now, "planned for the past"
            assert not self.plan or event.step >= self.plan[-1].step, "backwards"
            self.plan.append(event)

    def cut(self, step: int) -> None:
        assert step > self.now
        self.plan = [event for event in self.plan if event.step < step]

    def play_to(self, step: int) -> None:
        due = [event for event in self.plan if event.step <= step]
        self.plan, self.now = self.plan[len(due) :], max(self.now, step)
        for event in due:
            self.played.append(event)
            if event.velocity:
                assert event.pitch not in self.sounding, "two notes at one pitch"
                assert 1 <= event.velocity <= 127
                self.sounding[event.pitch] = event.note
            else:
                assert self.sounding.pop(event.pitch, None) == event.note, "ends another note"


def sounding_at_the_end(listener: Listener) -> set[int]:
    open_notes = set(listener.sounding.values())
    for event in listener.plan:
        (open_notes.add if event.velocity else open_notes.discard)(event.note)
    return open_notes
