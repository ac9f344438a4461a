"""Fit the mood model to listeners' ratings and say how far it can be trusted.

    python -m kmidi_mlx.music.mood_fit --data DIR [--write]

DIR has `manifests/vgmidi.jsonl` (rated pieces: path, valence, arousal, franchise) and
`manifests/pop909.jsonl` (what the generator learns from: path, split, kind), with paths relative to
DIR. VGMIDI: Ferreira & Whitehead, "Learning to generate music with sentiment", ISMIR 2019. POP909:
Wang et al., "POP909: A pop-song dataset for music arrangement generation", ISMIR 2020.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.atomic import write_bytes_atomically
from kmidi_mlx.command import CommandParser, run
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.mood import (
    CELL_SECONDS,
    COEFFICIENTS_PATH,
    MOOD_FEATURES,
    STEERING_EDGE,
    Z_LIMIT,
    MoodModel,
    cell_statistics,
    mood_features,
    window_sums,
)
from kmidi_mlx.music.notes import Notes

__all__ = ["RatedPieces", "Score", "coefficients", "cross_validate", "fit_model", "main"]

_Floats = NDArray[np.float64]
_AXES = ("valence", "arousal")
_WINDOW_SECONDS = 20
_FIT_HOP_CELLS = 5
_SCORED_SECONDS = (10, 20, 30)
_LEVELS = ("piece", *(f"{seconds} s" for seconds in _SCORED_SECONDS))

#: Strength of the ridge against features of variance 1: weights shrink by a factor 1 / 1.3 where
#: features are uncorrelated. The table shows that its neighbours do about as well.
RIDGE = 0.3
#: Which features an axis may use. Loudness is a cue of arousal; in the ratings at hand it would
#: otherwise tell valence which publisher a piece comes from.
_ALLOWED = np.array([(name != "loudness", True) for name in MOOD_FEATURES])
_WITHOUT_LOUDNESS = np.array([(name != "loudness",) * 2 for name in MOOD_FEATURES])


@dataclass(frozen=True, eq=False)
class RatedPieces:
    """Pieces with listeners' ratings.

    Attributes:
        statistics: one (cells, 33) array a piece, from `cell_statistics`.
        ratings: (pieces, 2), valence and arousal in [-1, 1].
        group: (pieces,) text; pieces of one group are left out together.
    """

    statistics: list[_Floats]
    ratings: _Floats
    group: NDArray[np.str_]

    def windows(self, window_cells: int, hop_cells: int) -> tuple[_Floats, NDArray[np.intp]]:
        """Return the features (windows, 13) of all windows and the piece (windows,) of each."""
        sums = [window_sums(cells, window_cells, hop_cells) for cells in self.statistics]
        piece = np.repeat(np.arange(len(sums)), [len(rows) for rows in sums])
        return mood_features(np.concatenate(sums)), piece


@dataclass(frozen=True, eq=False)
class Score:
    """How well estimates meet ratings, for valence and arousal.

    Attributes:
        r2: (2,) 1 - squared error / variance around the mean of all pieces.
        r: (2,) Pearson's correlation.
        error: (2,) root mean square error.
    """

    r2: _Floats
    r: _Floats
    error: _Floats

    @classmethod
    def of(cls, estimate: _Floats, rating: _Floats, weight: _Floats) -> Score:
        """Compare estimates (n, 2) with ratings (n, 2), rows weighted by (n,)."""
        share = (weight / weight.sum())[:, None]
        x = estimate - (share * estimate).sum(axis=0)
        y = rating - (share * rating).sum(axis=0)
        squared = (share * (estimate - rating) ** 2).sum(axis=0)
        x2, y2 = (share * x * x).sum(axis=0), (share * y * y).sum(axis=0)
        return cls(1.0 - squared / y2, (share * x * y).sum(axis=0) / np.sqrt(x2 * y2), squared**0.5)


def fit_model(
    features: _Floats,
    ratings: _Floats,
    weight: _Floats,
    ridge: float = RIDGE,
    allowed: NDArray[np.bool_] = _ALLOWED,
) -> MoodModel:
    """Fit both axes by weighted ridge regression on standardised, clipped features.

    Args:
        features: (n, 13).
        ratings: (n, 2) valence and arousal.
        weight: (n,) > 0.
        ridge: strength against unit variance, >= 0.
        allowed: (13, 2) which feature may serve which axis.

    Returns:
        The model, with its steering range left at -1 to 1.
    """
    share = weight / weight.sum()
    mean = share @ features
    sd = np.sqrt(share @ (features - mean) ** 2)
    sd = np.where(sd > 1e-9, sd, 1.0)
    z = np.clip((features - mean) / sd, -Z_LIMIT, Z_LIMIT)
    z_mean, y_mean = share @ z, share @ ratings
    centred = z - z_mean
    weighted = centred * share[:, None]
    weights = np.zeros((features.shape[1], 2))
    for axis in range(2):
        use = allowed[:, axis]
        covariance = weighted[:, use].T @ centred[:, use] + ridge * np.eye(int(use.sum()))
        target = weighted[:, use].T @ (ratings[:, axis] - y_mean[axis])
        weights[use, axis] = np.linalg.solve(covariance, target)
    return MoodModel(mean, sd, weights, y_mean - z_mean @ weights, -np.ones(2), np.ones(2))


def _fit_windows(
    pieces: RatedPieces, keep: NDArray[np.bool_], ridge: float, allowed: NDArray[np.bool_]
) -> MoodModel:
    features, piece = pieces.windows(int(_WINDOW_SECONDS / CELL_SECONDS), _FIT_HOP_CELLS)
    weight = 1.0 / np.bincount(piece)[piece]
    rows = keep[piece]
    return fit_model(features[rows], pieces.ratings[piece[rows]], weight[rows], ridge, allowed)


def cross_validate(
    pieces: RatedPieces, ridge: float = RIDGE, allowed: NDArray[np.bool_] = _ALLOWED
) -> dict[str, Score]:
    """Score the model on groups that it has not seen, one group left out at a time.

    Every window is compared with the rating of its whole piece, and every piece counts the same.

    Returns:
        Scores by level: "piece" (mean of its 20 s windows) and "10 s", "20 s", "30 s" windows.
    """
    models = {
        group: _fit_windows(pieces, pieces.group != group, ridge, allowed)
        for group in np.unique(pieces.group)
    }
    scores: dict[str, Score] = {}
    for seconds in _SCORED_SECONDS:
        features, piece = pieces.windows(int(seconds / CELL_SECONDS), 1)
        estimate = np.empty((len(features), 2))
        for group, model in models.items():
            rows = pieces.group[piece] == group
            estimate[rows] = model.rated(features[rows])
        weight = 1.0 / np.bincount(piece)[piece]
        scores[f"{seconds} s"] = Score.of(estimate, pieces.ratings[piece], weight)
        if seconds == _WINDOW_SECONDS:
            means = _piece_means(estimate, piece)
            scores["piece"] = Score.of(means, pieces.ratings, np.ones(len(means)))
    return scores


def coefficients(pieces: RatedPieces, corpus: list[_Floats], date: datetime.date) -> dict[str, Any]:
    """Fit the model and return the content of the coefficients file.

    Args:
        pieces: the rated pieces.
        corpus: cell statistics, one array a piece, of the music whose windows set the steering
            scale.
        date: day of the fit.
    """
    model = _fit_windows(pieces, np.ones(len(pieces.group), bool), RIDGE, _ALLOWED)
    rows = [window_sums(cells, int(_WINDOW_SECONDS / CELL_SECONDS), 1) for cells in corpus]
    piece = np.repeat(np.arange(len(rows)), [len(windows) for windows in rows])
    rated = model.rated(mood_features(np.concatenate(rows)))
    low, high = np.percentile(rated, [2, 98], axis=0)
    model = dataclasses.replace(model, steering_low=low, steering_high=high)
    means = _piece_means(rated, piece)
    # Steering units a rated unit, to state the spread in the units that a generator sees.
    stretch = 2.0 * STEERING_EDGE / (high - low)
    scores = cross_validate(pieces)
    return {
        "source": "VGMIDI (Ferreira & Whitehead, ISMIR 2019), rated by 28 to 32 listeners a piece",
        "licence_note": "VGMIDI states no licence; only numbers fitted to it are kept here",
        "date": date.isoformat(),
        "pieces": len(pieces.group),
        "groups": len(np.unique(pieces.group)),
        "method": f"ridge {RIDGE} on standardised features clipped to {Z_LIMIT:g}, "
        f"{_WINDOW_SECONDS} s windows, every piece weighs the same",
        "cross_validation": {
            "method": "one franchise left out at a time, windows against the rating of the piece",
            "caveat": "the features were chosen on the same pieces, which flatters a little",
            **{level: _score_numbers(scores[level]) for level in _LEVELS},
        },
        "features": [
            {
                "name": name,
                "mean": _round(model.mean[k]),
                "sd": _round(model.sd[k]),
                "valence": _round(model.weights[k, 0]),
                "arousal": _round(model.weights[k, 1]),
            }
            for k, name in enumerate(MOOD_FEATURES)
        ],
        "intercept": _by_axis(lambda axis: _round(model.intercept[axis])),
        "steering": {
            "source": f"2nd and 98th percentile over {_WINDOW_SECONDS} s windows of POP909's main "
            f"arrangements, train split; they become -{STEERING_EDGE} and {STEERING_EDGE}",
            "pieces": len(corpus),
            "windows": len(rated),
            **_by_axis(lambda axis: {"low": _round(low[axis]), "high": _round(high[axis])}),
        },
        "steering_spread": _by_axis(
            lambda axis: {
                "median": _round(
                    (np.median(rated[:, axis]) - low[axis]) * stretch[axis] - STEERING_EDGE
                ),
                "sd_between_pieces": _round(means[:, axis].std() * stretch[axis]),
                "sd_within_pieces": _round((rated - means[piece])[:, axis].std() * stretch[axis]),
            }
        ),
    }


def main(argv: list[str]) -> int:
    """Print the cross-validated table; with --write, also replace the coefficients file."""
    parser = CommandParser(
        prog="python -m kmidi_mlx.music.mood_fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the music data")
    parser.add_argument("--write", action="store_true", help=f"replace {COEFFICIENTS_PATH.name}")
    options = parser.parse_args(argv)
    rated = _manifest(options.data, "vgmidi", ("path", "valence", "arousal", "franchise"))
    pieces = RatedPieces(
        [cell_statistics(read_midi(options.data / row["path"])) for row in rated],
        np.array([[row[axis] for axis in _AXES] for row in rated], np.float64),
        np.array([row["franchise"] for row in rated]),
    )
    listed = _manifest(options.data, "pop909", ("path", "split", "kind"))
    corpus = [
        cell_statistics(notes)
        for notes in _sounding(
            options.data / row["path"]
            for row in listed
            if row["split"] == "train" and row["kind"] == "main"
        )
    ]
    data = coefficients(pieces, corpus, datetime.datetime.now(datetime.UTC).date())
    print(_table(pieces, data))
    if options.write:
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        write_bytes_atomically(COEFFICIENTS_PATH, text.encode())
        print(f"wrote {COEFFICIENTS_PATH}")
    return 0


def _table(pieces: RatedPieces, data: dict[str, Any]) -> str:
    runs = {f"ridge {ridge:g}": cross_validate(pieces, ridge) for ridge in (0.1, RIDGE, 1.0)}
    runs["no loudness"] = cross_validate(pieces, allowed=_WITHOUT_LOUDNESS)
    lines = [
        f"{data['pieces']} pieces, {data['groups']} franchises, one left out at a time",
        f"{'':12}{'':8}{'valence':^22}{'arousal':^22}",
        f"{'':12}{'':8}" + f"{'R²':>7}{'r':>7}{'rmse':>7} " * 2,
    ]
    for name, scores in runs.items():
        for level in _LEVELS:
            score = scores[level]
            numbers = zip(score.r2, score.r, score.error, strict=True)
            cells = "".join(f"{r2:7.3f}{r:7.3f}{error:7.3f} " for r2, r, error in numbers)
            lines.append(f"{name:12}{level:>7} {cells}")
    lines.append(f"steering scale from {data['steering']['windows']} windows:")
    for axis in _AXES:
        bounds, spread = data["steering"][axis], data["steering_spread"][axis]
        lines.append(
            f"  {axis}: rated {bounds['low']:.3f} to {bounds['high']:.3f}; in steering units "
            f"median {spread['median']:.2f}, sd between pieces {spread['sd_between_pieces']:.2f}, "
            f"within pieces {spread['sd_within_pieces']:.2f}"
        )
    return "\n".join(lines)


def _manifest(data: Path, name: str, required: tuple[str, ...]) -> list[dict[str, Any]]:
    path = data / "manifests" / f"{name}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KmidiError(f"cannot read manifest {path}: {error}.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise KmidiError(f"{path}, line {number}: not JSON ({error}).") from error
        missing = [key for key in required if not isinstance(row, dict) or key not in row]
        if missing:
            raise KmidiError(f"{path}, line {number}: {missing[0]} is missing.")
        rows.append(row)
    if not rows:
        raise KmidiError(f"{path} has no lines; there is nothing to fit.")
    return rows


def _sounding(paths: Iterable[Path]) -> Iterable[Notes]:
    return (notes for notes in map(read_midi, paths) if len(notes))


def _piece_means(values: _Floats, piece: NDArray[np.intp]) -> _Floats:
    counts = np.bincount(piece)
    return np.stack([np.bincount(piece, column) / counts for column in values.T], axis=1)


def _score_numbers(score: Score) -> dict[str, dict[str, float]]:
    return _by_axis(
        lambda axis: {
            "r2": round(float(score.r2[axis]), 3),
            "r": round(float(score.r[axis]), 3),
            "rmse": round(float(score.error[axis]), 3),
        }
    )


def _by_axis(value: Callable[[int], Any]) -> dict[str, Any]:
    return {axis: value(k) for k, axis in enumerate(_AXES)}


def _round(value: float) -> float:
    return round(float(value), 6)


if __name__ == "__main__":
    raise SystemExit(run(main))
