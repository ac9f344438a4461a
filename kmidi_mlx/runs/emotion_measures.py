"""How well emotion was recognised: numbers, labels, and whether probabilities mean what they say.

The temperature divides the logits (Guo et al., "On calibration of modern neural networks", ICML
2017, arXiv 1706.04599); the expected calibration error is theirs, with 15 bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from kmidi_mlx.data.audio_emotion import NUMBERS, Recordings

__all__ = [
    "Calibration",
    "ClipEstimates",
    "LabelScore",
    "NumberScore",
    "calibration_of",
    "expected_calibration_error",
    "fit_temperature",
    "label_score",
    "number_scores",
    "per_recording",
]

_Floats = NDArray[np.float64]
_Ints = NDArray[np.integer[Any]]
_BINS = 15
_LARGEST_LOG_TEMPERATURE = 4.0
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class ClipEstimates:
    """What a model found in n clips.

    Attributes:
        numbers: float64 (n, 3), valence, arousal, intensity.
        logits: float64 (n, labels), before the temperature.
        recording: int64 (n,), number of the recording each clip is from.
        frames: int64 (n,), length of each clip.
    """

    numbers: _Floats
    logits: _Floats
    recording: NDArray[np.int64]
    frames: NDArray[np.int64]


@dataclass(frozen=True)
class NumberScore:
    """How well one number was found; None where the truth does not vary or is not known.

    Attributes:
        count: recordings whose number is known.
        r2: 1 - squared error / squared distance from the mean of these recordings.
        r: Pearson's correlation.
        error: mean absolute error.
        mean_error: that of saying the mean of the training recordings every time.
    """

    count: int
    r2: float | None
    r: float | None
    error: float | None
    mean_error: float | None


@dataclass(frozen=True)
class LabelScore:
    """How well labels were found.

    Attributes:
        count: recordings whose label is known.
        accuracy: share with the right label.
        macro_f1: mean of the F1 of the labels that occur.
        largest_share: accuracy of saying the most frequent training label every time.
    """

    count: int
    accuracy: float
    macro_f1: float
    largest_share: float


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities of clips are right as often as they say.

    Attributes:
        clips: number of clips with a known label.
        before, after: expected calibration error without and with a temperature, 0 to 1.
        nats_before, nats_after: mean of -ln p(label).
        temperature: the one of the checkpoint, or the median of those of the folds.
        method: how `after` was kept honest.
    """

    clips: int
    before: float
    after: float
    nats_before: float
    nats_after: float
    temperature: float
    method: str


def per_recording(clips: ClipEstimates) -> ClipEstimates:
    """Return one row a recording: the mean over its clips, weighted by their length."""
    recording, place = np.unique(clips.recording, return_inverse=True)
    frames = np.bincount(place, clips.frames)

    def mean(values: _Floats) -> _Floats:
        result = np.zeros((len(recording), values.shape[1]))
        np.add.at(result, place, values * clips.frames[:, None])
        return result / frames[:, None]

    return ClipEstimates(
        mean(clips.numbers), mean(clips.logits), recording, frames.astype(np.int64)
    )


def number_scores(
    found: ClipEstimates, recordings: Recordings, train_mean: NDArray[np.floating[Any]]
) -> dict[str, NumberScore]:
    """Compare estimates of recordings with what is known of them.

    Args:
        found: one row a recording (`per_recording`).
        recordings: what is known.
        train_mean: (3,) mean of the training recordings; NaN where it is not known.

    Returns:
        A score for each of valence, arousal, intensity.
    """
    scores = {}
    for column, name in enumerate(NUMBERS):
        known = recordings.known[found.recording, column] > 0
        truth = recordings.numbers[found.recording, column][known].astype(np.float64)
        scores[name] = _number_score(found.numbers[known, column], truth, float(train_mean[column]))
    return scores


def _number_score(estimate: _Floats, truth: _Floats, train_mean: float) -> NumberScore:
    if not len(truth):
        return NumberScore(0, None, None, None, None)
    spread = float(np.square(truth - truth.mean()).sum())
    varied = spread > 0 and float(np.ptp(estimate)) > 0
    return NumberScore(
        count=len(truth),
        r2=1.0 - float(np.square(estimate - truth).sum()) / spread if spread > 0 else None,
        r=float(np.corrcoef(estimate, truth)[0, 1]) if varied else None,
        error=float(np.abs(estimate - truth).mean()),
        mean_error=float(np.abs(train_mean - truth).mean()) if np.isfinite(train_mean) else None,
    )


def label_score(
    found: ClipEstimates, recordings: Recordings, train_label: int | None
) -> LabelScore | None:
    """Compare the likeliest labels of recordings with what is known; None where nothing is.

    Args:
        found: one row a recording (`per_recording`).
        recordings: what is known.
        train_label: the most frequent label of the training recordings.
    """
    truth = recordings.label[found.recording]
    known = truth >= 0
    if not known.any() or not found.logits.shape[1]:
        return None
    truth = truth[known]
    guess = found.logits[known].argmax(axis=1)
    f1 = []
    for label in np.unique(truth):
        hits = float(((guess == label) & (truth == label)).sum())
        f1.append(2.0 * hits / float((guess == label).sum() + (truth == label).sum()))
    return LabelScore(
        count=len(truth),
        accuracy=float((guess == truth).mean()),
        macro_f1=float(np.mean(f1)),
        largest_share=float((truth == train_label).mean()),
    )


def fit_temperature(logits: _Floats, labels: _Ints) -> float:
    """Return the temperature under which the labels are likeliest, 0.02 to 55.

    Args:
        logits: (n, labels), n >= 1.
        labels: (n,) the true ones.
    """
    best = optimize.minimize_scalar(
        lambda log_temperature: _nats(logits / np.exp(log_temperature), labels),
        bounds=(-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))


def expected_calibration_error(probabilities: _Floats, labels: _Ints) -> float:
    """Return how far the confidence in the likeliest label is from how often it is right.

    Args:
        probabilities: (n, labels), rows sum to 1, n >= 1.
        labels: (n,) the true ones.

    Returns:
        Mean over 15 equal bins of confidence of |share right - mean confidence|, weighted by the
        clips in a bin; 0 to 1.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    gaps = np.abs(np.bincount(place, right, _BINS) - np.bincount(place, confidence, _BINS))
    return float(gaps.sum() / len(labels))


def calibration_of(
    clips: ClipEstimates, recordings: Recordings, temperature: float | None
) -> Calibration | None:
    """Measure calibration on clips, never with a temperature that was fitted to the same songs.

    Args:
        clips: estimates.
        recordings: what is known of the recordings.
        temperature: one that was fitted to other songs; None: five parts of the songs in turn get
            the temperature that fits the other four.

    Returns:
        The figures; None where there are no labels, or one song and no temperature.
    """
    labels = recordings.label[clips.recording]
    known = labels >= 0
    if not known.any() or not clips.logits.shape[1]:
        return None
    logits, labels = clips.logits[known], labels[known]
    songs = recordings.song[clips.recording][known]
    temperatures: _Floats
    if temperature is not None:
        temperatures = np.full(len(labels), temperature)
        method = "temperature of the checkpoint, fitted to other songs"
    else:
        names = np.unique(songs)
        if len(names) < 2:
            return None
        folds = np.searchsorted(names, songs) % min(_FOLDS, len(names))
        temperatures = np.ones(len(labels))
        for fold in np.unique(folds):
            temperatures[folds == fold] = fit_temperature(
                logits[folds != fold], labels[folds != fold]
            )
        method = f"cross-fitted over {len(np.unique(folds))} parts of the songs"
    scaled = logits / temperatures[:, None]
    return Calibration(
        clips=len(labels),
        before=expected_calibration_error(special.softmax(logits, axis=1), labels),
        after=expected_calibration_error(special.softmax(scaled, axis=1), labels),
        nats_before=_nats(logits, labels),
        nats_after=_nats(scaled, labels),
        temperature=float(np.median(temperatures)),
        method=method,
    )


def _nats(logits: _Floats, labels: _Ints) -> float:
    chosen = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return float((special.logsumexp(logits, axis=1) - chosen).mean())
