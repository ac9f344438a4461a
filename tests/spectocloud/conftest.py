"""Small pieces that the tests of the cloud share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kmidi_mlx.music.notes import Notes


@pytest.fixture(scope="session")
def chords() -> Callable[..., Notes]:
    """Make a piece that strikes a chord every half second."""

    def make(*pitches: int, velocity: int = 90, seconds: float = 4.0, step: float = 0.5) -> Notes:
        onset = np.repeat(np.arange(0.0, seconds, step), len(pitches))
        pitch = np.tile(pitches, len(onset) // len(pitches))
        return Notes.build(pitch, np.full(len(pitch), velocity), onset, onset + 0.95 * step)

    return make


@pytest.fixture(scope="session")
def tune() -> Notes:
    """A piece whose passages differ: a slow bass, a fast run up, loud chords, a high trill."""
    parts = [
        (0.0, 0.5, [36, 40, 43, 48] * 2, 60, 0.5),
        (4.0, 0.125, list(range(55, 87)), 80, 0.12),
        (8.0, 0.5, [48, 51, 54, 57] * 4, 115, 0.5),
        (16.0, 0.1, [88, 90] * 20, 70, 0.1),
    ]
    rows = [
        (pitch, velocity, start + k * step, start + k * step + length)
        for start, step, pitches, velocity, length in parts
        for k, pitch in enumerate(pitches)
    ]
    return Notes.build(*(list(column) for column in zip(*rows, strict=True)))
