"""Where in a song samples are taken, and which emotion is asked for meanwhile.

The engine is not run through whole songs but through excerpts of 15 s. Their first 3 s only let
sound, features, storm and emotion find their way; what a frame shows depends little on more.
Everything is drawn from a generator that the caller seeds, so a song's samples are always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.spectocloud import FRAMES_PER_SECOND, MEL_FRAMES_PER_SECOND, EmotionCurve

__all__ = [
    "EXCERPT_SECONDS",
    "OWN_SHARE",
    "PAIRS_PER_EXCERPT",
    "WARM_UP_SECONDS",
    "Excerpt",
    "emotion_for",
    "plan_excerpts",
]

EXCERPT_SECONDS = 15.0
WARM_UP_SECONDS = 3.0
PAIRS_PER_EXCERPT = 4
#: Share of the excerpts in which the song's own emotion is asked for.
OWN_SHARE = 0.25

# A song gets no more excerpts than one for each of these stretches.
_FRESH_SECONDS = 6.0
_SHORTEST_LEG_SECONDS, _LONGEST_LEG_SECONDS = 3.0, 6.0
# Draws beyond the border are brought to it: hands like to drag an emotion to an edge.
_REACH = 1.1
_HOLD_SHARE = 0.25
_FREE_INTENSITY_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A stretch of a song and the samples in it.

    Attributes:
        first_column: mel column of the song with which it begins.
        columns: its length in mel columns.
        frames: int64 (pairs,), rising: video frame k of the excerpt stands for frames k and k + 1.
    """

    first_column: int
    columns: int
    frames: NDArray[np.int64]

    @property
    def start_seconds(self) -> float:
        """When the excerpt begins in the song."""
        return self.first_column / MEL_FRAMES_PER_SECOND

    @property
    def seconds(self) -> float:
        """Length of the excerpt."""
        return self.columns / MEL_FRAMES_PER_SECOND


def plan_excerpts(columns: int, pairs: int, rng: np.random.Generator) -> list[Excerpt]:
    """Spread excerpts over a song, and pairs of neighbouring frames over each.

    Args:
        columns: the song's length in mel columns, at least 3 s of them.
        pairs: how many pairs are wanted; a short song gives fewer.
        rng: draws places.

    Returns:
        Excerpts in rising order. One that begins with the song has no warm-up, for there was
        nothing before.
    """
    duration = columns / MEL_FRAMES_PER_SECOND
    count = min(-(-pairs // PAIRS_PER_EXCERPT), max(1, int(duration / _FRESH_SECONDS)))
    # What is to be spread evenly is what follows the warm-up.
    room = max(0.0, duration - EXCERPT_SECONDS + WARM_UP_SECONDS)
    length = min(columns, round(EXCERPT_SECONDS * MEL_FRAMES_PER_SECOND))
    excerpts = []
    for number in range(count):
        start = (number + rng.random()) / count * room - WARM_UP_SECONDS
        first = min(max(0, int(start * MEL_FRAMES_PER_SECOND)), columns - length)
        wanted = min(PAIRS_PER_EXCERPT, pairs - number * PAIRS_PER_EXCERPT)
        excerpts.append(Excerpt(first, length, _frames(first, length, wanted, rng)))
    return excerpts


def emotion_for(
    excerpt: Excerpt, own: EmotionCurve | None, own_share: float, rng: np.random.Generator
) -> EmotionCurve:
    """Choose the emotion that is asked for during an excerpt, in the excerpt's time.

    Mostly it wanders between random points of the square, because a person may drag it anywhere
    whatever the music says; sometimes it rests at one.

    Args:
        excerpt: the excerpt.
        own: the song's emotion in the song's time; None where it is not known.
        own_share: probability of the song's own emotion, 1 for nothing else.
        rng: draws.
    """
    if rng.random() < own_share and own is not None:
        return EmotionCurve(own.seconds - excerpt.start_seconds, own.values)
    seconds, values = [0.0], [_point(rng)]
    while seconds[-1] < excerpt.seconds:
        seconds.append(seconds[-1] + rng.uniform(_SHORTEST_LEG_SECONDS, _LONGEST_LEG_SECONDS))
        values.append(values[-1] if rng.random() < _HOLD_SHARE else _point(rng))
    return EmotionCurve(np.array(seconds), np.array(values))


def _point(rng: np.random.Generator) -> tuple[float, float, float]:
    valence, arousal = np.clip(rng.uniform(-_REACH, _REACH, 2), -1.0, 1.0).tolist()
    free = rng.random() < _FREE_INTENSITY_SHARE
    intensity = rng.random() if free else min(1.0, math.hypot(valence, arousal))
    return valence, arousal, intensity


def _frames(first: int, columns: int, pairs: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw one pair in each of equally long stretches; both frames lie inside the sound."""
    earliest = 0 if first == 0 else math.ceil(WARM_UP_SECONDS * FRAMES_PER_SECOND)
    latest = int((columns - 1) / MEL_FRAMES_PER_SECOND * FRAMES_PER_SECOND)
    edges = np.linspace(earliest, latest, pairs + 1)
    width = edges[1] - edges[0]
    frames: NDArray[np.int64] = (edges[:-1] + rng.random(pairs) * (width - 2.0)).astype(np.int64)
    return frames
