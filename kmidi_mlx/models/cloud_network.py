"""The cloud network as a function of arrays, ready to draw frame after frame."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx import emotion
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT

__all__ = ["Network"]

Floats = NDArray[np.float32]


class Network:
    """The network as a function of arrays, compiled.

    Args:
        model: the network.
        points: of its clouds.
    """

    def __init__(self, model: SpectocloudViT, points: int) -> None:
        constants = model.constants(points)
        mx.eval(constants.biases, constants.queries)
        self._draw = mx.compile(
            lambda windows, features, vectors: model(windows, features, vectors, constants)
        )

    def clouds(self, windows: Floats, features: Floats, emotions: Floats) -> Floats:
        """Draw clouds.

        Args:
            windows: (..., 128, 64).
            features: (..., 32).
            emotions: (..., 3), valence, arousal, intensity.

        Returns:
            float32 (..., points, 10).
        """
        vectors = emotion.encode_many(*emotions.reshape(-1, 3).T)
        drawn = self._draw(
            mx.array(windows.reshape(-1, *windows.shape[-2:])),
            mx.array(features.reshape(-1, features.shape[-1])),
            mx.array(vectors),
        )
        found: Floats = np.array(drawn, np.float32)
        return found.reshape(*emotions.shape[:-1], *found.shape[1:])
