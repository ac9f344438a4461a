"""Practice music with known labels: bars, harmony, melody and accompaniment that follow a mood.

It is no substitute for music by people: it lets everything be tried out without data, with labels
that are true by construction. Cues follow Gabrielsson & Lindström ("The role of structure in the
musical expression of emotions", Handbook of Music and Emotion, 2010): arousal raises tempo,
loudness, density and detachment; valence chooses mode, progression and register.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.data.manifest import read_manifest, write_manifest
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.chords import ROOTS
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.music.notes import Notes

__all__ = ["Practice", "compose", "write_synthetic"]

_BEATS = 4
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
# Degrees (from 0) of four-bar progressions, from the darker to the brighter ones of a mode.
_PROGRESSIONS = {
    "min": ((0, 5, 3, 4), (0, 3, 0, 4), (0, 6, 5, 4), (0, 5, 2, 6), (0, 2, 5, 6)),
    "maj": ((5, 3, 0, 4), (0, 5, 1, 4), (0, 5, 3, 4), (0, 4, 5, 3), (0, 3, 4, 0)),
}
_FORM = (0, 0, 1, 0)
# Onsets of a melody bar in beats, from the calmer to the livelier ones.
_RHYTHMS: tuple[tuple[float, ...], ...] = (
    (0, 2),
    (0, 2, 3),
    (0, 1, 2, 3),
    (0, 1, 1.5, 2, 3),
    (0, 0.5, 1, 2, 2.5, 3),
    (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5),
    (0, 0.25, 0.5, 1, 1.5, 1.75, 2, 2.5, 3, 3.25, 3.5),
)
_MELODY_LOW, _MELODY_HIGH = 57, 91
_BATCH_PIECES = 128
# Third word of the seeds that draw which pieces are held out.
_VAL_STREAM = 29


@dataclass(frozen=True, eq=False)
class Practice:
    """A practice piece and what is true of it.

    Attributes:
        notes: the music.
        tempo: beats a minute.
        key: such as `Eb:min`.
        chords: `[start_seconds, end_seconds, symbol]` for each bar.
    """

    notes: Notes
    tempo: float
    key: str
    chords: list[list[Any]]


def compose(valence: float, arousal: float, rng: np.random.Generator) -> Practice:
    """Compose a piece of 16 to 24 bars.

    Args:
        valence: -1 to 1.
        arousal: -1 to 1.
        rng: draws everything that the mood leaves open.
    """
    mode = "maj" if valence + rng.normal(0.0, 0.2) > 0.0 else "min"
    tonic = int(rng.integers(12))
    tempo = float(np.clip(96.0 + 42.0 * arousal + rng.normal(0.0, 5.0), 46.0, 168.0))
    beat = 60.0 / tempo
    loudness = 70.0 + 30.0 * arousal
    held = 0.8 - 0.25 * arousal
    scale = _MAJOR if mode == "maj" else _MINOR
    phrases = [_phrase(valence, arousal, mode, rng) for _ in range(2)]
    centre = 72.0 + 5.0 * valence + 3.0 * arousal

    rows: list[tuple[int, float, float, float]] = []  # pitch, velocity, onset and end in beats
    chords: list[list[Any]] = []
    previous = round(centre)
    form = _FORM + (_FORM[:2] if rng.random() < 0.5 else ())
    for number, which in enumerate(form):
        degrees, rhythms, steps = phrases[which]
        for bar, degree in enumerate(degrees):
            start = float(_BEATS * (number * len(degrees) + bar))
            triad = [tonic + _degree(scale, degree + third) for third in (0, 2, 4)]
            symbol = _symbol(triad)
            chords.append([start * beat, (start + _BEATS) * beat, symbol])
            rows += _accompaniment(triad, start, arousal, loudness - 12.0)
            swell = 6.0 * np.sin(np.pi * (bar + 0.5) / len(degrees))
            onsets = (*rhythms[bar], float(_BEATS))
            for i, onset in enumerate(onsets[:-1]):
                move = steps[bar][i]
                strong = onset == int(onset)
                allowed = triad if strong else [tonic + step for step in scale]
                previous = _nearest(previous + move, centre, allowed)
                velocity = loudness + swell + (5.0 if onset == 0 else 0.0)
                end = onset + max(0.1, (onsets[i + 1] - onset) * held)
                rows.append((previous, velocity, start + onset, start + end))
    final = float(_BEATS * len(form) * 4)
    rows += [(48 + tonic + s, loudness - 8.0, final, final + _BEATS) for s in (0, scale[2], 7)]
    last = [tonic, tonic + scale[2], tonic + 7]
    chords.append([final * beat, (final + _BEATS) * beat, _symbol(last)])

    pitch, loud, begin, stop = np.array(rows).T
    human = rng.normal(0.0, 1.0, (2, len(rows)))
    onset_seconds = np.maximum(0.0, begin * beat + 0.006 * human[0])
    notes = Notes.build(
        pitch,
        np.clip(np.round(loud + 3.0 * human[1]), 1, 127),
        onset_seconds,
        np.maximum(stop * beat, onset_seconds + 0.03),
    )
    return Practice(notes, tempo, f"{ROOTS[tonic]}:{mode}", chords)


def write_synthetic(
    folder: Path,
    count: int,
    *,
    seed: int,
    val_share: float,
    on_progress: Callable[[int], None] = lambda pieces: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Write practice pieces as MIDI files with a manifest; equal arguments give equal files.

    Moods are spread evenly over the square of valence and arousal. The manifest always names every
    file that was written here, also when the process is killed: so a later call takes what is
    there already, and removes what a larger one left, but touches no file of anybody else.

    Args:
        folder: made if it is not there.
        count: pieces, >= 1; the k-th piece does not depend on it.
        seed: of everything.
        val_share: share that goes to `val`; if it is not 0, the second piece is among them.
        on_progress: called with the pieces done since the last call.
        stop: asked between pieces; once true, no more is written and the call ends. The manifest
            may then name files that are not there yet.

    Returns:
        The path of the manifest; its labels are on the steering scale.

    Raises:
        KmidiError: for a count below 1, if the folder cannot be written, or if a file that we did
            not write is in the way.
    """
    if count < 1:
        raise KmidiError(f"cannot write {count} synthetic pieces; ask for at least 1.")
    manifest = folder / "manifest.jsonl"
    earlier = _earlier(manifest)
    every = round(1.0 / val_share) if val_share > 0.0 else 0
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        made: dict[str, Practice] = {}
        for number in range(len(rows), min(count, len(rows) + _BATCH_PIECES)):
            if stop():
                return manifest
            name = f"{number:05d}.mid"
            split = "val" if _is_val(number, every, seed) else "train"
            made[name], rows[name] = _piece(name, number, seed, split)
        for name in made:
            if name not in earlier and os.path.lexists(folder / name):
                raise KmidiError(
                    f"{folder / name} was not written by kmidi prepare; move it away, or choose "
                    "another --out."
                )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KmidiError(f"cannot write to {folder}: {error.strerror}.") from error
        # Named before they are written, so that no file is ever left that nobody knows to be ours.
        write_manifest(manifest, (earlier | rows).values())
        for name, piece in made.items():
            if stop():
                return manifest
            if rows[name] != earlier.get(name) or not (folder / name).is_file():
                write_midi(piece.notes, folder / name, tempo=piece.tempo)
            on_progress(1)
    for name in earlier.keys() - rows.keys():
        (folder / name).unlink(missing_ok=True)
    write_manifest(manifest, rows.values())
    return manifest


def _is_val(number: int, every: int, seed: int) -> bool:
    """Say whether a piece is held out: one of each `every`, the second of the first ones.

    The others' places are drawn, because the evenly spread moods of every n-th piece are alike.
    """
    if every == 0:
        return False
    block, place = divmod(number, every)
    if block == 0:
        return place == min(1, every - 1)
    return place == int(np.random.default_rng((seed, block, _VAL_STREAM)).integers(every))


def _earlier(manifest: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of the manifest that an earlier call wrote, by file name."""
    if not manifest.exists():
        return {}
    rows = {str(row.values["path"]): dict(row.values) for row in read_manifest(manifest)}
    for name, values in rows.items():
        if values.get("dataset") != "synthetic" or not re.fullmatch(r"\d{5,}\.mid", name):
            raise KmidiError(
                f"{manifest} was not written by kmidi prepare; move it away, or choose another "
                "--out."
            )
    return rows


def _piece(name: str, number: int, seed: int, split: str) -> tuple[Practice, dict[str, Any]]:
    rng = np.random.default_rng((seed, number))
    valence, arousal = (round(float(x), 3) for x in _spread(number, rng))
    piece = compose(valence, arousal, rng)
    notes = piece.notes
    digest = hashlib.blake2b(digest_size=8)
    for column in (notes.pitch, notes.velocity, notes.onset_seconds, notes.offset_seconds):
        digest.update(column.tobytes())
    return piece, {
        "path": name,
        "split": split,
        "dataset": "synthetic",
        "song": f"{seed}-{number}",
        "synthetic": True,
        "valence": valence,
        "arousal": arousal,
        "scale": "steering",
        "key": piece.key,
        "chords": piece.chords,
        "licence": "generated, free to use",
        "notes_digest": digest.hexdigest(),
    }


def _spread(number: int, rng: np.random.Generator) -> tuple[float, float]:
    # The R2 sequence (Roberts 2018): each further point lands where there were fewest.
    point = (0.5 + (number + 1) * np.array([0.7548776662466927, 0.5698402909980532])) % 1.0
    valence, arousal = np.clip(2.0 * point - 1.0 + rng.normal(0.0, 0.02, 2), -1.0, 1.0)
    return float(valence), float(arousal)


_Phrase = tuple[tuple[int, ...], list[tuple[float, ...]], list[list[int]]]


def _phrase(valence: float, arousal: float, mode: str, rng: np.random.Generator) -> _Phrase:
    """Draw degrees, a rhythm and melodic steps for each of four bars."""
    pool = _PROGRESSIONS[mode]
    brightness = (1.0 - abs(valence)) if mode == "min" else abs(valence)
    degrees = pool[_index(brightness, len(pool), rng)]
    motif = _RHYTHMS[_index((arousal + 1.0) / 2.0, len(_RHYTHMS), rng)]
    calmer = _RHYTHMS[max(0, _RHYTHMS.index(motif) - 2)]
    contour = [int(step) for step in rng.choice([-3, -2, -1, 1, 2, 3, 4], 12)]
    steps = [contour, contour, [-step for step in contour], contour[::-1]]
    return degrees, [motif, motif, motif, calmer], steps


def _index(position: float, count: int, rng: np.random.Generator) -> int:
    return int(np.clip(round(position * (count - 1) + rng.normal(0.0, 0.5)), 0, count - 1))


def _degree(scale: tuple[int, ...], degree: int) -> int:
    return scale[degree % 7] + 12 * (degree // 7)


def _symbol(triad: list[int]) -> str:
    intervals = (triad[1] - triad[0], triad[2] - triad[0])
    quality = {(4, 7): "maj", (3, 7): "min", (3, 6): "dim"}[intervals]
    return f"{ROOTS[triad[0] % 12]}:{quality}"


def _nearest(wanted: float, centre: float, allowed: list[int]) -> int:
    """Return the allowed pitch class's pitch nearest to `wanted`, drawn a little to the centre."""
    aim = wanted + 0.25 * (centre - wanted)
    classes = {pitch % 12 for pitch in allowed}
    pitches = [p for p in range(_MELODY_LOW, _MELODY_HIGH + 1) if p % 12 in classes]
    return min(pitches, key=lambda pitch: abs(pitch - aim))


def _accompaniment(
    triad: list[int], start: float, arousal: float, velocity: float
) -> list[tuple[int, float, float, float]]:
    """Return one bar: held chords, arpeggios, Alberti figures or repeated chords, by arousal."""
    root = 36 + triad[0] % 12
    chord = sorted(48 + pitch % 12 for pitch in triad)
    rows = [(root, velocity + 4.0, start, start + _BEATS * 0.95)]
    if arousal < -0.5:
        return rows + [(pitch, velocity, start, start + 3.9) for pitch in chord]
    if arousal < 0.0:
        pattern = [chord[0], chord[1], chord[2], chord[1]]
        return rows + [(p, velocity, start + i, start + i + 0.95) for i, p in enumerate(pattern)]
    if arousal < 0.5:
        pattern = [chord[0], chord[2], chord[1], chord[2]] * 2
        return rows + [
            (p, velocity, start + i / 2, start + i / 2 + 0.45) for i, p in enumerate(pattern)
        ]
    rows = [(root, velocity + 6.0, start + b, start + b + 0.4) for b in range(_BEATS)]
    return rows + [
        (pitch, velocity, start + i / 2, start + i / 2 + 0.3)
        for i in range(2 * _BEATS)
        for pitch in chord
    ]
