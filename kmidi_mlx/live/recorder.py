"""Records takes: the music, the sound and the clouds, in step, while they are played.

A take is a folder. Threads of its own take what is played and write it; the player and the engine
never wait for the disk. Everything lies at its monotonic time since the take's beginning.
"""

from __future__ import annotations

import itertools
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.sound import SoundFan
from kmidi_mlx.live.taking import TakeSink, Taking, reason_of

__all__ = ["Recorder"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# stopping waits for a slow disk for so long; closing, at the end of the program, less
_STOP_SECONDS, _CLOSE_SECONDS = 30.0, 5.0


class Recorder:
    """Records one take at a time; any thread may call.

    Args:
        folder: where takes are put; made when the first one starts.
        sound: what is heard; None: there is none.
        clouds: what is seen.
        on_failed: told in one sentence, by another thread, when a take had to end because the
            disk refused; the take is kept up to there.

    Attributes:
        sink: to be added to the player for good.
    """

    def __init__(
        self,
        folder: Path,
        sound: SoundFan | None,
        clouds: CloudSlot,
        on_failed: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.sink = TakeSink()
        self._folder = folder
        self._sound = sound
        self._clouds = clouds
        self._on_failed = on_failed
        self._lock = threading.Lock()
        self._taking: Taking | None = None

    @property
    def name(self) -> str:
        """Name of the take under way; empty when there is none."""
        taking = self._taking
        return "" if taking is None else taking.path.name

    def start(self, name: str = "", about: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Begin a take.

        Args:
            name: letters, digits, dots, underscores and hyphens, at most 64; empty: the time.
            about: what else is to be known about it, made for JSON.

        Returns:
            {"recording": name}.

        Raises:
            KmidiError: if one is under way, the name cannot be or is taken, or the disk refuses.
        """
        with self._lock:
            if self._taking is not None:
                raise KmidiError(f"{self.name} is being recorded already; stop it first.")
            path = self._make_folder(name)
            try:
                self._taking = Taking(
                    path, dict(about or {}), self._sound, self._clouds, self.sink, self._failed
                )
            except (KmidiError, OSError) as error:
                shutil.rmtree(path, ignore_errors=True)
                raise KmidiError(f"cannot record {path.name}: {reason_of(error)}") from error
            self._taking.start()
            return {"recording": path.name}

    def stop(self) -> dict[str, Any]:
        """End the take; returns when it is written.

        Returns:
            {"recording": "", "files": paths relative to the folder}.

        Raises:
            KmidiError: if none is under way, the disk refused, or it is too slow to wait for.
        """
        return self._stop(_STOP_SECONDS)

    def close(self) -> None:
        """End the take if there is one; to be called at the end, whatever happened."""
        with suppress(KmidiError):
            self._stop(_CLOSE_SECONDS)

    def _stop(self, timeout: float) -> dict[str, Any]:
        with self._lock:
            taking, self._taking = self._taking, None
        if taking is None:
            raise KmidiError("nothing is being recorded.")
        taking.finish(timeout)
        return {"recording": "", "files": taking.files}

    def _failed(self, taking: Taking, sentence: str) -> None:
        with self._lock:
            # whoever stops it just now is told there
            mine = self._taking is taking
            if mine:
                self._taking = None
        if mine:
            self._on_failed(sentence)

    def _make_folder(self, name: str) -> Path:
        if name and not _NAME.fullmatch(name):
            raise KmidiError(
                f"a take cannot be called {name[:80]!r}; use up to 64 letters, digits and ._- "
                "that begin with a letter or digit."
            )
        given = name or f"take-{datetime.now().astimezone():%Y-%m-%d-%H%M%S}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for count in itertools.count(1):
                path = self._folder / (given if count == 1 else f"{given}-{count}")
                try:
                    # making a folder follows no link and replaces nothing
                    path.mkdir()
                    return path
                except FileExistsError:
                    if name:
                        raise KmidiError(
                            f"there is a take called {name} already; give another name."
                        ) from None
        except OSError as error:
            raise KmidiError(f"cannot record into {self._folder}: {reason_of(error)}") from error
        raise AssertionError("counting never ends")
