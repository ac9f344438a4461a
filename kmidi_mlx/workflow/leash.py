"""Run a module as `python -m` does, and stop it when whoever started it is gone.

`python -m kmidi_mlx.workflow.leash MODULE ARGUMENTS ...`: it runs while somebody holds the other
end of its stdin. A killed workflow holds nothing, so the run that it began is interrupted as by
Ctrl-C, saves, and is there to be gone on with.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

from kmidi_mlx.command import INTERRUPTED

# for a last save; what hangs for longer is ended
_SECONDS_TO_END = 60.0


def main() -> None:
    """Run the module that is named."""
    held = os.dup(0)
    # stdin is the leash and nothing that a command should read
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_watch, args=(held,), daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _watch(held: int) -> None:
    while os.read(held, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(_SECONDS_TO_END)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
