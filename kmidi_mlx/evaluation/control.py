"""Whether a generator does what it is asked: emotion asked for against emotion heard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.evaluation.spans import note_starts
from kmidi_mlx.generation.generator import EventGenerator
from kmidi_mlx.models.midi_transformer import EmotionMIDITransformer
from kmidi_mlx.music.events import (
    STEPS_PER_SECOND,
    TIME_SHIFT,
    decode,
    first_violation,
)
from kmidi_mlx.music.mood import mood
from kmidi_mlx.music.notes import Notes

__all__ = [
    "Control",
    "Written",
    "asked_emotions",
    "control_of",
    "quadrants",
    "write_piece",
    "write_set",
]

_STRONG, _WEAK = 0.8, 0.4
_QUADRANTS = ((1, 1), (-1, 1), (-1, -1), (1, -1))
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Written:
    """A piece that a generator wrote.

    Attributes:
        asked: the emotion it was given.
        seed: of its randomness.
        notes: the music.
        events: number of events.
        violation: the first event that breaks a law of the vocabulary, in words; None: all valid.
        hanging_notes: notes without an end.
    """

    asked: Emotion
    seed: int
    notes: Notes
    events: int
    violation: str | None
    hanging_notes: int


@dataclass(frozen=True)
class Control:
    """Asked against estimated mood of a set, on the steering scale; None where undefined.

    Attributes:
        pieces: number of pieces with notes; silent ones have no mood.
        valence_correlation, arousal_correlation: Pearson's r; None if either side is constant.
        valence_error, arousal_error: mean absolute error, 0-2.
        quadrant_hits: share of the pieces whose estimate lies in the quadrant asked for.
        quadrant_chance: that share if the same estimates were dealt out to the pieces at random.
    """

    pieces: int
    valence_correlation: float | None
    arousal_correlation: float | None
    valence_error: float | None
    arousal_error: float | None
    quadrant_hits: float | None
    quadrant_chance: float | None


def asked_emotions(count: int) -> list[Emotion]:
    """Return emotions to ask for: any four in a row are one of each quadrant.

    The grid is valence and arousal of ±0.8 and ±0.4; after sixteen it starts over.

    Args:
        count: how many, >= 0.
    """
    strengths = ((_STRONG, _STRONG), (_WEAK, _WEAK), (_STRONG, _WEAK), (_WEAK, _STRONG))
    grid = [
        Emotion.of(valence * v, arousal * a)
        for v, a in strengths
        for valence, arousal in _QUADRANTS
    ]
    return [grid[index % len(grid)] for index in range(count)]


def write_piece(
    model: EmotionMIDITransformer,
    sampling: SamplingConfig,
    seconds: float,
    seed: int,
    emotion: Emotion,
) -> Written:
    """Let the generator play for `seconds` seconds (up to one shift of 1 s longer), then stop.

    What it played is judged as it is: nothing is mended before it is looked at.

    Args:
        model: the generator.
        sampling: how to draw.
        seconds: length, > 0.
        seed: of the randomness.
        emotion: what to ask for.
    """
    stream = EventGenerator(model, sampling, seed, emotion)
    end = round(seconds * STEPS_PER_SECOND)
    events = []
    while stream.steps < end:
        events.append(stream.next_event())
    events += stream.finish()
    # A rest at the end belongs to whatever would have come next.
    while events and events[-1] >= TIME_SHIFT:
        events.pop()
    ids = np.array(events, np.uint16)
    return Written(
        asked=emotion,
        seed=seed,
        notes=decode(ids),
        events=len(ids),
        violation=first_violation(ids),
        hanging_notes=int((note_starts(ids) >= 0).sum()),
    )


def write_set(
    model: EmotionMIDITransformer,
    sampling: SamplingConfig,
    count: int,
    seconds: float,
    *,
    seed: int = 0,
    guidance_scale: float | None = None,
    on_piece: Callable[[Written], None] | None = None,
) -> list[Written]:
    """Write a set of pieces over `asked_emotions`, piece k with seed + k.

    Args:
        model: the generator.
        sampling: how to draw.
        count: pieces.
        seconds: length of each.
        seed: sets with the same seed differ by nothing but their settings.
        guidance_scale: None: that of `sampling`.
        on_piece: called with each piece.
    """
    if guidance_scale is not None:
        sampling = replace(sampling, guidance_scale=guidance_scale)
    pieces = []
    for number, emotion in enumerate(asked_emotions(count)):
        pieces.append(write_piece(model, sampling, seconds, seed + number, emotion))
        if on_piece:
            on_piece(pieces[-1])
    return pieces


def control_of(pieces: list[Written]) -> Control:
    """Compare asked and estimated mood (`kmidi_mlx.music.mood`, steering scale) of a set."""
    heard = [piece for piece in pieces if len(piece.notes)]
    asked = np.array([(p.asked.valence, p.asked.arousal) for p in heard]).reshape(-1, 2)
    estimated = np.array([mood(piece.notes) for piece in heard]).reshape(-1, 2)
    if not heard:
        return Control(0, None, None, None, None, None, None)
    error = np.abs(asked - estimated).mean(axis=0)
    asked_quadrant, quadrant = quadrants(asked), quadrants(estimated)
    shares = [np.bincount(q, minlength=4) / len(heard) for q in (asked_quadrant, quadrant)]
    return Control(
        pieces=len(heard),
        valence_correlation=_correlation(asked[:, 0], estimated[:, 0]),
        arousal_correlation=_correlation(asked[:, 1], estimated[:, 1]),
        valence_error=float(error[0]),
        arousal_error=float(error[1]),
        quadrant_hits=float((asked_quadrant == quadrant).mean()),
        quadrant_chance=float(shares[0] @ shares[1]),
    )


def quadrants(moods: _Floats) -> NDArray[np.intp]:
    """Return (n,) 0-3 by the signs of valence and arousal (n, 2); 0 counts as positive."""
    positive = (moods >= 0).astype(np.intp)
    quadrant: NDArray[np.intp] = 2 * positive[:, 0] + positive[:, 1]
    return quadrant


def _correlation(a: _Floats, b: _Floats) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 1e-12 else None
