"""How well a generator follows the emotion it is asked for, with the uncertainty of each number.

Everything is computed from sums over notes (`kmidi_mlx.music.mood.STATISTICS`) of stretches of
equal length: halves of a piece for what it is like as a whole, stretches of 1 s for how fast it
answers a change. Emotions, asked and estimated, are on the steering scale.

Intervals are those of `kmidi_mlx.evaluation.resampling`; chance is what permuted requests give
(Efron & Tibshirani, "An introduction to the bootstrap", 1993, chapter 15). Pieces without notes
have no mood: they are counted and left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.columns import MOOD_SOURCES
from kmidi_mlx.data.shards import ShardReader
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.evaluation.control import quadrants
from kmidi_mlx.evaluation.resampling import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    correlations,
    interval_of,
    resample_counts,
    share,
    slopes,
)
from kmidi_mlx.evaluation.spans import held_out_pieces
from kmidi_mlx.music.events import STEPS_PER_SECOND, decode
from kmidi_mlx.music.mood import (
    MOOD_FEATURES,
    STATISTICS,
    STEERING_EDGE,
    cell_statistics,
    estimate,
    mood_features,
)
from kmidi_mlx.music.notes import Notes

__all__ = [
    "AXES",
    "PLAIN_MEASURES",
    "Follow",
    "Halves",
    "RealMusic",
    "Steering",
    "emotion_grid",
    "grid_shape",
    "halves_of",
    "plain_measures",
    "quadrant_changes",
    "real_music",
    "statistics_of",
    "steering_of",
]

AXES = ("valence", "arousal")

#: What can be heard without any model of mood: notes a second, mean MIDI pitch, mean velocity,
#: "mode" of `kmidi_mlx.music.mood` (1: surely major, -1: surely minor), and whether that is minor.
PLAIN_MEASURES = ("note_rate", "mean_pitch", "mean_velocity", "mode", "minor")

_LARGEST_SIDE = 9
_NOTES, _PITCH, _VELOCITY = (STATISTICS.index(name) for name in ("notes", "pitch", "velocity"))
_MODE = MOOD_FEATURES.index("mode")
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Follow:
    """How something follows an axis that is asked for.

    Attributes:
        r: Pearson's correlation.
        slope: its change for a change of the request by 1.
    """

    r: Interval
    slope: Interval


@dataclass(frozen=True)
class Halves:
    """What the label model says of the first half of stretches of music against the second.

    Attributes:
        count: stretches with notes in both halves.
        valence_r, arousal_r: correlation of the halves.
        valence_ceiling, arousal_ceiling: the most that an estimate of the whole stretch can
            correlate with a mood that never changes within one: the root of its reliability
            2r / (1 + r) (Spearman, "Correlation calculated from faulty data", British Journal of
            Psychology 3, 1910; Brown, ibid.). None where the halves do not agree at all.
        same_quadrant: share whose halves lie in one quadrant.
        valence_deviation, arousal_deviation: standard deviation of the estimates of the wholes.
    """

    count: int
    valence_r: Interval
    arousal_r: Interval
    valence_ceiling: float | None
    arousal_ceiling: float | None
    same_quadrant: Interval
    valence_deviation: float | None
    arousal_deviation: float | None


@dataclass(frozen=True)
class Steering:
    """Asked against estimated mood of pieces that were written.

    Attributes:
        pieces, silent: pieces with notes and without.
        valence, arousal: how the estimate follows the request.
        quadrant_pieces: pieces that a quadrant was asked of; requests on an axis have none.
        quadrant_hits: share of those whose estimate lies in it.
        quadrant_chance: that share were the same requests dealt out at random.
        quadrant_chance_limit: above it with a probability of 2.5 % by chance.
        valence_r_limit, arousal_r_limit: |r| is above it with a probability of 2.5 % by chance.
        halves: the first half of the pieces against the second.
        means: of `PLAIN_MEASURES`.
        measures: how each of them follows each of `AXES`.
    """

    pieces: int
    silent: int
    valence: Follow
    arousal: Follow
    quadrant_pieces: int
    quadrant_hits: Interval
    quadrant_chance: float | None
    quadrant_chance_limit: float | None
    valence_r_limit: float | None
    arousal_r_limit: float | None
    halves: Halves
    means: dict[str, float | None]
    measures: dict[str, dict[str, Follow]]


@dataclass(frozen=True)
class RealMusic:
    """The label model on music that people made; intervals are over songs.

    Attributes:
        songs: of which the windows are.
        label_sources: windows by where their labels come from (`MOOD_SOURCES`).
        label_valence_r, label_arousal_r: estimate of a window against the data's own label; about 1
            by construction where those are estimates too.
        halves: the first half of the windows against the second.
        means: of `PLAIN_MEASURES`.
    """

    songs: int
    label_sources: dict[str, int]
    label_valence_r: Interval
    label_arousal_r: Interval
    halves: Halves
    means: dict[str, float | None]


def grid_shape(pieces: int) -> tuple[int, int]:
    """Return points along valence and arousal of the grid that most of the pieces can fill.

    Sides are 2 to 9 points and differ by one at the most; of grids that use equally many pieces the
    finest is taken.

    Args:
        pieces: that may be written, >= 4.
    """
    shapes = [
        (valence, arousal)
        for arousal in range(2, _LARGEST_SIDE + 1)
        for valence in (arousal, arousal + 1)
        if valence <= _LARGEST_SIDE and valence * arousal <= pieces
    ]
    return max(shapes, key=lambda s: (pieces // (s[0] * s[1]) * s[0] * s[1], s[0] * s[1]))


def emotion_grid(pieces: int) -> list[Emotion]:
    """Return at most so many emotions: the points of `grid_shape`, each equally often.

    The corners are at ±0.9 (`STEERING_EDGE`), which one real window in fifty reaches on an axis.

    Args:
        pieces: that may be written, >= 4.
    """
    shape = grid_shape(pieces)
    # rounded, so that the middle is 0 and not nearly so
    valence, arousal = (
        np.linspace(-STEERING_EDGE, STEERING_EDGE, side).round(6) + 0.0 for side in shape
    )
    points = [Emotion.of(v, a) for a in arousal.tolist() for v in valence.tolist()]
    return points * (pieces // len(points))


def quadrant_changes() -> list[tuple[Emotion, Emotion]]:
    """Return the twelve changes from the corner of one quadrant to that of another."""
    corners = [
        Emotion.of(STEERING_EDGE * v, STEERING_EDGE * a)
        for v, a in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]
    return list(permutations(corners, 2))


def statistics_of(notes: Notes, stretch_seconds: float, count: int) -> _Floats:
    """Sum up the notes of the first `count` stretches of a piece; silence follows a short one.

    Args:
        notes: the piece.
        stretch_seconds: > 0.
        count: >= 0.

    Returns:
        float64 (count, 33), columns as in `STATISTICS`.
    """
    found = cell_statistics(notes, stretch_seconds)[:count]
    return np.concatenate([found, np.zeros((count - len(found), len(STATISTICS)))])


def plain_measures(statistics: _Floats, seconds: float) -> _Floats:
    """Return (n, 5), columns as in `PLAIN_MEASURES`; NaN but for the note rate where no note is.

    Args:
        statistics: (n, 33), of stretches of music.
        seconds: length of each.
    """
    notes = statistics[:, _NOTES]
    rows = np.full((len(statistics), len(PLAIN_MEASURES)), np.nan)
    rows[:, 0] = notes / seconds
    heard = notes > 0.5
    rows[heard, 1] = statistics[heard, _PITCH] / notes[heard]
    rows[heard, 2] = statistics[heard, _VELOCITY] / notes[heard]
    if heard.any():
        rows[heard, 3] = mood_features(statistics[heard])[:, _MODE]
        rows[heard, 4] = rows[heard, 3] < 0
    return rows


def steering_of(asked: _Floats, halves: _Floats, seconds: float, seed: int = 0) -> Steering:
    """Judge pieces by the emotions that were asked of them.

    Args:
        asked: (n, 2) valence and arousal.
        halves: (n, 2, 33) `statistics_of` the pieces' halves.
        seconds: length of a piece.
        seed: of resamples and permutations.
    """
    heard = halves[..., _NOTES].sum(axis=1) > 0.5
    silent = int((~heard).sum())
    asked, halves = asked[heard], halves[heard]
    whole = halves.sum(axis=1)
    found = _moods(whole)
    plain = plain_measures(whole, seconds)
    rng = np.random.default_rng(seed)
    counts = resample_counts(rng, np.arange(len(asked)))
    in_quadrant = (asked != 0).all(axis=1)
    wanted, reached = quadrants(asked[in_quadrant]), quadrants(found[in_quadrant])
    hit_chance, hit_limit = _chance_of_hits(rng, wanted, reached)
    return Steering(
        pieces=len(asked),
        silent=silent,
        valence=_follow(asked[:, 0], found[:, 0], counts),
        arousal=_follow(asked[:, 1], found[:, 1], counts),
        quadrant_pieces=int(in_quadrant.sum()),
        quadrant_hits=interval_of(share(wanted == reached), counts[:, in_quadrant]),
        quadrant_chance=hit_chance,
        quadrant_chance_limit=hit_limit,
        valence_r_limit=_chance_of_r(rng, asked[:, 0], found[:, 0]),
        arousal_r_limit=_chance_of_r(rng, asked[:, 1], found[:, 1]),
        halves=halves_of(halves, counts),
        means=_means(plain),
        measures={
            name: {axis: _follow(asked[:, k], plain[:, m], counts) for k, axis in enumerate(AXES)}
            for m, name in enumerate(PLAIN_MEASURES)
        },
    )


def halves_of(halves: _Floats, counts: _Floats) -> Halves:
    """Compare halves of stretches of music.

    Args:
        halves: (n, 2, 33) statistics.
        counts: (resamples, n) from `resample_counts`.
    """
    both = (halves[..., _NOTES] > 0.5).all(axis=1)
    halves, counts = halves[both], counts[:, both]
    first, second, whole = (
        _moods(part) for part in (halves[:, 0], halves[:, 1], halves.sum(axis=1))
    )
    r = [interval_of(correlations(first[:, k], second[:, k]), counts) for k in range(2)]
    spread = whole.std(axis=0, ddof=1).tolist() if len(whole) > 1 else [None, None]
    return Halves(
        count=len(halves),
        valence_r=r[0],
        arousal_r=r[1],
        valence_ceiling=_ceiling(r[0].value),
        arousal_ceiling=_ceiling(r[1].value),
        same_quadrant=interval_of(share(quadrants(first) == quadrants(second)), counts),
        valence_deviation=spread[0],
        arousal_deviation=spread[1],
    )


def real_music(
    reader: ShardReader, split: str, seconds: float, most: int = RESAMPLES, seed: int = 0
) -> RealMusic:
    """Judge windows of prepared music, one after the other from a piece's beginning.

    Args:
        reader: the data set.
        split: its side.
        seconds: length of a window; the rest of a piece is left out.
        most: windows after which no further piece is read; pieces come in random order.
        seed: of that order, and of resamples.

    Raises:
        KmidiError: for an unknown side, or one without music.
    """
    rng = np.random.default_rng(seed)
    windows, labels = [np.zeros((0, 2, len(STATISTICS)))], [np.zeros((0, 2))]
    owners: list[int] = []
    for piece in rng.permutation(held_out_pieces(reader, split)).tolist():
        if len(owners) >= most:
            break
        notes = decode(reader.tokens(piece))
        count = int(notes.duration_seconds // seconds)
        found = statistics_of(notes, seconds / 2, 2 * count).reshape(count, 2, len(STATISTICS))
        heard = found[..., _NOTES].sum(axis=1) > 0.5
        windows.append(found[heard])
        labels.append(_labels(reader, piece, seconds, np.flatnonzero(heard)))
        owners += [piece] * int(heard.sum())
    halves, own = np.concatenate(windows), np.concatenate(labels)
    pieces = np.array(owners, np.int64)
    songs = reader.pieces.song[pieces]
    # versions of a song are alike: as many numbers, but not as much evidence
    counts = resample_counts(rng, songs)
    whole = halves.sum(axis=1)
    found = _moods(whole)
    sources = np.bincount(reader.pieces.mood_source[pieces], minlength=len(MOOD_SOURCES))
    return RealMusic(
        songs=len(np.unique(songs)),
        label_sources=dict(zip(MOOD_SOURCES, sources.tolist(), strict=True)),
        label_valence_r=interval_of(correlations(own[:, 0], found[:, 0]), counts),
        label_arousal_r=interval_of(correlations(own[:, 1], found[:, 1]), counts),
        halves=halves_of(halves, counts),
        means=_means(plain_measures(whole, seconds)),
    )


def _moods(statistics: _Floats) -> _Floats:
    """Return `estimate` of rows (n, 33), of which there may be none."""
    return estimate(statistics) if len(statistics) else np.zeros((0, 2))


def _labels(reader: ShardReader, piece: int, seconds: float, windows: NDArray[np.intp]) -> _Floats:
    """Return (n, 2): the labels whose middle is nearest to that of these windows of a piece."""
    low, high = (int(end) for end in reader.pieces.mood_offset[piece : piece + 2])
    middle = (windows + 0.5) * seconds * STEPS_PER_SECOND
    row = np.rint((middle - reader.mood_window_steps / 2) / reader.mood_hop_steps)
    rows = low + np.clip(row.astype(np.intp), 0, high - low - 1)
    own = (reader.pieces.valence[rows], reader.pieces.arousal[rows])
    return np.stack(own, axis=1).astype(np.float64)


def _follow(asked: _Floats, heard: _Floats, counts: _Floats) -> Follow:
    return Follow(
        interval_of(correlations(asked, heard), counts), interval_of(slopes(asked, heard), counts)
    )


def _chance_of_hits(
    rng: np.random.Generator, wanted: NDArray[np.intp], reached: NDArray[np.intp]
) -> tuple[float | None, float | None]:
    """Return the expected share of hits of permuted requests and its 97.5 % quantile."""
    if not len(wanted):
        return None, None
    shares = [np.bincount(q, minlength=4) / len(wanted) for q in (wanted, reached)]
    dealt = [(rng.permutation(wanted) == reached).mean() for _ in range(RESAMPLES)]
    return float(shares[0] @ shares[1]), _limit(np.array(dealt))


def _chance_of_r(rng: np.random.Generator, asked: _Floats, heard: _Floats) -> float | None:
    """Return the 97.5 % quantile of |r| of permuted requests."""
    if not len(asked) or np.ptp(asked) < 1e-9 or np.ptp(heard) < 1e-9:
        return None
    x, y = (values - values.mean() for values in (asked, heard))
    dealt = rng.permuted(np.tile(x, (RESAMPLES, 1)), axis=1) @ y
    return _limit(np.abs(dealt) / np.sqrt((x @ x) * (y @ y)))


def _limit(values: _Floats) -> float:
    return float(np.quantile(values, (1 + CONFIDENCE) / 2))


def _ceiling(r: float | None) -> float | None:
    return float(np.sqrt(2 * r / (1 + r))) if r is not None and r > 0 else None


def _means(plain: _Floats) -> dict[str, float | None]:
    """Return the mean of each of `PLAIN_MEASURES` over stretches with notes."""
    values = plain.mean(axis=0).tolist() if len(plain) else [None] * len(PLAIN_MEASURES)
    return dict(zip(PLAIN_MEASURES, values, strict=True))
