"""Measuring the MIDI generator, or music that is already there."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from kmidi_mlx.adapter_file import add_adapter_argument, is_synthetic, notices, open_adapters
from kmidi_mlx.command import CommandParser
from kmidi_mlx.config import MidiGeneratorConfig
from kmidi_mlx.config_section import ConfigError
from kmidi_mlx.console import Progress
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.sources import list_sources
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.generate import DEFAULT_CHECKPOINT, LONGEST_SECONDS
from kmidi_mlx.music.events import decode
from kmidi_mlx.music.midi_file import read_midi

if TYPE_CHECKING:
    from kmidi_mlx.evaluation.control import Written
    from kmidi_mlx.models.loading import LoadedGenerator

DESCRIPTION = (
    "Measure how well a model predicts held-out music, and with --generate whether its own music "
    "is valid, follows the emotion asked for and is like real music."
)


def add_arguments(parser: CommandParser) -> None:
    """Add the flags of the MIDI generator."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=DEFAULT_CHECKPOINT,
        metavar="DIR",
        help=f"trained model (default: {DEFAULT_CHECKPOINT}, or else that of the package)",
    )
    add_adapter_argument(parser)
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared music")
    parser.add_argument("--split", choices=SPLITS, default="val", help="its side (default: val)")

    prediction = parser.add_argument_group("prediction")
    prediction.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="events in a window (default: as in training, data.sequence_length)",
    )
    prediction.add_argument(
        "--stride", type=int, metavar="N", help="events between windows (default: half of them)"
    )
    prediction.add_argument(
        "--limit", type=int, metavar="N", help="only about N events, spread evenly (default: all)"
    )
    prediction.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="windows at once (default: 8)"
    )
    prediction.add_argument(
        "--baselines", action="store_true", help="uniform, unigram and trigram beside the model"
    )

    music = parser.add_argument_group("music")
    music.add_argument("--generate", type=int, metavar="N", help="write N pieces and measure them")
    music.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="length of each (default: 20)"
    )
    music.add_argument(
        "--guidance-scale",
        type=float,
        nargs="+",
        metavar="G",
        help="N pieces for each of these scales (default: the one the model was trained with)",
    )
    music.add_argument("--seed", type=int, default=0, help="of the pieces (default: 0)")
    music.add_argument(
        "--midi",
        type=Path,
        metavar="FOLDER",
        help="measure these MIDI files, with --data beside real music; no model is used",
    )


def check(args: argparse.Namespace) -> None:
    """Raise `KmidiError` for flags that cannot be obeyed."""
    if args.midi and (args.generate is not None or args.baselines):
        raise KmidiError("--midi measures files without a model; leave out the other or --midi.")
    if not args.midi and not args.data:
        raise KmidiError("give --data DIR to measure a model, or --midi FOLDER to measure files.")
    if args.guidance_scale and args.generate is None:
        raise KmidiError("--guidance-scale needs --generate.")
    if not 0 < args.seconds <= LONGEST_SECONDS:
        raise KmidiError(f"--seconds {args.seconds:g}: give more than 0 and up to 3600.")
    for name in ("context", "stride", "limit", "batch_size", "generate"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise KmidiError(f"--{name.replace('_', '-')} {value}: give 1 or more.")
    if args.seed < 0:
        raise KmidiError(f"--seed {args.seed}: give 0 or more.")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a model on held-out music, or files; `--midi` says which."""
    return _measure_files(args) if args.midi else _measure_model(args)


def passed(result: dict[str, Any]) -> bool:
    """Tell whether every written piece is valid music."""
    control = result.get("control", [])
    return not any(row["violations"] or row["hanging_notes"] for row in control)


def _measure_model(args: argparse.Namespace) -> dict[str, Any]:
    reader = ShardReader(args.data)
    # imported late, so that wrong flags and data answer before the framework loads
    from kmidi_mlx.evaluation.spans import held_out_pieces
    from kmidi_mlx.models.adapters import adapt
    from kmidi_mlx.models.loading import load_generator

    pieces = held_out_pieces(reader, args.split)
    loaded = load_generator(args.checkpoint)
    adapters = open_adapters(args.adapters, loaded.path.parent, MidiGeneratorConfig.name)
    adapt(loaded.model, adapters)
    said = [loaded.notice, *notices(adapters, loaded.path, MidiGeneratorConfig.name)]
    for note in filter(None, said):
        print(note, file=sys.stderr)
    result: dict[str, Any] = {
        "model": args.model,
        "checkpoint": str(loaded.path),
        "adapters": [[adapter.name, scale] for adapter, scale in adapters],
        "step": loaded.metadata.get("step"),
        "synthetic": is_synthetic(loaded.metadata, adapters),
        "data": str(args.data),
        "split": args.split,
        "likelihood": _likelihood(args, loaded, reader, pieces),
    }
    if args.generate is not None:
        sets = _write(args, loaded)
        result |= {"seed": args.seed, "seconds": args.seconds}
        result["control"] = [_control(scale, written) for scale, written in sets.items()]
        real = _real_music(reader, pieces, args.seconds)
        found = {
            f"guidance {scale:g}": _measured([piece.notes for piece in written])
            for scale, written in sets.items()
        }
        result["measures"] = _compared(found, real)
    return result


def _likelihood(
    args: argparse.Namespace,
    loaded: LoadedGenerator,
    reader: ShardReader,
    pieces: NDArray[np.int64],
) -> dict[str, Any]:
    from kmidi_mlx.evaluation.likelihood import CONDITIONED, UNCONDITIONED, score_model
    from kmidi_mlx.evaluation.ngram import BASELINES, learn, score_ngram
    from kmidi_mlx.evaluation.spans import sliding_spans
    from kmidi_mlx.evaluation.tally import gain

    context = args.context or loaded.config.data.sequence_length
    stride = args.stride or max(1, context // 2)
    spans = sliding_spans(reader, pieces, context, stride, args.limit)
    events = sum(map(len, spans))
    with Progress(events, "predict", "events") as progress:
        tallies = score_model(
            loaded.model,
            reader,
            spans,
            context=context,
            batch_size=args.batch_size,
            max_chords=loaded.config.data.max_chords,
            on_progress=progress.advance,
        )
    saved, error = gain(tallies[CONDITIONED], tallies[UNCONDITIONED])
    if args.baselines:
        with Progress(len(BASELINES) * events, "baselines", "events") as progress:
            for name, order in BASELINES.items():
                tallies[name] = score_ngram(learn(reader, order), reader, spans, progress.advance)
    return {
        "context": context,
        "stride": stride,
        "scores": {name: asdict(tally.score()) for name, tally in tallies.items()},
        "conditions_gain": {"nats_per_event": saved, "standard_error": error},
    }


def _write(args: argparse.Namespace, loaded: LoadedGenerator) -> dict[float, list[Written]]:
    from kmidi_mlx.evaluation.control import write_set

    sampling = loaded.config.sampling
    scales = args.guidance_scale or [sampling.guidance_scale]
    sets = {}
    with Progress(len(scales) * args.generate, "write", "pieces") as progress:
        for scale in scales:
            try:
                sets[scale] = write_set(
                    loaded.model,
                    sampling,
                    args.generate,
                    args.seconds,
                    seed=args.seed,
                    guidance_scale=scale,
                    on_piece=lambda piece: progress.advance(events=piece.events),
                )
            except ConfigError as error:
                raise KmidiError(f"--{error.key.replace('_', '-')}: {error.problem}.") from error
    return sets


def _control(scale: float, written: list[Written]) -> dict[str, Any]:
    from kmidi_mlx.evaluation.control import control_of

    violations = [piece for piece in written if piece.violation]
    first = violations[0] if violations else None
    return {
        "guidance_scale": scale,
        **asdict(control_of(written)),
        "violations": len(violations),
        "first_violation": f"seed {first.seed}, {first.violation}" if first else None,
        "hanging_notes": sum(piece.hanging_notes for piece in written),
    }


def _measure_files(args: argparse.Namespace) -> dict[str, Any]:
    from kmidi_mlx.evaluation.spans import held_out_pieces

    reader = ShardReader(args.data) if args.data else None
    sources = list_sources([args.midi])
    pieces, unreadable = [], 0
    with Progress(len(sources), "read", "files") as progress:
        for source in sources:
            try:
                pieces.append(read_midi(Path(source.path)))
            except KmidiError as error:
                unreadable += 1
                progress.note(f"note: left out: {error}")
            progress.advance()
    if not pieces:
        raise KmidiError(f"{args.midi} has no MIDI file that can be read.")
    found = {"files": _measured(pieces)}
    real = _real_music(reader, held_out_pieces(reader, args.split)) if reader else None
    return {
        "midi": str(args.midi),
        "unreadable": unreadable,
        "data": str(args.data) if args.data else None,
        "split": args.split if args.data else None,
        "measures": _compared(found, real),
    }


def _real_music(
    reader: ShardReader, pieces: NDArray[np.int64], seconds: float | None = None
) -> dict[str, Any]:
    """Measure held-out pieces, or the middle `seconds` of each."""
    from kmidi_mlx.evaluation.music_measures import middle_of

    music = [decode(reader.tokens(piece)) for piece in pieces.tolist()]
    return _measured([middle_of(notes, seconds) for notes in music] if seconds else music)


def _measured(pieces: list[Any]) -> dict[str, Any]:
    from kmidi_mlx.evaluation.music_measures import measure, summarise

    return {
        "pieces": len(pieces),
        "silent": sum(not len(notes) for notes in pieces),
        "measures": {name: asdict(s) for name, s in summarise(measure(pieces)).items()},
    }


def _compared(found: dict[str, Any], real: dict[str, Any] | None) -> dict[str, Any]:
    """Put real music first and say how far the other sets are from it."""
    from kmidi_mlx.evaluation.music_measures import Summary, difference

    if real is None:
        return found
    for one in found.values():
        for name, values in one["measures"].items():
            values["difference"] = difference(Summary(**values), Summary(**real["measures"][name]))
    return {"real": real, **found}


def show(result: dict[str, Any], console: Console) -> None:
    """Print the tables, and what is wrong with the written music."""
    from kmidi_mlx.evaluation.tables import tables_of

    where = result.get("checkpoint") or result.get("midi")
    console.print(
        f"{where}" + (f" on {result['data']}, {result['split']}" if result["data"] else ""),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for table in tables_of(result):
        console.print(table)
    for row in result.get("control", []):
        if row["first_violation"]:
            console.print(
                f"not valid music: {row['first_violation']}", markup=False, soft_wrap=True
            )
