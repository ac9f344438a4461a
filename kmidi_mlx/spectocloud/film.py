"""Films of a song: the cloud of every moment, seen by a camera that swings around it.

The suffix of the file says what is made. `.gif` and `.webp` (animated) are written by Pillow,
`.mp4` by the `ffmpeg` program where the machine has one: the Python packages that bring their own
are built with x264 and x265, which are GPL, so the project depends on none.
"""

from __future__ import annotations

import importlib.util
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
from kmidi_mlx.spectocloud.camera import Camera, orbit
from kmidi_mlx.spectocloud.engine import EngineState, Frame, advance, begin, clouds_at
from kmidi_mlx.spectocloud.picture import SIZE, draw
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS

__all__ = [
    "FILM_SUFFIXES",
    "Panels",
    "check_film",
    "draw_film",
    "draw_moment",
    "engine_cloud",
    "frames_per_picture",
    "most_pictures",
    "width_of_panels",
    "write_film",
]

_Picture = NDArray[np.uint8]
#: Clouds (n, 10) to show side by side, made from a frame and the engine's state after it.
Panels = Callable[[Frame, EngineState], Sequence[NDArray[np.float32]]]

FILM_SUFFIXES = (".gif", ".mp4", ".webp")

_MOST_BYTES = 1 << 31
_BYTES_PER_PIXEL = {".gif": 1, ".webp": 4}


def engine_cloud(frame: Frame, state: EngineState) -> list[NDArray[np.float32]]:
    """Return the engine's cloud: the one panel of a picture unless others are asked for."""
    return [state.cloud]


def draw_moment(
    frames: Sequence[Frame],
    index: int,
    size: tuple[int, int] = SIZE,
    n_points: int = DEFAULT_POINTS,
    panels: Panels = engine_cloud,
) -> _Picture:
    """Draw one moment of a song.

    Args:
        frames: the song's frames, 60 a second.
        index: of the frame to draw.
        size: width and height of a panel in pixels.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.
        panels: the clouds to show, from left to right.

    Returns:
        uint8 (height, width, 3).

    Raises:
        KmidiError: if there is no such frame, or size or n_points are out of range.
    """
    (state,) = clouds_at(frames, [index], n_points)
    return _side_by_side(panels(frames[index], state), Camera(), size)


def draw_film(
    frames: Sequence[Frame],
    size: tuple[int, int] = (960, 540),
    pictures_per_second: int = 30,
    n_points: int = DEFAULT_POINTS,
    *,
    first: int = 0,
    last: int | None = None,
    panels: Panels = engine_cloud,
) -> Iterator[_Picture]:
    """Draw a song, or a stretch of it, picture by picture.

    Args:
        frames: the song's frames, 60 a second.
        size: width and height of a panel in pixels.
        pictures_per_second: a divisor of 60.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.
        first: frame of the first picture.
        last: frame before which the film ends; None: the end of the song.
        panels: the clouds to show, from left to right.

    Yields:
        uint8 (height, width, 3).

    Raises:
        KmidiError: if the rate does not divide 60, there is no such first frame, or size or
            n_points are out of range.
    """
    step = frames_per_picture(pictures_per_second)
    state = next(clouds_at(frames, [first - 1], n_points)) if first else begin(frames[0], n_points)
    for index in range(first, len(frames) if last is None else min(last, len(frames))):
        frame = frames[index]
        state = advance(state, frame)
        if (index - first) % step == 0:
            yield _side_by_side(panels(frame, state), orbit(index / FRAMES_PER_SECOND), size)


def frames_per_picture(pictures_per_second: int) -> int:
    """Return how many frames of the engine pass from one picture of a film to the next.

    Raises:
        KmidiError: if the rate does not divide 60.
    """
    if pictures_per_second < 1 or FRAMES_PER_SECOND % pictures_per_second:
        raise KmidiError(
            f"{pictures_per_second} pictures a second do not divide {FRAMES_PER_SECOND}; "
            "use 60, 30, 20, 15, 12 or 10."
        )
    return FRAMES_PER_SECOND // pictures_per_second


def most_pictures(path: Path, size: tuple[int, int]) -> int | None:
    """Return how many pictures a film can have; None: any number.

    Pillow keeps all pictures of an animation in memory, of which they may take 2 GiB.

    Args:
        path: of the film.
        size: width and height of the whole picture in pixels.
    """
    bytes_per_pixel = _BYTES_PER_PIXEL.get(path.suffix.lower())
    if bytes_per_pixel is None:
        return None
    return max(1, _MOST_BYTES // (size[0] * size[1] * bytes_per_pixel))


def width_of_panels(count: int, width: int) -> int:
    """Return how wide a picture of `count` panels is that are `width` pixels wide each."""
    return count * width + (count - 1) * _gap(width)


def _gap(width: int) -> int:
    """Return the width of the dark gap between two panels, even as most panels are."""
    return 2 * max(1, width // 320)


def _side_by_side(
    clouds: Sequence[NDArray[np.float32]], camera: Camera, size: tuple[int, int]
) -> _Picture:
    gap = np.zeros((size[1], _gap(size[0]), 3), np.uint8)
    parts = [part for cloud in clouds for part in (gap, draw(cloud, camera, size))]
    return np.concatenate(parts[1:], axis=1)


def write_film(
    path: Path,
    pictures: Iterable[_Picture],
    pictures_per_second: int = 30,
    sound: Path | None = None,
    sound_start_seconds: float = 0.0,
) -> None:
    """Write pictures as a film.

    Args:
        path: the file to make; its suffix is one of `FILM_SUFFIXES`.
        pictures: uint8 (height, width, 3), all of one size, at least one.
        pictures_per_second: rate; a GIF rounds the time of a picture to 10 ms.
        sound: an audio file to put under an MP4 film, as long as that is.
        sound_start_seconds: where in the audio file the film begins.

    Raises:
        KmidiError: as `check_film`; for sound where the format has none, no pictures, or a file
            that cannot be written.
    """
    check_film(path)
    suffix = path.suffix.lower()
    if sound is not None and suffix != ".mp4":
        raise KmidiError(f"film {path} cannot have sound; give it the suffix .mp4.")
    rest = iter(pictures)
    first = next(rest, None)
    if first is None:
        raise KmidiError(f"film {path} has no pictures.")
    everything = itertools.chain([first], rest)
    write: Callable[[Path], None]
    if suffix == ".mp4":
        command = _ffmpeg_command(
            first.shape[1], first.shape[0], pictures_per_second, sound, sound_start_seconds
        )

        def write(temporary: Path) -> None:
            _pipe([*command, str(temporary)], everything, path)

    else:

        def write(temporary: Path) -> None:
            _save_animation(temporary, suffix, everything, pictures_per_second)

    with atomic_write(path) as temporary:
        write(temporary)


def check_film(path: Path) -> None:
    """Look, before anything is drawn, whether a film can be written under a name.

    Raises:
        KmidiError: for an unknown suffix, or where Pillow or ffmpeg, which it needs, is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in FILM_SUFFIXES:
        raise KmidiError(f"film {path} has to end in one of {', '.join(FILM_SUFFIXES)}.")
    if suffix == ".mp4":
        _ffmpeg()
    elif importlib.util.find_spec("PIL") is None:
        raise KmidiError("films need Pillow: pip install 'kmidi-mlx[cloud]'.")


def _ffmpeg() -> str:
    program = shutil.which("ffmpeg")
    if program is None:
        raise KmidiError(
            "MP4 films need the ffmpeg program; install it, or write .webp or .gif instead."
        )
    return program


def _ffmpeg_command(
    width: int, height: int, rate: int, sound: Path | None, start_seconds: float
) -> list[str]:
    if sound is not None and not sound.is_file():
        raise KmidiError(f"sound file {sound} does not exist.")
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate)]
    audio = ["-ss", f"{start_seconds:.6f}", "-i", str(sound)] if sound else []
    audio += ["-shortest", "-c:a", "aac", "-b:a", "192k"] if sound else []
    # yuv420p is what players expect; it needs an even width and height.
    shape = ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-pix_fmt", "yuv420p"]
    quality = ["-b:v", "6M", "-movflags", "+faststart"]
    return [_ffmpeg(), "-v", "error", "-y", *raw, "-i", "-", *audio, *shape, *quality]


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
    from PIL import Image  # imported late, as films alone need it

    images: Iterator[Any] = (Image.fromarray(picture) for picture in pictures)
    duration: dict[str, Any] = {"duration": 1000.0 / rate}
    if suffix == ".gif":
        images, duration = _for_gif(images, rate), {}
    formats: dict[str, dict[str, Any]] = {
        ".gif": {"format": "GIF", "optimize": False, "disposal": 1},
        ".webp": {"format": "WEBP", "quality": 80, "method": 4},
    }
    options = formats[suffix]
    next(images).save(path, save_all=True, append_images=images, loop=0, **duration, **options)


def _for_gif(images: Iterable[Any], rate: int) -> Iterator[Any]:
    """Give images their colours and their time, which a GIF holds in hundredths of a second."""
    from PIL import Image

    for index, image in enumerate(images):
        shown = image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        hundredths = round(100 * (index + 1) / rate) - round(100 * index / rate)
        shown.info["duration"] = 10 * hundredths
        yield shown
