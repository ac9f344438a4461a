"""Preparing in shards: many jobs take turns through one list of files, and one merges their work.

Shard i of n is every n-th file, beginning with the i-th. Its job leaves a folder

    shard-00003-of-00016/
        …                what the files became, as that kind of data set keeps it
        sources.jsonl    the shard's files in order, and what else is known of each
        shard.json       which list and options this is of; its arrival is the commit

What can only be said of all files together (sides, duplicates, songs, numbers) is said when the
shards are merged, by the code that says it for one machine. So merged shards are what one machine
makes, and merging needs neither the music nor its manifests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.data.manifest import write_manifest
from kmidi_mlx.data.sources import Source
from kmidi_mlx.errors import KmidiError

__all__ = ["Order", "Share", "Shares", "check_share", "has_shares", "open_shares", "reopen"]

Item = TypeVar("Item")

_FOLDER = re.compile(r"shard-(\d{5,})-of-(\d{5,})")
_MERGED = ".merged-"
_RECORD, _SOURCES = "shard.json", "sources.jsonl"
#: Version of both files; shards of another one are not merged.
_FORMAT = 1
_MOST = 99_999


@dataclass(frozen=True)
class Share:
    """Shard `number` of `count`; numbers begin at 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Read `3/16`.

        Raises:
            KmidiError: if it is not a number from 1 to the number of shards.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        share = cls(*map(int, match.groups())) if match else None
        if share is None or not 1 <= share.number <= share.count <= _MOST:
            hint = "; add 1 to the number of a scheduler that counts from 0" if share else ""
            raise KmidiError(f"--shard {text}: give 1/N to N/N, such as 3/16{hint}.")
        return share

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return this shard's items."""
        return list(items[self.number - 1 :: self.count])

    def folder(self, out: Path) -> Path:
        """Return where this shard of the data set `out` is prepared."""
        return out / f"shard-{self.number:05d}-of-{self.count:05d}"


@dataclass(frozen=True)
class Order:
    """What all shards of a data set have in common.

    Attributes:
        kind: what `kmidi prepare` calls the kind of data set.
        named: the folders, files and manifests that were named, absolute.
        options: by flag; all that the data set depends on.
        recipe: versions and whatever else decides what a file becomes.
    """

    kind: str
    named: list[str]
    options: dict[str, Any]
    recipe: Any

    @classmethod
    def of(
        cls,
        kind: str,
        named: Sequence[Path],
        root: Path | None,
        options: Mapping[str, Any],
        recipe: Any,
    ) -> Order:
        """Describe a run of `kmidi prepare`; its paths become absolute."""
        paths = [os.path.abspath(path) for path in named]  # noqa: PTH100 (keeps links)
        home = None if root is None else os.path.abspath(root)  # noqa: PTH100
        return cls(kind, paths, {"--root": home, **options}, recipe)

    def command(self, share: Share, out: Path) -> str:
        """Return the command that makes a shard."""
        words = ["kmidi", "prepare", self.kind, *self.named, "--out", str(out)]
        for flag, value in self.options.items():
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, str(value)]
        return shlex.join([*words, "--shard", str(share)])

    def commit(
        self,
        share: Share,
        out: Path,
        listed: Sequence[Source],
        results: Sequence[Mapping[str, Any]],
    ) -> None:
        """Say that a shard is complete.

        Args:
            share: the shard.
            out: the data set that it is of.
            listed: all files of the data set.
            results: what is known of each file of the shard, JSON objects.
        """
        folder = share.folder(out)
        mine = share.of(listed)
        write_manifest(
            folder / _SOURCES,
            (
                {"source": asdict(source), "result": dict(result)}
                for source, result in zip(mine, results, strict=True)
            ),
        )
        record = {"format": _FORMAT, **asdict(self), "files": len(listed), "list": _digest(listed)}
        text = json.dumps(record, indent=2)  # a name that is not UTF-8 is only an escape
        write_bytes_atomically(folder / _RECORD, f"{text}\n".encode())


def check_share(synthetic: int) -> None:
    """Refuse practice pieces in shards, for their files would be written by all jobs at once."""
    if synthetic:
        raise KmidiError(
            "--synthetic cannot be prepared in shards: prepare practice pieces alone, and name "
            "their synthetic/manifest.jsonl as a source."
        )


def reopen(folder: Path) -> None:
    """Take back that a shard is complete, before work on it begins."""
    (folder / _RECORD).unlink(missing_ok=True)


@dataclass(frozen=True)
class Shares:
    """All shards of a data set, complete and of the same list and options.

    Attributes:
        order: what they have in common.
        folders: of each, in their order.
        sources: the files of the data set, in the order in which one machine goes through them.
        results: what is known of each.
    """

    order: Order
    folders: list[Path]
    sources: list[Source]
    results: list[dict[str, Any]]

    def folder_of(self, number: int) -> Path:
        """Return the folder of the shard that a file is in."""
        return self.folders[number % len(self.folders)]

    def damaged(self, number: int) -> KmidiError:
        """Return the complaint that a shard lacks what became of a file."""
        count = len(self.folders)
        share = Share(number % count + 1, count)
        folder = self.folder_of(number)
        return KmidiError(
            f"{folder} is damaged: {self.sources[number].path} is not in it; make it again with: "
            f"{self.order.command(share, folder.parent)}"
        )

    def remove(self) -> None:
        """Remove the folders; for when the data set holds everything."""
        # first all names, which takes no time: a merge that is killed here is complete
        for folder in self.folders:
            folder.rename(folder.with_name(_MERGED + folder.name))
        _remove_merged(self.folders[0].parent)


def _remove_merged(out: Path) -> None:
    for folder in out.glob(f"{_MERGED}*"):
        shutil.rmtree(folder)


def has_shares(out: Path) -> bool:
    """Say whether a folder holds any shard, complete or not."""
    return out.is_dir() and any(_FOLDER.fullmatch(path.name) for path in out.iterdir())


def open_shares(out: Path) -> Shares:
    """Open the shards of a data set.

    Args:
        out: the folder that was given to their jobs as `--out`.

    Raises:
        KmidiError: if there are none, one is missing or not complete, or they do not belong
            together; the sentence names the command that makes what is missing.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    found = _find(out)
    count = next(iter(found)).count
    records = {share: _read_record(share.folder(out)) for share in found}
    done = {share: record for share, record in records.items() if record is not None}
    missing = [number for number in range(1, count + 1) if Share(number, count) not in done]
    if missing:
        raise KmidiError(_told_missing(out, missing, count, found, done))
    first = Share(1, count)
    order = _order(done[first])
    for share, record in done.items():
        difference = _difference(done[first], record)
        if difference:
            raise KmidiError(
                f"shard {share.number} of {count} does not belong to shard 1: {difference}; make "
                f"it again with: {order.command(share, out)}"
            )
    folders = [Share(number, count).folder(out) for number in range(1, count + 1)]
    rows = [_read_rows(folder) for folder in folders]
    total = int(done[first]["files"])
    picked = [rows[i % count][i // count : i // count + 1] for i in range(total)]
    if sum(map(len, rows)) != total or not all(picked):
        raise KmidiError(f"the lists of the shards in {out} were changed; prepare them again.")
    return Shares(
        order=order,
        folders=folders,
        sources=[Source(**row[0]["source"]) for row in picked],
        results=[row[0]["result"] for row in picked],
    )


def _find(out: Path) -> list[Share]:
    if not out.is_dir():
        raise KmidiError(f"there is no folder {out}; name the --out of the shards.")
    _remove_merged(out)
    names = [_FOLDER.fullmatch(path.name) for path in out.iterdir() if path.is_dir()]
    found = sorted(
        (Share(int(name[1]), int(name[2])) for name in names if name), key=lambda s: s.number
    )
    if not found:
        why = "it is a whole data set" if (out / "manifest.jsonl").exists() else "it has none"
        raise KmidiError(f"{out} has no shards to merge: {why}.")
    counts = sorted({share.count for share in found})
    if len(counts) > 1:
        told = " and of ".join(str(count) for count in counts)
        raise KmidiError(
            f"{out} has shards of {told}; remove the folders shard-…-of-… that do not belong."
        )
    return found


def _told_missing(
    out: Path,
    missing: list[int],
    count: int,
    found: list[Share],
    done: Mapping[Share, dict[str, Any]],
) -> str:
    number = Share(missing[0], count)
    if len(missing) == 1:
        state = "is not complete" if number in found else "is missing"
        what = f"shard {missing[0]} of {count} {state}"
    else:
        some = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
        what = f"{len(missing)} of {count} shards are missing or not complete ({some})"
    if not done:
        return f"{what}; run their commands again."
    command = _order(next(iter(done.values()))).command(number, out)
    return f"{what}; make {'it' if len(missing) == 1 else 'the first one'} with: {command}"


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / _RECORD
    try:
        record = json.loads(path.read_bytes())
        _order(record)
        int(record["files"]), str(record["list"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KmidiError(f"{path} is damaged; remove it and prepare that shard again.") from error
    if record["format"] != _FORMAT:
        raise KmidiError(f"{folder} was made by another version of kmidi; prepare it again.")
    return dict(record)


def _order(record: Mapping[str, Any]) -> Order:
    return Order(record["kind"], record["named"], record["options"], record["recipe"])


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    if first["kind"] != other["kind"]:
        return f"it is of {other['kind']}, not of {first['kind']}"
    for flag, value in first["options"].items():
        if other["options"].get(flag) != value:
            return f"it has {flag} {other['options'].get(flag)}, not {value}"
    if first["recipe"] != other["recipe"]:
        return "it was made by another version of kmidi"
    if (first["files"], first["list"]) != (other["files"], other["list"]):
        return (
            f"its list of {other['files']:,} files is another one than that of {first['files']:,}"
        )
    return None


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / _SOURCES
    try:
        with path.open("rb") as file:
            return [json.loads(line) for line in file]
    except (OSError, ValueError) as error:
        raise KmidiError(f"{path} is damaged; prepare that shard again.") from error


def _digest(listed: Sequence[Source]) -> str:
    """Name a list of files; times are left out, for every machine may have its own copy."""
    digest = hashlib.blake2b(digest_size=16)
    for source in listed:
        known = [source.path, source.song, source.split, source.group, source.values]
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()
