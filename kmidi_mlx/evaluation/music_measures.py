"""What pieces are like, in numbers that can be compared between sets: written and real music."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.music.events import STEPS_PER_SECOND
from kmidi_mlx.music.features import FEATURE_NAMES, features
from kmidi_mlx.music.mood import CHORD_GAP_SECONDS, STATISTICS, cell_statistics, mood
from kmidi_mlx.music.notes import Notes

__all__ = [
    "MEASURES",
    "NGRAM_NOTES",
    "PROFILES",
    "SIMILARITY_LAGS",
    "Summary",
    "difference",
    "measure",
    "middle_of",
    "profiles",
    "summarise",
]

#: What is measured of a piece, and its unit. A chord is notes that begin less than 30 ms apart.
#:
#: note_density         notes a second, 0 to the end of the last note
#: mean_pitch           MIDI pitch, 0-127, mean over notes
#: pitch_range          semitones from the lowest to the highest note, 0-127
#: polyphony            notes that sound at a time, mean over the time in which any does, >= 1 (Dong
#:                      et al., "MusPy: a toolkit for symbolic music generation", ISMIR 2020)
#: mean_velocity        MIDI velocity, 1-127, mean over notes
#: note_seconds         seconds, mean length of a note
#: key_clarity          0-1, best correlation of the sounding pitch classes with a key
#:                      (`kmidi_mlx.music.features`: Krumhansl & Kessler 1982)
#: pitch_class_entropy  bits, 0 to log2(12) = 3.58, of the notes' pitch classes (MusPy)
#: repetition           0-1, share of runs of 8 notes, about a bar, that occurred earlier in the
#:                      piece; notes are compared by pitch class and by the time since the chord
#:                      before, in octaves of 30 ms. 0 for less than 9 notes
#: self_similarity      0-1, mean cosine between the pitch-class shares of two different stretches
#:                      of 2 s (mean of the self-similarity matrix of Foote, "Visualizing music and
#:                      audio using self-similarity", 1999). 0 for less than two such stretches
#: empty_share          0-1, share of the time in which nothing sounds
#: longest_silence      seconds, longest time in which nothing sounds, also before the first note
#: valence, arousal     -1 to 1, estimated mood of the whole piece (`kmidi_mlx.music.mood`, steering
#:                      scale)
MEASURES: tuple[str, ...] = (
    "note_density",
    "mean_pitch",
    "pitch_range",
    "polyphony",
    "mean_velocity",
    "note_seconds",
    "key_clarity",
    "pitch_class_entropy",
    "repetition",
    "self_similarity",
    "empty_share",
    "longest_silence",
    "valence",
    "arousal",
)

#: What is a row of numbers of a piece, and how many. Shares sum to 1; without notes all are 0.
#:
#: pitch_classes            12, share of the notes by pitch class, C first
#: pitch_class_transitions  144, share of the steps from note to note by their two pitch classes
#:                          (Yang & Lerch, "On the evaluation of generative models in music", Neural
#:                          Computing and Applications 32, 2020)
#: inter_onset_intervals    20, share of the times from chord to chord, in half octaves of 30 ms
#: note_lengths             20, share of the notes' lengths, in half octaves of 30 ms
#: velocities               16, share of the notes by velocity, in steps of 8
#: self_similarity_by_lag   12, mean cosine between the pitch-class shares of seconds that are 1 to
#:                          12 s apart (Foote 1999); 0 where none are
PROFILES: dict[str, int] = {
    "pitch_classes": 12,
    "pitch_class_transitions": 144,
    "inter_onset_intervals": 20,
    "note_lengths": 20,
    "velocities": 16,
    "self_similarity_by_lag": 12,
}

#: Longest distance in time, in seconds, of what `self_similarity_by_lag` compares.
SIMILARITY_LAGS = PROFILES["self_similarity_by_lag"]

#: Length of the runs of notes that `repetition` compares.
NGRAM_NOTES = 8

# Where octaves of the time between chords begin, in steps of 10 ms: 30 ms, 60 ms … 15.4 s.
_OCTAVES = 3 * 2 ** np.arange(10)
_NO_INTERVAL = len(_OCTAVES) + 1
# Where half octaves begin, in seconds: below 30 ms, 30 ms, 42 ms … 15 s and more. A little less
# than they say, as 0.12 s has no exact float.
_HALF_OCTAVES = 0.03 * 2.0 ** (np.arange(19) / 2) - 1e-6
_KEY_CLARITY = FEATURE_NAMES.index("key_clarity")
_FIRST_CLASS = STATISTICS.index("pitch_class_0")
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """One measure over a set of pieces; None where there are too few.

    Attributes:
        mean: over the pieces that have notes.
        deviation: standard deviation of a piece (n - 1), from two pieces on.
    """

    mean: float | None
    deviation: float | None


def measure(pieces: Sequence[Notes]) -> _Floats:
    """Measure each piece.

    Args:
        pieces: n pieces, of any length.

    Returns:
        float64 (n, 14), columns as in `MEASURES`; NaN for a piece without notes, which has none of
        these properties.
    """
    rows = np.full((len(pieces), len(MEASURES)), np.nan)
    for row, notes in zip(rows, pieces, strict=True):
        if len(notes):
            row[:] = _measure_piece(notes)
    return rows


def profiles(notes: Notes) -> dict[str, _Floats]:
    """Measure what is a row of numbers.

    Args:
        notes: a piece of any length.

    Returns:
        For each of `PROFILES` a float64 row of its length.
    """
    pitch_class = notes.pitch.astype(np.intp) % 12
    starts = np.diff(notes.onset_seconds, prepend=-math.inf) >= CHORD_GAP_SECONDS
    length = notes.offset_seconds - notes.onset_seconds
    between = np.diff(notes.onset_seconds[starts])
    return {
        "pitch_classes": _shares(pitch_class, 12),
        "pitch_class_transitions": _shares(12 * pitch_class[:-1] + pitch_class[1:], 144),
        "inter_onset_intervals": _shares(_half_octave(between), 20),
        "note_lengths": _shares(_half_octave(length), 20),
        "velocities": _shares(notes.velocity.astype(np.intp) // 8, 16),
        "self_similarity_by_lag": _similarity_by_lag(notes),
    }


def middle_of(notes: Notes, seconds: float) -> Notes:
    """Cut `seconds` seconds out of the middle of a piece, to compare with music of that length.

    Args:
        notes: the piece; a shorter one is returned as it is.
        seconds: > 0.
    """
    spare = notes.duration_seconds - seconds
    return slice_notes(notes, spare / 2, spare / 2 + seconds) if spare > 0 else notes


def summarise(rows: _Floats) -> dict[str, Summary]:
    """Sum up a set.

    Args:
        rows: (n, 14) from `measure`.

    Returns:
        A summary for each of `MEASURES`.
    """
    rows = rows[~np.isnan(rows[:, 0])]
    means = rows.mean(axis=0).tolist() if len(rows) else [None] * len(MEASURES)
    spreads = rows.std(axis=0, ddof=1).tolist() if len(rows) > 1 else [None] * len(MEASURES)
    return {
        name: Summary(mean, spread)
        for name, mean, spread in zip(MEASURES, means, spreads, strict=True)
    }


def difference(of: Summary, to: Summary) -> float | None:
    """Return how far the mean of one set is from that of another, in standard deviations of `to`.

    Glass's delta (Glass, "Primary, secondary, and meta-analysis of research", 1976); None where
    `to` has no spread.
    """
    if of.mean is None or to.mean is None or not to.deviation:
        return None
    return (of.mean - to.mean) / to.deviation


def _measure_piece(notes: Notes) -> tuple[float, ...]:
    seconds, pitch = notes.duration_seconds, notes.pitch.astype(np.intp)
    length = notes.offset_seconds - notes.onset_seconds
    gaps = _silences(notes)
    empty = float(gaps.sum())
    valence, arousal = mood(notes)
    return (
        len(notes) / seconds,
        float(pitch.mean()),
        float(pitch.max() - pitch.min()),
        float(length.sum() / (seconds - empty)),
        float(notes.velocity.mean()),
        float(length.mean()),
        float(features(notes)[_KEY_CLARITY]),
        _entropy(np.bincount(pitch % 12, minlength=12)),
        _repetition(notes),
        _self_similarity(notes),
        empty / seconds,
        float(gaps.max()),
        valence,
        arousal,
    )


def _silences(notes: Notes) -> _Floats:
    """Return (n,) seconds before each onset in which nothing sounds."""
    ended = np.concatenate(([0.0], np.maximum.accumulate(notes.offset_seconds)[:-1]))
    silent: _Floats = np.maximum(notes.onset_seconds - ended, 0.0)
    return silent


def _entropy(counts: NDArray[np.intp]) -> float:
    share = counts[counts > 0] / counts.sum()
    return max(0.0, -float(share @ np.log2(share)))


def _repetition(notes: Notes) -> float:
    onset = notes.onset_seconds
    starts_chord = np.diff(onset, prepend=-math.inf) >= CHORD_GAP_SECONDS
    chord = np.cumsum(starts_chord) - 1
    # A chord's notes may come in any order: what counts is which they are.
    pitch_class = notes.pitch[np.lexsort((notes.pitch, chord))] % 12
    # Whole steps, so that equal times are equal whatever floats they were computed from.
    steps = np.rint(np.diff(onset[starts_chord], prepend=0.0) * STEPS_PER_SECOND)
    octave = np.searchsorted(_OCTAVES, steps, side="right")
    octave[0] = _NO_INTERVAL
    symbol = pitch_class + 12 * np.where(starts_chord, octave[chord], 0)
    if len(symbol) <= NGRAM_NOTES:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(symbol, NGRAM_NOTES)
    return 1.0 - len(np.unique(runs, axis=0)) / len(runs)


def _self_similarity(notes: Notes) -> float:
    shares = cell_statistics(notes)[:, _FIRST_CLASS : _FIRST_CLASS + 12]
    norm = np.sqrt(np.square(shares).sum(axis=1))
    unit = shares[norm > 0] / norm[norm > 0, None]
    count = len(unit)
    if count < 2:
        return 0.0
    # The sum over all pairs, without making them.
    total = float(np.square(unit.sum(axis=0)).sum())
    return max(0.0, total - count) / (count * (count - 1))


def _shares(number: NDArray[np.intp], count: int) -> _Floats:
    histogram = np.bincount(number, minlength=count)
    shares: _Floats = histogram / max(1, histogram.sum())
    return shares


def _half_octave(seconds: _Floats) -> NDArray[np.intp]:
    return np.searchsorted(_HALF_OCTAVES, seconds, side="right")


def _similarity_by_lag(notes: Notes) -> _Floats:
    shares = cell_statistics(notes, 1.0)[:, _FIRST_CLASS : _FIRST_CLASS + 12]
    norm = np.sqrt(np.square(shares).sum(axis=1))
    # seconds without notes are like nothing and do not count
    unit = shares / np.where(norm > 0, norm, 1.0)[:, None]
    heard = norm > 0
    found = np.zeros(SIMILARITY_LAGS)
    for lag in range(1, min(SIMILARITY_LAGS, len(unit) - 1) + 1):
        pairs = int((heard[lag:] & heard[:-lag]).sum())
        found[lag - 1] = float((unit[lag:] * unit[:-lag]).sum()) / max(1, pairs)
    return found
