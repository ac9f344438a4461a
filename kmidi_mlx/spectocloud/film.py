"""Films of a song: the cloud of every moment, seen by a camera that swings around it.

The suffix of the file says what is made. `.gif` and `.webp` (animated) are written by Pillow,
`.mp4` by the `ffmpeg` program where the machine has one: the Python packages that bring their own
are built with x264 and x265, which are GPL, so the project depends on none.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.spectocloud.axes import FRAMES_PER_SECOND
from kmidi_mlx.spectocloud.camera import orbit
from kmidi_mlx.spectocloud.engine import Frame, advance, begin
from kmidi_mlx.spectocloud.picture import draw
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS

__all__ = ["FILM_SUFFIXES", "draw_film", "write_film"]

_Picture = NDArray[np.uint8]

FILM_SUFFIXES = (".gif", ".mp4", ".webp")


def draw_film(
    frames: Sequence[Frame],
    size: tuple[int, int] = (960, 540),
    pictures_per_second: int = 30,
    n_points: int = DEFAULT_POINTS,
) -> Iterator[_Picture]:
    """Draw a song picture by picture.

    Args:
        frames: the song's frames, 60 a second.
        size: width and height in pixels.
        pictures_per_second: a divisor of 60.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.

    Yields:
        uint8 (height, width, 3).

    Raises:
        KmidiError: if the rate does not divide 60, or size or n_points are out of range.
    """
    if pictures_per_second < 1 or FRAMES_PER_SECOND % pictures_per_second:
        raise KmidiError(
            f"{pictures_per_second} pictures a second do not divide {FRAMES_PER_SECOND}; "
            "use 60, 30, 20, 15, 12 or 10."
        )
    state = begin(frames[0], n_points)
    for index, frame in enumerate(frames):
        state = advance(state, frame)
        if index % (FRAMES_PER_SECOND // pictures_per_second) == 0:
            yield draw(state.cloud, orbit(index / FRAMES_PER_SECOND), size)


def write_film(
    path: Path,
    pictures: Iterable[_Picture],
    pictures_per_second: int = 30,
    sound: Path | None = None,
) -> None:
    """Write pictures as a film.

    Args:
        path: the file to make; its suffix is one of `FILM_SUFFIXES`.
        pictures: uint8 (height, width, 3), all of one size, at least one.
        pictures_per_second: rate; a GIF rounds the time of a picture to 10 ms.
        sound: an audio file to put under an MP4 film.

    Raises:
        KmidiError: for an unknown suffix, sound where the format has none, no pictures, a missing
            Pillow or ffmpeg, or a file that cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in FILM_SUFFIXES:
        raise KmidiError(f"film {path} has to end in one of {', '.join(FILM_SUFFIXES)}.")
    if sound is not None and suffix != ".mp4":
        raise KmidiError(f"film {path} cannot have sound; give it the suffix .mp4.")
    rest = iter(pictures)
    first = next(rest, None)
    if first is None:
        raise KmidiError(f"film {path} has no pictures.")
    everything = itertools.chain([first], rest)
    write: Callable[[Path], None]
    if suffix == ".mp4":
        command = _ffmpeg_command(first.shape[1], first.shape[0], pictures_per_second, sound)

        def write(temporary: Path) -> None:
            _pipe([*command, str(temporary)], everything, path)

    else:

        def write(temporary: Path) -> None:
            _save_animation(temporary, suffix, everything, pictures_per_second)

    with atomic_write(path) as temporary:
        write(temporary)


def _ffmpeg_command(width: int, height: int, rate: int, sound: Path | None) -> list[str]:
    program = shutil.which("ffmpeg")
    if program is None:
        raise KmidiError(
            "MP4 films need the ffmpeg program; install it, or write .webp or .gif instead."
        )
    if sound is not None and not sound.is_file():
        raise KmidiError(f"sound file {sound} does not exist.")
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate)]
    audio = ["-i", str(sound), "-shortest", "-c:a", "aac", "-b:a", "192k"] if sound else []
    # yuv420p is what players expect; it needs an even width and height.
    shape = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-pix_fmt", "yuv420p"]
    quality = ["-b:v", "6M", "-movflags", "+faststart"]
    return [program, "-v", "error", "-y", *raw, "-i", "-", *audio, *shape, *quality]


def _pipe(command: list[str], pictures: Iterable[_Picture], path: Path) -> None:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            for picture in pictures:
                process.stdin.write(np.ascontiguousarray(picture).tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended; what it said comes below
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
        if process.wait() != 0:
            reason = said[-1] if said else f"exit status {process.returncode}"
            raise KmidiError(f"ffmpeg cannot write {path}: {reason}.")


def _save_animation(path: Path, suffix: str, pictures: Iterable[_Picture], rate: int) -> None:
    try:
        from PIL import Image
    except ImportError as error:
        raise KmidiError("films need Pillow: pip install 'kmidi-mlx[cloud]'.") from error
    images = (Image.fromarray(picture) for picture in pictures)
    if suffix == ".gif":
        images = (image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for image in images)
    formats: dict[str, dict[str, Any]] = {
        ".gif": {"format": "GIF", "optimize": False, "disposal": 1},
        ".webp": {"format": "WEBP", "quality": 80, "method": 4},
    }
    options = formats[suffix]
    next(images).save(
        path, save_all=True, append_images=images, duration=1000.0 / rate, loop=0, **options
    )
