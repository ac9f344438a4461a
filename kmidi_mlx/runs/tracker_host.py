"""The process that serves one tracker; see `tracker_process`.

It reads calls from stdin, one JSON list a line, `["log", 10, {"loss": 2.1}]`, and answers on stdout
with `["failed", "why"]`, once, and `["finished", ""]`. When stdin ends without `finish`, the run
was killed. With `--check` it only says on stdout what would keep the tracker from working.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

# started as a file without a search path, so that no folder of the person shadows a package
sys.path.append(str(Path(__file__).parents[2]))

from kmidi_mlx.runs.sample_files import with_renderings
from kmidi_mlx.runs.tracker import Tracker

# for one whose run was killed: nobody is there who would end it
_LAST_SECONDS = 120


def main(arguments: list[str]) -> int:
    """Serve the tracker that the arguments name until its run ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what a library prints is not for the run
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    kind, *rest = arguments
    if rest == ["--check"]:
        complaint = _module(kind).complaint()
        print(complaint or "", file=answers, flush=True)
        return int(complaint is not None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    folder, project = rest
    return serve(lambda: _module(kind).make_tracker(Path(folder), project), sys.stdin, answers)


def _module(kind: str) -> Any:
    # only one of their packages is installed where only one is wanted
    return importlib.import_module(f"kmidi_mlx.runs.tracker_{kind}")


def serve(make: Callable[[], Tracker], calls: TextIO, answers: TextIO) -> int:
    """Make a tracker and do what the calls say.

    Args:
        make: makes the tracker.
        calls: lines of JSON.
        answers: lines of JSON.

    Returns:
        The exit status: 1 where the tracker could not be started.
    """
    told = False

    def tell(error: Exception) -> None:
        nonlocal told
        if not told:
            told = True
            text = " ".join(str(error).split()) or type(error).__name__
            print(json.dumps(["failed", text]), file=answers, flush=True)

    try:
        _, about, step = json.loads(calls.readline())
        tracker = make()
        tracker.start(about, step)
    except Exception as error:  # whatever a library raises
        tell(error)
        return 1
    reason = "lost"
    for line in calls:
        if not line.endswith("\n"):
            break  # cut short with the run
        method, *values = json.loads(line)
        if method == "finish":
            reason = values[0]
            break
        try:
            if method == "log":
                tracker.log(*values)
            else:
                files, problems = with_renderings([Path(file) for file in values[1]])
                tracker.add_samples(values[0], files)
                for problem in problems:
                    tell(problem)
        except Exception as error:
            tell(error)
    if reason == "lost":
        signal.alarm(_LAST_SECONDS)
    try:
        tracker.finish(reason)
    except Exception as error:
        tell(error)
    print(json.dumps(["finished", ""]), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
