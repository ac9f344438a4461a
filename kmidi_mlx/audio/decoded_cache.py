"""Decoded recordings in the user's cache folder, so that Ogg Vorbis is decoded once.

A cache file carries a digest of its content. One that is cut, altered or of another version is
taken for missing and written anew; two processes may write the same file at the same time, as each
renames a whole one into place. Where nothing can be written, everything works, only slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.errors import KmidiError

__all__ = ["cache_folder", "load_recordings", "save_recordings"]

_MAGIC = b"kmidi recordings 1\n"
_DIGEST_SIZE = 32


def cache_folder() -> Path | None:
    """Return the folder for what can be made anew at any time; None where there is no home.

    `KMIDI_CACHE` names it; otherwise it is what the system has for such things.
    """
    named = os.environ.get("KMIDI_CACHE")
    if named:
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "kmidi"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "kmidi"


def load_recordings(key: str) -> list[NDArray[np.complex64]] | None:
    """Return the recordings kept under a key, or None if there are none or they are damaged.

    Args:
        key: the name they were saved under.

    Returns:
        complex64 (n,) each: stereo frames, left as the real part.
    """
    folder = cache_folder()
    if folder is None:
        return None
    try:
        content = (folder / f"{key}.bin").read_bytes()
    except OSError:
        return None
    head = len(_MAGIC) + _DIGEST_SIZE
    payload = memoryview(content)[head:]
    if content[:head] != _MAGIC + _digest(payload):
        return None
    count = int(np.frombuffer(payload, "<i8", 1)[0])
    lengths = np.frombuffer(payload, "<i8", count, offset=8)
    frames = np.frombuffer(payload, "<c8", offset=8 * (1 + count))
    return np.split(frames, np.cumsum(lengths)[:-1])


def save_recordings(key: str, recordings: list[NDArray[np.complex64]]) -> None:
    """Keep recordings under a key; nothing happens where they cannot be written.

    Args:
        key: letters and digits that name everything the recordings depend on.
        recordings: complex64 (n,) each; at least one.
    """
    folder = cache_folder()
    if folder is None:
        return
    lengths = np.array([len(recordings), *map(len, recordings)], "<i8")
    payload = lengths.tobytes() + b"".join(frames.astype("<c8").tobytes() for frames in recordings)
    with contextlib.suppress(OSError, KmidiError):
        folder.mkdir(parents=True, exist_ok=True)
        content = _MAGIC + _digest(memoryview(payload)) + payload
        write_bytes_atomically(folder / f"{key}.bin", content)


def _digest(payload: memoryview) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_SIZE).digest()
