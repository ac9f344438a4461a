"""Whatever happens to player and port: in another process's account every note has its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import SongClock
from kmidi_mlx.live.planned import NoteRing, PlannedEvent
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.ports import open_output
from kmidi_mlx.live.sinks import MidiSink, PortLostError

ACCOUNT = Path(__file__).with_name("midi_account.py")


class Account:
    """The other process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(ACCOUNT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdin
        assert self.process.stdout
        self._to, self._from = self.process.stdin, self.process.stdout
        self.port = int(self._from.readline())

    def ask(self, command: str) -> dict[str, Any]:
        self._to.write(f"{command}\n")
        self._to.flush()
        answer: dict[str, Any] = json.loads(self._from.readline())
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._from.close()
        with suppress(BrokenPipeError):
            self._to.close()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


class MidiMachine(RuleBasedStateMachine):
    played = 0

    def __init__(self) -> None:
        super().__init__()
        self.account = Account()
        self.ring, self.clock = NoteRing(), SongClock(300.0)
        self.player = Player(self.ring, self.clock, self._on_lost)
        self.player.start()
        self.sinks: list[MidiSink] = []
        self.note = self.lost = 0
        self.clock.start(time.monotonic())
        self.connect()

    def _on_lost(self, sink: object, error: Exception) -> None:
        assert isinstance(error, PortLostError)
        self.lost += 1

    def _now(self) -> int:
        return int(self.clock.step_at(time.monotonic()))

    @initialize()
    def a_chord_sounds(self) -> None:
        self.play([50, 51], steps=0, lasts=20, wait=0)
        wait_until(lambda: self.account.ask("report")["on"] == 2, "a chord sounds")

    @precondition(lambda self: len(self.sinks) < 3)
    @rule()
    def connect(self) -> None:
        before = self.account.ask("report")["accepted"]
        sink = MidiSink(open_output(f"socket:{self.account.port}"), channel=len(self.sinks))
        wait_until(lambda: self.account.ask("report")["accepted"] > before, "connects")
        self.sinks.append(sink)
        self.player.add(sink)

    @rule(
        pitches=st.lists(st.integers(40, 45), min_size=1, max_size=6),
        steps=st.integers(1, 4),
        lasts=st.integers(1, 30),
        wait=st.integers(0, 30),
    )
    def play(self, pitches: list[int], steps: int, lasts: int, wait: int) -> None:
        events = []
        for index, pitch in enumerate(pitches):
            self.note += 1
            at = self._now() + index * steps
            events.append(PlannedEvent(at, pitch, 80, self.note))
            events.append(PlannedEvent(at + lasts, pitch, 0, self.note))
        with self.ring.changed:
            # as the composer does: take back what is planned, and plan anew
            events += self.ring.cut(0)
            for event in sorted(events, key=lambda event: event.step)[: self.ring.room]:
                self.ring.push(event)
        time.sleep(wait / 1000)

    @rule()
    def pause(self) -> None:
        self.clock.pause(time.monotonic())
        self.player.silence()
        wait_until(lambda: not self.account.ask("report")["sounding"], "a pause is silent")

    @rule()
    def go_on(self) -> None:
        self.clock.start(time.monotonic())

    @rule(ahead=st.integers(0, 10))
    def cut(self, ahead: int) -> None:
        self.ring.cut(self._now() + ahead)

    @rule()
    def seek_to_the_start(self) -> None:
        self.ring.cut(0)
        self.clock.rewind(time.monotonic())
        self.player.silence()
        self.clock.start(time.monotonic())

    @rule()
    def panic(self) -> None:
        self.player.silence()

    @rule(tempo=st.sampled_from([60.0, 300.0]))
    def change_tempo(self, tempo: float) -> None:
        self.clock.set_tempo(tempo, time.monotonic())

    @precondition(lambda self: self.sinks)
    @rule()
    def unplug(self) -> None:
        self.player.remove(self.sinks.pop())

    @precondition(lambda self: self.sinks)
    @rule()
    def the_peer_drops_all(self) -> None:
        self.account.ask("drop")
        self.sinks.clear()

    @precondition(lambda self: self.sinks)
    @rule()
    def the_peer_is_killed(self) -> None:
        self._judge()
        self.account.end()
        self.account = Account()
        self.sinks.clear()

    def _judge(self) -> None:
        totals = self.account.ask("report")
        assert totals["hanging"] == 0
        assert totals["twice"] == 0
        assert totals["strange"] == []
        MidiMachine.played += totals["on"]

    def teardown(self) -> None:
        try:
            start = time.monotonic()
            self.player.stop()
            assert time.monotonic() - start < 1.0
            wait_until(lambda: not self.account.ask("report")["open"], "all is closed")
            self._judge()
        finally:
            self.account.end()


def test_every_note_ends() -> None:
    MidiMachine.played = 0
    test = MidiMachine.TestCase
    test.settings = settings(
        max_examples=16,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    test("runTest").runTest()
    # it did play
    assert MidiMachine.played > 16


@pytest.mark.parametrize("loss", ["the_peer_drops_all", "the_peer_is_killed"])
def test_a_port_that_is_lost_amid_a_chord(loss: str) -> None:
    machine = MidiMachine()
    try:
        machine.play([40, 41, 42], steps=0, lasts=2000, wait=0)
        wait_until(lambda: machine.account.ask("report")["sounding"] == 3, "the chord sounds")
        getattr(machine, loss)()
        machine.connect()
        machine.play([43, 44], steps=0, lasts=2000, wait=0)
        wait_until(lambda: machine.account.ask("report")["sounding"] == 2, "the new port plays")
        wait_until(lambda: machine.lost == 1, "the old port was given up")
    finally:
        machine.teardown()


def test_the_account_finds_a_note_that_hangs() -> None:
    account = Account()
    try:
        output = open_output(f"socket:{account.port}")
        output.send(bytes((0x90, 60, 80)))
        wait_until(lambda: account.ask("report")["sounding"] == 1, "it sounds")
        output.close()
        wait_until(lambda: account.ask("report")["hanging"] == 1, "it hangs")
        with pytest.raises(PortLostError):
            output.send(bytes((0x80, 60, 0)))
    finally:
        account.end()
    with pytest.raises(KmidiError, match="start the program that listens there first"):
        open_output(f"socket:{account.port}")
