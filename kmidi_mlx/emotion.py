"""Emotion: valence, arousal and intensity, their labels, and the 64 numbers a model reads.

Valence (unpleasant to pleasant) and arousal (sleepy to excited) span the circumplex of affect
(Russell, "A circumplex model of affect", Journal of Personality and Social Psychology 39, 1980).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "EMOTION_DIM",
    "ENTRY_NAMES",
    "LABELS",
    "UNCONDITIONAL",
    "Emotion",
    "decode",
    "encode",
    "encode_many",
    "from_label",
    "nearest_label",
]

EMOTION_DIM = 64

#: Points of the labels as (valence, arousal).
#:
#: Source: order and quadrants of Russell's 28 affect words (1980, figures 2-4, where pleasure is at
#: 0°, excitement at 45°, arousal at 90°, distress at 135°, displeasure at 180°, depression at 225°,
#: sleepiness at 270° and relaxation at 315°). Adapted: the numbers are rounded to 0.05 and spread a
#: little where words nearly coincide; "angry" and "fear" follow the similarity scaling (figure 4),
#: which puts them in the middle of the unpleasant, aroused quadrant, and not the circular ordering,
#: which puts them almost at 90°. Words that Russell has not (joyful, energetic, tender, peaceful,
#: dreamy, melancholic, anxious, surprised, fear for "afraid", neutral) stand beside the nearest of
#: his, in the quadrants in which listeners place music of that target emotion (Eerola & Vuoskoski,
#: "A comparison of the discrete and dimensional models of emotion in music", Psychology of Music
#: 39, 2011: happy, sad, tender, angry, fearful).
LABELS: dict[str, tuple[float, float]] = {
    "happy": (0.80, 0.50),
    "joyful": (0.85, 0.65),
    "excited": (0.60, 0.80),
    "energetic": (0.40, 0.85),
    "surprised": (0.15, 0.90),
    "alarmed": (-0.15, 0.90),
    "tense": (-0.30, 0.70),
    "fear": (-0.50, 0.80),
    "anxious": (-0.55, 0.55),
    "angry": (-0.75, 0.70),
    "frustrated": (-0.75, 0.40),
    "miserable": (-0.90, -0.10),
    "sad": (-0.70, -0.40),
    "melancholic": (-0.45, -0.45),
    "gloomy": (-0.65, -0.60),
    "depressed": (-0.80, -0.70),
    "bored": (-0.40, -0.75),
    "tired": (-0.10, -0.70),
    "sleepy": (0.05, -0.90),
    "dreamy": (0.25, -0.60),
    "calm": (0.50, -0.60),
    "peaceful": (0.65, -0.65),
    "relaxed": (0.70, -0.50),
    "tender": (0.55, -0.35),
    "content": (0.75, -0.20),
    "pleased": (0.80, 0.20),
    "neutral": (0.00, 0.00),
}

_GRID = (-1.0, -0.5, 0.0, 0.5, 1.0)
_GRID_WIDTH = 0.5
_WEIGHTED_LABELS = (
    "happy",
    "excited",
    "energetic",
    "tense",
    "fear",
    "angry",
    "frustrated",
    "sad",
    "melancholic",
    "bored",
    "sleepy",
    "calm",
    "tender",
    "content",
    "neutral",
)
_LABEL_WIDTH = 0.35

_Column = NDArray[np.float64]
_HALF_PI = math.pi / 2.0
# Entries 4-23: name and function of (valence, arousal, intensity). Monomials give a linear layer
# curvature over the square, waves of one and two half periods give it slopes that vary by region.
_SMOOTH: dict[str, Callable[[_Column, _Column, _Column], _Column]] = {
    "valence^2": lambda v, a, i: v * v,
    "arousal^2": lambda v, a, i: a * a,
    "valence*arousal": lambda v, a, i: v * a,
    "valence^3": lambda v, a, i: v**3,
    "arousal^3": lambda v, a, i: a**3,
    "valence^2*arousal": lambda v, a, i: v * v * a,
    "valence*arousal^2": lambda v, a, i: v * a * a,
    "intensity^2": lambda v, a, i: i * i,
    "sin(pi/2*valence)": lambda v, a, i: np.sin(_HALF_PI * v),
    "cos(pi/2*valence)": lambda v, a, i: np.cos(_HALF_PI * v),
    "sin(pi/2*arousal)": lambda v, a, i: np.sin(_HALF_PI * a),
    "cos(pi/2*arousal)": lambda v, a, i: np.cos(_HALF_PI * a),
    "sin(pi*valence)": lambda v, a, i: np.sin(math.pi * v),
    "cos(pi*valence)": lambda v, a, i: np.cos(math.pi * v),
    "sin(pi*arousal)": lambda v, a, i: np.sin(math.pi * a),
    "cos(pi*arousal)": lambda v, a, i: np.cos(math.pi * a),
    "sin(pi/2*(valence+arousal))": lambda v, a, i: np.sin(_HALF_PI * (v + a)),
    "cos(pi/2*(valence+arousal))": lambda v, a, i: np.cos(_HALF_PI * (v + a)),
    "sin(pi/2*(valence-arousal))": lambda v, a, i: np.sin(_HALF_PI * (v - a)),
    "cos(pi/2*(valence-arousal))": lambda v, a, i: np.cos(_HALF_PI * (v - a)),
}

#: What each of the 64 entries of the emotion vector is:
#: 0-2 valence, arousal, intensity; 3 is 1 where an emotion is given; 4-23 the function in the name;
#: 24-48 Gaussian bumps exp(-d²/(2·0.5²)) around 25 grid points (valence, arousal); 49-63 how much
#: the point belongs to each of 15 labels: Gaussians of width 0.35 that are scaled to sum to 1.
ENTRY_NAMES: tuple[str, ...] = (
    "valence",
    "arousal",
    "intensity",
    "given",
    *_SMOOTH,
    *(f"bump({v:g},{a:g})" for v in _GRID for a in _GRID),
    *(f"label:{label}" for label in _WEIGHTED_LABELS),
)

_BUMPS = np.array([(v, a) for v in _GRID for a in _GRID])
_LABEL_POINTS = np.array([LABELS[label] for label in _WEIGHTED_LABELS])

#: The vector that says "no emotion given" (for classifier-free guidance): 64 zeros, read-only.
UNCONDITIONAL: NDArray[np.float32] = np.zeros(EMOTION_DIM, np.float32)
UNCONDITIONAL.flags.writeable = False


@dataclass(frozen=True)
class Emotion:
    """A point of the circumplex and how strong it is meant.

    Attributes:
        valence: unpleasant -1 to pleasant 1.
        arousal: sleepy -1 to excited 1.
        intensity: neutral 0 to full 1.

    Raises:
        KmidiError: for a value that is not a number or lies outside its range.
    """

    valence: float
    arousal: float
    intensity: float

    def __post_init__(self) -> None:
        for name, lowest in (("valence", -1.0), ("arousal", -1.0), ("intensity", 0.0)):
            object.__setattr__(self, name, _checked(name, getattr(self, name), lowest))

    @classmethod
    def of(cls, valence: float, arousal: float, intensity: float | None = None) -> Emotion:
        """Make an emotion whose intensity is its distance from neutral unless it is given.

        Args:
            valence: -1 to 1.
            arousal: -1 to 1.
            intensity: 0 to 1, or None for min(1, hypot(valence, arousal)).

        Raises:
            KmidiError: for a value that is not a number or lies outside its range.
        """
        if intensity is None:
            valence, arousal = (
                _checked("valence", valence, -1.0),
                _checked("arousal", arousal, -1.0),
            )
            intensity = min(1.0, math.hypot(valence, arousal))
        return cls(valence, arousal, intensity)


def from_label(label: str) -> Emotion:
    """Return the emotion that a label such as "happy" stands for (`LABELS`, any case).

    Raises:
        KmidiError: for an unknown label; the message names the nearest and all known ones.
    """
    name = label.strip().lower()
    if name not in LABELS:
        near = difflib.get_close_matches(name, LABELS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? Known" if near else "known"
        raise KmidiError(f"emotion label {label!r} is unknown; {hint} are {', '.join(LABELS)}.")
    return Emotion.of(*LABELS[name])


def nearest_label(emotion: Emotion) -> str:
    """Return the label whose point is nearest to the emotion's valence and arousal."""
    return min(
        LABELS,
        key=lambda label: math.dist(LABELS[label], (emotion.valence, emotion.arousal)),
    )


def encode(emotion: Emotion | None) -> NDArray[np.float32]:
    """Turn an emotion into the vector that conditions a model.

    Args:
        emotion: the emotion, or None for "no emotion given".

    Returns:
        float32 (64,), entries as in `ENTRY_NAMES`, all in [-1, 1]; zeros for None.
    """
    if emotion is None:
        return UNCONDITIONAL.copy()
    row: NDArray[np.float32] = encode_many(
        [emotion.valence], [emotion.arousal], [emotion.intensity]
    )[0]
    return row


def encode_many(
    valence: ArrayLike, arousal: ArrayLike, intensity: ArrayLike | None = None
) -> NDArray[np.float32]:
    """Turn many emotions into their vectors at once.

    Args:
        valence: (n,) in [-1, 1].
        arousal: (n,) in [-1, 1].
        intensity: (n,) in [0, 1], or None for min(1, hypot(valence, arousal)).

    Returns:
        float32 (n, 64); row k equals `encode(Emotion.of(valence[k], arousal[k], intensity[k]))`.

    Raises:
        KmidiError: for wrong shapes or a value that is not a number or lies outside its range.
    """
    v, a = _checked_column("valence", valence, -1.0), _checked_column("arousal", arousal, -1.0)
    if intensity is not None:
        i = _checked_column("intensity", intensity, 0.0)
    else:
        i = np.minimum(1.0, np.hypot(v, a)) if len(v) == len(a) else v
    if not len(v) == len(a) == len(i):
        raise KmidiError(
            f"valence, arousal and intensity need one length, got {len(v)}, {len(a)} and {len(i)}."
        )
    # Rounded first, so that a decoded vector encodes to the same bits again.
    v, a, i = (column.astype(np.float32).astype(np.float64) for column in (v, a, i))
    out = np.empty((len(v), EMOTION_DIM), np.float32)
    out[:, 0], out[:, 1], out[:, 2], out[:, 3] = v, a, i, 1.0
    for column, function in enumerate(_SMOOTH.values(), start=4):
        out[:, column] = function(v, a, i)
    first_label = EMOTION_DIM - len(_WEIGHTED_LABELS)
    out[:, 4 + len(_SMOOTH) : first_label] = _gaussians(v, a, _BUMPS, _GRID_WIDTH)
    weights = _gaussians(v, a, _LABEL_POINTS, _LABEL_WIDTH)
    out[:, first_label:] = weights / weights.sum(axis=1, keepdims=True)
    return out


def decode(vector: ArrayLike) -> Emotion | None:
    """Invert `encode`: exact for values of up to six decimals, else exact in float32.

    Args:
        vector: (64,), as made by `encode`.

    Returns:
        The emotion, or None for the unconditional vector.

    Raises:
        KmidiError: if this is not an emotion vector.
    """
    values = np.asarray(vector, np.float32)
    if values.shape != (EMOTION_DIM,):
        raise KmidiError(
            f"an emotion vector has shape ({EMOTION_DIM},), not {values.shape}; use encode."
        )
    if not values.any():
        return None
    if values[3] != 1.0:
        raise KmidiError(
            f"entry 3 of an emotion vector is 1 where an emotion is given, got {values[3]:g}; "
            "make it with encode."
        )
    # The shortest decimal of this float32 is the number that was put in: 0.1, not 0.10000000149.
    return Emotion(*(float(str(value)) for value in values[:3]))


def _gaussians(v: _Column, a: _Column, points: _Column, width: float) -> _Column:
    squared = (v[:, None] - points[:, 0]) ** 2 + (a[:, None] - points[:, 1]) ** 2
    bumps: _Column = np.exp(squared / (-2.0 * width * width))
    return bumps


def _checked(name: str, value: float, lowest: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not lowest <= number <= 1.0:
        raise KmidiError(f"{name} is {value!r}; it has to be a number from {lowest:g} to 1.")
    return number


def _checked_column(name: str, values: ArrayLike, lowest: float) -> _Column:
    column = np.asarray(values, np.float64)
    if column.ndim != 1:
        raise KmidiError(f"{name} has to be a list of numbers, got shape {column.shape}.")
    valid = (column >= lowest) & (column <= 1.0)
    if not valid.all():
        index = int(np.argmin(valid))
        raise KmidiError(
            f"{name} {index} is {column[index]:g}; it has to be a number from {lowest:g} to 1."
        )
    return column
