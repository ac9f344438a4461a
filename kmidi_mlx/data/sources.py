"""What to prepare: folders, files and manifests become one list of sources."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmidi_mlx.data.manifest import MIDI_KEYS, ManifestRow, read_manifest
from kmidi_mlx.errors import KmidiError

__all__ = [
    "AUDIO_SUFFIXES",
    "MIDI_FILES",
    "MIDI_SUFFIXES",
    "SOUNDING_FILES",
    "Accepted",
    "Source",
    "list_sources",
]

#: Endings of files that a folder is searched for (any case).
MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
#: Endings of common files that libsndfile reads.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64")


@dataclass(frozen=True)
class Accepted:
    """Which files are looked for.

    Attributes:
        name: what a person calls such a file.
        suffixes: endings that a folder is searched for.
        keys: keys of a manifest's line that may name the file, the first one present counts.
        required: keys that every line has to have.
    """

    name: str
    suffixes: tuple[str, ...]
    keys: tuple[str, ...]
    required: tuple[str, ...]


#: Files for the MIDI generator.
MIDI_FILES = Accepted("MIDI file", MIDI_SUFFIXES, ("path",), MIDI_KEYS)
#: Files that sound, or that a piano can play.
SOUNDING_FILES = Accepted(
    "MIDI or sound file", (*MIDI_SUFFIXES, *AUDIO_SUFFIXES), ("audio", "path"), ()
)

# Keys of a manifest that change what a piece is prepared to.
_CONDITION_KEYS = (
    "valence",
    "arousal",
    "scale",
    "intensity",
    "label",
    "chords",
    "key",
    "key_segments",
)
_VERSION_ENDING = re.compile(r"([-_ ]v\d+| \(\d+\))$", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One file and what its manifest says.

    Attributes:
        path: absolute path.
        song: pieces of one song have the same value; unique over all data sets.
        split: side that the manifest asks for; None without a manifest.
        group: near-duplicates by the manifest's word have the same value; None if it says nothing.
        values: the manifest's keys, paths made absolute; empty without a manifest.
        conditions: digest of the labels; changes when the piece has to be prepared again.
    """

    path: str
    song: str
    split: str | None = None
    group: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    conditions: str = ""


def list_sources(
    sources: Sequence[Path],
    *,
    root: Path | None = None,
    skip: Path | None = None,
    accepted: Accepted = MIDI_FILES,
) -> list[Source]:
    """List the files that folders, files and manifests stand for.

    A folder is searched through and through for endings, hidden files left out. A file
    outside manifests is a song of its own, named by its path from the folder, where endings such
    as `-v2` or ` (2)` and folders called `versions` do not count. A file that is named twice is
    listed once; a manifest's word goes before a folder's.

    Args:
        sources: folders, files and manifests (`.jsonl`).
        root: folder that relative paths in manifests start from; None for each manifest's own.
        skip: folder that is not searched (where the result is written).
        accepted: which files are looked for.

    Returns:
        The sources, in the order given, files of a folder by name.

    Raises:
        KmidiError: if a source is missing, is neither of the three or holds nothing, or a manifest
            is wrong.
    """
    found: dict[str, Source] = {}
    for given in sources:
        count = 0
        for source in _expand(given, root, skip, accepted):
            count += 1
            if source.path not in found or (source.split and not found[source.path].split):
                found[source.path] = source
        if not count:
            endings = ", ".join(accepted.suffixes)
            what = "no lines" if given.suffix == ".jsonl" else f"no {endings} file"
            raise KmidiError(
                f"{given} has {what}; name a folder or manifest with {accepted.name}s."
            )
    return list(found.values())


def _expand(
    given: Path, root: Path | None, skip: Path | None, accepted: Accepted
) -> Iterator[Source]:
    if given.is_dir():
        folder = Path(os.path.abspath(given))  # noqa: PTH100 (keeps links)
        for path in _walk(folder, skip if skip is not None and skip.exists() else None, accepted):
            yield Source(str(path), _song(path.relative_to(folder.parent)))
    elif not given.exists():
        raise KmidiError(f"{given} does not exist; name a folder, a {accepted.name} or a manifest.")
    elif given.suffix.lower() == ".jsonl":
        for row in read_manifest(given, required=accepted.required, root=root):
            yield _from_row(row, accepted)
    elif given.suffix.lower() in accepted.suffixes:
        path = Path(os.path.abspath(given))  # noqa: PTH100
        yield Source(str(path), _song(path.relative_to(path.parent.parent)))
    else:
        raise KmidiError(
            f"{given} is neither a folder, nor a manifest (.jsonl), nor a {accepted.name} "
            f"({', '.join(accepted.suffixes)})."
        )


def _walk(folder: Path, skip: Path | None, accepted: Accepted) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (skip is None or not _same(Path(parent, name), skip))
        )
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(accepted.suffixes):
                yield Path(parent, name)


def _same(folder: Path, other: Path) -> bool:
    # Not by name: there may be links, and file systems where case does not count.
    try:
        return folder.samefile(other)
    except OSError:
        return False  # a link to nowhere, or gone meanwhile


def _song(relative: Path) -> str:
    folders = [name for name in relative.parent.parts if name.lower() != "versions"]
    return "/".join([*folders, _VERSION_ENDING.sub("", relative.stem)])


def _from_row(row: ManifestRow, accepted: Accepted) -> Source:
    values = dict(row.values)
    named = [key for key in accepted.keys if values.get(key) is not None]
    if not named:
        keys = " or ".join(repr(key) for key in accepted.keys)
        raise KmidiError(f"{row.place}: the key {keys} is missing; every line needs one.")
    path = row.file(named[0])
    for key in ("path", "audio", "midi", "chords"):
        if isinstance(values.get(key), str):
            values[key] = str(row.file(key))
    # Two data sets may both have a song "1".
    scope = str(values.get("dataset") or row.manifest.resolve())
    song = values.get("song")
    group = values.get("group")
    return Source(
        path=str(path),
        song=_song(Path(scope) / path.relative_to(path.anchor))
        if song is None
        else f"{scope}/{song}",
        split=values.get("split"),
        group=None if group is None else f"{scope}/{group}",
        values=values,
        conditions=_conditions_digest(values),
    )


def _conditions_digest(values: dict[str, Any]) -> str:
    said: dict[str, Any] = {k: values[k] for k in _CONDITION_KEYS if values.get(k) is not None}
    if not said:
        return ""
    if isinstance(said.get("chords"), str):
        try:
            status = Path(said["chords"]).stat()
            said["chords_file"] = [status.st_size, status.st_mtime_ns]
        except OSError:
            said["chords_file"] = None
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=8).hexdigest()
