"""A thread that has to be on time asks the system to be run first."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from contextlib import suppress

__all__ = ["hurry"]

# QOS_CLASS_USER_INTERACTIVE of <sys/qos.h>
_USER_INTERACTIVE = 0x21
_NICE = -10


def hurry() -> bool:
    """Have the calling thread run before others, if the system allows it.

    On macOS it becomes user-interactive, which also keeps it on the fast cores; on Linux its nice
    value is lowered, which takes a right that desktop users seldom have.

    Returns:
        Whether it was allowed.
    """
    with suppress(OSError, AttributeError):
        if sys.platform == "darwin":
            library = ctypes.CDLL(None)
            return bool(library.pthread_set_qos_class_self_np(_USER_INTERACTIVE, 0) == 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        return True
    return False
