"""MIDI files to a prepared data set: incremental, interruptible, on all cores.

The folder always ends as a fresh run of the same command would leave it: what is already there is
used again where the file and its labels are unchanged, and pieces whose source is no longer named
leave the data set. Work is committed part by part; a run that was killed goes on from the last.
Several jobs may each prepare a share of the files; merged, they are what one machine makes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.data.catalogue import Catalogue, recipe
from kmidi_mlx.data.columns import Content
from kmidi_mlx.data.destination import check_destination
from kmidi_mlx.data.piece_index import Summary
from kmidi_mlx.data.share import Order, Share, Shares, check_share, reopen
from kmidi_mlx.data.sources import Source, list_sources
from kmidi_mlx.data.synthetic import write_synthetic
from kmidi_mlx.data.tokenise import Tokenised, tokenise
from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.folder_lock import locked
from kmidi_mlx.music.mood import load_model

__all__ = ["KIND", "Report", "check_options", "merge_midi", "prepare_midi"]

#: What `kmidi prepare` calls it.
KIND = "midi"

_CHUNK_FILES = 16
# A killed run loses what came after the last commit: at most this many tokens or seconds.
_COMMIT_TOKENS = 8 << 20
_COMMIT_SECONDS = 5.0

OnStart = Callable[[str, int], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Report:
    """What a run of `prepare_midi` did.

    Attributes:
        complete: False if it was stopped before the end; the data set is then as before.
        sources: MIDI files that were named, practice pieces included.
        prepared: sources that were read in this run, rejected ones included.
        reused: sources that were taken from earlier runs.
        prepared_tokens: tokens made in this run.
        seconds: time that reading and committing took.
        workers: processes that read.
        worker_deaths: files whose worker died twice; they are rejected, and tried again next time.
        composed: practice pieces that are on the disk.
        left_behind: pieces of the last data set that are still there but were not named this time,
            and so left the data set; 0 if not complete.
        summary: what the data set now is; None if not complete, or if only a share was prepared.
    """

    complete: bool
    sources: int
    prepared: int
    reused: int
    prepared_tokens: int
    seconds: float
    workers: int
    worker_deaths: int
    composed: int
    left_behind: int
    summary: Summary | None

    @property
    def tokens_per_second(self) -> float:
        """Tokens made a second in this run; 0.0 if nothing was to be done."""
        return self.prepared_tokens / self.seconds if self.prepared_tokens else 0.0

    @property
    def tokens_per_core_second(self) -> float:
        """Tokens made a second and core that could work."""
        return self.tokens_per_second / max(1, min(self.workers, os.cpu_count() or 1))


def prepare_midi(
    sources: Sequence[Path],
    out: Path,
    *,
    root: Path | None = None,
    synthetic: int = 0,
    workers: int | None = None,
    seed: int = 0,
    val_share: float = 0.05,
    licence: str | None = None,
    share: Share | None = None,
    commit_tokens: int = _COMMIT_TOKENS,
    on_start: OnStart = lambda work, files: None,
    on_progress: OnProgress = lambda files, tokens: None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Turn MIDI files into a folder that `ShardReader` opens.

    Args:
        sources: folders, MIDI files and manifests (`sources.list_sources`).
        out: the folder to make or bring up to date.
        root: folder that relative paths in manifests start from; None for each manifest's own.
        synthetic: number of practice pieces to write and prepare as well.
        workers: processes; None for the number of cores.
        seed: of the draw for `val` of files without a manifest, and of synthetic music.
        val_share: share of songs without a manifest that go to `val`, 0 to 1.
        licence: licence of the sources; beside those that manifests name under `licence`.
        share: prepare only this share of the files, for `merge_midi`.
        commit_tokens: tokens after which work is committed.
        on_start: called when work begins with what it is, `compose` (practice pieces) or `prepare`
            (reading), and the number of files that it has to do.
        on_progress: called with the files and tokens done since the last call.
        stop: asked between chunks; once true, what is done is committed and the run ends.

    Returns:
        What was done.

    Raises:
        KmidiError: if an option is out of range, nothing is named, a source is missing, a manifest
            is wrong, the folder is not ours to write to (`destination.check_destination`), another
            process works on it, no file at all can be used, or the disk refuses.
    """
    check_options(synthetic, val_share, workers, seed)
    if not sources and not synthetic:
        raise KmidiError(
            "nothing to prepare: name folders, MIDI files or manifests, or --synthetic N."
        )
    load_model()  # a broken label model is no reason to reject files one by one
    out = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    listed = list_sources(sources, root=root, skip=out) if sources else []
    check_destination(out, sources)
    folder, everything = out, listed
    if share is not None:
        check_share(synthetic)
        folder, listed = share.folder(out), share.of(listed)
    with locked(folder):
        composed = 0
        if synthetic:
            on_start("compose", synthetic)

            def on_piece(pieces: int) -> None:
                nonlocal composed
                composed += pieces
                on_progress(pieces, 0)

            manifest = write_synthetic(
                out / "synthetic",
                synthetic,
                seed=seed,
                val_share=val_share,
                on_progress=on_piece,
                stop=stop,
            )
            if composed < synthetic:
                return _stopped_composing(len(listed) + synthetic, composed)
            listed += list_sources([manifest])
        if share is not None:
            reopen(folder)
        catalogue = Catalogue(folder)
        todo = [source for source in listed if not catalogue.has(source)]
        catalogue.save_touched()
        if todo:
            on_start("prepare", len(todo))
        count = min(workers or os.cpu_count() or 1, -(-len(todo) // _CHUNK_FILES) or 1)
        started = time.perf_counter()
        deaths: list[dict[str, Any]] = []
        done = tokens = 0
        for part, files in _commits(todo, count, commit_tokens, deaths, on_progress, stop):
            catalogue.commit(part)
            done += files
            tokens += len(part.tokens)
        seconds = time.perf_counter() - started
        complete = done + len(deaths) == len(todo)
        summary, left_behind = None, 0
        if complete and share is not None:
            catalogue.settle(listed, deaths)
            reasons = {death["path"]: death["reason"] for death in deaths}
            results = [{"died": reasons.get(source.path)} for source in listed]
            flags = {"--seed": seed, "--val-share": val_share, "--licence": licence}
            order = Order.of(KIND, sources, root, flags, recipe())
            order.commit(share, out, everything, results)
        elif complete:
            left_behind = catalogue.left_behind(listed)
            summary = catalogue.finish(
                listed, deaths, seed=seed, val_share=val_share, licence=licence
            )
    return Report(
        complete=complete,
        sources=len(listed),
        prepared=done + len(deaths),
        reused=len(listed) - len(todo),
        prepared_tokens=tokens,
        seconds=seconds,
        workers=count,
        worker_deaths=len(deaths),
        composed=composed,
        left_behind=left_behind,
        summary=summary,
    )


def merge_midi(shares: Shares, out: Path) -> Report:
    """Make the data set of its shards, which are removed then.

    Memory is taken for what is known of the pieces, as when they are read later, not for music.

    Args:
        shares: of a MIDI data set.
        out: their folder.

    Raises:
        KmidiError: if no file could be used, another process works on the folder, or the disk
            refuses.
    """
    options = shares.order.options
    with locked(out):
        catalogue = Catalogue(out, shares.folders)
        died_of = [result["died"] for result in shares.results]
        died = [
            {"path": source.path, "reason": reason}
            for source, reason in zip(shares.sources, died_of, strict=True)
            if reason
        ]
        for number, source in enumerate(shares.sources):
            if not (died_of[number] or catalogue.holds(source, shares.folder_of(number))):
                raise shares.damaged(number)
        started = time.perf_counter()
        left_behind = catalogue.left_behind(shares.sources)
        summary = catalogue.finish(
            shares.sources,
            died,
            seed=options["--seed"],
            val_share=options["--val-share"],
            licence=options["--licence"],
        )
        shares.remove()
    return Report(
        complete=True,
        sources=len(shares.sources),
        prepared=0,
        reused=len(shares.sources) - len(died),
        prepared_tokens=0,
        seconds=time.perf_counter() - started,
        workers=1,
        worker_deaths=len(died),
        composed=0,
        left_behind=left_behind,
        summary=summary,
    )


def _stopped_composing(sources: int, composed: int) -> Report:
    return Report(
        complete=False,
        sources=sources,
        prepared=0,
        reused=0,
        prepared_tokens=0,
        seconds=0.0,
        workers=1,
        worker_deaths=0,
        composed=composed,
        left_behind=0,
        summary=None,
    )


def check_options(synthetic: int, val_share: float, workers: int | None, seed: int) -> None:
    """Check what every kind of data set is asked for; a `KmidiError` names the option."""
    if not 0.0 <= val_share <= 1.0:
        raise KmidiError(f"--val-share {val_share} has to be from 0 to 1.")
    least = {"--synthetic": (synthetic, 0), "--workers": (workers, 1), "--seed": (seed, 0)}
    for flag, (value, lowest) in least.items():
        if value is not None and value < lowest:
            raise KmidiError(f"{flag} {value} has to be at least {lowest}.")


def _commits(
    todo: list[Source],
    workers: int,
    commit_tokens: int,
    deaths: list[dict[str, Any]],
    on_progress: OnProgress,
    stop: Callable[[], bool],
) -> Iterator[tuple[Tokenised, int]]:
    """Yield work that is worth committing, and how many sources it covers."""
    parts: list[Tokenised] = []
    files = tokens = 0
    begun = time.perf_counter()
    for result in map_chunks(tokenise, todo, workers=workers, chunk_size=_CHUNK_FILES, stop=stop):
        if isinstance(result, Lost):
            reason = f"the process that read it died (exit code {result.exit_code})"
            deaths.append({"path": result.item.path, "reason": reason})
            on_progress(1, 0)
            continue
        chunk, part = result
        parts.append(part)
        files += len(chunk)
        tokens += len(part.tokens)
        on_progress(len(chunk), len(part.tokens))
        if tokens >= commit_tokens or time.perf_counter() - begun >= _COMMIT_SECONDS:
            yield _join(parts), files
            parts, files, tokens = [], 0, 0
            begun = time.perf_counter()
    if parts:
        yield _join(parts), files


def _join(parts: list[Tokenised]) -> Tokenised:
    return Tokenised(
        np.concatenate([part.tokens for part in parts]),
        Content.join([part.content for part in parts]),
        [note for part in parts for note in part.pieces],
        [note for part in parts for note in part.rejected],
    )
