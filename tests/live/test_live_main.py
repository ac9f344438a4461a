"""`python -m kmidi_mlx.live` as people and programs start it, and however it is made to end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_concert import GENERATOR, save_checkpoint, wait_for
from stage_double import StageDouble

from kmidi_mlx.config_file import load_sections
from kmidi_mlx.live import stdio
from kmidi_mlx.live.__main__ import HELLO_MODEL, _overrides, _parser, _talk, _with_generator
from kmidi_mlx.live.take import Take
from kmidi_mlx.live_config import LiveConfig

SMALL = [
    "--set", "cloud.points=200", "--set", "loop.frames_per_second=30",
    "--set", "music.tempo=300", "--set", "sampling.max_rest_seconds=0.1",
    "--set", "sampling.max_note_seconds=0.5", "--set", "loop.memory_gb=8",
    "--set", "alerts.frames_per_second=0", "--no-browser", "--port", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "generator", GENERATOR)


class Program:
    """A process of the application, killed after a minute."""

    def __init__(self, generator: Path, folder: Path, *flags: str) -> None:
        environment = {
            **os.environ, "PYTHONFAULTHANDLER": "1", "OPENBLAS_NUM_THREADS": "1",
            "KMIDI_TOKEN": "a-token-of-the-tests-0123456789",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "kmidi_mlx.live", "--generator", str(generator),
                "--spectocloud", str(folder / "none"), "--out", str(folder / "takes"),
                *SMALL, *flags,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, env=environment,
        )  # fmt: skip
        self._guard = threading.Timer(60.0, self.process.kill)
        self._guard.start()
        self._id = 0

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def message(self, kind: str) -> dict[str, Any]:
        while line := self.line():
            message: dict[str, Any] = json.loads(line)
            if message["type"] == kind:
                return message
        raise AssertionError(f"it ended: {self.end()}")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self._id += 1
        message = {"v": 1, "id": self._id, "command": command, "arguments": arguments}
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()
        reply = self.message("reply")
        assert reply["id"] == self._id
        return reply

    def end(self, seconds: float = 20.0) -> tuple[int, str, str]:
        """Wait for the end: exit status, stdout, stderr."""
        out, err = self.process.communicate(timeout=seconds)
        self._guard.cancel()
        return self.process.returncode, out.decode(), err.decode()

    def close(self) -> None:
        self._guard.cancel()
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def program(generator: Path, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def start(*flags: str) -> Program:
        started.append(Program(generator, tmp_path, *flags))
        return started[-1]

    yield start
    for each in started:
        each.close()


class Ear(threading.Thread):
    """Takes MIDI on a TCP port and keeps the account of what sounds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = f"socket:127.0.0.1:{self._listener.getsockname()[1]}"
        self.sounding: set[int] = set()
        self.ons = 0
        self.last = b""
        self.closed = False
        self.start()

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as peer:
            waiting = b""
            while data := peer.recv(4096):
                waiting += data
                while len(waiting) >= 3:
                    message, waiting = waiting[:3], waiting[3:]
                    self.last = message
                    if message[0] == 0x90:
                        assert message[1] not in self.sounding
                        self.sounding.add(message[1])
                        self.ons += 1
                    elif message[0] == 0x80:
                        assert message[1] in self.sounding
                        self.sounding.discard(message[1])
        self.closed = True


def clean(err: str) -> str:
    """Nothing of an abort, a traceback or a warning may be in it."""
    for word in ("terminate called", "Traceback", "Fatal", "Warning", "leaked", "Abort"):
        assert word not in err, err
    return err


def test_a_headless_take(program: Callable[..., Program], tmp_path: Path) -> None:
    headless = program("--headless", "--seconds", "1.5", "--json", "--emotion", "sad")
    code, out, err = headless.end(40.0)
    assert (code, clean(err)) == (0, "")
    told = json.loads(out)
    files = {Path(file).name for file in told["files"]}
    assert {"music.mid", "sound.wav", "clouds.kmc", "take.json"} <= files
    assert all((tmp_path / file).stat().st_size for file in told["files"])
    assert told["stats"]["tokens_per_second"] > 0
    take = Take.open(tmp_path / "takes")
    assert take.about["finished"]
    assert take.about["about"]["music"]["valence"] < 0
    assert 1.0 < take.about["seconds"] < 3.0
    assert len(take.notes) > 5
    # a second one does not overwrite it
    code, _, err = program("--headless", "--seconds", "1").end(40.0)
    assert code == 2
    assert "already" in clean(err)


def test_a_conversation(program: Callable[..., Program]) -> None:
    stdio = program("--stdio")
    ready = stdio.message("ready")
    assert ready["port"] > 0
    assert ready["token"] == "a-token-of-the-tests-0123456789"
    assert stdio.ask("update_emotion", label="happy")["result"]["valence"] == 0.8
    assert stdio.ask("set", **{"music.tempo": 10})["ok"] is False
    piece = stdio.ask("generate_midi", seconds=2.0, seed=3)
    assert piece["result"]["notes"] > 0
    assert stdio.ask("get_performance_stats")["result"]["memory_gb"] > 0
    assert stdio.ask("transport", action="stop")["result"] == {"transport": "stopped"}
    assert stdio.process.stdin is not None
    stdio.process.stdin.close()
    stdio.process.stdin = None
    code, _, err = stdio.end()
    assert (code, clean(err)) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_nothing_sounding(
    program: Callable[..., Program], number: signal.Signals
) -> None:
    ear = Ear()
    page = program("--midi-out", ear.port)
    assert page.line().startswith("kmidi plays at http://127.0.0.1:")
    wait_for(lambda: ear.ons > 5 and ear.sounding, 30.0)
    begun = time.monotonic()
    page.process.send_signal(number)
    code, out, err = page.end()
    assert time.monotonic() - begun < 5.0
    assert (code, clean(err)) == (0, "")
    assert out.splitlines()[-1] == "stopping; every note is ended"
    wait_for(lambda: ear.closed)
    assert ear.sounding == set()
    # pedal up, all notes off, all sound off
    assert ear.last == bytes((0xB0, 120, 0))


@pytest.mark.parametrize("flags", [("--stdio",), ("--headless", "--seconds", "60"), ()])
def test_a_signal_during_the_start_is_not_lost(
    program: Callable[..., Program], flags: tuple[str, ...]
) -> None:
    """Also where nobody listens to it yet: while modules and weights are being loaded."""
    starting = program(*flags)
    # before its handlers are there the system ends it, which is an end too
    time.sleep(1.0)
    starting.process.send_signal(signal.SIGTERM)
    code, _, err = starting.end(15.0)
    assert code in (0, -signal.SIGTERM)
    clean(err)


def test_a_kill_leaves_a_take_that_can_be_read(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    headless = program("--headless", "--seconds", "60")
    take = tmp_path / "takes"
    # the files are brought up to date every two seconds
    wait_for((take / "music.mid").exists, 30.0)
    time.sleep(3.0)
    headless.process.kill()
    assert headless.end()[0] == -signal.SIGKILL
    kept = Take.open(take)
    assert not kept.about["finished"]
    assert len(kept.notes) > 3
    assert (take / "sound.wav").stat().st_size > 44_100


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--speed", "3"), "unknown option --speed"),
        (("--seconds", "3"), "belong to --headless"),
        (("--headless", "--stdio"), "exclude each other"),
        (("--headless", "--seconds", "-1"), "give more than 0"),
        (("--set", "music.tempo=1000"), "tempo"),
        (("--set", "music.tempi=100"), "did you mean"),
        (("--mode", "solo"), "--mode: unknown choice 'solo'; choose from compose, duet"),
        (("--mode", "duett"), "--mode: unknown choice 'duett'; did you mean duet?"),
        (("--emotion", "blue"), "blue"),
        (("--generator", "/nowhere"), "no such checkpoint"),
        (("--midi-out", "socket:127.0.0.1:1"), "nothing can be reached"),
        (("--listen", "/nowhere.wav"), "no such sound file"),
        (("--feel",), "choose something to listen to"),
        (("--log", "/nowhere/log.csv"), "/nowhere/log.csv"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    program: Callable[..., Program], flags: tuple[str, ...], complaint: str
) -> None:
    code, out, err = program(*flags).end(30.0)
    assert code == 2
    assert out == ""
    assert complaint in clean(err)
    assert err.startswith("kmidi live: ")
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_a_sentence(program: Callable[..., Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = program("--port", str(port)).end(30.0)
    assert code == 2
    assert f"cannot listen on port {port}" in clean(err)
    assert err.count("\n") == 1


def test_a_generator_that_fails_ends_it_with_its_reason(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    broken = save_checkpoint(tmp_path / "broken", GENERATOR, broken=True)
    code, _, err = program("--generator", str(broken)).end(30.0)
    assert code == 2
    assert "NaN or Inf" in clean(err)


def test_help_and_options_answer_without_weights(program: Callable[..., Program]) -> None:
    code, out, _ = program("--help-config").end()
    assert code == 0
    assert "lookahead_seconds" in out
    code, out, _ = program("--list-ports").end()
    assert code == 0
    assert "outputs" in out


def test_without_a_model_the_small_one_plays_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = LiveConfig()
    assert _with_generator(usual) == usual
    HELLO_MODEL.mkdir(parents=True)
    found = _with_generator(usual)
    assert found.models.generator == str(HELLO_MODEL)
    assert "small model in out/hello/model plays" in capsys.readouterr().err
    # what is named is never replaced, what is there neither
    named = replace(usual, models=replace(usual.models, generator="mine"))
    assert _with_generator(named) == named
    Path(usual.models.generator).mkdir(parents=True)
    (Path(usual.models.generator) / "config.yaml").touch()
    assert _with_generator(usual) == usual
    assert capsys.readouterr().err == ""


def test_styles_are_flags() -> None:
    flags = ["--adapter", "mine:0.7", "--adapter", "a b", "--cloud-adapter", "glow"]
    models = load_sections(LiveConfig, [], _overrides(_parser().parse_args(flags))).models
    assert (models.adapters, models.cloud_adapters) == (("mine:0.7", "a b"), ("glow",))


def test_who_is_told_to_stop_before_the_talk_begins_does_not_talk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside, writing = os.pipe()
    reading, outside = os.pipe()
    monkeypatch.setattr(stdio, "Stdio", partial(stdio.Stdio, source=inside, target=outside))
    stop = threading.Event()
    stop.set()
    try:
        talk = threading.Thread(target=_talk, args=(StageDouble(), {}, stop), daemon=True)
        talk.start()
        talk.join(10.0)
        assert not talk.is_alive()
    finally:
        os.close(writing)
        for end in (inside, reading, outside):
            os.close(end)


@pytest.mark.slow
def test_leaving_again_and_again_never_aborts(program: Callable[..., Program]) -> None:
    """Threads of MLX that are left to the end of the process may bring it down."""
    for _ in range(20):
        page = program()
        assert page.line().startswith("kmidi plays at")
        assert page.process.stdout is not None
        assert not select.select([page.process.stdout], [], [], 0.1)[0]
        page.process.send_signal(signal.SIGTERM)
        code, out, err = page.end()
        assert (code, out, clean(err)) == (0, "stopping; every note is ended\n", "")
