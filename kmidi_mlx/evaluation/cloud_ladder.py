"""The ladder on which a Spectocloud network is measured: always all rungs, in one table.

Each rung draws the clouds of the same held-out pairs of frames. What a rung does not know shows in
how far it is above the network, and the network in how far it is above the teacher at half the
points, which errs only by having fewer points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.cloud_shards import CloudPairs
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.evaluation.cloud_measures import (
    CloudErrors,
    CloudScore,
    Estimate,
    compare_pairs,
    estimate,
)
from kmidi_mlx.evaluation.cloud_rungs import (
    CloudData,
    EmotionMeans,
    network_ms,
    other_songs,
    spread_evenly,
    teacher_ms,
)
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

__all__ = ["NETWORK", "RUNGS", "Ladder", "Rung", "climb", "held_out_pairs"]

NETWORK = "network"
HALF = "teacher, half the points"
LATE = "teacher, a frame late"
EMOTION_MEAN = "mean cloud of the emotion"
#: Names of the rungs, in the order of the table.
RUNGS = (
    EMOTION_MEAN,
    "network, other sound",
    "network, other notes",
    "network, other emotion",
    NETWORK,
    LATE,
    HALF,
)
# which inputs the rungs of the network take from another song
_FOREIGN = dict(zip(RUNGS[1:5], ("windows", "features", "emotion", None), strict=True))
# Mean clouds change little beyond this.
_MEAN_PAIRS = 3000

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Rung:
    """A rung of the ladder.

    Attributes:
        errors: of its clouds.
        over_network: how much its Chamfer distance is above the network's, with the standard error
            of that difference, which is smaller than those of the two.
        ms_per_frame: median time of a cloud at batch 1 on this machine; None where it is that of
            another rung or there is nothing to compute.
    """

    errors: CloudScore
    over_network: Estimate
    ms_per_frame: float | None


@dataclass(frozen=True)
class Ladder:
    """What was measured.

    Attributes:
        pairs: number of pairs of neighbouring frames.
        songs: number of songs that they are of.
        points: of a teacher's cloud.
        teacher_ms_per_frame: median time of the teacher for a cloud with all points.
        rungs: by name, in the order of `RUNGS`.
    """

    pairs: int
    songs: int
    points: int
    teacher_ms_per_frame: float
    rungs: dict[str, Rung]


def held_out_pairs(reader: CloudData, split: str, limit: int) -> NDArray[np.int64]:
    """Return at most `limit` pairs of a side, spread evenly.

    Raises:
        KmidiError: if there are none.
    """
    indices = reader.split(split)
    if not len(indices):
        raise KmidiError(f"there are no clouds in {split!r}; prepare more songs.")
    return spread_evenly(indices, limit)


def climb(
    model: SpectocloudViT,
    reader: CloudData,
    indices: NDArray[np.int64],
    *,
    seed: int = 0,
    batch_size: int = 8,
    on_progress: OnProgress = lambda pairs: None,
) -> Ladder:
    """Measure all rungs.

    Args:
        model: the network.
        reader: the clouds; the mean clouds are learnt from its train side.
        indices: (pairs,) the pairs to measure, of at least two songs.
        seed: of the draw of foreign inputs.
        batch_size: pairs drawn at once.
        on_progress: called with a number of pairs that were measured just now.

    Raises:
        KmidiError: if the pairs are all of one song or there is nothing to learn means from.
    """
    train, song = reader.split("train"), reader.song[indices]
    if not len(train):
        raise KmidiError("there are no clouds in 'train' to learn mean clouds from.")
    foreign = indices[other_songs(song, seed)]
    means = EmotionMeans(reader, spread_evenly(train, _MEAN_PAIRS))
    first = reader.pairs(indices[:batch_size])
    points = first.clouds.shape[2]
    network = Network(model, points)
    found: dict[str, list[CloudErrors]] = {name: [] for name in RUNGS}
    for start in range(0, len(indices), batch_size):
        batch = slice(start, start + batch_size)
        own, other = reader.pairs(indices[batch]), reader.pairs(foreign[batch])
        for name, part in _rungs_of(own, other, means, network).items():
            found[name].append(part)
        on_progress(len(own.clouds))
    errors = {name: CloudErrors.joined(parts) for name, parts in found.items()}
    times = {NETWORK: network_ms(network, first), HALF: teacher_ms(first, points // 2)}
    return Ladder(
        pairs=len(indices),
        songs=len(np.unique(song)),
        points=points,
        teacher_ms_per_frame=teacher_ms(first, points),
        rungs={
            name: Rung(
                errors[name].score(song),
                estimate(errors[name].chamfer - errors[NETWORK].chamfer, song),
                times.get(name),
            )
            for name in RUNGS
        },
    )


def _rungs_of(
    own: CloudPairs, other: CloudPairs, means: EmotionMeans, network: Network
) -> dict[str, CloudErrors]:
    """Errors of every rung on a batch; `other` are the pairs that foreign inputs come from."""
    target = own.clouds
    found = {EMOTION_MEAN: compare_pairs(means.clouds(own.emotion), target)}
    for name, taken in _FOREIGN.items():
        inputs = {
            part: getattr(other if part == taken else own, part)
            for part in ("windows", "features", "emotion")
        }
        drawn = network.clouds(inputs["windows"], inputs["features"], inputs["emotion"])
        found[name] = compare_pairs(drawn, target)
    # the neighbour's cloud in place of one's own: what is wrong with a cloud 1/60 s old
    found[LATE] = compare_pairs(target[:, ::-1], target, sequence=False)
    found[HALF] = compare_pairs(target[:, :, : target.shape[2] // 2], target)
    return found
