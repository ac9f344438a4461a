"""What was done from what: a step whose inputs are as they were is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kmidi_mlx import __version__
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.errors import KmidiError

__all__ = ["Entry", "Journal", "digest_of_files", "fingerprint"]

_FILE = "workflow.json"
_CHUNK_BYTES = 1 << 20


@dataclass
class Entry:
    """What is known of a step.

    Attributes:
        begun: fingerprint of the inputs that it was last begun with.
        done: that it was last finished with; empty: never.
        outputs: digests of what it left, by path.
        seconds: that it took, all attempts since it was begun together; written down while it
            runs, so that a killed attempt counts too.
        peak_gb: most memory that one of its processes took in any of them.
        results: what its commands printed as JSON, in order.
    """

    begun: str = ""
    done: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_gb: float = 0.0
    results: list[Any] = field(default_factory=list)


class Journal:
    """The entries of a folder's steps, written after every change.

    Args:
        folder: of the workflow.

    Raises:
        KmidiError: when the file there is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._entries: dict[str, Entry] = {}
        if self._path.exists():
            try:
                found = json.loads(self._path.read_text(encoding="utf-8"))
                self._entries = {name: Entry(**entry) for name, entry in found.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise KmidiError(
                    f"{self._path} is damaged: {error}; remove it to do every step again."
                ) from error

    def __getitem__(self, step: str) -> Entry:
        return self._entries.setdefault(step, Entry())

    def save(self) -> None:
        """Write all entries, or leave the file as it was."""
        text = json.dumps({name: asdict(entry) for name, entry in self._entries.items()}, indent=1)
        write_bytes_atomically(self._path, f"{text}\n".encode())

    def is_done(self, step: str, wanted: str) -> bool:
        """Whether a step was finished with these inputs and what it left is still there."""
        entry = self[step]
        return entry.done == wanted != "" and all(
            Path(path).exists() and digest_of_files([Path(path)]) == digest
            for path, digest in entry.outputs.items()
        )


def fingerprint(commands: Sequence[Sequence[str]], inputs: Iterable[str]) -> str:
    """Return what tells a step's commands and inputs from others."""
    parts = [__version__, *(json.dumps(list(command)) for command in commands), *inputs]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def digest_of_files(paths: Iterable[Path]) -> str:
    """Return a digest of the contents of files, in order; a missing file counts as such."""
    seen = hashlib.blake2b(digest_size=8)
    for path in paths:
        if not path.is_file():
            seen.update(b"missing")
            continue
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                seen.update(chunk)
    return seen.hexdigest()
