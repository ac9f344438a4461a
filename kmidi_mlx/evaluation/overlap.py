"""How alike two sets of pieces are, by the distances between pieces: Yang & Lerch's measures.

For each feature of a piece all distances within one set, within the other and between the two are
taken and smoothed to densities. If both sets are of one kind of music, the distances between them
are spread like those within each; the overlapping area of the densities and their Kullback-Leibler
divergence say how nearly (Yang & Lerch, "On the evaluation of generative models in music", Neural
Computing and Applications 32, 2020, section 3.3).

Two finite sets of one kind never overlap wholly, the less the smaller they are. So the same numbers
of real against other real music, of sets of the same size, say what can be reached: `alternated`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.evaluation.music_measures import MEASURES, PROFILES, measure, profiles
from kmidi_mlx.music.notes import Notes

__all__ = [
    "FEATURES",
    "LEAST_HALF",
    "Alternated",
    "Likeness",
    "alternated",
    "divergence",
    "features_of",
    "halves",
    "likeness",
    "overlap_area",
]

#: Features that sets are compared by: rows of numbers, then single ones.
FEATURES: tuple[str, ...] = (
    *PROFILES,
    "note_density",
    "polyphony",
    "note_seconds",
    "mean_pitch",
    "pitch_range",
    "mean_velocity",
    "key_clarity",
    "pitch_class_entropy",
    "repetition",
    "self_similarity",
)

#: Pieces below which a half has too few distances to speak of a density.
LEAST_HALF = 4

_BINS = 1024
# Density that is everywhere, so that a distance that never occurred costs 23 nats and not all.
_FLOOR = 1e-10
_Floats = NDArray[np.float64]
_Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Likeness:
    """Two sets compared by one feature.

    Attributes:
        within, within_other: mean distance of two pieces of the first set, of the other.
        between: mean distance of a piece of the first set and one of the other.
        overlap: 0-1, overlapping area of the distances between and those within the first set, or
            within the other set, whichever is less.
        divergence: nats, >= 0, Kullback-Leibler divergence of the distances between from those
            within the first set, or within the other set, whichever is more.
    """

    within: float
    within_other: float
    between: float
    overlap: float
    divergence: float


@dataclass(frozen=True)
class Alternated:
    """One feature over several ways to halve the real pieces.

    Attributes:
        overlap, divergence: mean over them, as in `Likeness`.
        lowest_overlap: of any of them.
    """

    overlap: float
    divergence: float
    lowest_overlap: float


def features_of(pieces: Sequence[Notes]) -> dict[str, _Floats]:
    """Measure a set.

    Args:
        pieces: n pieces of one length. One without notes is 0 in everything, far from music.

    Returns:
        For each of `FEATURES` float64 (n, numbers).
    """
    numbers, rows = measure(pieces), [profiles(piece) for piece in pieces]
    found = {name: np.stack([row[name] for row in rows]) for name in PROFILES}
    for name in FEATURES[len(PROFILES) :]:
        found[name] = np.nan_to_num(numbers[:, MEASURES.index(name), None])
    return found


def likeness(a: _Floats, b: _Floats) -> Likeness:
    """Compare two sets by a feature.

    Args:
        a: (n, numbers), n >= 2.
        b: (m, numbers), m >= 2.
    """
    within, other = _within(a), _within(b)
    between = _distances(a, b).ravel()
    return Likeness(
        within=float(within.mean()),
        within_other=float(other.mean()),
        between=float(between.mean()),
        overlap=min(overlap_area(within, between), overlap_area(other, between)),
        divergence=max(divergence(within, between), divergence(other, between)),
    )


def overlap_area(a: _Floats, b: _Floats) -> float:
    """Return the area, 0 to 1, that the densities of two samples share.

    Args:
        a, b: (n,) and (m,) distances, at least one each.
    """
    of_a, of_b = _densities(a, b)
    return float(np.minimum(of_a, of_b).sum())


def divergence(a: _Floats, b: _Floats) -> float:
    """Return the Kullback-Leibler divergence of the density of `b` from that of `a`, in nats.

    Args:
        a, b: (n,) and (m,) distances, at least one each.
    """
    of_a, of_b = ((density + _FLOOR) / (1 + _FLOOR * _BINS) for density in _densities(a, b))
    return max(0.0, float((of_a * np.log(of_a / of_b)).sum()))


def halves(groups: NDArray[np.integer], count: int, seed: int) -> list[tuple[_Rows, _Rows]]:
    """Halve pieces so that what belongs together stays together, in several ways.

    Args:
        groups: (n,) pieces of one song have one number.
        count: how many ways.
        seed: of the choice.

    Returns:
        For each way the indices of both halves, equally many, at least `LEAST_HALF`: where songs
        have several pieces some may be left out. Nothing if the pieces or their songs are too few.
    """
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    found = []
    for _ in range(count if len(names) > 1 else 0):
        order = rng.permutation(names)
        sizes = np.cumsum([(groups == name).sum() for name in order])
        cut = int(np.abs(sizes - len(groups) / 2)[:-1].argmin()) + 1
        sides = [np.flatnonzero(np.isin(groups, part)) for part in (order[:cut], order[cut:])]
        size = min(map(len, sides))
        if size >= LEAST_HALF:
            first, second = (np.sort(rng.permutation(side)[:size]) for side in sides)
            found.append((first, second))
    return found


def alternated(
    real: Mapping[str, _Floats],
    other: Mapping[str, _Floats],
    splits: Sequence[tuple[_Rows, _Rows]],
) -> dict[str, Alternated]:
    """Compare the first half of the real pieces with those that stand for the second half.

    With the real pieces themselves as `other` this is real music against real music of other
    songs. So each set meets the same pieces, and as many of them.

    Args:
        real: from `features_of`, n pieces.
        other: from `features_of`, n pieces: piece k was written under the labels of real piece k.
        splits: from `halves`, at least one.
    """
    found = {}
    for name in real:
        each = [likeness(real[name][a], other[name][b]) for a, b in splits]
        overlaps = [one.overlap for one in each]
        found[name] = Alternated(
            overlap=float(np.mean(overlaps)),
            divergence=float(np.mean([one.divergence for one in each])),
            lowest_overlap=min(overlaps),
        )
    return found


def _distances(a: _Floats, b: _Floats) -> _Floats:
    """Return (n, m) Euclidean distances."""
    found: _Floats = np.stack([np.sqrt(np.square(row - b).sum(axis=1)) for row in a])
    return found


def _within(a: _Floats) -> _Floats:
    """Return (n (n - 1) / 2,) distances of all pairs."""
    return _distances(a, a)[np.triu_indices(len(a), 1)]


def _densities(a: _Floats, b: _Floats) -> tuple[_Floats, _Floats]:
    """Return the two smoothed densities on one grid, (1024,) each, summing to 1."""
    widths = [_bandwidth(sample) for sample in (a, b)]
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    # a spread below a thousandth of the scale is a rounding error or a single value
    least = max(float(high), 1e-9) / 1000
    margin = 4 * max(*widths, least)
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    step = float(edges[1] - edges[0])
    of_a, of_b = (
        _smoothed(np.histogram(sample, edges)[0], max(width, least) / step)
        for sample, width in zip((a, b), widths, strict=True)
    )
    return of_a, of_b


def _bandwidth(sample: _Floats) -> float:
    """Return Scott's width of a Gaussian kernel ("Multivariate Density Estimation", 1992)."""
    return float(sample.std(ddof=1)) * len(sample) ** -0.2 if len(sample) > 1 else 0.0


def _smoothed(counts: NDArray[np.intp], width: float) -> _Floats:
    reach = min(_BINS - 1, math.ceil(4 * width))
    kernel = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / max(width, 0.25)))
    smooth = np.convolve(counts, kernel)[reach:-reach] if reach else counts
    density: _Floats = smooth / smooth.sum()
    return density
