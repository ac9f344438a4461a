"""Manifests: JSON-lines files that list music, one object a line, with split and labels.

A manifest is UTF-8. Known keys are checked, all others are kept as they are. Paths are absolute or
relative to the manifest's folder (or to a `root` that the caller names). `valence` and `arousal`
are listeners' ratings; `"scale": "steering"` says that they are meant as what a generator is
steered with (`kmidi_mlx.music.mood` explains both scales).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.emotion import from_label
from kmidi_mlx.errors import KmidiError

__all__ = ["MIDI_KEYS", "SPLITS", "ManifestRow", "read_manifest", "write_manifest"]

#: The sides of a data set, in rising order of protection: what must stay clean comes last.
SPLITS = ("train", "val", "test")

#: Keys that every line of a manifest of MIDI files has to have.
MIDI_KEYS = ("path", "split")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest.

    Attributes:
        manifest: the manifest's path.
        line: line number, from 1.
        root: folder that relative paths of this line start from.
        values: the whole JSON object, unknown keys included.
    """

    manifest: Path
    line: int
    root: Path
    values: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where the line stands, for messages: `file, line n`."""
        return f"{self.manifest}, line {self.line}"

    def file(self, key: str) -> Path:
        """Return the absolute path that a key holds; the file need not exist."""
        return Path(os.path.abspath(self.root / self.values[key]))  # noqa: PTH100 (keeps links)


def read_manifest(
    path: Path, *, required: tuple[str, ...] = MIDI_KEYS, root: Path | None = None
) -> list[ManifestRow]:
    """Read and check a manifest; empty lines are skipped.

    Args:
        path: the manifest.
        required: keys that every line has to have.
        root: folder that relative paths start from; None for the manifest's own folder.

    Returns:
        The rows in file order.

    Raises:
        KmidiError: naming file and line: not UTF-8, not a JSON object, a required key missing, a
            value that is out of range or of the wrong type, or a song that stands on two sides.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise KmidiError(f"cannot read the manifest {path}: {error.strerror}.") from error
    folder = path.parent if root is None else root
    rows = []
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if raw.strip():
            rows.append(ManifestRow(path, line, folder, _parse(path, line, raw, required)))
    _check_songs(rows)
    return rows


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a manifest, atomically; keys keep their order.

    Args:
        path: the file to write or replace.
        rows: JSON objects.
    """
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.writelines(_line(row) for row in rows)


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        # Half a character, as in a file name that is not UTF-8: only an escape can hold it.
        return json.dumps(row).encode() + b"\n"


def _parse(path: Path, line: int, raw: bytes, required: tuple[str, ...]) -> dict[str, Any]:
    place = f"{path}, line {line}"
    try:
        values = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise KmidiError(f"{place}: not UTF-8 (byte {error.start}); save the file as UTF-8.") from (
            error
        )
    except RecursionError as error:
        raise KmidiError(f"{place}: nested too deeply; every line has to be one object.") from error
    except json.JSONDecodeError as error:
        raise KmidiError(
            f"{place}: not JSON: {error.msg} at column {error.colno}; "
            "every line has to be one object."
        ) from error
    if not isinstance(values, dict):
        raise KmidiError(f"{place}: a JSON {type(values).__name__}; it has to be an object {{…}}.")
    for key in required:
        if key not in values:
            raise KmidiError(f"{place}: the key {key!r} is missing; every line needs it.")
    for key, check in _CHECKS.items():
        if key in values and (values[key] is not None or key in required):
            problem = check(values[key])
            if problem:
                raise KmidiError(f"{place}: {key!r} is {_short(values[key])}; {problem}.")
    return values


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _number(lowest: float, highest: float) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and lowest <= value <= highest:
            return None
        return f"it has to be a number from {lowest:g} to {highest:g}"

    return check


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "it has to be a text that is not empty"


def _split(value: Any) -> str | None:
    return None if value in SPLITS else f"it has to be one of {', '.join(SPLITS)}"


def _scale(value: Any) -> str | None:
    return None if value in ("rated", "steering") else "it has to be rated or steering"


def _song(value: Any) -> str | None:
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return None
    return "it has to be a text or a whole number"


def _label(value: Any) -> str | None:
    if not isinstance(value, str):
        return "it has to be a text"
    try:
        from_label(value)
    except KmidiError as error:
        return str(error).removesuffix(".")
    return None


def _segments(value: Any) -> str | None:
    wanted = "it has to be a list of [start_seconds, end_seconds, name]"
    if not isinstance(value, list):
        return wanted
    for segment in value:
        if not (isinstance(segment, list) and len(segment) == 3 and isinstance(segment[2], str)):
            return wanted
        if any(_number(0.0, 1e6)(time) for time in segment[:2]) or segment[1] < segment[0]:
            return f"{wanted} with 0 <= start <= end"
    return None


def _file_or_segments(value: Any) -> str | None:
    return _text(value) if isinstance(value, str) else _segments(value)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "path": _text,
    "audio": _text,
    "midi": _text,
    "split": _split,
    "song": _song,
    "valence": _number(-1.0, 1.0),
    "arousal": _number(-1.0, 1.0),
    "intensity": _number(0.0, 1.0),
    "scale": _scale,
    "label": _label,
    "key": _text,
    "key_segments": _segments,
    "chords": _file_or_segments,
    "style": _text,
}


def _check_songs(rows: list[ManifestRow]) -> None:
    first: dict[tuple[Any, str], ManifestRow] = {}
    for row in rows:
        song, split = row.values.get("song"), row.values.get("split")
        if song is None or split is None:
            continue
        # Two data sets in one manifest may both have a song "1".
        other = first.setdefault((row.values.get("dataset"), str(song)), row)
        if other.values["split"] != split:
            raise KmidiError(
                f"{row.manifest}: song {song!r} is {other.values['split']!r} in line {other.line} "
                f"and {split!r} in line {row.line}; put all files of a song on one side."
            )
