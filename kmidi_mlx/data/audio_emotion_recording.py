"""One labelled piece to one recording: the part of rendering that runs on all cores.

The file's name carries a digest of everything that it depends on, so what is already there is used
again, wherever it was made.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from kmidi_mlx.atomic import atomic_write
from kmidi_mlx.audio.sampler import render
from kmidi_mlx.data.sources import Source
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.augment import (
    exchange_mode,
    scale_velocity,
    slice_notes,
    time_stretch,
    transpose,
)
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.mood import cell_statistics, likely_key, mood, mood_features, window_sums
from kmidi_mlx.music.notes import Notes

__all__ = [
    "QUADRANT_LABELS",
    "RECIPE_VERSION",
    "Change",
    "Job",
    "Made",
    "describe_recording",
    "draw_change",
    "file_digest",
    "is_labelled",
    "quadrant_label",
    "recording_name",
    "render_jobs",
]

#: Labels of the quadrants of valence and arousal, by (valence >= 0, arousal >= 0).
QUADRANT_LABELS = {
    (True, True): "happy",
    (False, True): "angry",
    (False, False): "sad",
    (True, False): "calm",
}


# Change it when the sound of a rendering changes, so that older ones are made anew.
RECIPE_VERSION = 1
_TAIL_SECONDS = 1.0
_CUE_WINDOW_SECONDS, _CUE_HOP_SECONDS = 8.0, 1.0
_MOST_SEMITONES = 5
_STRETCH, _VELOCITY_SCALE = 0.05, 0.15
# How far a variant may go whose emotion is estimated from its own notes.
_WIDE_SEMITONES = 12
_WIDE_STRETCH, _WIDE_VELOCITY = (0.6, 1.7), (0.5, 1.3)
_FULL_SCALE_16_BIT = 32_767.0
# Keys of a MIDI manifest that speak of times or sizes of the file that was rendered.
_KEYS_OF_THE_FILE = ("chords", "beats", "key_segments", "n_notes", "n_tokens", "duration_s")
_KEYS_OF_THE_EMOTION = ("label", "valence", "arousal", "intensity")
# Keys that are no longer true of a transposed variant.
_KEYS_OF_THE_PITCH = ("key",)


@dataclass(frozen=True)
class Change:
    """How a recording differs from the music as written.

    Attributes:
        semitones: that it is moved by.
        stretch: factor of time.
        velocity: factor of force.
        parallel: whether it is in the parallel key, minor for major and major for minor.
    """

    semitones: int = 0
    stretch: float = 1.0
    velocity: float = 1.0
    parallel: bool = False


@dataclass(frozen=True)
class Job:
    """One recording to make: of which source (its number), from which file, into which."""

    source: int
    variant: int
    midi: str
    target: str
    seconds: float
    sample_rate: int
    change: Change
    # whether its emotion is what the mood model makes of the notes
    from_notes: bool = False


@dataclass(frozen=True)
class Made:
    """How a job went: length of the recording, or what is wrong with its file."""

    seconds: float
    problem: str | None = None


def quadrant_label(valence: float, arousal: float) -> str:
    """Return happy, angry, sad or calm: the label of the quadrant; 0 counts as positive."""
    return QUADRANT_LABELS[valence >= 0.0, arousal >= 0.0]


def is_labelled(source: Source) -> bool:
    """Say whether a manifest names the emotion of a source."""
    values = source.values
    if values.get("label") is not None:
        return True
    return values.get("valence") is not None and values.get("arousal") is not None


def file_digest(path: Path) -> str | None:
    """Return what recognises a file's content; None where it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError:
        return None


def draw_change(digest: str, seed: int, variant: int, wide: bool = False) -> Change:
    """Return how a variant of a file differs; variant 0 is the music as written.

    Args:
        digest: of the file (`file_digest`).
        seed: of the draw.
        variant: from 0.
        wide: change also what feelings follow.
    """
    if not variant:
        return Change()
    rng = np.random.default_rng((seed, variant, int(digest, 16)))
    if wide:
        return Change(
            int(rng.integers(-_WIDE_SEMITONES, _WIDE_SEMITONES + 1)),
            round(float(np.exp(rng.uniform(*np.log(_WIDE_STRETCH)))), 4),
            round(float(rng.uniform(*_WIDE_VELOCITY)), 4),
            bool(rng.integers(2)),
        )
    # never 0: that would be the music as written
    semitones = int(rng.choice([n for n in range(-_MOST_SEMITONES, _MOST_SEMITONES + 1) if n]))
    stretch, velocity = rng.uniform(-1.0, 1.0, 2).tolist()
    return Change(
        semitones, round(1.0 + _STRETCH * stretch, 4), round(1.0 + _VELOCITY_SCALE * velocity, 4)
    )


def recording_name(
    source: Source, digest: str, sample_rate: int, seconds: float, change: Change
) -> str:
    """Return the file name of a recording; it is equal only where the sound would be equal."""
    recipe = {
        "version": RECIPE_VERSION,
        "midi": digest,
        "sample_rate": sample_rate,
        "seconds": seconds,
        **asdict(change),
    }
    if not change.parallel:
        del recipe["parallel"]
    key = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=6).hexdigest()
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source.path).stem).strip("-")[:60]
    return f"{stem or 'piece'}-{key}.flac"


def render_jobs(jobs: list[Job]) -> list[Made]:
    """Make recordings; bad files are reported, not raised."""
    made = []
    for job in jobs:
        try:
            made.append(Made(_render_job(job)))
        except KmidiError as error:
            made.append(Made(0.0, str(error)))
    return made


def _played(job: Job) -> tuple[Notes, float]:
    """Return the notes of a recording and how long they are to be rendered."""
    notes = read_midi(Path(job.midi))
    if not len(notes):
        raise KmidiError(f"{job.midi} has no notes.")
    change = job.change
    if change != Change():
        notes = scale_velocity(transpose(notes, change.semitones), change.velocity)
        notes = time_stretch(notes, change.stretch)
    notes, length = _middle(notes, job.seconds)
    if change.parallel:
        notes = exchange_mode(notes, *likely_key(notes))
    return notes, length


def _cues(job: Job) -> list[list[float]]:
    cells = cell_statistics(_played(job)[0], _CUE_HOP_SECONDS)
    sums = window_sums(cells, round(_CUE_WINDOW_SECONDS / _CUE_HOP_SECONDS), 1)
    found: list[list[float]] = np.round(mood_features(sums), 4).tolist()
    return found


def _render_job(job: Job) -> float:
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


def describe_recording(out: Path, source: Source, job: Job, licence: str | None) -> dict[str, Any]:
    """Return the line of the manifest of a recording that was made.

    Args:
        out: folder that the line's path starts from.
        source: whose recording it is.
        job: how it was made.
        licence: of sources that name none, or None.
    """
    path = Path(job.target)
    dropped = {*_KEYS_OF_THE_FILE, *(_KEYS_OF_THE_PITCH if job.variant else ())}
    values = {key: value for key, value in source.values.items() if key not in dropped}
    values["path"] = str(path.relative_to(out))
    values["song"] = source.song
    if licence is not None:
        values.setdefault("licence", licence)
    if job.from_notes:
        valence, arousal = mood(_played(job)[0])
        values |= {"valence": round(valence, 4), "arousal": round(arousal, 4), "emotion_by": "mood"}
        values["label"] = quadrant_label(valence, arousal)
    elif not is_labelled(source):
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
