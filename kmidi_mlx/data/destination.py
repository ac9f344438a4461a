"""Where a data set may be written: never over, or among, files that somebody else made."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from kmidi_mlx.errors import KmidiError

__all__ = ["check_destination"]

_RESULTS = ("dataset.json", "index.npz", "manifest.jsonl", "rejected.jsonl")
_SHARD = re.compile(r"shard-\d+\.npz")
_TOKENS = re.compile(r"tokens-\d+\.bin")


def check_destination(out: Path, sources: Sequence[Path]) -> None:
    """Refuse a folder that is not ours to write to; nothing is changed.

    A folder is ours when it is new, holds none of the files that a data set consists of, or holds
    a data set or shards that were prepared earlier.

    Args:
        out: the folder for the data set; need not exist.
        sources: existing folders, files and manifests that were named.

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
    if _has_data_set(out, names):
        return
    for name in sorted(names):
        # A run that was killed early leaves its lock and tokens without columns.
        left_by_us = _TOKENS.fullmatch(name) and ".lock" in names
        ours_by_name = name in _RESULTS or _SHARD.fullmatch(name) or _TOKENS.fullmatch(name)
        if ours_by_name and not left_by_us:
            raise KmidiError(
                f"{out / name} would be overwritten, and {out} is no data set made by "
                "kmidi prepare; choose another --out."
            )


def _has_data_set(folder: Path, names: Sequence[str]) -> bool:
    try:
        description = json.loads((folder / "dataset.json").read_bytes())
        if isinstance(description, dict) and {"format", "recipe"} <= description.keys():
            return True
    except (OSError, ValueError):
        pass  # absent or damaged: shards that were committed tell as well
    return any(_is_shard(folder / name) for name in names if _SHARD.fullmatch(name))


def _is_shard(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return {"notes.npy", "mood_source.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
