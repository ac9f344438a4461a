"""A rented machine, played by a folder on this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(__file__).parent.parent.parent / "configs" / "cloud"


# what the script asks of `aws`; s3://NAME is the folder NAME of $BUCKETS
AWS = """#!/usr/bin/env bash
set -eu
place() { case $1 in s3://*) echo "$BUCKETS/${1#s3://}" ;; *) echo "$1" ;; esac; }
[ "$1 $3 $#" = "s3 --only-show-errors 5" ]
from=$(place "$4") to=$(place "$5")
case $2 in
    cp) mkdir -p "$(dirname "$to")" && cp "$from" "$to" ;;
    sync) [ ! -d "$from" ] || { mkdir -p "$to" && cp -R "$from/." "$to"; } ;;
    *) exit 2 ;;
esac
"""


class Machine:
    """A machine that was rented: a folder of its own, and what the task tells the script.

    Args:
        folder: made; the machine's disk. Buckets are the folders beside it.
        variables: what the task declares.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        folder.mkdir()
        self.out = folder / "out"
        self._log = folder / "log.txt"
        programs = {"python": f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', "aws": AWS}
        for name, text in programs.items():
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text, "utf-8")
            program.chmod(0o755)
        told = {
            "KMIDI_OUT": "~/out",
            "HOME": str(folder),
            "KMIDI_PYTHON": str(folder / "bin" / "python"),
            "BUCKETS": str(folder.parent),
        }
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._variables = kept | threads | variables | told

    def start(self) -> subprocess.Popen[bytes]:
        """Start the script in a process group of its own."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                ["bash", str(CLOUD / "train_both.sh")],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=CLOUD.parent.parent,
                start_new_session=True,
            )

    def run(self) -> int:
        """Run the script to its end and return its exit status."""
        process = self.start()
        try:
            return process.wait(timeout=900)
        finally:
            if process.returncode is None:
                self.take_away(process)

    def said(self) -> str:
        """Everything that was printed so far."""
        return self._log.read_text("utf-8")

    @staticmethod
    def take_away(process: subprocess.Popen[bytes]) -> None:
        """End the machine as its owner does: everything at once, without a warning."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
