"""A real sound system: JACK with its dummy driver, and a process that plays on it and hears itself.

PortAudio aborts a process whose JACK server has gone when it cleans up; so this also proves that
the process ends as it should.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

CHILD = Path(__file__).with_name("sound_card_child.py")
ROOT = Path(__file__).parents[2]
RATE = 44_100

pytestmark = pytest.mark.skipif(
    shutil.which("jackd") is None or shutil.which("jack_connect") is None,
    reason="needs jackd: apt-get install jackd2",
)


def environment(server: str) -> dict[str, str]:
    return {
        **os.environ, "JACK_DEFAULT_SERVER": server, "JACK_NO_START_SERVER": "1",
        "JACK_NO_AUDIO_RESERVATION": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


@pytest.fixture(params=[44_100, 48_000])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    # always the same name: JACK keeps room for eight, also for those that were killed
    name = f"kmidi-card-{request.param}"
    jackd = subprocess.Popen(
        ["jackd", "-n", name, "--no-realtime", "-d", "dummy", "-r", str(request.param),
         "-p", "256"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(name),
    )  # fmt: skip
    try:
        until = time.monotonic() + 10.0
        while _jack(name, "jack_lsp").returncode:
            if jackd.poll() is not None or time.monotonic() > until:
                pytest.skip("jackd does not start on this machine")
            time.sleep(0.05)
        yield name, jackd
    finally:
        jackd.terminate()
        try:
            jackd.wait(5.0)
        except subprocess.TimeoutExpired:
            jackd.kill()
            jackd.wait()


def _jack(server: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(server), timeout=10
    )


def read_line(pipe: IO[str]) -> dict[str, object]:
    ready, _, _ = select.select([pipe], [], [], 30.0)
    assert ready, "the child says nothing"
    found: dict[str, object] = json.loads(pipe.readline())
    return found


def test_what_is_played_is_heard_at_its_time_and_a_lost_card_ends_well(
    server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    name, jackd = server
    heard = tmp_path / "heard.npz"
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(heard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment(name),
    )  # fmt: skip
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        begun = read_line(child.stdout)
        if begun == {"outputs": []}:
            pytest.skip("this machine's PortAudio was built without JACK")
        assert begun["devices"] == {"inputs": ["system"], "outputs": ["system"]}
        assert (begun["input"], begun["output"]) == ("system", "system")
        joined = _jack(name, "jack_connect", "PortAudio:out_0", "PortAudio:in_0")
        assert joined.returncode == 0, joined.stderr
        child.stdin.write("\n")
        child.stdin.flush()
        figures = read_line(child.stdout)
        assert figures["errors"] == []
        jackd.terminate()
        last = read_line(child.stdout)
        assert last["lost"] == [
            "system went away; choose another microphone or input or none.",
            "system went away; choose another sound card or none.",
        ]
        assert isinstance(last["closed_in"], float)
        assert last["closed_in"] < 5.0
        assert (last["inputs"], last["outputs"]) == ([], [])
        assert child.wait(timeout=10) == 0, child.stderr
    finally:
        child.kill()
        child.communicate()
    if figures["underruns"] or figures["overruns"] or figures["gaps"]:
        pytest.skip(f"this machine is too busy to listen to its sound: {figures}")
    check_tone(heard)


def check_tone(path: Path) -> None:
    with np.load(path) as found:
        sound = found["samples"][:, 0] / 32_767
        first = np.cumsum(found["lengths"]) - found["lengths"]
        moment = np.concatenate(
            [begin + np.arange(n) / RATE
             for begin, n in zip(found["times"], found["lengths"], strict=True)]
        )  # fmt: skip
    assert len(first) > 60
    loud = np.convolve(np.abs(sound) > 0.05, np.ones(100) / 100, "same") > 0.3
    begins = np.flatnonzero(np.diff(loud.astype(int)) == 1)
    assert len(begins) >= 2
    # sounds begin each half second; card and microphone together are late by their buffers
    late = (moment[begins] + 0.25) % 0.5 - 0.25
    # a busy machine's driver drops some, which is then played later, but not without end
    assert np.abs(late).min() < 0.08
    assert np.abs(late).max() < 0.35
    assert max(purity(sound[begin + 1000 : begin + 8000]) for begin in begins[:2]) > 40


def purity(piece: np.ndarray) -> float:
    """Decibels by which a tone of a kilohertz is louder than all else."""
    power = np.abs(np.fft.rfft(piece * np.blackman(len(piece)))) ** 2
    peak = int(power.argmax())
    assert peak * RATE / len(piece) == pytest.approx(1000, abs=7)
    tone = power[peak - 6 : peak + 7].sum()
    return float(10 * np.log10(tone / (power.sum() - tone)))
