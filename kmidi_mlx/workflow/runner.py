"""One step: its commands one after the other, each a process with its output kept and weighed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, Interruption
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.workflow.journal import Journal, digest_of_files
from kmidi_mlx.workflow.steps import Step

__all__ = ["Done", "run_step", "shown"]

_POLL_SECONDS = 0.1
# a little longer than a command has to end when its workflow is gone
_WAIT_SECONDS = 65.0
_PROC = Path("/proc")


@dataclass(frozen=True)
class Done:
    """How a step ended: exit status 0, or that of the command that failed, and that command."""

    status: int
    command: tuple[str, ...] = ()


def shown(command: tuple[str, ...]) -> str:
    """Return a command as a person would type it."""
    return shlex.join(["python", "-m", *command])


def run_step(
    step: Step,
    wanted: str,
    journal: Journal,
    logs: Path,
    interruption: Interruption,
) -> Done:
    """Run a step's commands and keep what they say.

    Args:
        step: what to do.
        wanted: fingerprint of its inputs.
        journal: told when the step begins and when it is done.
        logs: folder for what commands print on stdout.
        interruption: asks to stop.

    Raises:
        KmidiError: when a step ends well without leaving what it should.
    """
    entry = journal[step.name]
    goes_on = entry.begun == wanted != entry.done
    if not goes_on:
        entry.seconds = entry.peak_gb = 0.0
    entry.begun, entry.done, entry.results = wanted, "", []
    journal.save()
    logs.mkdir(parents=True, exist_ok=True)
    if not step.folders:  # a run's folder is its own to make
        for path in step.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(step.commands):
        folder = step.folders.get(number)
        if folder is not None:
            _wait_for(folder)
            command = _continued(command, folder, goes_on)
        log = logs / f"{step.name}-{number + 1}.log"
        began = time.monotonic()
        status, peak = _run(command, log, interruption)
        entry.seconds += time.monotonic() - began
        entry.peak_gb = max(entry.peak_gb, peak / 1e9)
        journal.save()
        if status:
            return Done(INTERRUPTED if interruption.requested else status, command)
        entry.results.append(_result(log))
    missing = [path for path in step.outputs if not path.exists()]
    if missing:
        raise KmidiError(f"{step.name} ended well and left no {missing[0]}; do it again.")
    entry.outputs = {str(path): digest_of_files([path]) for path in step.outputs}
    entry.done = wanted
    journal.save()
    return Done(0)


def _wait_for(folder: Path) -> None:
    """Let the run of a workflow that was killed end; it is saving."""
    end = time.monotonic() + _WAIT_SECONDS
    while folder.exists():
        try:
            with checkpoint.exclusive(folder):
                return
        except KmidiError:
            if time.monotonic() > end:
                raise KmidiError(
                    f"another run is training into {folder}; end it, then do this again."
                ) from None
        time.sleep(_POLL_SECONDS)


def _continued(command: tuple[str, ...], folder: Path, goes_on: bool) -> tuple[str, ...]:
    """Let a command go on with its own run; what other inputs left there is set aside."""
    if goes_on and (folder / checkpoint.LAST).exists():
        flags = ["--out", str(folder), "--resume"]
        kept = [word for word in command if word in ("--json", "--fuse")]
        model = command[command.index("--model") + 1]
        original = _flag(command, "--original")
        head = takewhile(lambda word: not word.startswith("--"), command)
        return (*head, "--model", model, *flags, *original, *kept)
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.before")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    return command


def _flag(command: tuple[str, ...], name: str) -> tuple[str, ...]:
    if name not in command:
        return ()
    place = command.index(name)
    return command[place : place + 2]


def _run(command: tuple[str, ...], log: Path, interruption: Interruption) -> tuple[int, int]:
    """Run a command with its output in a file; its status and peak memory in bytes."""
    with log.open("wb") as file:
        peak = 0
        # a session of its own: Ctrl-C comes to this process, which passes it on once
        process = subprocess.Popen(
            [sys.executable, "-m", "kmidi_mlx.workflow.leash", *command],
            stdin=subprocess.PIPE,
            stdout=file,
            start_new_session=True,
        )
        assert process.stdin
        told = False
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            if interruption.requested and not told:
                told = True
                process.send_signal(signal.SIGINT)
            peak = max(peak, _peak_bytes(process.pid))
            time.sleep(_POLL_SECONDS)
    process.stdin.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if sys.platform == "darwin":
        peak = usage.ru_maxrss
    return process.returncode, peak


def _peak_bytes(session: int) -> int:
    """Most memory that a process of a session has taken so far, where the system tells in /proc.

    What it tells at a process's end counts the memory of who started it (it is inherited by exec).
    """
    peaks = [0]
    for folder in _PROC.glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                status = (folder / "status").read_text()
                peaks += [int(text.split()[0]) for text in status.split("VmHWM:")[1:]]
        except OSError:
            continue  # it has just ended
    return 1024 * max(peaks)


def _result(log: Path) -> Any:
    """The last line of JSON that a command printed; None: it printed none."""
    for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if line.startswith(("{", "[")):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None
