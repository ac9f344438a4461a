"""Labelled MIDI to labelled recordings, to practise recognising emotion on.

Every piece is played on the package's piano; a variant is the same music transposed, a little
faster or slower and louder or softer, which on notes is exact. A rendering's file name carries a
digest of everything that it depends on, so what is already there is used again, and a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kmidi_mlx.atomic import remove_leftovers
from kmidi_mlx.data.audio_emotion_recording import (
    RECIPE_VERSION,
    Job,
    describe_recording,
    draw_change,
    file_digest,
    is_labelled,
    recording_name,
    render_jobs,
)
from kmidi_mlx.data.manifest import SPLITS, read_manifest, write_manifest
from kmidi_mlx.data.share import Order, Share, Shares, check_share, reopen
from kmidi_mlx.data.sources import Source, list_sources
from kmidi_mlx.data.synthetic import write_synthetic
from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.folder_lock import locked

__all__ = ["KIND", "RenderReport", "merge_audio_emotion", "render_audio_emotion"]

#: What `kmidi prepare` calls it.
KIND = "audio-emotion"
_MANIFEST, _REJECTED, _AUDIO = "manifest.jsonl", "rejected.jsonl", "audio"
_CHUNK = 2


@dataclass(frozen=True)
class RenderReport:
    """What a run of `render_audio_emotion` did.

    Attributes:
        complete: False if it was stopped before the end; no manifest was written then.
        sources: MIDI files that were named, practice pieces included.
        composed: practice pieces that are on the disk.
        missing: recordings that had to be made.
        rendered: recordings made in this run.
        reused: recordings of earlier runs.
        rejected: MIDI files that were left out.
        seconds: time that rendering took.
        audio_seconds: length of what was rendered.
        splits: recordings and songs by side, if the data set is complete.
        labels: recordings by label, likewise.
        unlabelled: recordings without numbers and label, likewise.
    """

    complete: bool
    sources: int
    composed: int
    missing: int
    rendered: int
    reused: int
    rejected: int
    seconds: float
    audio_seconds: float
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0


def render_audio_emotion(
    sources: Sequence[Path],
    out: Path,
    *,
    root: Path | None = None,
    synthetic: int = 0,
    val_share: float = 0.05,
    licence: str | None = None,
    sample_rate: int = 16_000,
    seconds: float = 60.0,
    variants: int = 0,
    with_unlabelled: bool = False,
    label_from_notes: bool = False,
    workers: int | None = None,
    seed: int = 0,
    share: Share | None = None,
    on_start: Callable[[str, int], None] = lambda work, files: None,
    on_progress: Callable[[int, int], None] = lambda files, seconds: None,
    stop: Callable[[], bool] = lambda: False,
) -> RenderReport:
    """Render labelled MIDI files to FLAC and write `out/manifest.jsonl` and `out/rejected.jsonl`.

    A line of the manifest keeps the keys of its source (without those that speak of times in the
    MIDI file); `midi` is the source, `variant` counts from 0, the music as written. A source with
    numbers but no label gets that of its quadrant (`quadrant_label`). `cues` are
    `kmidi_mlx.music.mood.MOOD_FEATURES` of the notes that are played, in windows of 8 s, which
    teach the network what to listen to. Music without numbers and label teaches cues alone: it is
    always on the train side, and where its song is also a labelled one of another side, it is
    rejected. With `label_from_notes` it has the numbers of the mood model instead
    (`kmidi_mlx.music.mood.mood`, scale "steering"), and `emotion_by` says so.

    Args:
        sources: MIDI manifests, and folders or MIDI files, which have no labels.
        out: the folder to make or bring up to date.
        root: folder that relative paths in manifests start from; None for each manifest's own.
        synthetic: number of labelled practice pieces to write and render as well.
        val_share: share of the practice pieces that go to `val`, 0 to 1.
        licence: licence of the music; kept with the lines of sources that name none.
        sample_rate: samples a second of the recordings, 8,000-192,000.
        seconds: the middle of a piece of this length is rendered, > 0; shorter ones whole.
        variants: changed copies of every labelled piece: moved by up to 5 semitones, 5 % faster or
            slower, 15 % louder or softer. Those labelled from their notes change more, and every
            second goes to the parallel key, as the label follows.
        with_unlabelled: render music without labels as well; else it is rejected.
        label_from_notes: estimate the emotion of music without labels from the notes played.
        workers: processes; None for the number of cores.
        seed: of the changes.
        share: render only this share of the files, for `merge_audio_emotion`.
        on_start: called when work begins with what it is, `compose` or `render`, and the number
            of files to make.
        on_progress: called with the files and seconds of sound made since the last call.
        stop: asked between files; once true, the run ends; the next one goes on.

    Raises:
        KmidiError: if an option is out of range, a source is missing, a manifest is wrong, the
            folder holds a source or a manifest of others, another process works on it, or no file
            at all can be used.
    """
    _check(sample_rate, seconds, variants, workers, seed)
    if with_unlabelled and label_from_notes:
        raise KmidiError(
            "--with-unlabelled keeps music without labels so, --label-from-notes labels it; "
            "give one of the two."
        )
    if not sources and not synthetic:
        raise KmidiError("nothing to prepare: name MIDI manifests, or --synthetic N.")
    out = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    listed = list_sources(sources, root=root, skip=out) if sources else []
    _check_destination(out, sources)
    folder = out
    if share is not None:
        check_share(synthetic)
        folder = share.folder(out)
    with locked(folder):
        composed = 0
        if synthetic:
            on_start("compose", synthetic)

            def on_piece(pieces: int) -> None:
                nonlocal composed
                composed += pieces
                on_progress(pieces, 0)

            practice = write_synthetic(
                out / "synthetic",
                synthetic,
                seed=seed,
                val_share=val_share,
                on_progress=on_piece,
                stop=stop,
            )
            if composed < synthetic:
                return RenderReport(False, len(listed) + synthetic, composed, 0, 0, 0, 0, 0.0, 0.0)
            listed += list_sources([practice])
        if share is not None:
            reopen(folder)
        (folder / _AUDIO).mkdir(exist_ok=True)
        remove_leftovers(folder / _AUDIO)
        held_out = {
            source.song
            for source in listed
            if is_labelled(source) and source.split not in (None, "train")
        }
        numbers = range(len(listed)) if share is None else share.of(range(len(listed)))
        problems: dict[int, str] = {}
        wanted: list[Job] = []
        for number in numbers:
            source = listed[number]
            estimated = label_from_notes and not is_labelled(source)
            problem = None if estimated else _unusable(source, with_unlabelled, held_out)
            digest = None if problem else file_digest(Path(source.path))
            if digest is None:
                problems[number] = problem or "cannot be read"
                continue
            for variant in range(variants + 1 if estimated or is_labelled(source) else 1):
                change = draw_change(digest, seed, variant, wide=estimated)
                name = recording_name(source, digest, sample_rate, seconds, change)
                target = str(folder / _AUDIO / name)
                wanted.append(
                    Job(
                        number,
                        variant,
                        source.path,
                        target,
                        seconds,
                        sample_rate,
                        change,
                        estimated,
                    )
                )
        missing = {job.target: job for job in wanted if not Path(job.target).exists()}
        on_start("render", len(missing))
        started = time.perf_counter()
        failed: dict[str, tuple[Job, str]] = {}
        rendered, audio_seconds = 0, 0.0
        for done in map_chunks(
            render_jobs,
            list(missing.values()),
            workers=min(workers or os.cpu_count() or 1, max(1, -(-len(missing) // _CHUNK))),
            chunk_size=_CHUNK,
            stop=stop,
        ):
            if isinstance(done, Lost):
                reason = f"killed its process (exit code {done.exit_code})"
                failed[done.item.target] = (done.item, reason)
                continue
            for job, made in zip(*done, strict=True):
                if made.problem:
                    failed[job.target] = (job, made.problem)
                rendered += not made.problem
                audio_seconds += made.seconds
            on_progress(len(done[0]), round(sum(made.seconds for made in done[1])))
        elapsed = time.perf_counter() - started
        for job in wanted:
            if job.target in failed:
                # equal files are rendered once; each is told by its own name
                tried, problem = failed[job.target]
                problems[job.source] = problem.replace(tried.midi, job.midi)
        kept = [job for job in wanted if job.source not in problems]
        complete = all(Path(job.target).exists() for job in kept)
        rows: list[dict[str, Any]] = []
        if complete:
            lines = [describe_recording(folder, listed[job.source], job, licence) for job in kept]
            if share is None:
                rows = lines
                _commit(out, listed, rows, problems)
            else:
                flags = {"--seed": seed, "--val-share": val_share, "--licence": licence}
                flags |= {"--sample-rate": sample_rate, "--seconds": seconds}
                flags |= {"--variants": variants, "--with-unlabelled": with_unlabelled}
                flags |= {"--label-from-notes": label_from_notes}
                results: dict[int, dict[str, Any]] = {number: {"rows": []} for number in numbers}
                for job, line in zip(kept, lines, strict=True):
                    results[job.source]["rows"].append(line)
                results |= {number: {"problem": told} for number, told in problems.items()}
                order = Order.of(KIND, sources, root, flags, RECIPE_VERSION)
                order.commit(share, out, listed, [results[number] for number in numbers])
    return RenderReport(
        complete=complete,
        sources=len(numbers),
        composed=composed,
        missing=len(missing),
        rendered=rendered,
        reused=len({job.target for job in wanted}) - len(missing),
        rejected=len(problems),
        seconds=elapsed,
        audio_seconds=audio_seconds,
        **_counts(rows),
    )


def merge_audio_emotion(
    shares: Shares, out: Path, on_progress: Callable[[int], None] = lambda files: None
) -> RenderReport:
    """Make the data set of its shards, whose recordings are moved and which are removed then.

    Args:
        shares: of a data set of recordings.
        out: their folder.
        on_progress: called with the files done since the last call.

    Raises:
        KmidiError: if no file could be used, a recording is missing, another process works on the
            folder, or the disk refuses.
    """
    with locked(out):
        started = time.perf_counter()
        (out / _AUDIO).mkdir(exist_ok=True)
        problems = {
            number: result["problem"]
            for number, result in enumerate(shares.results)
            if "problem" in result
        }
        rows = [row for result in shares.results for row in result.get("rows", [])]
        if not rows:
            raise _nothing(shares.sources, problems)
        for number, result in enumerate(shares.results):
            for row in result.get("rows", []):
                made, wanted = shares.folder_of(number) / row["path"], out / row["path"]
                # a merge that was killed may have moved it, or another file has the same sound
                if made.exists():
                    made.replace(wanted)
                elif not wanted.exists():
                    raise shares.damaged(number)
            on_progress(1)
        _commit(out, shares.sources, rows, problems)
        shares.remove()
    return RenderReport(
        complete=True,
        sources=len(shares.sources),
        composed=0,
        missing=0,
        rendered=0,
        reused=len({row["path"] for row in rows}),
        rejected=len(problems),
        seconds=time.perf_counter() - started,
        audio_seconds=0.0,
        **_counts(rows),
    )


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a report says of the lines of the manifest."""
    songs = {(row["split"], row["song"]) for row in rows}
    sides = Counter(row["split"] for row in rows)
    return {
        "splits": {
            split: (sides[split], sum(side == split for side, _ in songs))
            for split in SPLITS
            if sides[split]
        },
        "labels": dict(sorted(Counter(row["label"] for row in rows if "label" in row).items())),
        "unlabelled": sum("label" not in row for row in rows),
    }


def _check(sample_rate: int, seconds: float, variants: int, workers: int | None, seed: int) -> None:
    if not 8_000 <= sample_rate <= 192_000:
        raise KmidiError(f"--sample-rate {sample_rate}: give 8000 to 192000.")
    if not 1.0 <= seconds <= 3600.0:
        raise KmidiError(f"--seconds {seconds:g}: give 1 to 3600.")
    if not 0 <= variants <= 100:
        raise KmidiError(f"--variants {variants}: give 0 to 100.")
    if workers is not None and workers < 1:
        raise KmidiError(f"--workers {workers}: give 1 or more.")
    if seed < 0:
        raise KmidiError(f"--seed {seed}: give 0 or more.")


def _check_destination(out: Path, sources: Sequence[Path]) -> None:
    for source in sources:
        if out.resolve() in (source.resolve(), *source.resolve().parents):
            raise KmidiError(
                f"{out} is or holds the source {source}; choose another --out, such as "
                f"{out / 'audio-emotion'}."
            )
    manifest = out / _MANIFEST
    if manifest.exists():
        rows = read_manifest(manifest, required=())
        if not all({"midi", "variant"} <= row.values.keys() for row in rows):
            raise KmidiError(
                f"{manifest} was not written by `prepare audio-emotion` and would be replaced; "
                "choose another --out."
            )


def _unusable(source: Source, with_unlabelled: bool, held_out: set[str]) -> str | None:
    if is_labelled(source):
        return None
    if not with_unlabelled:
        return "no emotion is given: a line of a manifest needs a label, or valence and arousal"
    if source.song in held_out:
        return f"no emotion is given, and the song {source.song!r} is held out"
    return None


def _commit(
    out: Path,
    listed: Sequence[Source],
    rows: list[dict[str, Any]],
    problems: Mapping[int, str],
) -> None:
    """Write the manifests, then remove recordings of the last run that are no longer listed."""
    if not rows:
        raise _nothing(listed, problems)
    manifest = out / _MANIFEST
    before = {
        str(row.values["path"])
        for row in (read_manifest(manifest, required=("path",)) if manifest.exists() else [])
    }
    write_manifest(manifest, rows)
    write_manifest(
        out / _REJECTED,
        [
            {"path": listed[number].path, "reason": problem}
            for number, problem in sorted(problems.items())
        ],
    )
    for name in before - {row["path"] for row in rows}:
        # only what an earlier run put there
        if re.fullmatch(rf"{_AUDIO}/[\w-]+-[0-9a-f]{{12}}\.flac", name):
            (out / name).unlink(missing_ok=True)


def _nothing(listed: Sequence[Source], problems: Mapping[int, str]) -> KmidiError:
    first = problems[min(problems)]
    return KmidiError(f"none of the {len(listed)} files can be used; the first: {first}.")
