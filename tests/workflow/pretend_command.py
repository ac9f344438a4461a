"""What the workflow's tests run in the place of kmidi's commands: `-m pretend_command DEED …`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main(deed: str, *arguments: str) -> int:
    """Do something small that can be seen."""
    if deed == "write":  # FILE TEXT: also counts how often it was called
        path = Path(arguments[0])
        path.write_text(arguments[1])
        calls = path.with_suffix(".calls")
        calls.write_text(f"{int(calls.read_text()) + 1 if calls.exists() else 1}")
        print("some words")
        print(json.dumps({"wrote": arguments[1]}))
    elif deed == "fail":
        print("pretend: no such thing.", file=sys.stderr)
        return 2
    elif deed == "hold":  # MEGABYTES
        held = bytearray(int(arguments[0]) << 20)
        held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
        time.sleep(0.5)
    elif deed == "once-heavy":  # FILE MEGABYTES: holds them until it is killed, and later no more
        path = Path(arguments[0])
        if not path.exists():
            held = bytearray(int(arguments[1]) << 20)
            held[:: 1 << 12] = b"x" * len(held[:: 1 << 12])
            path.touch()
            time.sleep(60)
    elif deed == "train":  # --model M --out DIR …: cut off the first time, goes on the second
        folder = Path(arguments[arguments.index("--out") + 1])
        (folder / "last").mkdir(parents=True, exist_ok=True)
        (folder / "last" / "state.safetensors").write_text("state")
        with (folder / "words").open("a") as file:
            file.write(" ".join(arguments) + "\n")
        if "--resume" not in arguments:
            return 3
        (folder / "best.safetensors").write_text("weights")
    elif deed == "wait":  # FILE: says that it is there, and waits to be told to stop
        Path(arguments[0]).touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
