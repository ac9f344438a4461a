"""Labelled recordings: what a manifest says of them, which side they are on, their spectrograms.

Spectrograms are made once, by worker processes, and kept as float16 in a folder; a file's name is a
digest of the recording's content and of everything else that the numbers in it depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write, remove_leftovers
from kmidi_mlx.audio.augment import pitch_shift, tilt, time_stretch
from kmidi_mlx.audio.files import read_audio
from kmidi_mlx.audio.hearing import Hearing, SemitoneSettings, hear
from kmidi_mlx.audio.mel import CEILING_DB, FLOOR_DB, MelSettings
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.cue_tracks import CueTrack, read_cues, standardise
from kmidi_mlx.data.grouping import assign_splits, connect
from kmidi_mlx.data.manifest import SPLITS, ManifestRow, read_manifest
from kmidi_mlx.data.worker_pool import Lost, map_chunks
from kmidi_mlx.emotion import Emotion, from_label
from kmidi_mlx.errors import KmidiError

__all__ = [
    "NUMBERS",
    "Recordings",
    "Spectrogram",
    "cache_folder",
    "hearing_of",
    "read_recordings",
    "spectrograms",
]

#: What the columns of `Recordings.numbers` are.
NUMBERS = ("valence", "arousal", "intensity")
#: Frames of a recording, float16 (frames, bands) as `hear` gives them; kept on the disk.
Spectrogram = NDArray[np.float16]

_CACHE = "mel-cache"
# Change it when the numbers in the cache change.
_CACHE_VERSION = 1
_CHUNK = 2


@dataclass(frozen=True, eq=False)
class Recordings:
    """The recordings of a manifest.

    Attributes:
        rows: their lines.
        digests: of the content of each file; equal files have equal ones.
        labels: names that `label` counts.
        numbers: float32 (n, 3), see `NUMBERS`; 0 where nothing is known.
        known: float32 (n, 3), 1 where a number is known, else 0.
        label: int32 (n,), index into `labels`; -1: none given.
        cues: musical cues such as density and loudness, in any scale; None where they are not
            known.
        song: int32 (n,), equal for recordings that must stay on one side.
        split: uint8 (n,), index into `kmidi_mlx.data.manifest.SPLITS`.
    """

    rows: list[ManifestRow]
    digests: list[str]
    labels: tuple[str, ...]
    numbers: NDArray[np.float32]
    known: NDArray[np.float32]
    label: NDArray[np.int32]
    cues: list[CueTrack | None]
    song: NDArray[np.int32]
    split: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of recordings."""
        return len(self.rows)

    @property
    def num_cues(self) -> int:
        """How many cues a recording has, where it has some; 0: none has."""
        return next((track.values.shape[1] for track in self.cues if track is not None), 0)

    @property
    def unlabelled(self) -> NDArray[np.bool_]:
        """(n,), which recordings have neither numbers nor a label, only cues."""
        nothing: NDArray[np.bool_] = (self.known.max(axis=1) == 0) & (self.label < 0)
        return nothing

    def on_side(self, split: str) -> NDArray[np.int64]:
        """Return the numbers of the recordings on a side."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    def standardised_cues(self) -> Recordings:
        """Return the same recordings with cues of mean 0 and variance 1 on the train side."""
        return replace(self, cues=standardise(self.cues, self.on_side("train").tolist()))

    def with_split(self, split: NDArray[np.uint8]) -> Recordings:
        """Return the same recordings with other sides, (n,) indices into `SPLITS`."""
        return replace(self, split=split)


def hearing_of(config: EmotionRecognizerConfig) -> Hearing:
    """Return the shape of what a run's recogniser hears."""
    data = config.data
    return Hearing(
        MelSettings(data.sample_rate, data.n_fft, data.hop_length, config.model.n_mels),
        SemitoneSettings(data.sample_rate, data.semitone_n_fft, data.hop_length)
        if config.model.semitones
        else None,
    )


def read_recordings(
    manifest: Path, labels: Sequence[str] = (), *, val_share: float = 0.1, seed: int = 0
) -> Recordings:
    """Read a manifest of recordings with labels or numbers, or with cues alone.

    Cues (see `cue_tracks.read_cues`) are what the network may learn to hear beside emotion.
    Valence and arousal that are not given follow from the label
    (`emotion.from_label`); intensity that is not given is their distance from neutral. A label does
    not follow from numbers. Lines without a split are put on a side by song; the song is `song`, or
    else the file's name without its ending, and equal files are one song. Lines with cues alone are
    on the train side.

    Args:
        manifest: JSON lines with `path` and `label`, or `valence` and `arousal`, or both, or
            `cues`.
        labels: what labels there may be; empty: those of the manifest, in rising order.
        val_share: share of the songs without a split that go to `val`, 0 to 1.
        seed: of that draw.

    Raises:
        KmidiError: naming file and line: what `read_manifest` raises, an unknown label, a recording
            that is not there, nothing at all said about its emotion and no cues, cues alone in a
            song of another side; or no lines.
    """
    rows = read_manifest(manifest, required=("path",))
    if not rows:
        raise KmidiError(f"{manifest} has no lines; name a manifest of recordings.")
    given = [_label_of(row) for row in rows]
    if not labels:
        labels = sorted({label for label in given if label is not None})
    for row, label in zip(rows, given, strict=True):
        if label is not None and label not in labels:
            raise KmidiError(
                f"{row.place}: the label {label!r} is unknown to this model; known are "
                f"{', '.join(labels)}."
            )
    numbers, known = np.zeros((2, len(rows), len(NUMBERS)), np.float32)
    for index, (row, label) in enumerate(zip(rows, given, strict=True)):
        numbers[index], known[index] = _numbers_of(row, label)
    digests = [_content_digest(row) for row in rows]
    names = [
        f"{row.values.get('dataset')}/{row.values.get('song', row.file('path').stem)}"
        for row in rows
    ]
    groups = [_text(row.values.get("group")) for row in rows]
    song = connect([names, digests, groups])
    label_ids = np.array([-1 if x is None else labels.index(x) for x in given], np.int32)
    declared = [row.values.get("split") for row in rows]
    unlabelled = np.flatnonzero((known.max(axis=1) == 0) & (label_ids < 0))
    for index in unlabelled:
        declared[index] = declared[index] or "train"
    split = assign_splits(song, declared, names, seed=seed, val_share=val_share)
    for index in unlabelled:
        if split[index] != SPLITS.index("train"):
            raise KmidiError(
                f"{rows[index].place}: nothing is said about the emotion, so it can only train, "
                f"but the song is in {SPLITS[split[index]]!r}; leave the line out."
            )
    return Recordings(
        rows=rows,
        digests=digests,
        labels=tuple(labels),
        numbers=numbers,
        known=known,
        cues=read_cues(rows),
        label=label_ids,
        song=song,
        split=split,
    )


def spectrograms(
    recordings: Recordings,
    chosen: Sequence[int],
    hearing: Hearing,
    folder: Path,
    *,
    variants: int = 0,
    seed: int = 0,
    workers: int | None = None,
    on_start: Callable[[int], None] = lambda recordings: None,
    on_progress: Callable[[int], None] = lambda recordings: None,
) -> list[list[Spectrogram]]:
    """Return the spectrograms of recordings; what the folder does not have is made and kept there.

    Args:
        recordings: where the files are.
        chosen: k numbers of recordings.
        hearing: shape of the spectrograms.
        folder: the folder of the cache; made if it is not there.
        variants: changed copies of each, stretched by 0.9-1.1, shifted by up to 3 semitones and
            tilted by up to 3 dB an octave.
        seed: of the changes.
        workers: processes; None: all cores.
        on_start: called with the number of recordings that have to be read.
        on_progress: called with the number of recordings read since the last call.

    Returns:
        For each of the k recordings the spectrogram as it is, then its variants; mapped from disk.

    Raises:
        KmidiError: naming the manifest's line: when a recording cannot be read; or when the folder
            cannot be written, or python-stretch is missing for variants.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KmidiError(
            f"cannot make the folder {folder} for spectrograms: {error.strerror}; name another "
            "with data.cache."
        ) from error
    remove_leftovers(folder)
    targets = {
        number: [
            folder / f"{recordings.digests[number]}-{_recipe(hearing, seed, variant)}.npy"
            for variant in range(variants + 1)
        ]
        for number in chosen
    }
    todo = {
        recordings.digests[number]: number
        for number, files in targets.items()
        if any(_opened(file) is None for file in files)
    }
    if todo:
        on_start(len(todo))
    jobs = [(str(recordings.rows[n].file("path")), targets[n]) for n in todo.values()]
    places = dict(zip((path for path, _ in jobs), todo.values(), strict=True))
    count = min(workers or os.cpu_count() or 1, max(1, -(-len(jobs) // _CHUNK)))
    for done in map_chunks(
        partial(_make, hearing, seed),
        jobs,
        workers=count,
        chunk_size=_CHUNK,
        stop=lambda: False,
        # several that use all cores each hold one another up, several times over
        one_thread=count > 1,
    ):
        if isinstance(done, Lost):
            place = recordings.rows[places[done.item[0]]].place
            raise KmidiError(f"{place}: reading {done.item[0]} killed its process.")
        for (path, _), problem in zip(*done, strict=True):
            if problem is not None:
                raise KmidiError(f"{recordings.rows[places[path]].place}: {problem}")
        on_progress(len(done[0]))
    return [[_require(file) for file in targets[number]] for number in chosen]


def cache_folder(config: EmotionRecognizerConfig) -> Path:
    """Return where a run keeps its spectrograms: `data.cache`, or beside its manifest."""
    return Path(config.data.cache or Path(config.data.manifest).parent / _CACHE)


def _label_of(row: ManifestRow) -> str | None:
    label = row.values.get("label")
    return None if label is None else str(label).strip().lower()


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _numbers_of(row: ManifestRow, label: str | None) -> tuple[list[float], list[float]]:
    """Return valence, arousal, intensity and which of them are known."""
    values = dict(row.values)
    if label is not None:
        point = from_label(label)
        for name in ("valence", "arousal"):
            if values.get(name) is None:
                values[name] = getattr(point, name)
    valence, arousal = values.get("valence"), values.get("arousal")
    if values.get("intensity") is None and valence is not None and arousal is not None:
        values["intensity"] = Emotion.of(valence, arousal).intensity
    found = [values.get(name) for name in NUMBERS]
    if all(number is None for number in found) and row.values.get("cues") is None:
        raise KmidiError(
            f"{row.place}: nothing is said about the emotion; give a label, or valence and "
            "arousal, or at least cues."
        )
    return [number or 0.0 for number in found], [float(number is not None) for number in found]


def _content_digest(row: ManifestRow) -> str:
    path = row.file("path")
    digest = hashlib.blake2b(digest_size=12)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise KmidiError(f"{row.place}: cannot read {path}: {error.strerror}.") from error
    return digest.hexdigest()


def _recipe(hearing: Hearing, seed: int, variant: int) -> str:
    settings = hearing.mel
    recipe = [
        _CACHE_VERSION,
        settings.sample_rate,
        settings.n_fft,
        settings.hop_length,
        settings.n_mels,
        FLOOR_DB,
        CEILING_DB,
        *(("semitones", hearing.semitones.n_fft) if hearing.semitones else ()),
        *((seed, variant) if variant else ()),
    ]
    return hashlib.blake2b(json.dumps(recipe).encode(), digest_size=6).hexdigest()


def _make(hearing: Hearing, seed: int, jobs: list[tuple[str, list[Path]]]) -> list[str | None]:
    problems: list[str | None] = []
    for path, targets in jobs:
        try:
            _make_one(hearing, seed, Path(path), targets)
            problems.append(None)
        except KmidiError as error:
            problems.append(str(error))
    return problems


def _make_one(hearing: Hearing, seed: int, path: Path, targets: list[Path]) -> None:
    sample_rate = hearing.mel.sample_rate
    samples = read_audio(path, sample_rate)
    digest = int(targets[0].name.partition("-")[0], 16)
    for variant, target in enumerate(targets):
        if _opened(target) is not None:
            continue
        rng = np.random.default_rng((seed, variant, digest))
        changed = _changed(samples, rng, sample_rate) if variant else samples
        frames = hear(changed, hearing).astype(np.float16)
        with atomic_write(target) as temporary:
            np.save(temporary, frames)


def _changed(
    samples: NDArray[np.float32], rng: np.random.Generator, sample_rate: int
) -> NDArray[np.float32]:
    stretched = time_stretch(samples, rng, sample_rate=sample_rate)
    shifted = pitch_shift(stretched, rng, sample_rate=sample_rate)
    return tilt(shifted, rng, sample_rate=sample_rate)


def _opened(file: Path) -> Spectrogram | None:
    """Return a spectrogram of the cache; None if it is not there or damaged."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    sound = found.ndim == 2 and found.dtype == np.float16 and len(found) > 0
    return found if sound else None


def _require(file: Path) -> Spectrogram:
    found = _opened(file)
    if found is None:
        raise KmidiError(f"{file} was removed or damaged while it was needed; run it again.")
    return found
