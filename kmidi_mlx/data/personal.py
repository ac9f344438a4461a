"""A person's own folder of music as a prepared data set, and what is in it.

The sides are drawn in proportion: of n songs as many are held out as the share says, rounded, and
at least one, so that three files are enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.console import in_words
from kmidi_mlx.data.cloud_prepare import prepare_clouds
from kmidi_mlx.data.cloud_shards import CloudReader
from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.prepare import OnProgress, OnStart, prepare_midi
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.data.sources import MIDI_FILES, SOUNDING_FILES, Source, list_sources
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.events import NOTE_OFF, STEPS_PER_SECOND

__all__ = ["describe_clouds", "describe_music", "is_made_of", "is_prepared", "prepare_own"]

_ACCEPTED = {"midi_generator": MIDI_FILES, "spectocloud": SOUNDING_FILES}


def is_prepared(folder: Path) -> bool:
    """Whether a folder is what `kmidi prepare` leaves, as opposed to a person's files."""
    return (folder / "dataset.json").exists()


def is_made_of(model: str, prepared: Path, source: Path) -> bool:
    """Whether prepared data is a source itself or was made from its files, whatever came to them.

    Args:
        model: as of `prepare_own`.
        prepared: a data set.
        source: a folder, file, manifest or data set.

    Raises:
        KmidiError: if the source is missing, holds no music or is a wrong manifest.
    """
    if is_prepared(source):
        return prepared.resolve() == source.resolve()
    listed = list_sources([source], skip=prepared, accepted=_ACCEPTED[model])
    lines = (prepared / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    used = {Path(json.loads(line)["path"]).resolve() for line in lines}
    return used <= {Path(each.path).resolve() for each in listed}


def prepare_own(
    model: str,
    source: Path,
    out: Path,
    *,
    val_share: float = 0.15,
    seed: int = 0,
    on_start: OnStart = lambda work, files: None,
    on_progress: OnProgress = lambda files, done: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Prepare a folder, file or manifest for a model; what is prepared already is used again.

    Args:
        model: `midi_generator` (MIDI) or `spectocloud` (sound, or MIDI that a piano plays).
        source: a person's music, or a manifest that names it.
        out: folder of the result; a manifest of the sides is written beside it.
        val_share: share of songs without a manifest's word to hold out.
        seed: of that draw.
        on_start, on_progress, stop: as of `prepare_midi`.

    Returns:
        False if it was stopped before the end; the same call goes on.

    Raises:
        KmidiError: when there are fewer than two songs, or as of `prepare_midi`.
    """

    def prepare(sources: Sequence[Path]) -> bool:
        make: Callable[..., Any] = prepare_midi if model == "midi_generator" else prepare_clouds
        report = make(
            sources, out, seed=seed, on_start=on_start, on_progress=on_progress, stop=stop
        )
        return bool(report.complete)

    if source.suffix.lower() == ".jsonl":
        return prepare([source])
    listed = list_sources([source], skip=out, accepted=_ACCEPTED[model])
    _require_two(listed, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    manifest = out.with_name(f"{out.name}.jsonl")
    write_manifest(manifest, _rows(listed, frozenset(), val_share, seed))
    if not prepare([manifest]):
        return False
    useless = _rejected(out)
    if not useless:
        return True
    # the sides once more, in proportion among what can be used; nothing is read again
    _require_two([each for each in listed if each.path not in useless], source)
    write_manifest(manifest, _rows(listed, useless, val_share, seed))
    return prepare([manifest])


def _require_two(usable: Sequence[Source], source: Path) -> None:
    if len({each.song for each in usable}) < 2:
        raise KmidiError(
            f"{source} has one song that can be used; fine-tuning needs two or more, one of which "
            "is held out to see what is learnt."
        )


def _rejected(folder: Path) -> frozenset[str]:
    """Paths of the files that could not be prepared."""
    path = folder / "rejected.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return frozenset(json.loads(line)["path"] for line in lines)


def _rows(
    listed: Sequence[Source], useless: frozenset[str], val_share: float, seed: int
) -> list[dict[str, Any]]:
    """Lines of a manifest that give every song a side."""
    songs = {each.song for each in listed if each.path not in useless}
    drawn = sorted(songs, key=lambda song: _draw(song, seed))
    count = min(len(drawn) - 1, max(1, round(val_share * len(drawn))))
    held_out = set(drawn[:count])
    return [
        {
            "path": each.path,
            "song": each.song,
            "split": "val" if each.song in held_out else "train",
        }
        for each in listed
    ]


def _draw(song: str, seed: int) -> bytes:
    text = f"{seed}\n{song}".encode(errors="surrogatepass")  # file names need not be UTF-8
    return hashlib.blake2b(text, digest_size=8).digest()


def describe_music(reader: ShardReader) -> str:
    """Say in a sentence what prepared music there is, and how it is divided."""
    pieces = np.flatnonzero(~reader.pieces.duplicate)
    notes = sum(int((reader.tokens(piece) < NOTE_OFF).sum()) for piece in pieces.tolist())
    seconds = float(reader.pieces.duration_steps[pieces].sum()) / STEPS_PER_SECOND
    moods = [
        float(np.concatenate([_rows_of(column, reader, piece) for piece in pieces.tolist()]).mean())
        for column in (reader.pieces.valence, reader.pieces.arousal)
    ]
    doubles = int(reader.pieces.duplicate.sum())
    return (
        f"{_count(len(pieces), 'piece')}, {in_words(seconds)}, {notes:,} notes "
        f"({notes / max(seconds, 1.0):.1f} a second), mood on average valence {moods[0]:+.2f}, "
        f"arousal {moods[1]:+.2f}; {_sides(reader, pieces)}"
        f"{f'; {doubles} exact doubles left out' if doubles else ''}{_useless(reader.folder)}"
    )


def describe_clouds(reader: CloudReader) -> str:
    """Say in a sentence what prepared clouds there are, and how they are divided."""
    songs = len(np.unique(reader.song))
    sides = {side: len(reader.split(side)) for side in ("train", "val")}
    return (
        f"{_count(songs, 'song')}, {2 * len(reader):,} clouds; {2 * sides['train']:,} to learn "
        f"from, {2 * sides['val']:,} of other songs held out{_useless(reader.folder)}"
    )


def _useless(folder: Path) -> str:
    count = len(_rejected(folder))
    path = folder / "rejected.jsonl"
    return f"; {_count(count, 'file')} could not be used, {path} says why" if count else ""


def _rows_of(column: Any, reader: ShardReader, piece: int) -> Any:
    first, last = reader.pieces.mood_offset[piece : piece + 2]
    return column[first:last].astype(np.float64)


def _sides(reader: ShardReader, pieces: Any) -> str:
    counts = {side: len(np.intersect1d(reader.split(side), pieces)) for side in ("train", "val")}
    return f"{counts['train']} to learn from, {counts['val']} held out"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
