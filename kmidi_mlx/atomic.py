"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmidi_mlx.errors import KmidiError

__all__ = ["atomic_write", "remove_leftovers", "write_bytes_atomically"]

_PREFIX = ".tmp-"
# what safetensors writes to, since 0.8, before it renames to the name that it was given
_OF_SAFETENSORS = re.compile(r"\.tmp[0-9A-Za-z]{6}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the name `path` at the end.

    The temporary name keeps the suffix of `path`, because some writers add their own where it is
    missing. When the block ends well, the content is forced to the disk before the rename and the
    rename after it; when anything is raised, the temporary file is removed and `path` is as before.
    A symbolic link is followed, and an existing file keeps its permissions.

    Args:
        path: the file to make or replace; its folder has to exist.

    Yields:
        The path to create and write; nothing is there yet.

    Raises:
        KmidiError: if the system refuses (disk full, no permission, no such folder), or `path` is
            there but is a folder, a device or a pipe.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{_PREFIX}{secrets.token_hex(6)}{target.suffix}")
    try:
        _require_replaceable(path, target)
        # some writers make files for their owner alone; the mode is that of any new file
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        else:
            temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        raise KmidiError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: a folder that nobody is writing to; nothing happens where there is none.
    """
    for leftover in folder.glob(".tmp*"):
        if leftover.name.startswith(_PREFIX) or _OF_SAFETENSORS.fullmatch(leftover.name):
            with contextlib.suppress(OSError):
                leftover.unlink()


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` as the whole content of `path`; a crash leaves the old file or the new one.

    Args:
        path: the file to make or replace; its folder has to exist.
        data: the new content.

    Raises:
        KmidiError: as `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _require_replaceable(path: Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise KmidiError(f"cannot write {path}: the folder {path.parent} does not exist.")
    # a rename over /dev/null would turn the device into a file for the whole machine
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise KmidiError(f"cannot write {path}: it is not a regular file; give another name.")


def _sync_folder(folder: Path) -> None:
    # some network file systems refuse to sync a folder; the file itself is safe by then
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
