"""One step: its commands one after the other, each a process with its output kept and weighed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx import checkpoint
from kmidi_mlx.command import INTERRUPTED, Interruption
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.workflow.commands import Command, another, resumed, set_aside
from kmidi_mlx.workflow.journal import Journal, digest_of_files
from kmidi_mlx.workflow.steps import Step

__all__ = ["Done", "goes_on", "run_step"]

_POLL_SECONDS = 0.1
# a workflow that is killed forgets at most so much of what a step has taken
_KEEP_SECONDS = 2.0
# a little longer than a command has to end when its workflow is gone
_WAIT_SECONDS = 65.0
_PROC = Path("/proc")


@dataclass(frozen=True)
class Done:
    """How a step ended: exit status 0, or that of the command that failed, and what repeats it."""

    status: int
    command: Command = ()


def goes_on(step: Step, wanted: str, journal: Journal) -> bool:
    """Whether a step was begun with these inputs and cut off."""
    entry = journal[step.name]
    return entry.begun == wanted != entry.done


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
    continues = goes_on(step, wanted, journal)
    if not continues:
        entry.seconds = entry.peak_gb = 0.0
    entry.begun, entry.done, entry.results = wanted, "", []
    journal.save()
    logs.mkdir(parents=True, exist_ok=True)
    if not step.folders:  # a run's folder is its own to make
        for path in step.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)

    def spend(seconds: float, peak_bytes: int) -> None:
        entry.seconds += seconds
        entry.peak_gb = max(entry.peak_gb, peak_bytes / 1e9)
        journal.save()

    for number, command in enumerate(step.commands):
        folder = step.folders.get(number)
        if folder is not None:
            _wait_for(folder)
            command = _continued(command, folder, continues)
        log = logs / f"{step.name}-{number + 1}.log"
        status = _run(command, log, interruption, spend)
        if status:
            again = command if folder is None else _repeated(command, folder)
            return Done(INTERRUPTED if interruption.requested else status, again)
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


def _continued(command: Command, folder: Path, continues: bool) -> Command:
    """Let a command go on with its own run; what other inputs left there is set aside."""
    if continues and (folder / checkpoint.LAST).exists():
        return resumed(command, folder)
    if folder.exists():
        aside = set_aside(folder)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    return command


def _repeated(command: Command, folder: Path) -> Command:
    """Return what repeats a training that failed: it goes on if anything was saved."""
    if "--resume" in command:
        return command
    if (folder / checkpoint.LAST).exists():
        return resumed(command, folder)
    return another(command, folder)


def _run(
    command: Command,
    log: Path,
    interruption: Interruption,
    spend: Callable[[float, int], None],
) -> int:
    """Run a command with its output in a file and return its status.

    `spend` is told now and then which seconds have gone by since, and the peak of memory in bytes.
    """
    with log.open("wb") as file:
        peak, told_seconds = 0, time.monotonic()
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
            now = time.monotonic()
            if now - told_seconds >= _KEEP_SECONDS:
                spend(now - told_seconds, peak)
                told_seconds = now
            time.sleep(_POLL_SECONDS)
    process.stdin.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if sys.platform == "darwin":
        peak = usage.ru_maxrss
    spend(time.monotonic() - told_seconds, peak)
    return process.returncode


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
