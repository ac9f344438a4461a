"""Emotion of sound while it comes in: samples to frames to the recogniser, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.hearing import HearingStream
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.audio_emotion import hearing_of
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.models.emotion_recognizer import EmotionRecognizer, Estimate

__all__ = ["EmotionStream", "Reading"]


@dataclass(frozen=True)
class Reading:
    """Emotion of what was heard, the last seconds most.

    Attributes:
        emotion: valence, arousal, intensity.
        probabilities: calibrated probability of every label; empty where none were learnt.
    """

    emotion: Emotion
    probabilities: dict[str, float]


class EmotionStream:
    """Listens to one channel of sound.

    Args:
        model: a trained recogniser.
        config: its run.
        temperature: divides the logits (`kmidi_mlx.checkpoint_model.label_temperature`).
    """

    def __init__(
        self, model: EmotionRecognizer, config: EmotionRecognizerConfig, temperature: float = 1.0
    ) -> None:
        self.sample_rate = config.data.sample_rate
        self._model = model
        self._labels = config.model.labels
        self._temperature = temperature
        self._ear = HearingStream(hearing_of(config))
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if nothing had been heard yet."""
        self._ear.reset()
        self._state = self._model.start()
        self._reading: Reading | None = None

    def push(self, samples: NDArray[np.float32]) -> Reading | None:
        """Take the next samples and return the emotion of all that was heard.

        Args:
            samples: float (n,), one channel at `sample_rate`, full scale 1.

        Returns:
            The reading; the one before where these samples complete nothing new; None before the
            first.

        Raises:
            KmidiError: if `samples` is not one channel, or not all of it is a finite number.
        """
        frames = self._ear.push(samples)
        if len(frames):
            estimate, self._state = self._model.step(mx.array(frames)[None], self._state)
            if estimate is not None:
                self._reading = self._read(estimate)
        return self._reading

    def _read(self, estimate: Estimate) -> Reading:
        valence, arousal, intensity = np.array(estimate.numbers)[0].tolist()
        probabilities: dict[str, float] = {}
        if self._labels:
            shares = mx.softmax(estimate.logits[0] / self._temperature)
            probabilities = dict(zip(self._labels, np.array(shares).tolist(), strict=True))
        return Reading(Emotion(valence, arousal, intensity), probabilities)
