"""Whether written music is like real music: `python -m bench.music --checkpoint DIR --data DIR`.

`[--pieces 40] [--seconds 30] [--long-runs 4] [--long-minutes 10] [--seed 0] [--split val]
[--work DIR] [--midi FOLDER] [--json FILE|-] [--save]`

Everything is held against real pieces of songs that the model was not trained on.

**Likeness.** As many pieces are written as beginnings of real pieces are taken, each under the
emotion label of one of these. Sets are compared by the distances between pieces in pitch classes,
rhythm, lengths, polyphony, velocity, key clarity, repetition and others
(`kmidi_mlx.evaluation.overlap`, after Yang & Lerch 2020). The real pieces are halved by songs in
several ways; the first half meets the second (what can be reached), the pieces written under the
labels of the second, and as many pieces of a trigram under the same grammar. *Rule:* a feature is
like real if the mean overlap is not below the lowest of real with real.

**Long runs.** Streams of several minutes, each under another emotion, are judged as
`kmidi_mlx.evaluation.long_runs` says. *Rule:* dead (rests, notes a minute), looping (loops and
repeats) or drifting (density, register, key clarity, entropy from the first to the last minute) if
a figure is beyond the 99th percentile of whole real pieces.

**Memorisation.** The longest runs that a piece shares with any training piece, as events and as
intervals with rhythm, and the windows of 16 s, about 8 bars, that stand whole in one
(`kmidi_mlx.evaluation.memorisation`). *Rule:* a set copies if more of its pieces than chance
explains have longer runs than 99% of the held-out pieces, cut to the same length.

Pieces are written one by one into a folder in `--work`, named by all that they depend on, as MIDI
files to listen to; a bench that was killed goes on from there, with more pieces too. `--midi`
judges the MIDI files of a folder instead: those of `--seconds` or more (a fifth less is accepted)
by likeness and memorisation, those of two minutes or more also as long runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.report import Row, add_arguments, publish
from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.console import Progress
from kmidi_mlx.data.manifest import SPLITS
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.sources import list_sources
from kmidi_mlx.emotion import from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.long_runs import DRIFTS, FAULTS, Stream, faults, limits_of, measure_stream
from kmidi_mlx.evaluation.memorisation import TrainingIndex, reach_of
from kmidi_mlx.evaluation.music_tables import music_tables
from kmidi_mlx.evaluation.overlap import LEAST_HALF, alternated, features_of, halves, likeness
from kmidi_mlx.evaluation.real_windows import RealWindow, pieces_cut, real_windows
from kmidi_mlx.evaluation.spans import held_out_pieces
from kmidi_mlx.music.augment import slice_notes, time_stretch, transpose
from kmidi_mlx.music.events import decode, encode
from kmidi_mlx.music.midi_file import read_midi, write_midi
from kmidi_mlx.music.notes import Notes

COLUMNS = (
    "pieces",
    "like_real",
    "overlap",
    "overlap_real",
    "overlap_trigram",
    "streams",
    "dead",
    "looping",
    "drifting",
    "copies",
    "longest_shared_notes",
    "longest_shared_notes_real",
)
LONG_EMOTIONS = ("happy", "sad", "angry", "calm", "excited", "depressed", "tense", "tender")
LEAST_PIECES, SPLIT_COUNT = 2 * LEAST_HALF, 20
LONG_SECONDS = 120.0
LONGEST_MINUTES = 60.0
SHORTER = 0.8
MOST_REAL_STRETCHES = 400
COPIED = 40
#: Counts up when pieces come to be written in another way.
FORMAT = 1
Named = list[tuple[str, Notes, float]]


def main(argv: list[str]) -> int:
    """Run the benchmark."""
    args = _parser().parse_args(argv)
    _check(args)
    reader = ShardReader(args.data)
    count, written, streams, origin = args.pieces, None, None, {}
    if args.midi:
        written, streams = _files(args.midi, args.seconds)
        count = min(count, len(written))
        written, origin = written[:count], {"midi": str(args.midi)}
    windows = real_windows(reader, args.split, count, args.seconds, args.seed)
    if written is None or streams is None:
        written, streams, origin = _written(args, reader, windows)
    trigram = _trigram(args, reader, count)
    result: Row = {
        **origin,
        "data": str(args.data),
        "split": args.split,
        "seed": args.seed,
        "likeness": judge_likeness(windows, written, trigram, args.seconds, args.seed),
        "long_runs": judge_long_runs(reader, args.split, streams),
        "memorisation": judge_memorisation(reader, args, written, streams, trigram),
    }
    console = Console(file=sys.stdout)
    for table in music_tables(result):
        console.print(table)
    publish("music", [_headline(result) | result], COLUMNS, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m bench.music",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="trained model")
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="prepared music")
    parser.add_argument("--split", choices=SPLITS[1:], default="val", help="held-out side")
    parser.add_argument("--midi", type=Path, metavar="FOLDER", help="judge these files instead")
    parser.add_argument("--pieces", type=int, default=40, metavar="N", help="pieces to write")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="of each")
    parser.add_argument("--long-runs", type=int, default=4, metavar="N", help="long streams")
    parser.add_argument("--long-minutes", type=float, default=10.0, metavar="M", help="of each")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("out/bench-music"),
        metavar="DIR",
        help="where written pieces are kept (default: out/bench-music)",
    )
    add_arguments(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    if (args.checkpoint is None) == (args.midi is None):
        raise KmidiError("give --checkpoint DIR to judge a model, or --midi FOLDER for files.")
    if args.pieces < LEAST_PIECES:
        raise KmidiError(f"--pieces {args.pieces}: give {LEAST_PIECES} or more.")
    if not 0 < args.seconds <= 60 * LONGEST_MINUTES:
        raise KmidiError(f"--seconds {args.seconds:g}: give more than 0 and up to 3600.")
    if not 0 < args.long_minutes <= LONGEST_MINUTES:
        raise KmidiError(f"--long-minutes {args.long_minutes:g}: give more than 0 and up to 60.")
    if not 0 <= args.long_runs <= len(LONG_EMOTIONS):
        raise KmidiError(f"--long-runs {args.long_runs}: give 0 to {len(LONG_EMOTIONS)}.")
    if args.seed < 0:
        raise KmidiError(f"--seed {args.seed}: give 0 or more.")


def _written(
    args: argparse.Namespace, reader: ShardReader, windows: Sequence[RealWindow]
) -> tuple[list[Notes], Named, Row]:
    """Write what is not yet in the work folder."""
    # imported late, so that wrong flags and data answer before the framework loads
    from kmidi_mlx.generation.choir import Request, write_pieces
    from kmidi_mlx.models.loading import load_generator

    loaded = load_generator(args.checkpoint)
    if loaded.notice:
        print(loaded.notice, file=sys.stderr)
    sampling = loaded.config.sampling
    with loaded.path.open("rb") as file:
        weights = hashlib.file_digest(file, "blake2b").hexdigest()
    origin = {
        "checkpoint": str(loaded.path),
        "step": loaded.metadata.get("step"),
        "synthetic": bool(loaded.metadata.get("synthetic")),
        "sampling": asdict(sampling),
    }
    folder = _work_folder(args, reader, {"weights": weights, "sampling": asdict(sampling)})
    long_seconds = 60 * args.long_minutes
    emotions = [from_label(name) for name in LONG_EMOTIONS[: args.long_runs]]
    plan = {
        folder / f"piece-{k:03}.mid": Request(args.seconds, args.seed + k, window.emotion)
        for k, window in enumerate(windows)
    }
    for k, emotion in enumerate(emotions):
        path = folder / f"long-{args.long_minutes:g}-{k}-{LONG_EMOTIONS[k]}.mid"
        plan[path] = Request(long_seconds, args.seed + 1000 + k, emotion)
    # pieces of about the same number of events are written together
    arousal = dict(zip(plan, [window.emotion.arousal for window in windows], strict=False))
    missing = sorted(
        (path for path in plan if not path.exists()),
        key=lambda path: (plan[path].seconds, arousal.get(path, 0.0), path),
    )
    total = round(sum(request.seconds for request in plan.values()))
    with Progress(total, "write", "s of music") as bar:
        bar.advance(total - round(sum(plan[path].seconds for path in missing)))

        def keep(number: int, events: NDArray[np.uint16]) -> None:
            write_midi(decode(events), missing[number])
            bar.advance(round(plan[missing[number]].seconds))

        write_pieces(loaded.model, sampling, [plan[path] for path in missing], on_piece=keep)
    music = [read_midi(path) for path in plan]
    names = LONG_EMOTIONS[: args.long_runs]
    long = [(n, m, long_seconds) for n, m in zip(names, music[len(windows) :], strict=True)]
    return music[: len(windows)], long, origin


def _trigram(args: argparse.Namespace, reader: ShardReader, count: int) -> list[Notes]:
    """Let a trigram write as many pieces; it is learnt only if one is missing."""
    from kmidi_mlx.evaluation.ngram import learn
    from kmidi_mlx.evaluation.ngram_music import write_with_ngram

    folder = _work_folder(args, reader, {"trigram": True})
    ngram, pieces = None, []
    with Progress(count, "trigram", "pieces") as progress:
        for k in range(count):
            path = folder / f"trigram-{k:03}.mid"
            if not path.exists():
                ngram = ngram or learn(reader, 3)
                events = write_with_ngram(ngram, SamplingConfig(), args.seconds, args.seed + k)
                write_midi(decode(events), path)
            pieces.append(read_midi(path))
            progress.advance()
    return pieces


def _work_folder(args: argparse.Namespace, reader: ShardReader, made_by: Row) -> Path:
    """Make the folder of pieces that depend on these settings; its name is their digest."""
    settings = {
        "format": FORMAT,
        "data": str(args.data.resolve()),
        "tokens": reader.dataset["tokens"],
        "split": args.split,
        "seconds": args.seconds,
        "seed": args.seed,
        **made_by,
    }
    text = json.dumps(settings, sort_keys=True, indent=2)
    folder: Path = args.work / hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(folder / "settings.json", f"{text}\n".encode())
    return folder


def _files(folder: Path, seconds: float) -> tuple[list[Notes], Named]:
    """Read pieces made elsewhere: their beginnings, and those that are long."""
    pieces, long = [], []
    sources = list_sources([folder])
    with Progress(len(sources), "read", "files") as progress:
        for source in sources:
            try:
                # on the grid of events, as everything they are compared with
                notes = decode(encode(read_midi(source.path)))
            except KmidiError as error:
                progress.note(f"note: left out: {error}")
                notes = Notes.empty()
            if notes.duration_seconds >= SHORTER * seconds:
                pieces.append(slice_notes(notes, 0.0, seconds))
            if notes.duration_seconds >= LONG_SECONDS:
                long.append((Path(source.path).stem, notes, notes.duration_seconds))
            progress.advance()
    if len(pieces) < LEAST_PIECES:
        raise KmidiError(
            f"{folder} has {len(pieces)} pieces of about {seconds:g} s or more; "
            f"{LEAST_PIECES} are needed."
        )
    return pieces, long


def judge_likeness(
    windows: Sequence[RealWindow],
    written: list[Notes],
    trigram: list[Notes],
    seconds: float,
    seed: int,
) -> Row:
    """Compare the sets by every feature.

    Args:
        windows: of real pieces.
        written: piece k belongs to window k.
        trigram: as many.
        seconds: length of all.
        seed: of the ways to halve.

    Raises:
        KmidiError: if the windows cannot be halved by songs.
    """
    splits = halves(np.array([window.group for window in windows]), SPLIT_COUNT, seed)
    if not splits:
        raise KmidiError("the held-out pieces are too few, or all of one song; prepare more.")
    real = features_of([window.notes for window in windows])
    sets = {"written": features_of(written), "trigram": features_of(trigram)}
    halved = {name: alternated(real, one, splits) for name, one in {"real": real, **sets}.items()}
    features = {}
    for name in real:
        rows = {key: asdict(one[name]) for key, one in halved.items()}
        features[name] = {
            "halves": rows,
            "all": asdict(likeness(real[name], sets["written"][name])),
            "like_real": rows["written"]["overlap"] >= rows["real"]["lowest_overlap"],
        }
    return {
        "pieces": len(windows),
        "seconds": seconds,
        "splits": len(splits),
        "silent": sum(not len(notes) for notes in written),
        "sets": list(sets),
        "features": features,
    }


def judge_long_runs(reader: ShardReader, split: str, streams: Named) -> Row:
    """Judge streams by what is usual in held-out pieces.

    Args:
        reader: the data set.
        split: its held-out side.
        streams: name, music and length in seconds of each.
    """
    if not streams:
        return {"streams": []}
    pieces = [decode(reader.tokens(piece)) for piece in held_out_pieces(reader, split).tolist()]
    real = [measure_stream(piece, piece.duration_seconds, math.inf) for piece in pieces]
    limits = limits_of(real)
    rows = []
    for name, notes, seconds in streams:
        stream = measure_stream(notes, seconds, limits.seconds)
        rows.append({"name": name, **asdict(stream), "faults": faults(stream, limits)})
    faulty = [any(faults(stream, limits).values()) for stream in real]
    return {
        "limits": asdict(limits),
        "real": _medians(real),
        "real_faulty": sum(faulty) / len(faulty),
        "streams": rows,
    }


def _medians(real: Sequence[Stream]) -> Row:
    """Return what the middle real piece is like, under the names of the limits."""

    def middle(values: list[float]) -> float:
        return float(np.median(values))

    return {
        "longest_rest": middle([stream.longest_rest for stream in real]),
        "least_notes": middle([min(stream.notes_by_minute) for stream in real]),
        "longest_loop": middle([stream.worst.loop_seconds for stream in real]),
        "longest_repeat": middle([stream.worst.longest_seconds for stream in real]),
        "repeated_share": middle([stream.worst.share for stream in real]),
        "drift": {name: middle([abs(stream.drift[name]) for stream in real]) for name in DRIFTS},
    }


def judge_memorisation(
    reader: ShardReader,
    args: argparse.Namespace,
    written: list[Notes],
    streams: Named,
    trigram: list[Notes],
) -> Row:
    """Look everything up in the training pieces.

    Args:
        reader: the data set.
        args: of the command.
        written, streams, trigram: what to look up beside held-out and copied pieces.
    """
    train = reader.split("train").tolist()
    notes = [decode(reader.tokens(piece)) for piece in train]
    index = TrainingIndex([reader.tokens(piece) for piece in train], notes)
    held_out = [decode(reader.tokens(p)) for p in held_out_pieces(reader, args.split).tolist()]
    real = index.look_up(pieces_cut(held_out, args.seconds, MOST_REAL_STRETCHES))
    if not real:
        raise KmidiError(f"no held-out piece lasts {args.seconds:g} s; ask for shorter ones.")
    copies = pieces_cut(notes, args.seconds, COPIED)
    higher = [transpose(piece, 2) for piece in copies]
    slower = [decode(encode(time_stretch(piece, 1.03))) for piece in higher]
    long = [notes for _, notes, _ in streams]
    sets = {
        "held_out": real,
        "written": index.look_up(written),
        "long_runs": index.look_up(pieces_cut(long, args.seconds, MOST_REAL_STRETCHES)),
        "trigram": index.look_up(trigram),
        "copied": index.look_up(copies),
        "higher": index.look_up(higher),
        "slower": index.look_up(slower),
    }
    return {
        "seconds": args.seconds,
        "train_pieces": len(train),
        "train_events": int(reader.pieces.length[train].sum()),
        "sets": {name: asdict(reach_of(found, real)) for name, found in sets.items() if found},
    }


def _headline(result: Row) -> Row:
    features = result["likeness"]["features"].values()
    runs, memory = result["long_runs"]["streams"], result["memorisation"]["sets"]

    def mean_overlap(name: str) -> float:
        return sum(row["halves"][name]["overlap"] for row in features) / len(features)

    return {
        "pieces": result["likeness"]["pieces"],
        "like_real": f"{sum(row['like_real'] for row in features)}/{len(features)}",
        "overlap": mean_overlap("written"),
        "overlap_real": mean_overlap("real"),
        "overlap_trigram": mean_overlap("trigram"),
        "streams": len(runs),
        **{name: sum(bool(r["faults"][name]) for r in runs) for name in FAULTS},
        "copies": memory["written"]["copies"],
        "longest_shared_notes": memory["written"]["notes"][-1],
        "longest_shared_notes_real": memory["held_out"]["notes"][-1],
    }


if __name__ == "__main__":
    sys.exit(run(main))
