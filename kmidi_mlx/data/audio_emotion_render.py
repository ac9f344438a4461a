"""Labelled MIDI to labelled recordings, to practise recognising emotion on.

Every piece is played on the package's piano; a variant is the same music transposed, a little
faster or slower and louder or softer, which on notes is exact. A rendering's file name carries a
digest of everything that it depends on, so what is already there is used again, and a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write, remove_leftovers
from kmidi_mlx.audio.sampler import render
from kmidi_mlx.data.folder_lock import locked
from kmidi_mlx.data.manifest import SPLITS, read_manifest, write_manifest
from kmidi_mlx.data.sources import Source, list_sources
from kmidi_mlx.data.synthetic import write_synthetic
from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.augment import scale_velocity, slice_notes, time_stretch, transpose
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.mood import cell_statistics, mood_features, window_sums
from kmidi_mlx.music.notes import Notes

__all__ = ["QUADRANT_LABELS", "RenderReport", "quadrant_label", "render_audio_emotion"]

#: Labels of the quadrants of valence and arousal, by (valence >= 0, arousal >= 0).
QUADRANT_LABELS = {
    (True, True): "happy",
    (False, True): "angry",
    (False, False): "sad",
    (True, False): "calm",
}

_MANIFEST, _REJECTED, _AUDIO = "manifest.jsonl", "rejected.jsonl", "audio"
# Change it when the sound of a rendering changes, so that older ones are made anew.
_RECIPE_VERSION = 1
_TAIL_SECONDS = 1.0
_CUE_WINDOW_SECONDS, _CUE_HOP_SECONDS = 8.0, 1.0
_MOST_SEMITONES = 5
_STRETCH, _VELOCITY_SCALE = 0.05, 0.15
_FULL_SCALE_16_BIT = 32_767.0
_CHUNK = 2
# Keys of a MIDI manifest that speak of times or sizes of the file that was rendered.
_KEYS_OF_THE_FILE = ("chords", "beats", "key_segments", "n_notes", "n_tokens", "duration_s")
_KEYS_OF_THE_EMOTION = ("label", "valence", "arousal", "intensity")
# Keys that are no longer true of a transposed variant.
_KEYS_OF_THE_PITCH = ("key",)


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
        splits: recordings and songs by side, if complete.
        labels: recordings by label, if complete.
        unlabelled: recordings without numbers and label, if complete.
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


@dataclass(frozen=True)
class _Change:
    semitones: int = 0
    stretch: float = 1.0
    velocity: float = 1.0


@dataclass(frozen=True)
class _Job:
    """One recording to make."""

    source: int
    variant: int
    midi: str
    target: str
    seconds: float
    sample_rate: int
    change: _Change


@dataclass(frozen=True)
class _Made:
    """How a job went: length of the recording, or what is wrong with its file."""

    seconds: float
    problem: str | None = None


def quadrant_label(valence: float, arousal: float) -> str:
    """Return happy, angry, sad or calm: the label of the quadrant; 0 counts as positive."""
    return QUADRANT_LABELS[valence >= 0.0, arousal >= 0.0]


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
    workers: int | None = None,
    seed: int = 0,
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
    rejected.

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
            slower, 15 % louder or softer.
        with_unlabelled: render music without labels as well; else it is rejected.
        workers: processes; None for the number of cores.
        seed: of the changes.
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
    if not sources and not synthetic:
        raise KmidiError("nothing to prepare: name MIDI manifests, or --synthetic N.")
    out = Path(os.path.abspath(out))  # noqa: PTH100 (keeps links)
    listed = list_sources(sources, root=root, skip=out) if sources else []
    _check_destination(out, sources)
    with locked(out):
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
        (out / _AUDIO).mkdir(exist_ok=True)
        remove_leftovers(out / _AUDIO)
        problems: dict[int, str] = {}
        wanted: list[_Job] = []
        held_out = {
            source.song
            for source in listed
            if _is_labelled(source) and source.split not in (None, "train")
        }
        for number, source in enumerate(listed):
            problem = _unusable(source, with_unlabelled, held_out)
            digest = None if problem else _digest(Path(source.path))
            if digest is None:
                problems[number] = problem or "cannot be read"
                continue
            for variant in range(variants + 1 if _is_labelled(source) else 1):
                change = _drawn(digest, seed, variant)
                wanted.append(
                    _Job(
                        number,
                        variant,
                        source.path,
                        str(out / _AUDIO / _name(source, digest, sample_rate, seconds, change)),
                        seconds,
                        sample_rate,
                        change,
                    )
                )
        missing = {job.target: job for job in wanted if not Path(job.target).exists()}
        on_start("render", len(missing))
        started = time.perf_counter()
        rendered, audio_seconds = 0, 0.0
        for done in map_chunks(
            _render_jobs,
            list(missing.values()),
            workers=min(workers or os.cpu_count() or 1, max(1, -(-len(missing) // _CHUNK))),
            chunk_size=_CHUNK,
            stop=stop,
        ):
            if isinstance(done, Lost):
                problems[done.item.source] = f"killed its process (exit code {done.exit_code})"
                continue
            for job, made in zip(*done, strict=True):
                if made.problem:
                    problems[job.source] = made.problem
                rendered += not made.problem
                audio_seconds += made.seconds
            on_progress(len(done[0]), round(sum(made.seconds for made in done[1])))
        elapsed = time.perf_counter() - started
        kept = [job for job in wanted if job.source not in problems]
        complete = all(Path(job.target).exists() for job in kept)
        rows = _commit(out, listed, kept, problems, licence) if complete else []
    songs = {(row["split"], row["song"]) for row in rows}
    sides = Counter(row["split"] for row in rows)
    return RenderReport(
        complete=complete,
        sources=len(listed),
        composed=composed,
        missing=len(missing),
        rendered=rendered,
        reused=len({job.target for job in wanted}) - len(missing),
        rejected=len(problems),
        seconds=elapsed,
        audio_seconds=audio_seconds,
        splits={
            split: (sides[split], sum(side == split for side, _ in songs))
            for split in SPLITS
            if sides[split]
        },
        labels=dict(sorted(Counter(row["label"] for row in rows if "label" in row).items())),
        unlabelled=sum("label" not in row for row in rows),
    )


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


def _is_labelled(source: Source) -> bool:
    values = source.values
    if values.get("label") is not None:
        return True
    return values.get("valence") is not None and values.get("arousal") is not None


def _unusable(source: Source, with_unlabelled: bool, held_out: set[str]) -> str | None:
    if _is_labelled(source):
        return None
    if not with_unlabelled:
        return "no emotion is given: a line of a manifest needs a label, or valence and arousal"
    if source.song in held_out:
        return f"no emotion is given, and the song {source.song!r} is held out"
    return None


def _digest(path: Path) -> str | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return None


def _drawn(digest: str, seed: int, variant: int) -> _Change:
    if not variant:
        return _Change()
    rng = np.random.default_rng((seed, variant, int(digest, 16)))
    # never 0: that would be the music as written
    semitones = int(rng.choice([n for n in range(-_MOST_SEMITONES, _MOST_SEMITONES + 1) if n]))
    stretch, velocity = rng.uniform(-1.0, 1.0, 2).tolist()
    return _Change(
        semitones, round(1.0 + _STRETCH * stretch, 4), round(1.0 + _VELOCITY_SCALE * velocity, 4)
    )


def _name(source: Source, digest: str, sample_rate: int, seconds: float, change: _Change) -> str:
    recipe = {
        "version": _RECIPE_VERSION,
        "midi": digest,
        "sample_rate": sample_rate,
        "seconds": seconds,
        **asdict(change),
    }
    key = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=6).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.path).stem).strip("-")[:60]
    return f"{stem or 'piece'}-{key}.flac"


def _render_jobs(jobs: list[_Job]) -> list[_Made]:
    made = []
    for job in jobs:
        try:
            made.append(_Made(_render_job(job)))
        except KmidiError as error:
            made.append(_Made(0.0, str(error)))
    return made


def _played(job: _Job) -> tuple[Notes, float]:
    """Return the notes of a recording and how long they are to be rendered."""
    notes = read_midi(Path(job.midi))
    if not len(notes):
        raise KmidiError(f"{job.midi} has no notes.")
    change = job.change
    if change != _Change():
        notes = scale_velocity(transpose(notes, change.semitones), change.velocity)
        notes = time_stretch(notes, change.stretch)
    return _middle(notes, job.seconds)


def _cues(job: _Job) -> list[list[float]]:
    cells = cell_statistics(_played(job)[0], _CUE_HOP_SECONDS)
    sums = window_sums(cells, round(_CUE_WINDOW_SECONDS / _CUE_HOP_SECONDS), 1)
    found: list[list[float]] = np.round(mood_features(sums), 4).tolist()
    return found


def _render_job(job: _Job) -> float:
    notes, length = _played(job)
    sound = render(notes, sample_rate=job.sample_rate, seconds=length).mean(axis=1)
    _write_flac(Path(job.target), sound, job.sample_rate)
    return len(sound) / job.sample_rate


def _middle(notes: Notes, seconds: float) -> tuple[Notes, float]:
    spare = notes.duration_seconds - seconds
    if spare <= 0:
        return notes, min(seconds, notes.duration_seconds + _TAIL_SECONDS)
    return slice_notes(notes, spare / 2, spare / 2 + seconds), seconds


def _write_flac(path: Path, samples: NDArray[np.float32], sample_rate: int) -> None:
    peak = max(1.0, float(np.abs(samples).max(initial=0.0)))
    whole = np.rint(samples * (_FULL_SCALE_16_BIT / peak)).astype(np.int16)
    with atomic_write(path) as temporary:
        try:
            soundfile.write(temporary, whole, sample_rate, subtype="PCM_16", format="FLAC")
        except soundfile.SoundFileError as error:
            raise KmidiError(f"cannot write {path}: {error}.") from error


def _commit(
    out: Path,
    listed: list[Source],
    kept: list[_Job],
    problems: dict[int, str],
    licence: str | None,
) -> list[dict[str, Any]]:
    """Write the manifests, then remove recordings of the last run that are no longer listed."""
    if not kept:
        first = next(iter(problems.values()))
        raise KmidiError(f"none of the {len(listed)} files can be used; the first: {first}.")
    manifest = out / _MANIFEST
    before = {
        str(row.values["path"])
        for row in (read_manifest(manifest, required=("path",)) if manifest.exists() else [])
    }
    rows = [_row(out, listed[job.source], job, licence) for job in kept]
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
    return rows


def _row(out: Path, source: Source, job: _Job, licence: str | None) -> dict[str, Any]:
    path = Path(job.target)
    dropped = {*_KEYS_OF_THE_FILE, *(_KEYS_OF_THE_PITCH if job.variant else ())}
    values = {key: value for key, value in source.values.items() if key not in dropped}
    values["path"] = str(path.relative_to(out))
    values["song"] = source.song
    if licence is not None:
        values.setdefault("licence", licence)
    if not _is_labelled(source):
        # one number alone is not used
        for key in _KEYS_OF_THE_EMOTION:
            values.pop(key, None)
        values["split"] = "train"
    elif values.get("label") is None:
        values["label"] = quadrant_label(values["valence"], values["arousal"])
    with soundfile.SoundFile(path) as file:
        length = file.frames / file.samplerate
    values["cues"] = _cues(job)
    values["cue_window_s"], values["cue_hop_s"] = _CUE_WINDOW_SECONDS, _CUE_HOP_SECONDS
    return {**values, "midi": source.path, "variant": job.variant, "duration_s": round(length, 3)}
