"""Numbers of a sample of pieces, and how sure they are: the bootstrap.

A resample is how often each piece counts, so that many are a few products of matrices. Intervals
are percentiles (Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "Interval",
    "Statistic",
    "correlations",
    "interval_of",
    "interval_of_values",
    "resample_counts",
    "share",
    "slopes",
]

#: Resamples of an interval.
RESAMPLES = 2000
#: With which probability an interval is to cover the truth.
CONFIDENCE = 0.95

_Floats = NDArray[np.float64]
#: From how often each item counts, (resamples, n), to a value of each resample.
Statistic = Callable[[_Floats], _Floats]


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % bootstrap interval; None where undefined."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the number has a sign beyond doubt."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def resample_counts(rng: np.random.Generator, groups: NDArray[np.integer]) -> _Floats:
    """Return how often each item counts: once in row 0, then as groups drawn with replacement.

    Args:
        rng: draws.
        groups: (n,) whose items are drawn together.

    Returns:
        float64 (1 + `RESAMPLES`, n).
    """
    unique, group = np.unique(groups, return_inverse=True)
    counts = np.ones((1 + RESAMPLES, len(group)))
    if len(unique):
        shares = np.full(len(unique), 1 / len(unique))
        counts[1:] = rng.multinomial(len(unique), shares, RESAMPLES)[:, group]
    return counts


def interval_of(statistic: Statistic, counts: _Floats) -> Interval:
    """Return a statistic of the items as they are, and its interval.

    Args:
        statistic: from counts (resamples, n) to values (resamples,); NaN: undefined, inf: never.
        counts: from `resample_counts`.
    """
    return interval_of_values(statistic(counts))


def interval_of_values(values: _Floats) -> Interval:
    """Return the interval of values (1 + resamples,) whose first is that of the items as they are.

    Ends are values that occurred, so that some of them may be infinite.
    """
    found = np.sort(values[1:][~np.isnan(values[1:])])
    if np.isnan(values[0]) or not len(found):
        return Interval(_finite(values[0]), None, None)
    tail = (1 - CONFIDENCE) / 2 * (len(found) - 1)
    low, high = found[int(tail)], found[len(found) - 1 - int(tail)]
    return Interval(_finite(values[0]), _finite(low), _finite(high))


def correlations(x: _Floats, y: _Floats) -> Statistic:
    """Return the statistic that is Pearson's r of two columns (n,); NaN where one is constant."""

    def statistic(counts: _Floats) -> _Floats:
        x_variance, y_variance, both = _moments(x, y, counts)
        return np.clip(_ratio(both, np.sqrt(x_variance * y_variance)), -1.0, 1.0)

    return statistic


def slopes(x: _Floats, y: _Floats) -> Statistic:
    """Return the statistic that is the least-squares slope of y (n,) over x (n,)."""

    def statistic(counts: _Floats) -> _Floats:
        x_variance, _, both = _moments(x, y, counts)
        return _ratio(both, x_variance)

    return statistic


def share(hit: NDArray[np.bool_]) -> Statistic:
    """Return the statistic that is the share of items with a hit (n,)."""

    def statistic(counts: _Floats) -> _Floats:
        return _ratio(counts @ hit, counts.sum(axis=1))

    return statistic


def _moments(x: _Floats, y: _Floats, counts: _Floats) -> tuple[_Floats, _Floats, _Floats]:
    """Return variances of x and y and their covariance in each resample."""
    if not len(x):
        nothing = np.zeros(len(counts))
        return nothing, nothing, nothing
    x, y = (_centred(values) for values in (x, y))
    size = np.maximum(counts.sum(axis=1), 1.0)
    x_mean, y_mean = counts @ x / size, counts @ y / size
    x_variance = counts @ (x * x) / size - x_mean**2
    y_variance = counts @ (y * y) / size - y_mean**2
    # differences of near equals leave dust where all values of a resample are one
    x_variance[x_variance < 1e-9 * (x @ x) / len(x)] = 0.0
    y_variance[y_variance < 1e-9 * (y @ y) / len(y)] = 0.0
    return x_variance, y_variance, counts @ (x * y) / size - x_mean * y_mean


def _centred(values: _Floats) -> _Floats:
    if np.ptp(values) < 1e-12:
        return np.zeros(len(values))  # what rounding leaves of a constant is no variance
    centred: _Floats = values - values.mean()
    return centred


def _ratio(a: _Floats, b: _Floats) -> _Floats:
    """Return a / b; NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
