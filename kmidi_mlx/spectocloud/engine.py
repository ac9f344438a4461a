"""The engine: advances a cloud frame by frame, 60 frames a second of music.

`begin` and `advance` are the whole of it: a frame's inputs go in, a new state with its cloud comes
out, and nothing else is remembered. A live programme calls them as the music plays; `clouds` runs
them over a song, and `clouds_at` computes only some frames of it.

The slow part of the state (emotion, anchors, storm) is cheap. The cloud itself follows what the
frame asks for within some tenths of a second, each point with a bounded speed, so that a point that
has to go elsewhere is seen going there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.features import FEATURE_COUNT
from kmidi_mlx.spectocloud import adhesion
from kmidi_mlx.spectocloud.anchors import ANCHOR_COUNT, activations, family_peak
from kmidi_mlx.spectocloud.axes import WINDOW_FRAMES, check_mel
from kmidi_mlx.spectocloud.cloud import Sight, draw_cloud
from kmidi_mlx.spectocloud.energy import Energy, measure_energy
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS, point_set
from kmidi_mlx.spectocloud.storm import Storm, charged

__all__ = [
    "MAX_STEP",
    "WARM_UP_FRAMES",
    "EngineState",
    "Frame",
    "advance",
    "begin",
    "clouds",
    "clouds_at",
    "followed",
]

_Floats = NDArray[np.float32]

#: The farthest that a point moves in one frame along each axis.
MAX_STEP = 0.05
#: Frames before a wanted one that `clouds_at` computes to know where the points come from.
WARM_UP_FRAMES = 60
# Share of the way to the target that a frame covers: position, colour, opacity, size, glow, depth.
_RATES = np.array([0.28] * 3 + [0.22] * 3 + [0.3, 0.35, 0.45, 0.28], np.float32)
_LIMITS = np.array([MAX_STEP] * 3 + [1.0] * 7, np.float32)


@dataclass(frozen=True, eq=False)
class Frame:
    """What the engine is told of one video frame.

    Attributes:
        window: float32 (128, 64), log-compressed mel spectrogram in [0, 1], the newest frame last.
        features: float32 (32,), as of `kmidi_mlx.music.features`, in [-1, 1].
        emotion: valence and arousal in [-1, 1] and intensity in [0, 1] that are asked for.
        progress: place in the song, 0 to 1.
    """

    window: _Floats
    features: _Floats
    emotion: tuple[float, float, float]
    progress: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", check_mel("window", self.window, WINDOW_FRAMES))
        features = np.asarray(self.features, np.float32)
        if features.shape != (FEATURE_COUNT,):
            raise KmidiError(f"features have shape {features.shape}; it has to be (32,).")
        if not np.abs(features).max() <= 1.0:
            raise KmidiError(
                "a MIDI feature is not a number from -1 to 1; make them with features."
            )
        object.__setattr__(self, "features", features)
        names = ("valence", "arousal", "intensity", "progress")
        if len(self.emotion) != 3:
            raise KmidiError(
                f"an emotion is valence, arousal and intensity, got {len(self.emotion)} numbers."
            )
        values = (*self.emotion, self.progress)
        for name, value, lowest in zip(names, values, (-1.0, -1.0, 0.0, 0.0), strict=True):
            if not lowest <= value <= 1.0:
                raise KmidiError(f"{name} is {value}; it has to be a number from {lowest:g} to 1.")


@dataclass(frozen=True, eq=False)
class EngineState:
    """All that the engine remembers from frame to frame.

    Attributes:
        emotion: valence, arousal and intensity as the cloud feels them: the ones that were asked
            for, with inertia.
        anchors: float32 (28,), activations in [0, 1].
        storm: the storm.
        cloud: float32 (points, 10), columns as in `CHANNELS`; not to be written to.
    """

    emotion: tuple[float, float, float]
    anchors: _Floats
    storm: Storm
    cloud: _Floats


def begin(frame: Frame, n_points: int = DEFAULT_POINTS) -> EngineState:
    """Return the state before the first frame: silence, already in the frame's emotion.

    Args:
        frame: the first one that will come.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.

    Raises:
        KmidiError: if n_points is out of range.
    """
    nothing = np.zeros(FEATURE_COUNT, np.float32)
    silence = replace(frame, window=np.zeros_like(frame.window), features=nothing)
    slow = _Slow(frame.emotion, np.zeros(ANCHOR_COUNT, np.float32), Storm())
    return _state(slow, _target(slow, silence, measure_energy(silence.window), n_points))


def advance(state: EngineState, frame: Frame) -> EngineState:
    """Return the state, and with it the cloud, one video frame later.

    Args:
        state: before.
        frame: what is heard and felt now.
    """
    energy = measure_energy(frame.window)
    slow = _advance_slow(_Slow(state.emotion, state.anchors, state.storm), frame, energy)
    return _state(slow, followed(state.cloud, _target(slow, frame, energy, len(state.cloud))))


def clouds(frames: Sequence[Frame], n_points: int = DEFAULT_POINTS) -> Iterator[_Floats]:
    """Compute the cloud of every frame of a song, in order.

    Args:
        frames: the song's frames, at least one.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.

    Yields:
        float32 (n_points, 10), columns as in `CHANNELS`.

    Raises:
        KmidiError: if n_points is out of range.
    """
    state = begin(frames[0], n_points)
    for frame in frames:
        state = advance(state, frame)
        yield state.cloud


def clouds_at(
    frames: Sequence[Frame], wanted: Sequence[int], n_points: int = DEFAULT_POINTS
) -> Iterator[EngineState]:
    """Compute some frames of a song only, to prepare training data.

    The slow part runs through the whole song; points start at most 60 frames before a wanted frame
    from where that frame wants them. What is left of the difference to `clouds` is below 1e-3
    unless a point was under way at full speed all that time.

    Args:
        frames: the song's frames.
        wanted: indices of frames, ascending.
        n_points: 1 to 3000, best one of `LEVELS_OF_DETAIL`.

    Yields:
        The state at each wanted frame: its cloud, and the emotion that the cloud feels, which is
        what a network that is to draw this cloud should be told.

    Raises:
        KmidiError: for an index out of range or order, or if n_points is out of range.
    """
    indices = [int(index) for index in wanted]
    if any(a >= b for a, b in itertools.pairwise(indices)):
        raise KmidiError("the wanted frames have to be ascending indices, each given once.")
    if indices and not 0 <= indices[0] <= indices[-1] < len(frames):
        raise KmidiError(
            f"frames {indices[0]} to {indices[-1]} are wanted; the song has 0 to {len(frames) - 1}."
        )
    if not indices:
        return
    state = begin(frames[0], n_points)
    slow, cloud, drawn = _Slow(state.emotion, state.anchors, state.storm), state.cloud, -1
    position = 0
    for index in range(indices[-1] + 1):
        frame = frames[index]
        energy = measure_energy(frame.window)
        slow = _advance_slow(slow, frame, energy)
        if indices[position] - index > WARM_UP_FRAMES:
            continue
        target = _target(slow, frame, energy, n_points)
        # Points without a known past start where this frame wants them.
        cloud = followed(cloud, target) if drawn == index - 1 else target
        drawn = index
        if index == indices[position]:
            position += 1
            yield _state(slow, cloud)


@dataclass(frozen=True, eq=False)
class _Slow:
    """The part of the state that does not depend on the points."""

    emotion: tuple[float, float, float]
    anchors: _Floats
    storm: Storm


def _state(slow: _Slow, cloud: _Floats) -> EngineState:
    cloud.flags.writeable = False
    return EngineState(slow.emotion, slow.anchors, slow.storm, cloud)


def _advance_slow(slow: _Slow, frame: Frame, energy: Energy) -> _Slow:
    emotion = adhesion.dragged(slow.emotion, frame.emotion)
    anchors = activations(energy, frame.features)
    excitement = family_peak(anchors) * 0.5 * (emotion[1] + 1.0)
    return _Slow(emotion, anchors, charged(slow.storm, excitement, int(anchors.argmax())))


def _target(slow: _Slow, frame: Frame, energy: Energy, n_points: int) -> _Floats:
    sight = Sight(energy, frame.features, slow.anchors, slow.emotion, slow.storm, frame.progress)
    return draw_cloud(point_set(n_points), sight)


def followed(cloud: _Floats, target: _Floats, frames: int = 1) -> _Floats:
    """Return a cloud on its way to another, as fast as points may go.

    Args:
        cloud: float32 (points, 10), before.
        target: of the same shape.
        frames: video frames that go by, 1 or more.

    Returns:
        float32 (points, 10).
    """
    rates = _RATES if frames == 1 else 1.0 - (1.0 - _RATES) ** frames
    limits = _LIMITS * frames
    step = (target - cloud) * rates
    np.clip(step, -limits, limits, out=step)
    step += cloud
    return step
