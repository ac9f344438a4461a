"""Where a data set may be written: never over, or among, files that somebody else made."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmidi_mlx.errors import KmidiError

__all__ = ["MIDI_LAYOUT", "Layout", "check_destination"]

_RESULTS = ("dataset.json", "index.npz", "manifest.jsonl", "rejected.jsonl")


@dataclass(frozen=True)
class Layout:
    """What the files of a kind of data set are called.

    Attributes:
        kind: the value of `kind` in `dataset.json`; the MIDI generator's has none.
        shards: names of the files that commit a shard.
        columns: arrays that such a file holds.
        contents: names of the files that come just before, which are nothing without it.
    """

    kind: str | None
    shards: re.Pattern[str]
    columns: frozenset[str]
    contents: re.Pattern[str]


#: The layout of `kmidi_mlx.data.shards`.
MIDI_LAYOUT = Layout(
    kind=None,
    shards=re.compile(r"shard-\d+\.npz"),
    columns=frozenset({"notes", "mood_source"}),
    contents=re.compile(r"tokens-\d+\.bin"),
)


def check_destination(out: Path, sources: Sequence[Path], layout: Layout = MIDI_LAYOUT) -> None:
    """Refuse a folder that is not ours to write to; nothing is changed.

    A folder is ours when it is new, holds none of the files that a data set consists of, or holds
    a data set or shards of the same kind that were prepared earlier.

    Args:
        out: the folder for the data set; need not exist.
        sources: existing folders, files and manifests that were named.
        layout: what is to be written.

    Raises:
        KmidiError: if the folder is a source, holds one, or has files of others in the places of
            those that would be written.
    """
    if not out.is_dir():
        return
    for source in sources:
        if source.samefile(out):
            raise KmidiError(
                f"{out} is a source itself; choose another --out, such as {out / 'prepared'}."
            )
        absolute = Path(os.path.abspath(source))  # noqa: PTH100 (a link in the folder is in it)
        for parent in {*absolute.parents, *source.resolve().parents}:
            if parent.samefile(out):
                raise KmidiError(
                    f"{out} holds the source {source}; choose another --out, such as "
                    f"{out / 'prepared'}."
                )
    names = [path.name for path in out.iterdir()]
    if _has_data_set(out, names, layout):
        return
    for name in sorted(names):
        # A run that was killed early leaves its lock and contents without columns, and one that
        # could use nothing its reasons.
        unfinished = layout.contents.fullmatch(name) or name == "rejected.jsonl"
        left_by_us = unfinished and ".lock" in names
        ours_by_name = (
            name in _RESULTS or layout.shards.fullmatch(name) or layout.contents.fullmatch(name)
        )
        if ours_by_name and not left_by_us:
            raise KmidiError(
                f"{out / name} would be overwritten, and {out} is no data set of this kind made "
                "by kmidi prepare; choose another --out."
            )


def _has_data_set(folder: Path, names: Sequence[str], layout: Layout) -> bool:
    try:
        description = json.loads((folder / "dataset.json").read_bytes())
        if isinstance(description, dict) and {"format", "recipe"} <= description.keys():
            return bool(description.get("kind") == layout.kind)
    except (OSError, ValueError):
        pass  # absent or damaged: shards that were committed tell as well
    return any(
        _holds(folder / name, layout.columns) for name in names if layout.shards.fullmatch(name)
    )


def _holds(path: Path, columns: frozenset[str]) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{column}.npy" for column in columns} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
