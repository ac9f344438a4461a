"""A thread that has to be on time asks the system to be run first."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress

__all__ = ["ON_TIME", "STEADY", "hurry"]

# QOS_CLASS_USER_INTERACTIVE of <sys/qos.h>
_USER_INTERACTIVE = 0x21
#: Nice values of Linux: who sends notes and sound before who computes, and both before others.
ON_TIME, STEADY = -11, -6


def hurry(nice: int = ON_TIME) -> bool:
    """Have the calling thread, and those that it starts, run before others, if that is allowed.

    On macOS it becomes user-interactive, which also keeps it on the fast cores; on Linux its nice
    value is lowered, which takes a right that desktop users seldom have, unless it was raised (as
    by the program `nice`).

    Args:
        nice: on Linux.

    Returns:
        Whether it was allowed.
    """
    with suppress(OSError, AttributeError):
        if sys.platform == "darwin":
            library = ctypes.CDLL(None)
            return bool(library.pthread_set_qos_class_self_np(_USER_INTERACTIVE, 0) == 0)
        if os.getpriority(os.PRIO_PROCESS, 0) > 0:
            return False  # somebody wants it to stand back
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        return True
    return False
