"""Reads takes back, finished or cut short, and makes films of them."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import soundfile
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudFrame
from kmidi_mlx.live.protocol import HEADER_BYTES, ProtocolError, unpack
from kmidi_mlx.live.take_files import (
    ABOUT_FILE,
    CLOUD_FILE_HEADER,
    CLOUD_FILE_MAGIC,
    CLOUD_FILE_VERSION,
    CLOUDS_FILE,
    MUSIC_FILE,
    SOUND_FILE,
)
from kmidi_mlx.live.taking import TAKE_FORMAT, TAKE_VERSION
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud.camera import orbit
from kmidi_mlx.spectocloud.film import check_film, most_pictures, write_film
from kmidi_mlx.spectocloud.picture import draw

__all__ = ["FASTEST_FILM", "Take", "TakeClouds", "draw_take_moment", "write_take_film"]

#: Pictures a second that a film can have; players show a GIF that fast at the most.
FASTEST_FILM = {".gif": 30, ".mp4": 60, ".webp": 60}

# as in `protocol`: magic, header's size, columns, sequence, rows, time
_FRAME_HEAD = struct.Struct("<4sHHIId")
_CLOUD_MAGIC, _NUMBER_BYTES = b"KMC1", 2
# between clouds that are further apart nothing is made up
_LONGEST_GLIDE_SECONDS = 0.25


class TakeClouds(Sequence[CloudFrame]):
    """The clouds of a take, read from the file when they are asked for.

    Args:
        path: the file; what follows its last whole cloud is left out.

    Attributes:
        seconds: float64 (n,), time of each cloud since the beginning of the take, ascending.

    Raises:
        KmidiError: if it cannot be read or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                # nothing can be mapped of an empty file
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise KmidiError(f"cannot read {path}: {error.strerror or error}.") from error
        self._data: mmap.mmap | bytes = mapped
        self._places, self.seconds = self._index()

    def __len__(self) -> int:
        """Return the number of clouds."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> CloudFrame: ...

    @overload
    def __getitem__(self, index: slice) -> list[CloudFrame]: ...

    def __getitem__(self, index: int | slice) -> CloudFrame | list[CloudFrame]:
        """Return a cloud as it was recorded, or several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        place, size = self._places[index]
        try:
            frame = unpack(self._data[place : place + size])
        except ProtocolError as error:
            raise KmidiError(f"{self._path} is damaged at byte {place}: {error}") from error
        return CloudFrame(
            frame.sequence, frame.time_monotonic, frame.rows, frame.valence, frame.arousal
        )

    def at(self, seconds: float) -> NDArray[np.float32]:
        """Return the cloud of a moment, between the two that were recorded around it.

        Args:
            seconds: since the beginning of the take; the first cloud holds before it is there,
                the last one after.

        Returns:
            float32 (n, 10).

        Raises:
            KmidiError: if the take has no clouds.
        """
        if not len(self):
            raise KmidiError(f"{self._path} has no clouds.")
        index = max(0, int(np.searchsorted(self.seconds, seconds, side="right")) - 1)
        here = self[index].points.astype(np.float32)
        if index + 1 == len(self) or seconds <= self.seconds[index]:
            return here
        span = float(self.seconds[index + 1] - self.seconds[index])
        following = self[index + 1].points
        if span > _LONGEST_GLIDE_SECONDS or following.shape != here.shape:
            return here
        share = np.float32((seconds - self.seconds[index]) / span)
        return here + share * (following.astype(np.float32) - here)

    def close(self) -> None:
        """Give the file back."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def _index(self) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
        """Find place and size of every whole cloud, and its time."""
        data, size = self._data, len(self._data)
        if size < CLOUD_FILE_HEADER.size:
            return [], np.zeros(0)
        magic, version, place, _, begin = CLOUD_FILE_HEADER.unpack_from(data)
        if magic != CLOUD_FILE_MAGIC or version != CLOUD_FILE_VERSION:
            raise KmidiError(
                f"{self._path} is no file of clouds of version {CLOUD_FILE_VERSION}; record anew "
                "or use the version of kmidi that made it."
            )
        places, times = [], []
        while place + HEADER_BYTES <= size:
            magic, head, columns, _, rows, moment = _FRAME_HEAD.unpack_from(data, place)
            whole = head + rows * columns * _NUMBER_BYTES
            if magic != _CLOUD_MAGIC or place + whole > size:
                break
            places.append((place, whole))
            times.append(moment - begin)
            place += whole
        return places, np.maximum.accumulate(np.array(times, np.float64))


class Take:
    """A take on disk; to be opened by `Take.open` and closed, or used in a `with` block.

    Attributes:
        folder: where it is.
        about: all that `take.json` says.
        clouds: its clouds.
        seconds: how long it is; of one that was cut short, as far as its files go.
        sound_path: its sound; None: there is none.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = about
        sound = folder / SOUND_FILE
        self.sound_path = sound if sound.is_file() else None
        self.clouds = TakeClouds(folder / CLOUDS_FILE)
        known = about.get("seconds")
        self.seconds = float(known) if known is not None else self._reach()

    @staticmethod
    def is_take(folder: Path) -> bool:
        """Return whether a folder looks like a take."""
        return (folder / ABOUT_FILE).is_file()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a take, also one that is under way or was cut short by a kill.

        Raises:
            KmidiError: if there is none, or it is of another version or damaged.
        """
        path = folder / ABOUT_FILE
        if not path.is_file():
            raise KmidiError(f"{folder} is no take: it has no {ABOUT_FILE}.")
        try:
            about = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise KmidiError(f"cannot read {path}: {error}.") from error
        if not isinstance(about, dict) or about.get("format") != TAKE_FORMAT:
            raise KmidiError(f"{path} does not describe a take.")
        if about.get("version") != TAKE_VERSION:
            raise KmidiError(
                f"{folder} is a take of version {about.get('version')}; this kmidi reads "
                f"version {TAKE_VERSION}."
            )
        return cls(folder, about)

    def __enter__(self) -> Self:
        """Return the take itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it was stopped, and not cut short."""
        return bool(self.about.get("finished"))

    @property
    def notes(self) -> Notes:
        """Its music, timed from the beginning of the take.

        Raises:
            KmidiError: if the file cannot be read.
        """
        return read_midi(self.folder / MUSIC_FILE)

    def sound(self, begin_seconds: float = 0.0, seconds: float | None = None) -> NDArray[np.int16]:
        """Return its sound, or a stretch of it.

        Args:
            begin_seconds: where the stretch begins.
            seconds: how long it is at most; None: to the end.

        Returns:
            int16 (n, 2) at the rate of `about["sample_rate"]`.

        Raises:
            KmidiError: if it has none, or the file cannot be read.
        """
        if self.sound_path is None:
            raise KmidiError(f"{self.folder} has no sound.")
        try:
            with soundfile.SoundFile(self.sound_path) as file:
                file.seek(min(file.frames, round(begin_seconds * file.samplerate)))
                count = -1 if seconds is None else round(seconds * file.samplerate)
                samples: NDArray[np.int16] = file.read(count, dtype="int16", always_2d=True)
                return samples
        except (OSError, soundfile.SoundFileError) as error:
            raise KmidiError(f"cannot read {self.sound_path}: {error}.") from error

    def close(self) -> None:
        """Give the files back."""
        self.clouds.close()

    def _reach(self) -> float:
        """How far the files of a take go that nobody finished."""
        reach = [float(self.clouds.seconds[-1])] if len(self.clouds) else [0.0]
        if self.sound_path is not None:
            try:
                reach.append(float(soundfile.info(self.sound_path).duration))
            except soundfile.SoundFileError as error:
                raise KmidiError(f"cannot read {self.sound_path}: {error}.") from error
        reach.append(self.notes.duration_seconds)
        return max(reach)


def draw_take_moment(take: Take, seconds: float, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw what was seen at a moment.

    Args:
        take: with at least one cloud.
        seconds: the moment, 0 to the length of the take.
        size: width and height in pixels.

    Returns:
        uint8 (height, width, 3).

    Raises:
        KmidiError: for a moment that the take does not have, or a take without clouds.
    """
    _check_moment(take, seconds)
    return draw(take.clouds.at(seconds), orbit(seconds), size)


def _check_moment(take: Take, seconds: float) -> None:
    if not 0 <= seconds < take.seconds:
        raise KmidiError(f"{take.name} has no {seconds:g} s: it lasts {take.seconds:.2f} s.")
    if not len(take.clouds):
        raise KmidiError(f"{take.name} has no clouds to show; record with the cloud switched on.")


def write_take_film(
    take: Take,
    path: Path,
    size: tuple[int, int] = (960, 540),
    rate: int = 30,
    on_progress: Callable[[int, int], None] = lambda done, all_pictures: None,
    *,
    begin_seconds: float = 0.0,
    seconds: float | None = None,
) -> int:
    """Write what was seen as a film, an MP4 with what was heard.

    Args:
        take: with at least one cloud.
        path: the file to make: .gif, .mp4 or .webp.
        size: width and height in pixels.
        rate: pictures a second, 1 to 60, of a GIF to 30; clouds are interpolated to it.
        on_progress: called after each picture with the number done and of all.
        begin_seconds: where in the take the film begins.
        seconds: how long it is at most; None: to the end.

    Returns:
        How many pictures it has.

    Raises:
        KmidiError: for a rate or a stretch that cannot be, more pictures than the format holds, a
            take without clouds, and as `write_film`.
    """
    check_film(path)
    suffix = path.suffix.lower()
    if not 1 <= rate <= FASTEST_FILM[suffix]:
        raise KmidiError(
            f"{rate} pictures a second: a {suffix} film has 1 to {FASTEST_FILM[suffix]}."
        )
    _check_moment(take, begin_seconds)
    left = take.seconds - begin_seconds
    count = max(1, round(rate * (left if seconds is None else min(left, seconds))))
    most = most_pictures(path, size)
    if most is not None and count > most:
        raise KmidiError(
            f"a {suffix} film of this size holds {most} pictures, and {take.name} makes {count}; "
            "choose less of it, or .mp4."
        )

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for number in range(count):
            moment = begin_seconds + number / rate
            yield draw(take.clouds.at(moment), orbit(moment), size)
            on_progress(number + 1, count)

    heard = take.sound_path if suffix == ".mp4" else None
    write_film(path, pictures(), rate, heard, begin_seconds)
    return count
