"""Mood: valence and arousal of any stretch of notes, from a small linear model.

The model is a ridge regression on 13 symbolic features, fitted to listeners' ratings by
`kmidi_mlx.music.mood_fit`; its numbers are in `mood_coefficients.json`. All features follow from
sums over notes, so a piece is cut into cells of two seconds once and any window is a sum of cells.
How far the estimates meet the ratings is in that file too ("cross_validation"): they tell calm from
excited well and pleasant from unpleasant fairly, the latter mostly by mode.

Two scales:

- "rated": the units of the listeners' sliders, [-1, 1], of which ratings of whole pieces fill about
  ±0.6 and estimates less.
- "steering": each axis of "rated" mapped linearly so that the 2nd and the 98th percentile of 20 s
  windows of POP909's main arrangements (train split) come to -0.9 and +0.9, then clipped to
  [-1, 1]. This is the scale for conditioning a generator and for asked against estimated.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.notes import Notes

__all__ = [
    "CELL_SECONDS",
    "CHORD_GAP_SECONDS",
    "COEFFICIENTS_PATH",
    "DEGREE_WEIGHTS",
    "KEY_PROFILES",
    "KEY_SHARPNESS",
    "MOOD_FEATURES",
    "STATISTICS",
    "STEERING_EDGE",
    "Z_LIMIT",
    "MoodModel",
    "Scale",
    "cell_statistics",
    "estimate",
    "key_correlations",
    "likely_key",
    "load_model",
    "mood",
    "mood_curve",
    "mood_features",
    "to_rated",
    "to_steering",
    "window_sums",
]

Scale = Literal["rated", "steering"]
_Floats = NDArray[np.float64]

CELL_SECONDS = 2.0
#: Notes that begin less than this after the one before are one onset, a chord.
CHORD_GAP_SECONDS = 0.03
COEFFICIENTS_PATH = Path(__file__).with_name("mood_coefficients.json")
#: Standardised features are clipped here, so that strange music stays within what was learnt.
Z_LIMIT = 3.0
#: Steering value of the 2nd (negative) and 98th percentile of POP909.
STEERING_EDGE = 0.9

#: Columns of the cell statistics, all of them sums and none negative. A note counts in the cell of
#: its onset. seconds: length of the part of the cell before the piece's end; notes; onsets: groups
#: of notes less than 30 ms apart; silent_seconds: time more than 1 s after the last onset; then
#: sums over notes of pitch, of notes below C3 (48), of ln(length / 0.03 s) with lengths kept within
#: 0.03-2 s, of velocity and its square; pitch_class: length of the notes (at most 1 s each) by
#: pitch class; bass_class: lowest notes of the onsets by pitch class.
STATISTICS: tuple[str, ...] = (
    "seconds",
    "notes",
    "onsets",
    "silent_seconds",
    "pitch",
    "low_notes",
    "log_duration",
    "velocity",
    "velocity^2",
    *(f"pitch_class_{k}" for k in range(12)),
    *(f"bass_class_{k}" for k in range(12)),
)

#: Features of a window. Cues of expression as reviewed by Gabrielsson & Lindström ("The role of
#: structure in the musical expression of emotions", Handbook of Music and Emotion, 2010): tempo,
#: articulation, pauses, register, mode, tonality and loudness.
#: log_onset_rate, log_note_rate: ln(0.1 + a second); mean_log_duration: ln(length / 0.03 s);
#: silence: share of the time; mean_pitch: MIDI pitch; low_share: share of notes below C3; mode:
#: likelihood of the major keys less that of the minor ones, [-1, 1]; third, sixth: share of the
#: major third (sixth) over the likely tonics less that of the minor one; flat_second, tritone:
#: shares of these degrees; diatonic: share of the likely keys' scales; loudness: mean velocity less
#: 80 (mezzo forte), times var / (var + 16) of the velocities, because one constant velocity says
#: nothing of loudness.
MOOD_FEATURES: tuple[str, ...] = (
    "log_onset_rate",
    "log_note_rate",
    "mean_log_duration",
    "silence",
    "mean_pitch",
    "low_share",
    "mode",
    "third",
    "sixth",
    "flat_second",
    "tritone",
    "diatonic",
    "loudness",
)

_PAUSE_SECONDS = 1.0
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.03, 2.0
_MEZZO_FORTE = 80.0
_VELOCITY_NOISE = 16.0
_BASS_WEIGHT = 0.5
#: How clearly the likeliest key wins.
KEY_SHARPNESS = 5.0
_TINY = 1e-9

_PITCH_CLASS = np.arange(128) % 12
_IS_LOW = (np.arange(128) < 48).astype(np.float64)
_FIRST_CLASS = STATISTICS.index("pitch_class_0")

# Probe-tone profiles: Krumhansl & Kessler, "Tracing the dynamic changes in perceived tonal
# organization in a spatial representation of musical keys", Psychological Review 89, 1982; their
# correlation with a pitch-class histogram finds the key (Krumhansl, "Cognitive Foundations of
# Musical Pitch", 1990, chapter 4).
_MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def _rolled(major: ArrayLike, minor: ArrayLike) -> _Floats:
    """Return (24, 12): a row of pitch-class weights moved to each major, then each minor key."""
    return np.array([np.roll(row, k) for row in (major, minor) for k in range(12)], np.float64)


def _standardised(rows: _Floats) -> _Floats:
    count = rows.shape[-1]
    centred = rows - rows.sum(axis=-1, keepdims=True) / count
    scale = np.sqrt(np.square(centred).sum(axis=-1, keepdims=True) / count)
    result: _Floats = centred / (scale + _TINY)
    return result


def _degrees(*degrees: int, minus: tuple[int, ...] = ()) -> _Floats:
    row = np.zeros(12)
    row[list(degrees)] = 1.0
    row[list(minus)] = -1.0
    return row


#: (12, 24): `_standardised` histograms times this are correlations with the keys' profiles.
KEY_PROFILES = (_standardised(_rolled(_MAJOR_PROFILE, _MINOR_PROFILE)) / 12.0).T.copy()
_MAJOR_SCALE, _MINOR_SCALE = _degrees(0, 2, 4, 5, 7, 9, 11), _degrees(0, 2, 3, 5, 7, 8, 10)
#: (12, 5 * 24): for each of third, sixth, flat_second, tritone, diatonic the weights in every key.
DEGREE_WEIGHTS = np.concatenate(
    [
        _rolled(major, minor)
        for major, minor in (
            (_degrees(4, minus=(3,)),) * 2,
            (_degrees(9, minus=(8,)),) * 2,
            (_degrees(1),) * 2,
            (_degrees(6),) * 2,
            (_MAJOR_SCALE, _MINOR_SCALE),
        )
    ]
).T.copy()


def cell_statistics(notes: Notes, cell_seconds: float = CELL_SECONDS) -> _Floats:
    """Sum up the notes of each cell of time.

    Args:
        notes: the piece.
        cell_seconds: length of a cell, > 0.

    Returns:
        float64 (cells, 33), columns as in `STATISTICS`; cells cover 0 to the end of the last note.
        Rows may be added to give the statistics of longer stretches.

    Raises:
        KmidiError: if cell_seconds is not positive.
    """
    if not cell_seconds > 0.0:
        raise KmidiError(f"cell_seconds is {cell_seconds!r}; it has to be more than 0.")
    count = len(notes)
    if not count:
        return np.zeros((0, len(STATISTICS)))
    onset, pitch = notes.onset_seconds, notes.pitch
    duration_seconds = notes.duration_seconds
    cells = max(1, int(np.ceil(duration_seconds / cell_seconds)))
    cell = np.minimum((onset / cell_seconds).astype(np.intp), cells - 1)
    velocity = notes.velocity.astype(np.float64)
    length = notes.offset_seconds - onset
    length = np.minimum(np.maximum(length, _SHORTEST_SECONDS), _LONGEST_SECONDS)

    starts_group = np.empty(count, bool)
    starts_group[0] = True
    np.greater_equal(onset[1:] - onset[:-1], CHORD_GAP_SECONDS, out=starts_group[1:])
    first = starts_group.nonzero()[0]
    group_cell = cell[first]
    bass = np.minimum.reduceat(pitch, first)

    out = np.empty((cells, len(STATISTICS)))
    edges = np.minimum(np.arange(cells + 1) * cell_seconds, duration_seconds)
    out[:, 0] = edges[1:] - edges[:-1]
    out[:, 1] = np.bincount(cell, minlength=cells)
    out[:, 2] = np.bincount(group_cell, minlength=cells)
    out[:, 3] = _silence_in_cells(onset[first], edges)
    for column, values in enumerate(
        (pitch, _IS_LOW[pitch], np.log(length / _SHORTEST_SECONDS), velocity, velocity * velocity),
        start=4,
    ):
        out[:, column] = np.bincount(cell, values, cells)
    classes = cell * 12 + _PITCH_CLASS[pitch]
    out[:, _FIRST_CLASS : _FIRST_CLASS + 12] = np.bincount(
        classes, np.minimum(length, 1.0), cells * 12
    ).reshape(cells, 12)
    out[:, _FIRST_CLASS + 12 :] = np.bincount(
        group_cell * 12 + _PITCH_CLASS[bass], minlength=cells * 12
    ).reshape(cells, 12)
    return out


def window_sums(statistics: _Floats, window_cells: int, hop_cells: int) -> _Floats:
    """Add up the cells of each window.

    Args:
        statistics: (cells, statistics).
        window_cells: cells a window, >= 1.
        hop_cells: cells from one window to the next, >= 1.

    Returns:
        (windows, statistics): all windows that fit; one with all cells if none fits.
    """
    cells = len(statistics)
    sums = np.zeros((cells + 1, statistics.shape[1]))
    np.cumsum(statistics, axis=0, out=sums[1:])
    if cells <= window_cells:
        return sums[-1:]
    # Differences of large sums leave dust where a window is silent.
    result: _Floats = np.maximum(sums[window_cells::hop_cells] - sums[:-window_cells:hop_cells], 0)
    return result


def key_correlations(histogram: _Floats) -> _Floats:
    """Correlate pitch-class histograms with the Krumhansl-Kessler profiles of all keys.

    Args:
        histogram: (n, 12), any scale.

    Returns:
        (n, 24) in [-1, 1]: major keys from C up, then minor keys; 0 for an even histogram.
    """
    result: _Floats = _standardised(histogram) @ KEY_PROFILES
    return result


def likely_key(notes: Notes) -> tuple[int, bool]:
    """Return the tonic's pitch class, 0 (C) to 11, and whether the key is minor; C major for none.

    The key is the one that fits best to the pitch classes and the bass of all notes together.
    """
    key_fit = _tonality(cell_statistics(notes).sum(axis=0, keepdims=True))[1]
    key = int(key_fit[0].argmax())
    return key % 12, key >= 12


def _tonality(statistics: _Floats) -> tuple[_Floats, _Floats]:
    """Return pitch-class histograms (n, 12) that add up to 1, and how every key fits (n, 24)."""
    histogram = statistics[:, _FIRST_CLASS : _FIRST_CLASS + 12]
    histogram = histogram / (histogram.sum(axis=1, keepdims=True) + _TINY)
    bass = statistics[:, _FIRST_CLASS + 12 :] / (statistics[:, 2:3] + _TINY)
    return histogram, key_correlations(histogram + _BASS_WEIGHT * bass)


def mood_features(statistics: _Floats) -> _Floats:
    """Turn sums of statistics (n, 33) into features (n, 13), columns as in `MOOD_FEATURES`."""
    seconds, notes, onsets = (statistics[:, k] + _TINY for k in range(3))
    means = statistics[:, 4:_FIRST_CLASS] / notes[:, None]
    histogram, key_fit = _tonality(statistics)
    # A soft choice of key, so that the features move smoothly where two keys are about as likely.
    keys = np.exp(KEY_SHARPNESS * (key_fit - 1.0))
    keys /= keys.sum(axis=1, keepdims=True)
    degrees = (histogram @ DEGREE_WEIGHTS).reshape(len(histogram), 5, 24)

    out = np.empty((len(statistics), len(MOOD_FEATURES)))
    out[:, 0] = np.log(onsets / seconds + 0.1)
    out[:, 1] = np.log(notes / seconds + 0.1)
    out[:, 2] = means[:, 2]
    out[:, 3] = statistics[:, 3] / seconds
    out[:, 4:6] = means[:, :2]
    out[:, 6] = 2.0 * keys[:, :12].sum(axis=1) - 1.0
    out[:, 7:12] = (degrees @ keys[:, :, None])[:, :, 0]
    velocity = means[:, 3]
    variance = np.maximum(means[:, 4] - velocity * velocity, 0.0)
    out[:, 12] = (velocity - _MEZZO_FORTE) * variance / (variance + _VELOCITY_NOISE)
    return out


@dataclass(frozen=True, eq=False)
class MoodModel:
    """The fitted numbers; axis 0 is valence, axis 1 arousal.

    Attributes:
        mean: (features,), in the order of `MOOD_FEATURES`.
        sd: (features,), > 0.
        weights: (features, 2), for standardised features clipped to ±`Z_LIMIT`.
        intercept: (2,).
        steering_low: (2,), rated value that becomes -`STEERING_EDGE`.
        steering_high: (2,), rated value that becomes +`STEERING_EDGE`.
    """

    mean: _Floats
    sd: _Floats
    weights: _Floats
    intercept: _Floats
    steering_low: _Floats
    steering_high: _Floats

    def rated(self, features: _Floats) -> _Floats:
        """Return (n, 2), valence and arousal in listeners' units, of features (n, features)."""
        z = np.minimum(np.maximum((features - self.mean) / self.sd, -Z_LIMIT), Z_LIMIT)
        result: _Floats = z @ self.weights + self.intercept
        return result

    @classmethod
    def from_json(cls, path: Path) -> MoodModel:
        """Read the coefficients file.

        Raises:
            KmidiError: if it cannot be read or does not hold the features of this version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = data["features"]
            names = tuple(row["name"] for row in rows)
            axes = ("valence", "arousal")
            model = cls(
                mean=np.array([row["mean"] for row in rows], np.float64),
                sd=np.array([row["sd"] for row in rows], np.float64),
                weights=np.array([[row[axis] for axis in axes] for row in rows], np.float64),
                intercept=np.array([data["intercept"][axis] for axis in axes], np.float64),
                steering_low=np.array([data["steering"][axis]["low"] for axis in axes]),
                steering_high=np.array([data["steering"][axis]["high"] for axis in axes]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KmidiError(
                f"mood coefficients {path} cannot be read ({error!r}); "
                "make them with python -m kmidi_mlx.music.mood_fit --data DIR --write."
            ) from error
        if names != MOOD_FEATURES:
            raise KmidiError(
                f"mood coefficients {path} are for other features; "
                "make them with python -m kmidi_mlx.music.mood_fit --data DIR --write."
            )
        return model


@functools.cache
def load_model() -> MoodModel:
    """Return the model that comes with the package (read once).

    Raises:
        KmidiError: if its coefficients file is missing or broken.
    """
    return MoodModel.from_json(COEFFICIENTS_PATH)


def to_steering(rated: ArrayLike) -> _Floats:
    """Map rated values (..., 2) of valence and arousal to the steering scale, in [-1, 1].

    The map fits estimates of this model. Listeners' own ratings spread more than estimates do and
    would often be clipped.
    """
    model = load_model()
    unit = (np.asarray(rated, np.float64) - model.steering_low) / (
        model.steering_high - model.steering_low
    )
    result: _Floats = np.minimum(np.maximum((2.0 * unit - 1.0) * STEERING_EDGE, -1.0), 1.0)
    return result


def to_rated(steering: ArrayLike) -> _Floats:
    """Map steering values (..., 2) back to the units of the listeners; undoes `to_steering`."""
    model = load_model()
    unit = 0.5 * (np.asarray(steering, np.float64) / STEERING_EDGE + 1.0)
    result: _Floats = model.steering_low + unit * (model.steering_high - model.steering_low)
    return result


def estimate(statistics: _Floats, scale: Scale = "steering") -> _Floats:
    """Estimate valence and arousal from sums of cell statistics.

    Args:
        statistics: (n, 33) sums of rows of `cell_statistics`, one row a window.
        scale: "rated" or "steering", see the module's head.

    Returns:
        float64 (n, 2): valence, arousal; (0, 0), neutral, for a window without notes.

    Raises:
        KmidiError: for a wrong shape or scale.
    """
    if statistics.ndim != 2 or statistics.shape[1] != len(STATISTICS):
        raise KmidiError(
            f"statistics have shape (windows, {len(STATISTICS)}), got {statistics.shape}."
        )
    if scale not in ("rated", "steering"):
        raise KmidiError(f"scale is {scale!r}; it has to be 'rated' or 'steering'.")
    rated = load_model().rated(mood_features(statistics))
    values = to_steering(rated) if scale == "steering" else rated
    result: _Floats = values * (statistics[:, 1:2] > 0.5)
    return result


def mood_curve(
    notes: Notes,
    window_seconds: float = 20.0,
    hop_seconds: float = CELL_SECONDS,
    scale: Scale = "steering",
) -> _Floats:
    """Estimate valence and arousal along a piece.

    Args:
        notes: the piece.
        window_seconds: length of a window, a multiple of 2 s.
        hop_seconds: time from one window to the next, a multiple of 2 s.
        scale: "rated" or "steering", see the module's head.

    Returns:
        float64 (n, 2): row k is valence and arousal of [k·hop, k·hop + window) seconds. All windows
        that fit (the last cell counts as a whole one), at least one; none for silence.

    Raises:
        KmidiError: if window or hop is not a positive multiple of 2 s, or for a wrong scale.
    """
    window_cells = _whole_cells("window_seconds", window_seconds)
    hop_cells = _whole_cells("hop_seconds", hop_seconds)
    statistics = cell_statistics(notes)
    if not len(statistics):
        return np.zeros((0, 2))
    return estimate(window_sums(statistics, window_cells, hop_cells), scale)


def mood(notes: Notes, scale: Scale = "steering") -> tuple[float, float]:
    """Estimate valence and arousal of all the notes taken together; (0, 0) for none.

    Raises:
        KmidiError: for a wrong scale.
    """
    total = cell_statistics(notes).sum(axis=0, keepdims=True)
    valence, arousal = estimate(total, scale)[0].tolist()
    return valence, arousal


def _silence_in_cells(onset: _Floats, edges: _Floats) -> _Floats:
    """Return (cells,) seconds that lie over 1 s after an onset or before the first one."""
    begin = np.concatenate([edges[:1], onset + _PAUSE_SECONDS])
    end = np.concatenate([onset, edges[-1:]])
    silent = end > begin
    begin, end = begin[silent], end[silent]
    if not len(begin):
        return np.zeros(len(edges) - 1)
    length = end - begin
    total = np.cumsum(length)
    # Silence up to a time is piecewise linear between the pauses' ends.
    times, upto = np.empty((2, len(begin), 2))
    times[:, 0], times[:, 1] = begin, end
    upto[:, 0], upto[:, 1] = total - length, total
    at_edges = np.interp(edges, times.ravel(), upto.ravel())
    result: _Floats = np.maximum(at_edges[1:] - at_edges[:-1], 0.0)
    return result


def _whole_cells(name: str, seconds: float) -> int:
    cells = seconds / CELL_SECONDS
    if not (1 <= cells < 1e6 and cells == int(cells)):
        raise KmidiError(f"{name} is {seconds!r}; it has to be a positive multiple of 2 seconds.")
    return int(cells)
