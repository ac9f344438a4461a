"""A lock on a folder: only one process at a time works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmidi_mlx.errors import KmidiError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path, taken: str = "") -> Iterator[None]:
    """Make the folder and keep other processes out of it; the lock ends with the process.

    If nothing was written in the end, the folder leaves no trace.

    Args:
        folder: the folder; its parents are made too.
        taken: what to say when another process has it; empty: that it is being prepared.

    Raises:
        KmidiError: if another process has it, or it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise KmidiError(f"cannot write into {folder}: {error.strerror}.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.stat()  # its holder may have removed it after it was opened here
        except OSError as error:
            raise KmidiError(
                taken or f"another process is preparing {folder}; wait until it has finished."
            ) from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if all(path == lock for path in folder.iterdir()):
                    lock.unlink()
                    for path in missing:
                        path.rmdir()
    finally:
        os.close(descriptor)
