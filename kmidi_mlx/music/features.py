"""Thirty-two numbers that say what a stretch of notes is like."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.mood import CHORD_GAP_SECONDS, key_correlations
from kmidi_mlx.music.notes import Notes

__all__ = ["FEATURE_COUNT", "FEATURE_NAMES", "features"]

FEATURE_COUNT = 32

#: What the 32 numbers are. All are 0 for silence; "mode" is in [-1, 1], all others in [0, 1].
#:
#: pitch_class_0 … 11   share of the sounding time by pitch class, C first; they sum to 1
#: density              note onsets a second x as x / (x + 8)
#: polyphony            notes sounding at a time, mean over the window, x as x / (x + 4)
#: pitch_mean           mean pitch / 127
#: pitch_spread         standard deviation of pitch / 63.5, the largest that there can be
#: pitch_range          highest less lowest pitch / 127
#: velocity_mean        mean velocity / 127
#: velocity_spread      standard deviation of velocity / 63, the largest that there can be
#: onset_regularity     1 - mean |a - b| / (a + b) over neighbouring inter-onset intervals a, b: 1
#:                      for an even pulse (1 less half the pairwise variability index of Grabe &
#:                      Low, "Durational variability in speech and the rhythm class hypothesis",
#:                      2002)
#: ioi_mean             mean inter-onset interval x seconds as x / (x + 0.5)
#: ioi_spread           standard deviation / mean of the inter-onset intervals, x as x / (x + 1)
#: articulation         mean of length / inter-onset interval, at most 1 each: 1 for legato
#: low_register         share of notes below C3 (48)
#: middle_register      share of notes from C3 to B4 (48-71)
#: high_register        share of notes from C5 up (72)
#: mode                 best correlation with a major key less best with a minor key (Krumhansl &
#:                      Kessler profiles); the best of twelve is never negative
#: key_clarity          best correlation with any key
#: tonal_tension        spread of the pitch classes over the circle of fifths: 1 - length of their
#:                      mean vector, 0 for a single pitch class
#: dissonance           mean dissonance of two different pitch classes drawn by their share of time,
#:                      1 for semitones, 0 for fifths (interval-class values of Huron,
#:                      "Interval-class content in equally tempered pitch-class sets", 1994)
#: novelty              1 - cosine of the pitch-class shares of the window's halves (after Foote,
#:                      "Automatic audio segmentation using a measure of audio novelty", 2000); 1 if
#:                      only one half has notes
#: sounding             share of the time in which anything sounds
FEATURE_NAMES: tuple[str, ...] = (
    *(f"pitch_class_{k}" for k in range(12)),
    "density",
    "polyphony",
    "pitch_mean",
    "pitch_spread",
    "pitch_range",
    "velocity_mean",
    "velocity_spread",
    "onset_regularity",
    "ioi_mean",
    "ioi_spread",
    "articulation",
    "low_register",
    "middle_register",
    "high_register",
    "mode",
    "key_clarity",
    "tonal_tension",
    "dissonance",
    "novelty",
    "sounding",
)

_Floats = NDArray[np.float64]
_FIFTHS = np.exp(2j * np.pi * 7.0 * np.arange(12) / 12.0)
# Huron's consonance of interval classes 1-6, turned into dissonance between 0 and 1.
_CONSONANCE = np.array([-1.428, -0.582, 0.594, 0.386, 1.240, -0.453])
_DISSONANCE = np.zeros(12)
_DISSONANCE[1:7] = (1.240 - _CONSONANCE) / (1.240 + 1.428)
_DISSONANCE[7:] = _DISSONANCE[5:0:-1]
_DYADS = _DISSONANCE[(np.arange(12)[:, None] - np.arange(12)) % 12]


def features(notes: Notes, window: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Describe the notes in a window of time.

    A note that reaches into the window counts there with the part that it sounds; density, the
    inter-onset intervals and articulation look at the notes that begin in the window.

    Args:
        notes: the piece.
        window: start and end in seconds, start < end; None: the whole piece from 0.

    Returns:
        float32 (32,), entries as in `FEATURE_NAMES`; zeros for silence.

    Raises:
        KmidiError: if the window is not a stretch of time.
    """
    start, end = (0.0, notes.duration_seconds) if window is None else window
    if window is not None and not -math.inf < start < end < math.inf:
        raise KmidiError(
            f"window {start:g} to {end:g} is not a stretch of time; give start < end in seconds."
        )
    out = np.zeros(FEATURE_COUNT, np.float64)
    # Onsets are sorted, so what begins after the window is cut off without a look.
    count = int(np.searchsorted(notes.onset_seconds, end, side="left"))
    heard = np.flatnonzero(notes.offset_seconds[:count] > start)
    if not len(heard):
        return out.astype(np.float32)
    onset, pitch = notes.onset_seconds[heard], notes.pitch[heard].astype(np.intp)
    begin, finish = np.maximum(onset, start), np.minimum(notes.offset_seconds[heard], end)
    seconds = end - start

    histogram = _pitch_classes(pitch, finish - begin)
    out[:12] = histogram
    out[13] = _saturate((finish - begin).sum() / seconds, 4.0)
    out[14], out[15] = pitch.mean() / 127.0, pitch.std() / 63.5
    out[16] = (pitch.max() - pitch.min()) / 127.0
    velocity = notes.velocity[heard]
    out[17], out[18] = velocity.mean() / 127.0, velocity.std() / 63.0
    begun = onset >= start
    if begun.any():
        out[12] = _saturate(int(begun.sum()) / seconds, 8.0)
        out[19:23] = _rhythm(onset[begun], (finish - begin)[begun])
    low, high = (pitch < 48).mean(), (pitch >= 72).mean()
    out[23:26] = low, ((pitch >= 48) & (pitch < 72)).mean(), high
    out[26:30] = _tonality(histogram)
    out[30] = _novelty(pitch, begin, finish, (start + end) / 2.0)
    out[31] = _sounding_seconds(begin, finish) / seconds
    # Sums of shares may end a rounding error outside.
    limited: NDArray[np.float32] = np.clip(out, -1.0, 1.0).astype(np.float32)
    return limited


def _saturate(value: float, half: float) -> float:
    return value / (value + half)


def _pitch_classes(pitch: NDArray[np.intp], seconds: _Floats) -> _Floats:
    histogram: _Floats = np.bincount(pitch % 12, seconds, 12).astype(np.float64)
    return histogram / max(float(histogram.sum()), 1e-12)


def _rhythm(onset: _Floats, length: _Floats) -> tuple[float, float, float, float]:
    """Return regularity, mean interval, spread of intervals and articulation, all in [0, 1]."""
    first = np.flatnonzero(np.diff(onset, prepend=-math.inf) >= CHORD_GAP_SECONDS)
    if len(first) < 2:
        return 0.0, 0.0, 0.0, 0.0
    interval = np.diff(onset[first])
    mean = float(interval.mean())
    unevenness = np.abs(np.diff(interval)) / (interval[1:] + interval[:-1])
    regularity = 1.0 - float(unevenness.mean()) if len(interval) > 1 else 0.0
    longest = np.maximum.reduceat(length, first)[:-1]
    articulation = float(np.minimum(longest / interval, 1.0).mean())
    return (
        regularity,
        _saturate(mean, 0.5),
        _saturate(float(interval.std()) / mean, 1.0),
        articulation,
    )


def _tonality(histogram: _Floats) -> tuple[float, float, float, float]:
    """Return mode, key clarity, tonal tension and dissonance of pitch-class shares (12,)."""
    fit = key_correlations(histogram[None])[0]
    major, minor = float(fit[:12].max()), float(fit[12:].max())
    tension = 1.0 - float(np.abs(histogram @ _FIFTHS))
    pairs = 1.0 - float(histogram @ histogram)
    dissonance = float(histogram @ _DYADS @ histogram) / pairs if pairs > 1e-9 else 0.0
    return major - minor, max(0.0, major, minor), max(0.0, tension), dissonance


def _novelty(pitch: NDArray[np.intp], begin: _Floats, finish: _Floats, middle: float) -> float:
    early = _pitch_classes(pitch, np.maximum(np.minimum(finish, middle) - begin, 0.0))
    late = _pitch_classes(pitch, np.maximum(finish - np.maximum(begin, middle), 0.0))
    norm = math.sqrt(float(early @ early) * float(late @ late))
    return max(0.0, 1.0 - float(early @ late) / norm) if norm > 0.0 else 1.0


def _sounding_seconds(begin: _Floats, finish: _Floats) -> float:
    # What sounded before a note begins has an end that is the largest so far.
    ended = np.maximum.accumulate(finish)
    silent = np.maximum(begin[1:] - ended[:-1], 0.0).sum()
    return float(ended[-1] - begin[0] - silent)
