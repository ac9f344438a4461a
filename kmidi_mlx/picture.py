"""`python -m kmidi_mlx.picture`: show a song as the Spectocloud, one moment of it or a film."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx import emotion as emotions
from kmidi_mlx.command import CommandParser, make_room, run
from kmidi_mlx.console import Progress
from kmidi_mlx.data.sources import MIDI_SUFFIXES
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.emotion_flags import add_emotion_arguments, emotion_from
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.shipped import usual_checkpoint
from kmidi_mlx.spectocloud import (
    DEFAULT_POINTS,
    FRAMES_PER_SECOND,
    LEVELS_OF_DETAIL,
    EngineState,
    Frame,
    Song,
)
from kmidi_mlx.spectocloud.film import (
    FILM_SUFFIXES,
    Panels,
    check_film,
    draw_film,
    draw_moment,
    engine_cloud,
    frames_per_picture,
    most_pictures,
    width_of_panels,
    write_film,
)
from kmidi_mlx.spectocloud.picture import SIZE, write_png

if TYPE_CHECKING:
    from kmidi_mlx.data.song_file import SongFile

FILM_SIZE = (960, 540)
FILM_RATE = 30
_FASTEST_GIF = 30  # players slow pictures of a hundredth of a second down
_SMALLEST, _LARGEST = 16, 8192
_DESCRIPTION = (
    "Show a song as the Spectocloud: one moment of it as a .png, or a film as a .gif, .webp or "
    ".mp4, the last with its sound. A MIDI file is played on kmidi's piano."
)


def main(argv: list[str]) -> int:
    """Parse the flags, draw, say what was written."""
    args = _parser().parse_args(argv)
    emotion = emotion_from(args)
    _check(args, emotion)
    if (args.source / "take.json").is_file():
        return _show_take(args, emotion)
    # imported late, so that wrong flags answer before the libraries of the audio room load
    from kmidi_mlx.data.song_file import read_song_file

    file = read_song_file(args.source)
    if args.at is not None and args.at >= file.seconds:
        raise KmidiError(
            f"--at {args.at:g}: {args.source} is {file.seconds:.2f} s long; give less."
        )
    panels, network = _panels(args)
    make_room("--out", args.out)
    write = _write_moment if _is_still(args.out) else _write_film
    result = {
        "source": str(args.source),
        "out": str(args.out),
        "song_seconds": round(file.seconds, 2),
        "points": args.points,
        "drawn_by": ["engine"] * (args.compare or not network) + ["network"] * bool(network),
        **network,
        **write(args, file, emotion, panels),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(_sentence(result))
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="kmidi picture", description=_DESCRIPTION)
    parser.add_argument(
        "source",
        type=Path,
        metavar="SRC",
        help="MIDI or sound file to show, or the folder of a take that `kmidi live` recorded",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write: .png, .gif, .webp or .mp4",
    )
    parser.add_argument(
        "--at",
        type=float,
        metavar="SECONDS",
        help="the moment to show (default: the middle), or where a film begins (default: 0)",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="length of a film (default: to the end)"
    )
    add_emotion_arguments(parser)
    parser.add_argument(
        "--points",
        type=int,
        default=DEFAULT_POINTS,
        metavar="N",
        help=f"of the cloud, 1 to {LEVELS_OF_DETAIL[-1]} (default: {DEFAULT_POINTS})",
    )
    parser.add_argument(
        "--size",
        metavar="WxH",
        help=f"in pixels (default: {_by(SIZE)}; films: {_by(FILM_SIZE)})",
    )
    parser.add_argument(
        "--rate",
        type=int,
        metavar="N",
        help=f"pictures a second of a film, a divisor of 60 (default: {FILM_RATE})",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="draw with this trained network instead of the engine that taught it",
    )
    parser.add_argument(
        "--compare", action="store_true", help="show both: engine left, network right"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _is_still(out: Path) -> bool:
    return out.suffix.lower() == ".png"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _check(args: argparse.Namespace, emotion: Emotion | None) -> None:
    """Raise `KmidiError` for flags that cannot be obeyed; fill in what was not given."""
    still = _is_still(args.out)
    if not still and args.out.suffix.lower() not in FILM_SUFFIXES:
        raise KmidiError(
            f"--out {args.out}: give a name that ends in .png, or for a film in "
            f"{', '.join(FILM_SUFFIXES)}."
        )
    if still:
        for flag in ("seconds", "rate"):
            if getattr(args, flag) is not None:
                raise KmidiError(f"--{flag} is for films, and {args.out} shows one moment.")
    if args.at is not None and not args.at >= 0:
        raise KmidiError(f"--at {args.at:g}: give 0 or more seconds.")
    if args.seconds is not None and not args.seconds > 0:
        raise KmidiError(f"--seconds {args.seconds:g}: give more than 0.")
    if not 1 <= args.points <= LEVELS_OF_DETAIL[-1]:
        raise KmidiError(f"--points {args.points}: give 1 to {LEVELS_OF_DETAIL[-1]}.")
    if args.compare and args.checkpoint is None:
        args.checkpoint = usual_checkpoint("spectocloud")
    args.size = _size(args.size) if args.size else SIZE if still else FILM_SIZE
    args.rate = FILM_RATE if args.rate is None else args.rate
    frames_per_picture(args.rate)
    if args.out.suffix.lower() == ".gif" and args.rate > _FASTEST_GIF:
        raise KmidiError(
            f"--rate {args.rate}: a GIF shows {_FASTEST_GIF} pictures a second at most; choose "
            "less, or .webp or .mp4."
        )
    midi = args.source.suffix.lower() in MIDI_SUFFIXES
    if emotion is None and not midi and args.source.is_file():
        raise KmidiError(
            f"{args.source} is sound, whose emotion is not known; give --emotion LABEL, or "
            "--valence and --arousal."
        )
    if not still:
        check_film(args.out)


def _size(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    width, height = (int(number) for number in numbers.groups()) if numbers else (0, 0)
    if not (_SMALLEST <= width <= _LARGEST and _SMALLEST <= height <= _LARGEST):
        raise KmidiError(
            f"--size {text}: give width and height, such as 1280x720, each {_SMALLEST} to "
            f"{_LARGEST}."
        )
    return width, height


def _panels(args: argparse.Namespace) -> tuple[Panels, dict[str, Any]]:
    """Return what to show side by side, and what is known of the network, if there is one."""
    if args.checkpoint is None:
        return engine_cloud, {}
    # imported late: without a network no framework is needed
    from kmidi_mlx.models.cloud_network import Network
    from kmidi_mlx.models.loading import load_spectocloud

    loaded = load_spectocloud(args.checkpoint)
    if loaded.notice:
        print(loaded.notice, file=sys.stderr)
    network = Network(loaded.model, args.points)

    def panels(frame: Frame, state: EngineState) -> list[NDArray[np.float32]]:
        # the network draws for the emotion that the cloud feels, which has inertia
        felt = np.array([state.emotion], np.float32)
        (drawn,) = network.clouds(frame.window[None], frame.features[None], felt)
        return [state.cloud, drawn] if args.compare else [drawn]

    about = {
        "checkpoint": str(loaded.path),
        "step": loaded.metadata.get("step"),
        "synthetic": bool(loaded.metadata.get("synthetic")),
    }
    return panels, about


def _show_take(args: argparse.Namespace, emotion: Emotion | None) -> int:
    """Show a take as it was seen: its clouds are recorded, nothing is drawn anew."""
    from kmidi_mlx.live.take import Take, draw_take_moment, write_take_film

    if emotion is not None or args.checkpoint is not None or args.points != DEFAULT_POINTS:
        raise KmidiError(
            f"{args.source} is a take, which is shown as it was; leave out emotion, --points and "
            "--checkpoint."
        )
    make_room("--out", args.out)
    result: dict[str, Any] = {"source": str(args.source), "out": str(args.out)}
    with Take.open(args.source) as take:
        result["take_seconds"] = round(take.seconds, 2)
        if _is_still(args.out):
            moment = take.seconds / 2 if args.at is None else args.at
            write_png(args.out, draw_take_moment(take, moment, args.size))
            shown = f"{moment:g} s of {take.name}"
        else:
            with Progress(None, "draw", "pictures") as bar:
                result["pictures"] = write_take_film(
                    take, args.out, args.size, args.rate, partial(_count, bar),
                    begin_seconds=args.at or 0.0, seconds=args.seconds,
                )  # fmt: skip
            shown = f"{result['pictures']} pictures of {take.name}"
    print(json.dumps(result) if args.json else f"wrote {args.out}: {shown}")
    return 0


def _count(bar: Progress, done: int, whole: int) -> None:
    bar.total = whole
    bar.advance(done - bar.completed)


def _write_moment(
    args: argparse.Namespace, file: SongFile, emotion: Emotion | None, panels: Panels
) -> dict[str, Any]:
    song = file.song(file.sound(), emotion)
    index = _frame(song, file.seconds / 2 if args.at is None else args.at)
    picture = draw_moment(song, index, args.size, args.points, panels)
    write_png(args.out, picture)
    return {"width": picture.shape[1], "height": picture.shape[0], **_when(song, index)}


def _write_film(
    args: argparse.Namespace, file: SongFile, emotion: Emotion | None, panels: Panels
) -> dict[str, Any]:
    sound = file.sound()
    song = file.song(sound, emotion)
    first = _frame(song, args.at or 0.0)
    start = first / FRAMES_PER_SECOND
    width, height = width_of_panels(1 + args.compare, args.size[0]), args.size[1]
    last, pictures = _end(args, first, len(song), most_pictures(args.out, (width, height)))
    drawn = draw_film(
        song, args.size, args.rate, args.points, first=first, last=last, panels=panels
    )
    with tempfile.TemporaryDirectory() as folder, Progress(pictures, "draw", "pictures") as bar:
        heard, heard_start = None, 0.0
        if args.out.suffix.lower() == ".mp4" and file.notes is None:
            heard, heard_start = file.path, start
        elif args.out.suffix.lower() == ".mp4":
            from kmidi_mlx.audio import write_wav
            from kmidi_mlx.data.song_file import SAMPLE_RATE

            heard = Path(folder) / "sound.wav"
            begin, end = (round(SAMPLE_RATE * k / FRAMES_PER_SECOND) for k in (first, last))
            write_wav(heard, sound[begin:end])
        write_film(args.out, _counted(drawn, bar), args.rate, heard, heard_start)
    return {
        "width": width,
        "height": height,
        **_when(song, first),
        "seconds": round((last - first) / FRAMES_PER_SECOND, 2),
        "pictures": pictures,
        "rate": args.rate,
    }


def _end(args: argparse.Namespace, first: int, frames: int, most: int | None) -> tuple[int, int]:
    """Return the frame before which a film ends and its number of pictures; tell why if early."""
    step, left = frames_per_picture(args.rate), frames - first
    asked = left if args.seconds is None else args.seconds * FRAMES_PER_SECOND
    shown = max(1, round(min(asked, left)))
    pictures = -(-shown // step)
    if most is not None and pictures > most:
        pictures, shown = most, most * step
        print(
            f"note: a {args.out.suffix} film of this size holds {most} pictures at most, so it "
            f"ends after {shown / FRAMES_PER_SECOND:.2f} s; .mp4 films have no such limit",
            file=sys.stderr,
        )
    elif args.seconds is not None and asked > left + 1:
        print(
            f"note: {args.source} has {left / FRAMES_PER_SECOND:.2f} s left from there, and so "
            "long is the film",
            file=sys.stderr,
        )
    return first + shown, pictures


def _frame(song: Song, seconds: float) -> int:
    return min(round(seconds * FRAMES_PER_SECOND), len(song) - 1)


def _counted(pictures: Iterator[NDArray[np.uint8]], bar: Progress) -> Iterator[NDArray[np.uint8]]:
    for picture in pictures:
        yield picture
        bar.advance()


def _when(song: Song, index: int) -> dict[str, Any]:
    """Return the time of a frame and the emotion that is asked for then."""
    seconds = index / FRAMES_PER_SECOND
    values = (round(value, 3) for value in song.emotion.at(seconds))
    return {
        "at_seconds": round(seconds, 2),
        **dict(zip(("valence", "arousal", "intensity"), values, strict=True)),
    }


def _sentence(result: dict[str, Any]) -> str:
    feeling = Emotion(result["valence"], result["arousal"], result["intensity"])
    name, at, whole = Path(result["source"]).name, result["at_seconds"], result["song_seconds"]
    shown = f"{name} at {at:g} of {whole:g} s"
    if "pictures" in result:
        shown = f"{result['seconds']:g} s of {name} from {at:g} s, {result['pictures']} pictures"
    hands = " left, ".join(result["drawn_by"]) + (" right" if len(result["drawn_by"]) > 1 else "")
    return (
        f"wrote {result['out']}: {_by((result['width'], result['height']))}, {shown}, "
        f"{emotions.nearest_label(feeling)}, drawn by the {hands}"
    )


if __name__ == "__main__":
    sys.exit(run(main))
