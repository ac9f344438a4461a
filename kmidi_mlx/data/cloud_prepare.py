"""MIDI and sound files to clouds: incremental, interruptible, on all cores.

The folder always ends as a fresh run of the same command would leave it, byte for byte, whatever
the number of processes. Every song is put on the disk as soon as it is sampled; a run that was
killed loses only what its processes were working on. Files that cannot be used are tried again
every time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmidi_mlx.audio.instrument import PIANO
from kmidi_mlx.data.cloud_excerpts import (
    EXCERPT_SECONDS,
    OWN_SHARE,
    PAIRS_PER_EXCERPT,
    WARM_UP_SECONDS,
)
from kmidi_mlx.data.cloud_sampling import (
    MEL_COLUMNS,
    SAMPLING_VERSION,
    SamplingOptions,
    Task,
    sample_songs,
)
from kmidi_mlx.data.cloud_shards import KIND, LAYOUT
from kmidi_mlx.data.cloud_store import CloudStore, CloudSummary
from kmidi_mlx.data.destination import check_destination
from kmidi_mlx.data.prepare import check_options
from kmidi_mlx.data.share import Order, Share, Shares, check_share, reopen
from kmidi_mlx.data.sources import SOUNDING_FILES, list_sources
from kmidi_mlx.data.synthetic import write_synthetic
from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.folder_lock import locked
from kmidi_mlx.music.mood import load_model

__all__ = ["EMOTIONS", "CloudReport", "merge_clouds", "prepare_clouds"]

#: Which emotions the clouds are drawn in: any, or only those of the songs.
EMOTIONS = ("varied", "own")

OnStart = Callable[[str, int], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class CloudReport:
    """What a run of `prepare_clouds` did.

    Attributes:
        complete: False if it was stopped before the end; the data set is then as before.
        sources: files that were named, practice pieces included.
        prepared: sources that were sampled in this run, rejected ones included.
        reused: sources whose samples were there.
        prepared_samples: samples made in this run.
        seconds: time that sampling took.
        workers: processes that sampled.
        worker_deaths: files whose worker died twice; they are rejected, and tried again next time.
        composed: practice pieces that are on the disk.
        left_behind: files of the last data set that are still there but were not named this time,
            and so left the data set; 0 if not complete.
        summary: what the data set now is; None if not complete, or if only a share was prepared.
    """

    complete: bool
    sources: int
    prepared: int
    reused: int
    prepared_samples: int
    seconds: float
    workers: int
    worker_deaths: int
    composed: int
    left_behind: int
    summary: CloudSummary | None

    @property
    def samples_per_second(self) -> float:
        """Samples made a second in this run; 0.0 if nothing was to be done."""
        return self.prepared_samples / self.seconds if self.prepared_samples else 0.0


def prepare_clouds(
    sources: Sequence[Path],
    out: Path,
    *,
    root: Path | None = None,
    synthetic: int = 0,
    workers: int | None = None,
    seed: int = 0,
    val_share: float = 0.05,
    licence: str | None = None,
    samples: int = 48,
    emotion: str = "varied",
    share: Share | None = None,
    on_start: OnStart = lambda work, files: None,
    on_progress: OnProgress = lambda files, samples: None,
    stop: Callable[[], bool] = lambda: False,
) -> CloudReport:
    """Turn MIDI and sound files into a folder that `CloudReader` opens.

    Args:
        sources: folders, files and manifests (`sources.list_sources`).
        out: the folder to make or bring up to date.
        root: folder that relative paths in manifests start from; None for each manifest's own.
        synthetic: number of practice pieces to write and prepare as well.
        workers: processes; None for the number of cores.
        seed: of all draws, and of synthetic music.
        val_share: share of songs without a manifest's word that go to `val`, 0 to 1.
        licence: licence of the sources; beside those that manifests name under `licence`.
        samples: samples of a song, even, at least 2; short songs give fewer.
        emotion: one of `EMOTIONS`.
        share: prepare only this share of the files, for `merge_clouds`.
        on_start: called when work begins with what it is, `compose` (practice pieces) or `prepare`
            (sampling), and the number of files that it has to do.
        on_progress: called with the files and samples done since the last call.
        stop: asked between songs; once true, the run ends after those in work.

    Returns:
        What was done.

    Raises:
        KmidiError: if an option is out of range, nothing is named, a source is missing, a manifest
            is wrong, the folder is not ours to write to (`destination.check_destination`), another
            process works on it, no file at all can be used, or the disk refuses.
    """
    check_options(synthetic, val_share, workers, seed)
    if samples < 2 or samples % 2:
        raise KmidiError(f"--samples {samples} has to be an even number, at least 2.")
    if emotion not in EMOTIONS:
        raise KmidiError(f"--emotion {emotion} has to be one of {', '.join(EMOTIONS)}.")
    if not sources and not synthetic:
        raise KmidiError(
            "nothing to prepare: name folders, MIDI or sound files or manifests, or --synthetic N."
        )
    load_model()  # a broken label model is no reason to reject files one by one
    out = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    listed = list_sources(sources, root=root, skip=out, accepted=SOUNDING_FILES) if sources else []
    check_destination(out, sources, LAYOUT)
    options = SamplingOptions(samples, seed, emotion == "own")
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
            if composed == synthetic:
                listed += list_sources([manifest])
        tasks = [Task(source, options) for source in listed]
        if share is not None:
            reopen(folder)
        store = CloudStore(folder)
        notes = {task.source.path: store.find(task) for task in tasks}
        todo = [task for task in tasks if notes[task.source.path] is None]
        made = 0
        count = min(workers or os.cpu_count() or 1, len(todo) or 1)
        started = time.perf_counter()
        if composed == synthetic:
            if todo:
                on_start("prepare", len(todo))
            results = map_chunks(
                sample_songs, todo, workers=count, chunk_size=1, stop=stop, one_thread=True
            )
            for result in results:
                if isinstance(result, Lost):
                    reason = f"the process that read it died (exit code {result.exit_code})"
                    path = result.item.source.path
                    notes[path] = {"path": path, "reason": reason, "died": True}
                    on_progress(1, 0)
                    continue
                for sampled in result[1]:
                    store.keep(sampled)
                    notes[sampled.note["path"]] = sampled.note
                    size = 0 if sampled.pairs is None else 2 * len(sampled.pairs)
                    made += size
                    on_progress(1, size)
        seconds = time.perf_counter() - started
        known = {path: note for path, note in notes.items() if note is not None}
        complete = composed == synthetic and len(known) == len(notes)
        summary, left_behind = None, 0
        if complete and share is not None:
            flags = {"--seed": seed, "--val-share": val_share, "--licence": licence}
            flags |= {"--samples": samples, "--emotion": emotion}
            order = Order.of(KIND, sources, root, flags, _recipe(options))
            order.commit(share, out, everything, [known[task.source.path] for task in tasks])
            store.keep_only([note["id"] for note in known.values() if "reason" not in note])
        elif complete:
            left_behind = store.left_behind(tasks)
            summary = store.finish(
                [(t, known[t.source.path]) for t in tasks if "reason" not in known[t.source.path]],
                [known[t.source.path] for t in tasks if "reason" in known[t.source.path]],
                seed=seed,
                val_share=val_share,
                licence=licence,
                recipe=_recipe(options),
            )
    return CloudReport(
        complete=complete,
        sources=len(listed) if composed == synthetic else len(listed) + synthetic,
        prepared=sum(task.source.path in known for task in todo),
        reused=len(listed) - len(todo),
        prepared_samples=made,
        seconds=seconds,
        workers=count,
        worker_deaths=sum("died" in note for note in known.values()),
        composed=composed,
        left_behind=left_behind,
        summary=summary,
    )


def merge_clouds(
    shares: Shares,
    out: Path,
    on_progress: Callable[[int], None] = lambda songs: None,
) -> CloudReport:
    """Make the data set of its shards, which are removed then; one song at a time is in memory.

    Args:
        shares: of a data set of clouds.
        out: their folder.
        on_progress: called with the songs done since the last call.

    Raises:
        KmidiError: if no file could be used, a song is missing, another process works on the
            folder, or the disk refuses.
    """
    flags = shares.order.options
    options = SamplingOptions(flags["--samples"], flags["--seed"], flags["--emotion"] == "own")
    tasks = [Task(source, options) for source in shares.sources]
    with locked(out):
        store = CloudStore(out)
        for number, note in enumerate(shares.results):
            if "reason" not in note and not store.borrow(note["id"], shares.folder_of(number)):
                raise shares.damaged(number)
        started = time.perf_counter()
        left_behind = store.left_behind(tasks)
        pairs = list(zip(tasks, shares.results, strict=True))
        summary = store.finish(
            [(task, note) for task, note in pairs if "reason" not in note],
            [note for _, note in pairs if "reason" in note],
            seed=options.seed,
            val_share=flags["--val-share"],
            licence=flags["--licence"],
            recipe=_recipe(options),
            on_song=lambda: on_progress(1),
        )
        shares.remove()
    return CloudReport(
        complete=True,
        sources=len(tasks),
        prepared=0,
        reused=len(tasks),
        prepared_samples=0,
        seconds=time.perf_counter() - started,
        workers=1,
        worker_deaths=sum("died" in note for note in shares.results),
        composed=0,
        left_behind=left_behind,
        summary=summary,
    )


def _recipe(options: SamplingOptions) -> dict[str, Any]:
    return {
        "sampling": SAMPLING_VERSION,
        "samples_per_song": options.samples,
        "seed": options.seed,
        "emotion": "own" if options.own_emotion else "varied",
        "own_emotion_share": 1.0 if options.own_emotion else OWN_SHARE,
        "excerpt_seconds": EXCERPT_SECONDS,
        "warm_up_seconds": WARM_UP_SECONDS,
        "pairs_per_excerpt": PAIRS_PER_EXCERPT,
        "mel_columns": MEL_COLUMNS,
        "mel_step_db": 100.0 / 255.0,
        "instrument": PIANO.name,
        "sample_rate": 44_100,
    }
