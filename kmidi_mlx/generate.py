"""`python -m kmidi_mlx.generate`: write a MIDI file under an emotion."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx import emotion as emotions
from kmidi_mlx.adapter_file import (
    Adapter,
    add_adapter_argument,
    is_synthetic,
    notices,
    open_adapters,
)
from kmidi_mlx.checkpoint_model import Loaded
from kmidi_mlx.command import CommandParser, make_room, run
from kmidi_mlx.config import MidiGeneratorConfig, SamplingConfig
from kmidi_mlx.config_section import ConfigError
from kmidi_mlx.console import Progress
from kmidi_mlx.emotion_flags import add_emotion_arguments, emotion_from
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.chords import parse_chord, parse_key
from kmidi_mlx.music.events import decode, encode
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.shipped import usual_checkpoint

DEFAULT_CHECKPOINT = usual_checkpoint(MidiGeneratorConfig.name)
LONGEST_SECONDS = 3600.0


class Engine(NamedTuple):
    """What opens a checkpoint in a framework, adapts its model, and writes with it."""

    load_generator: Callable[[Path], Loaded[Any, MidiGeneratorConfig]]
    adapt: Callable[[Any, Sequence[tuple[Adapter, float]]], None]
    generate: Callable[..., NDArray[np.uint16]]


def main(argv: list[str]) -> int:
    """Parse the flags, write the piece, say what was written."""
    return compose(command_parser("kmidi generate").parse_args(argv), _mlx)


def _mlx() -> Engine:
    from kmidi_mlx.generation.generator import generate
    from kmidi_mlx.models.adapters import adapt
    from kmidi_mlx.models.loading import load_generator

    return Engine(load_generator, adapt, generate)


def compose(args: argparse.Namespace, engine: Callable[[], Engine]) -> int:
    """Write the piece that is asked for and say what was written.

    Args:
        args: of `command_parser`.
        engine: loads the framework; called late, so that wrong flags answer before it.

    Returns:
        The exit status.

    Raises:
        KmidiError: for wrong flags and files that cannot be used.
    """
    if args.out.suffix.lower() not in (".mid", ".midi"):
        raise KmidiError(f"--out {args.out}: give a name that ends in .mid.")
    if args.wav is not None and args.wav.suffix.lower() != ".wav":
        raise KmidiError(f"--wav {args.wav}: give a name that ends in .wav.")
    if args.soundfont is not None and args.wav is None:
        raise KmidiError("--soundfont: it says what plays the sound of --wav; add --wav FILE.")
    if not 0 < args.seconds <= LONGEST_SECONDS:
        raise KmidiError(f"--seconds {args.seconds:g}: give more than 0 and up to 3600.")
    if args.seed < 0:
        raise KmidiError(f"--seed {args.seed}: give 0 or more.")
    emotion = emotion_from(args)
    changes = [_change(text, args.seconds) for text in args.changes]
    chord = parse_chord(args.chord) if args.chord else 0
    key = parse_key(args.key) if args.key else 0
    prompt = encode(read_midi(args.prompt)) if args.prompt else ()
    if args.prompt and not len(prompt):
        raise KmidiError(f"{args.prompt} has no notes to continue.")

    play = _player(args.soundfont) if args.wav is not None else None

    load_generator, adapt, generate = engine()
    loaded = load_generator(args.checkpoint)
    adapters = open_adapters(args.adapters, loaded.path.parent, MidiGeneratorConfig.name)
    adapt(loaded.model, adapters)
    said = [loaded.notice, *notices(adapters, loaded.path, MidiGeneratorConfig.name)]
    for note in filter(None, said):
        print(note, file=sys.stderr)
    sampling = _sampling(loaded.config.sampling, args)
    make_room("--out", args.out)
    if args.wav is not None:
        make_room("--wav", args.wav)
    with Progress(round(args.seconds), "generate", "s of music") as progress:
        ids = generate(
            loaded.model,
            sampling,
            args.seconds,
            seed=args.seed,
            emotion=emotion,
            chord=chord,
            key=key,
            prompt=prompt,
            changes=changes,
            on_time=lambda seconds: progress.advance(round(seconds) - progress.completed),
        )
    notes = decode(ids)
    write_midi(notes, args.out)
    if play is not None:
        # imported late, as only this needs the libraries of the audio room
        from kmidi_mlx.audio import write_wav

        write_wav(args.wav, play(notes))
    result = {
        "out": str(args.out),
        **({"wav": str(args.wav)} if args.wav is not None else {}),
        "seconds": round(notes.duration_seconds, 2),
        "notes": len(notes),
        "events": len(ids),
        "valence": emotion.valence if emotion else None,
        "arousal": emotion.arousal if emotion else None,
        "seed": args.seed,
        "checkpoint": str(loaded.path),
        "adapters": [[adapter.name, scale] for adapter, scale in adapters],
        "changes": [
            {"seconds": time, "valence": then.valence, "arousal": then.arousal}
            for time, then in changes
        ],
        "prompt": str(args.prompt) if args.prompt else None,
        "chord": args.chord,
        "key": args.key,
        "sampling": dataclasses.asdict(sampling),
        "synthetic": is_synthetic(loaded.metadata, adapters),
    }
    if not len(notes):
        print("note: the model wrote only silence; try another --seed", file=sys.stderr)
    if args.json:
        print(json.dumps(result))
    else:
        felt = " then ".join(
            emotions.nearest_label(e) if e else "no emotion given"
            for e in (emotion, *(then for _, then in changes))
        )
        written = f"{args.out} and {args.wav}" if args.wav is not None else f"{args.out}"
        print(
            f"wrote {written}: {result['seconds']} s, {len(notes)} notes, {felt}, seed {args.seed}"
        )
    return 0


def command_parser(prog: str) -> CommandParser:
    """Return the parser of the flags that `compose` reads; `prog` is the command in the help."""
    parser = CommandParser(prog=prog, description="Write piano music as a MIDI file.")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="MIDI file to write"
    )
    parser.add_argument(
        "--wav", type=Path, metavar="FILE", help="also render the piece on a grand piano"
    )
    parser.add_argument(
        "--soundfont",
        type=Path,
        metavar="FILE",
        help="play --wav with this SoundFont (.sf2, .sf3) by FluidSynth",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="length, after the prompt if there is one (default: 30)",
    )
    add_emotion_arguments(parser)
    parser.add_argument(
        "--then",
        dest="changes",
        action="append",
        default=[],
        metavar="SECONDS:LABEL",
        help="change to another emotion at a time, such as 20:sad or 20:-0.6,0.7; repeatable",
    )
    parser.add_argument("--prompt", type=Path, metavar="FILE", help="MIDI file to continue")
    parser.add_argument("--chord", metavar="NAME", help="chord to keep to, such as Am or C:maj7")
    parser.add_argument("--key", metavar="NAME", help="key, such as C:maj or A:min")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same piece (default: 0)")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="DIR",
        help=f"trained model (default: {DEFAULT_CHECKPOINT}, or else that of the package)",
    )
    add_adapter_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    sampling = parser.add_argument_group("sampling (default: what the model was trained with)")
    for item in dataclasses.fields(SamplingConfig):
        sampling.add_argument(
            "--" + item.name.replace("_", "-"),
            type=type(item.default),
            metavar="N",
            help=item.metadata["doc"],
        )
    return parser


def _player(soundfont: Path | None) -> Callable[[Notes], NDArray[np.float32]]:
    """What turns notes into sound: the package's piano, or FluidSynth with a SoundFont."""
    if soundfont is None:
        from kmidi_mlx.audio import render

        return render
    from kmidi_mlx.audio.fluid import FluidSynth

    return FluidSynth(soundfont).render


def _change(text: str, length: float) -> tuple[float, emotions.Emotion]:
    time, _, feeling = text.partition(":")
    try:
        seconds = float(time)
        if not seconds >= 0 or not feeling:
            raise ValueError
        if seconds >= length:
            raise KmidiError(f"--then {text!r} comes after the end; --seconds is {length:g}.")
        if "," not in feeling:
            return seconds, emotions.from_label(feeling)
        valence, arousal = (float(number) for number in feeling.split(","))
    except ValueError:
        raise KmidiError(
            f"--then {text!r}: write SECONDS:LABEL or SECONDS:VALENCE,AROUSAL, such as 20:sad."
        ) from None
    return seconds, emotions.Emotion.of(valence, arousal)


def _sampling(trained: SamplingConfig, args: argparse.Namespace) -> SamplingConfig:
    given = {
        item.name: getattr(args, item.name)
        for item in dataclasses.fields(SamplingConfig)
        if getattr(args, item.name) is not None
    }
    try:
        return dataclasses.replace(trained, **given)
    except ConfigError as error:
        raise KmidiError(f"--{error.key.replace('_', '-')}: {error.problem}.") from error


if __name__ == "__main__":
    sys.exit(run(main))
