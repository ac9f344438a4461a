"""Styles: the adapters that the composer plays with, and those that it could.

Front ends name an adapter and nothing else: what they send is looked up among the adapters of the
generator's checkpoint, never made part of a path.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kmidi_mlx import checkpoint
from kmidi_mlx.adapter_file import LARGEST_SCALE, Adapter, adapter_names, open_adapter
from kmidi_mlx.adapter_file import open_adapters as open_named
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.errors import KmidiError, nearest

__all__ = ["Style", "Styles"]

# So many add up to a muddle already.
_MOST_ADAPTERS = 8
_SHOWN = 60


class Style(NamedTuple):
    """Adapters that are wanted.

    Attributes:
        version: another one means other adapters or scales.
        adapters: with their scales, none of them 0.
    """

    version: int
    adapters: tuple[tuple[Adapter, float], ...]


class Styles:
    """Adapters by name and scale; any thread may ask and change.

    Args:
        folder: of the checkpoint whose adapters they are.
        check: raises KmidiError where an adapter does not fit the model; may take its time.

    Attributes:
        wanted: replaced as a whole.
    """

    def __init__(self, folder: Path, check: Callable[[Adapter], None]) -> None:
        self.wanted = Style(0, ())
        self._folder = folder
        self._check = check
        self._names = adapter_names(folder)
        # of the files that were read, to see when one has changed
        self._stamps: dict[str, tuple[int, int] | None] = {}
        self._lock = threading.Lock()

    def choose(self, texts: Sequence[str]) -> None:
        """Want what a person names at the start.

        Args:
            texts: as of `--adapter`: NAME or NAME:SCALE, with a path in the place of the name.

        Raises:
            KmidiError: when one cannot be had, is named twice, or they are too many.
        """
        found = open_named(texts, self._folder, MidiGeneratorConfig.name)
        names = [adapter.name for adapter, _ in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise KmidiError(f"the adapter {twice!r} is named twice; name it once.")
        with self._lock:
            for adapter, _ in found:
                self._stamps[adapter.name] = _stamp(adapter.path)
            self._want({adapter.name: (adapter, scale) for adapter, scale in found})

    def load(self, name: str | None, scale: float = 1.0, alone: bool = False) -> None:
        """Want an adapter at a scale, or no longer; the music follows when it can.

        Args:
            name: of the adapter; None or empty: take all of them off.
            scale: times that it counts; 0 takes it off.
            alone: take the others off.

        Raises:
            KmidiError: when it is not there, cannot be read or does not fit; nothing has changed
                then.
        """
        if not abs(scale) <= LARGEST_SCALE:
            raise KmidiError(
                f"scale of load_adapter has to be from {-LARGEST_SCALE:g} to {LARGEST_SCALE:g}."
            )
        with self._lock:
            held = {adapter.name: (adapter, times) for adapter, times in self.wanted.adapters}
            if not name:
                self._want({})
                return
            self._look(name, held)
            if scale:
                read = self._read(name, held)
                held = {name: (read, scale)} if alone else {**held, name: (read, scale)}
            else:
                held.pop(name, None)
                held = {} if alone else held
            self._want(held)

    def look(self) -> list[dict[str, Any]]:
        """Look what there is now, and tell it as `rows` does from then on."""
        self._names = adapter_names(self._folder)
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """All adapters by name, each with its scale; 0: it is there, and not wanted."""
        scales = {adapter.name: scale for adapter, scale in self.wanted.adapters}
        names = sorted({*self._names, *scales})
        return [{"name": name, "scale": scales.get(name, 0.0)} for name in names]

    def _want(self, held: dict[str, tuple[Adapter, float]]) -> None:
        adapters = tuple(pair for pair in held.values() if pair[1])
        if len(adapters) > _MOST_ADAPTERS:
            raise KmidiError(f"{len(adapters)} adapters are too many; {_MOST_ADAPTERS} add up.")
        before = self.wanted.adapters
        # compared one by one, as arrays cannot be compared as a whole
        same = len(before) == len(adapters) and all(
            old is new and was == times
            for (old, was), (new, times) in zip(before, adapters, strict=True)
        )
        if not same:
            self.wanted = Style(self.wanted.version + 1, adapters)

    def _look(self, name: str, held: dict[str, tuple[Adapter, float]]) -> None:
        if name in held or name in self._names:
            return
        self._names = adapter_names(self._folder)
        if name in self._names:
            return
        there = (
            nearest(name, self._names, "there are")
            if self._names
            else "; `kmidi finetune` teaches one."
        )
        raise KmidiError(f"there is no adapter called {name[:_SHOWN]!r}{there}")

    def _read(self, name: str, held: dict[str, tuple[Adapter, float]]) -> Adapter:
        """Read an adapter's file, unless it is held and has not changed."""
        known = held.get(name)
        # one that was named at the start may lie elsewhere
        usual = self._folder / checkpoint.ADAPTERS / name / checkpoint.ADAPTER
        path = usual if known is None else known[0].path
        stamp = _stamp(path)
        if known is not None and stamp in (None, self._stamps.get(name)):
            return known[0]
        try:
            adapter = open_adapter(path, MidiGeneratorConfig.name)
            self._check(adapter)
        except KmidiError as error:
            # people of other machines read it too: the name, not where it lies on the disk
            shown = f"the adapter {name[:_SHOWN]!r}"
            raise KmidiError(str(error).replace(str(path), shown)) from error
        self._stamps[name] = stamp
        return adapter


def _stamp(path: Path) -> tuple[int, int] | None:
    """What is another when a file is; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
