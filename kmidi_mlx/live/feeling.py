"""The emotion of what is listened to, by the recogniser, calm enough to steer music with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.resample_stream import ResampleStream
from kmidi_mlx.checkpoint_model import label_temperature
from kmidi_mlx.emotion import Emotion

if TYPE_CHECKING:
    from kmidi_mlx.models.emotion_recognizer_stream import Reading

__all__ = ["SMOOTHING_SECONDS", "Feeling"]

#: Time constant of the mean over readings; nothing is said before so much was heard.
SMOOTHING_SECONDS = 2.0
# A new emotion comes at most so often, and only when it has moved by so much.
_PAUSE_SECONDS = 0.5
_LEAST_MOVE = 0.03
# The network is asked for pieces of this length: it costs about as much for a shorter one.
_PIECE_SECONDS = 0.1
# Below -60 dB full scale nobody plays: what the network makes of hiss is no emotion.
_QUIET = 1e-3


class Feeling:
    """Hears sound and says when its emotion has changed. One thread, the one of MLX, uses it.

    Args:
        recognizer: checkpoint folder or file of an emotion recogniser.
        sample_rate: of the sound that will be pushed.

    Attributes:
        notice: what has to be said about the weights, as of `Loaded.notice`.
        reading: the recogniser's last word, not smoothed; None before the first.
        emotion: the last one that `push` returned; None before the first.

    Raises:
        KmidiError: if there is no checkpoint, or it is damaged or of another model.
    """

    def __init__(self, recognizer: Path, sample_rate: int = 44_100) -> None:
        # MLX only where somebody wants to feel
        from kmidi_mlx.models.emotion_recognizer_stream import EmotionStream
        from kmidi_mlx.models.loading import load_recognizer

        loaded = load_recognizer(recognizer)
        self.notice = loaded.notice
        self._network = EmotionStream(loaded.model, loaded.config, label_temperature(loaded))
        self._rate = self._network.sample_rate
        self._resampling = ResampleStream(sample_rate, self._rate, channels=1)
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if nothing had been heard yet: something else is listened to."""
        self._network.reset()
        self._resampling.reset()
        self.reading: Reading | None = None
        self.emotion: Emotion | None = None
        self._pending: list[NDArray[np.float32]] = []
        self._waiting = 0
        self._smooth: NDArray[np.float64] | None = None
        self._felt_seconds = 0.0
        self._said_seconds = -math.inf

    def push(self, samples: NDArray[np.int16]) -> Emotion | None:
        """Take the next sound.

        Args:
            samples: int16 (n, 2), left and right.

        Returns:
            The emotion, where it has moved by more than 0.03 since the last one and half a second
            has passed; otherwise None.
        """
        mono = samples.mean(axis=1, dtype=np.float32, keepdims=True) / np.float32(32_768.0)
        resampled = self._resampling.push(mono)[:, 0]
        self._pending.append(resampled)
        self._waiting += len(resampled)
        if self._waiting < _PIECE_SECONDS * self._rate:
            return None
        piece = np.concatenate(self._pending)
        self._pending, self._waiting = [], 0
        self.reading = self._network.push(piece)
        if self.reading is None or np.abs(piece).max() < _QUIET:
            return None
        return self._follow(self.reading.emotion, len(piece) / self._rate)

    def _follow(self, emotion: Emotion, seconds: float) -> Emotion | None:
        """Take a reading into the mean; return the mean where it is time to say so."""
        heard = np.array([emotion.valence, emotion.arousal, emotion.intensity])
        self._felt_seconds += seconds
        if self._smooth is None:
            self._smooth = heard
        # the mean of all at first, fading with the time constant later
        window = min(self._felt_seconds, SMOOTHING_SECONDS)
        self._smooth = self._smooth + (1.0 - math.exp(-seconds / window)) * (heard - self._smooth)
        if self._felt_seconds < SMOOTHING_SECONDS:
            return None
        if self._felt_seconds - self._said_seconds < _PAUSE_SECONDS:
            return None
        if self.emotion is not None:
            moved = math.hypot(
                self._smooth[0] - self.emotion.valence, self._smooth[1] - self.emotion.arousal
            )
            if moved <= _LEAST_MOVE:
                return None
        self._said_seconds = self._felt_seconds
        self.emotion = Emotion(*self._smooth.tolist())
        return self.emotion
