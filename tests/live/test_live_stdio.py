"""The same commands as lines over pipes, with a real process at the other end."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stage_double import StageDouble

from kmidi_mlx.live.protocol import unpack
from kmidi_mlx.live.stdio import Stdio

FOLDER = Path(__file__).parent
SCRIPT = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from stage_double import StageDouble
from kmidi_mlx.live.stdio import Stdio

stage = StageDouble()

def draw():
    while True:
        time.sleep(0.01)
        stage.put_cloud(20)

threading.Thread(target=draw, daemon=True).start()
stdio = Stdio(stage, about={"url": "http://127.0.0.1:1/"})
stage.session.handle("ports", lambda arguments: stdio.notify("info", "a port came.") or {})
stdio.run()
print("ended", file=sys.stderr)
"""


class Program:
    """A process that was started to be talked to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(FOLDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._id = 0

    def send(self, command: str, **arguments: Any) -> int:
        self._id += 1
        message = {"v": 1, "id": self._id, "command": command, "arguments": arguments}
        self.write(json.dumps(message).encode() + b"\n")
        return self._id

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def read(self) -> dict[str, Any]:
        line = self.stdout.readline()
        assert line.endswith(b"\n"), "the process ended"
        message: dict[str, Any] = json.loads(line)
        return message

    def read_until(self, kind: str) -> dict[str, Any]:
        while True:
            message = self.read()
            if message["type"] == kind:
                return message

    def end(self) -> tuple[bytes, bytes]:
        out, err = self.process.communicate(timeout=10)
        return out, err


@pytest.fixture
def program() -> Iterator[Program]:
    program = Program()
    watchdog = threading.Timer(30.0, program.process.kill)
    watchdog.start()
    yield program
    watchdog.cancel()
    program.process.kill()
    program.process.communicate()


def test_a_program_is_ready_obeys_and_ends_with_its_starter(program: Program) -> None:
    ready = program.read()
    assert (ready["type"], ready["v"], ready["url"]) == ("ready", 1, "http://127.0.0.1:1/")
    program.send("update_emotion", valence=-0.5, arousal=0.5)
    assert program.read()["result"]["label"]
    program.write(b"nonsense\n\n\n")
    assert "not JSON" in program.read()["error"]
    program.write(b"\xff\xfe\n")
    assert "not valid Unicode" in program.read()["error"]
    program.write(b"x" * 300_000 + b"\n")
    assert "too large" in program.read()["error"]
    program.send("ports")
    assert {program.read()["type"], program.read()["type"]} == {"reply", "notice"}
    # binary frames only for who asks, as base64
    program.send("subscribe", streams=["cloud"])
    assert "base64" in program.read()["error"]
    program.send("subscribe", streams=["cloud", "state"], base64=True)
    first = program.read_until("binary")
    assert unpack(base64.b64decode(first["data"])).rows.shape == (20, 10)
    # three credits, and then no more
    program.read_until("binary")
    program.read_until("binary")
    number = program.send("ping")
    seen = []
    while True:
        message = program.read()
        if message.get("id") == number:
            break
        seen.append(message["type"])
    assert "binary" not in seen
    program.send("credit", stream="cloud")
    program.read_until("binary")
    begun = time.monotonic()
    program.stdin.close()
    program.process.stdin = None
    _, err = program.end()
    assert time.monotonic() - begun < 3.0
    assert program.process.returncode == 0
    assert err == b"ended\n"


def test_what_was_asked_before_the_end_is_answered(program: Program) -> None:
    for tempo in range(50, 80):
        program.send("set", **{"music.tempo": tempo})
    program.send("generate_midi", seconds=1)
    out, _ = program.end()
    messages = [json.loads(line) for line in out.splitlines()]
    replies = [message["id"] for message in messages if message["type"] == "reply"]
    assert sorted(replies) == list(range(1, 32))
    assert [number for number in replies if number != 31] == list(range(1, 31))


def test_a_starter_that_reads_nothing_is_not_the_end_but_closing_is(program: Program) -> None:
    program.read()
    streams = ["state", "stats", "plan", "cloud"]
    program.send("subscribe", streams=streams, base64=True)
    # answers of more than a pipe holds, which nobody reads
    for _ in range(30):
        program.send("describe")
    time.sleep(0.3)
    assert program.process.poll() is None
    program.stdin.close()
    program.process.stdin = None
    program.process.wait(timeout=10)
    assert program.process.returncode == 0


def test_the_end_comes_too_when_nobody_reads_any_more(program: Program) -> None:
    program.read()
    program.stdout.close()
    program.process.stdout = None
    program.send("ping")
    program.process.wait(timeout=10)
    assert program.process.returncode == 0


def test_stop_ends_it_from_any_thread() -> None:
    inside, outside = os.pipe()
    reading, writing = os.pipe()
    stdio = Stdio(StageDouble(), source=inside, target=writing)
    running = threading.Thread(target=stdio.run)
    running.start()
    try:
        assert json.loads(os.read(reading, 65_536))["type"] == "ready"
        stdio.stop()
        running.join(5.0)
        assert not running.is_alive()
    finally:
        # the readers of the pipes see the end
        os.close(outside)
        time.sleep(0.05)
        for end in (inside, reading, writing):
            os.close(end)
