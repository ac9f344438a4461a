"""Spectocloud: sound, notes and emotion become a cloud of points, deterministically.

`Song` gives the inputs of every video frame, `begin` and `advance` (or `clouds` for a whole song)
compute the clouds. Drawing them is in `kmidi_mlx.spectocloud.picture` and `.film`.
"""

from __future__ import annotations

from kmidi_mlx.spectocloud.axes import (
    FRAMES_PER_SECOND,
    MEL_BANDS,
    MEL_FRAMES_PER_SECOND,
    WINDOW_FRAMES,
)
from kmidi_mlx.spectocloud.cloud import CHANNELS
from kmidi_mlx.spectocloud.engine import EngineState, Frame, advance, begin, clouds, clouds_at
from kmidi_mlx.spectocloud.points import DEFAULT_POINTS, LEVELS_OF_DETAIL
from kmidi_mlx.spectocloud.song import EmotionCurve, Song

__all__ = [
    "CHANNELS",
    "DEFAULT_POINTS",
    "FRAMES_PER_SECOND",
    "LEVELS_OF_DETAIL",
    "MEL_BANDS",
    "MEL_FRAMES_PER_SECOND",
    "WINDOW_FRAMES",
    "EmotionCurve",
    "EngineState",
    "Frame",
    "Song",
    "advance",
    "begin",
    "clouds",
    "clouds_at",
]
