"""How fast a generator answers when the emotion asked for jumps in the middle of its music.

Streams are looked at in stretches of 1 s and averaged by what the change asked for: those that go
up on an axis, those that go down, and the one curve less the other, in which what happens to all
streams as time goes on cancels. The levels before and after are means over the settled parts:
from a third of the time before the change on, and from half of the time after it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.evaluation.resampling import (
    Interval,
    interval_of_values,
    resample_counts,
)
from kmidi_mlx.evaluation.steering import AXES, PLAIN_MEASURES, plain_measures
from kmidi_mlx.music.mood import estimate, window_sums

__all__ = ["BIN_SECONDS", "MOOD_SECONDS", "RESPONSE_MEASURES", "Response", "reach", "responses_of"]

#: Length of a stretch.
BIN_SECONDS = 1.0
#: Length of the sliding window of the label model; shorter where a stream is shorter than 30 s. It
#: is put at its middle, so that it blurs a change but does not delay it.
MOOD_SECONDS = 4
#: What is followed: of stretches, then of the label model's windows.
RESPONSE_MEASURES = ("note_rate", "mean_velocity", "mean_pitch", *AXES)

_DIRECTIONS = ("up", "down", "difference")
# A level counts as reached if this many values from there on have it on average too.
_LASTING = 3
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Response:
    """What a change of the request on one axis did to one measure.

    Attributes:
        measure: of `RESPONSE_MEASURES`.
        axis: of `AXES`; only streams whose request changes on it are here.
        direction: "up", "down", or "difference": up less down.
        streams: that were averaged.
        before, after: the settled levels.
        change: after - before; an interval that holds 0 says that there may be none.
        half_seconds, ninety_seconds: time from the change until that share of it is reached; None
            where there may be no change, or it is not reached.
        seconds: middles of the stretches or windows, from the change on; negative before it.
        curve: the measure there; None where no stream has a note.
    """

    measure: str
    axis: str
    direction: str
    streams: int
    before: float | None
    after: float | None
    change: Interval
    half_seconds: Interval
    ninety_seconds: Interval
    seconds: list[float]
    curve: list[float | None]


class _Track(NamedTuple):
    """A measure along streams: sums and counts (n, m), whose ratio it is, at times (m,)."""

    sums: _Floats
    counts: _Floats
    seconds: _Floats
    width: float


class _Curves(NamedTuple):
    """Of resamples: levels before and after (r,), values (r, m)."""

    before: _Floats
    after: _Floats
    values: _Floats


def responses_of(asked: _Floats, bins: _Floats, seed: int = 0) -> list[Response]:
    """Measure how streams answer a change of the request in their middle.

    Args:
        asked: (n, 2, 2) valence and arousal asked before and after.
        bins: (n, m, 33) `statistics_of` their stretches of `BIN_SECONDS`, m even and >= 12.
        seed: of resamples.

    Returns:
        For each axis on which a request went up and one went down, for each of
        `RESPONSE_MEASURES` the three directions; streams are resampled within a direction.
    """
    rng = np.random.default_rng(seed)
    tracks = _tracks(bins)
    half = bins.shape[1] / 2 * BIN_SECONDS
    found = []
    for column, axis in enumerate(AXES):
        step = asked[:, 1, column] - asked[:, 0, column]
        up, down = np.flatnonzero(step > 0), np.flatnonzero(step < 0)
        if not len(up) or not len(down):
            continue
        up_counts, down_counts = (resample_counts(rng, chosen) for chosen in (up, down))
        for measure, track in tracks.items():
            rising = _curves(track, up, up_counts, half)
            falling = _curves(track, down, down_counts, half)
            apart = _Curves(*(a - b for a, b in zip(rising, falling, strict=True)))
            sizes = (len(up), len(down), len(up) + len(down))
            for direction, curves, size in zip(
                _DIRECTIONS, (rising, falling, apart), sizes, strict=True
            ):
                found.append(_response(measure, axis, direction, size, track, curves))
    return found


def reach(curves: _Floats, before: _Floats, after: _Floats, share: float) -> _Floats:
    """Return the place at which curves have gone a share of the way from one level to another.

    Between values it is interpolated, from the level before at place -1 on; a lone value does not
    count: the level has to hold on average over three.

    Args:
        curves: (r, m); NaN where there is no value.
        before, after: (r,).
        share: 0 to 1.

    Returns:
        float64 (r,) in places, the first value standing at 0; inf: never, NaN: no change to make.
    """
    way = after - before
    if not curves.shape[1]:
        return np.full(len(curves), np.inf)
    gone = (curves - before[:, None]) / np.where(way == 0, np.nan, way)[:, None]
    known = ~np.isnan(gone)
    filled = np.where(known, gone, 0.0)
    mean = _lasting(filled) / np.maximum(_lasting(known.astype(np.float64)), 1.0)
    there = known & (gone >= share) & (mean >= share - 1e-9)
    first = there.argmax(axis=1)
    rows = np.arange(len(curves))
    earlier = np.where(first > 0, filled[rows, first - 1], 0.0)
    value = filled[rows, first]
    rise = np.where(value > earlier, value - earlier, 1.0)
    place = first - 1 + np.clip((share - earlier) / rise, 0.0, 1.0)
    place = np.where(there.any(axis=1), place, np.inf)
    result: _Floats = np.where((way == 0) | np.isnan(way), np.nan, place)
    return result


def _lasting(values: _Floats) -> _Floats:
    """Return (r, m): sums of each value and the two after it, as far as there are any."""
    padded = np.pad(values, ((0, 0), (0, _LASTING - 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, _LASTING, axis=1).sum(axis=2)


def _tracks(bins: _Floats) -> dict[str, _Track]:
    streams, count, columns = bins.shape
    half = count / 2 * BIN_SECONDS
    plain = plain_measures(bins.reshape(-1, columns), BIN_SECONDS).reshape(streams, count, -1)
    notes = plain[..., 0] * BIN_SECONDS
    middles = (np.arange(count) + 0.5) * BIN_SECONDS - half
    tracks = {"note_rate": _Track(plain[..., 0], np.ones_like(notes), middles, BIN_SECONDS)}
    for name in ("mean_velocity", "mean_pitch"):
        values = np.nan_to_num(plain[..., PLAIN_MEASURES.index(name)])
        tracks[name] = _Track(values * notes, notes, middles, BIN_SECONDS)
    cells = min(round(MOOD_SECONDS / BIN_SECONDS), 2 * round(count / 15))
    sums = np.stack([window_sums(stream, cells, 1) for stream in bins])
    moods = estimate(sums.reshape(-1, columns)).reshape(streams, -1, 2)
    heard = (_neighbours(notes, cells) > 0.5).astype(np.float64)
    middles = (np.arange(moods.shape[1]) + cells / 2) * BIN_SECONDS - half
    for column, axis in enumerate(AXES):
        tracks[axis] = _Track(moods[..., column] * heard, heard, middles, cells * BIN_SECONDS)
    return tracks


def _neighbours(notes: _Floats, cells: int) -> _Floats:
    """Return (n, m - cells + 1): sums of each `cells` neighbours of rows (n, m)."""
    return np.lib.stride_tricks.sliding_window_view(notes, cells, axis=1).sum(axis=2)


def _curves(track: _Track, chosen: NDArray[np.intp], counts: _Floats, half: float) -> _Curves:
    """Average streams, and find the levels.

    Args:
        track: of all streams.
        chosen: those that are averaged.
        counts: (r, chosen) how often each of them counts.
        half: seconds before and after the change.
    """
    sums, weights = counts @ track.sums[chosen], counts @ track.counts[chosen]
    begin, end = track.seconds - track.width / 2, track.seconds + track.width / 2
    levels = []
    for settled in (
        (begin >= -2 / 3 * half) & (end <= 0),
        (begin >= half / 2) & (end <= half),
    ):
        levels.append(_ratio(sums[:, settled].sum(axis=1), weights[:, settled].sum(axis=1)))
    return _Curves(levels[0], levels[1], _ratio(sums, weights))


def _ratio(sums: _Floats, weights: _Floats) -> _Floats:
    return np.divide(sums, weights, out=np.full(sums.shape, np.nan), where=weights > 0)


def _response(
    measure: str, axis: str, direction: str, streams: int, track: _Track, curves: _Curves
) -> Response:
    way = curves.after - curves.before
    # what rounding leaves of two equal levels is no change
    way[np.abs(way) < 1e-9 * np.maximum(1.0, np.abs(curves.before))] = 0.0
    change = interval_of_values(way)
    # a window that ends at the change holds nothing of it: from there on it counts
    later = track.seconds > -track.width / 2
    begin = float(track.seconds[later][0])
    times = []
    for share in (0.5, 0.9):
        place = reach(curves.values[:, later], curves.before, curves.after, share)
        seconds = np.maximum(begin + place * BIN_SECONDS, 0.0)
        times.append(
            interval_of_values(seconds) if change.excludes_zero else Interval(None, None, None)
        )
    points = [None if np.isnan(value) else float(value) for value in curves.values[0]]
    levels = [None if np.isnan(level[0]) else float(level[0]) for level in curves[:2]]
    return Response(
        measure=measure,
        axis=axis,
        direction=direction,
        streams=streams,
        before=levels[0],
        after=levels[1],
        change=change,
        half_seconds=times[0],
        ninety_seconds=times[1],
        seconds=track.seconds.tolist(),
        curve=points,
    )
