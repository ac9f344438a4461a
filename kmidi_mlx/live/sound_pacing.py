"""Sound made by one clock, played by another: a card's rate is followed, and nobody hears it.

A sound card that is 0.01 % off is a third of a second early or late after an hour. So blocks are
stretched by as little as keeps them in step, by interpolation with a windowed sinc (Smith & Gossett
1984, "A flexible sampling-rate conversion method", ICASSP); the same step changes the sample rate
where a card has another one.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interpolator", "SoundPacer"]

Sound = NDArray[np.float32]

# Zero crossings of the sinc on each side, and its Kaiser window: 80 dB, flat to 18 kHz.
_CROSSINGS = 16
_BETA = 8.0
_PHASES = 512

# An error is made good in so many seconds, by 0.2 % at the most: 3.5 cents of pitch.
_CORRECTION_SECONDS = 8.0
_MOST_STRETCH = 2e-3
# Cards take samples in lumps; the error is the mean of so many seconds.
_SMOOTHING_SECONDS = 2.0
# A larger error was a gap and is made good at once; cards hold little more than that.
_GAP_SECONDS = 0.04
# So much later than at first may sound become where its source is late again and again.
_MOST_DELAY_SECONDS = 0.2
# A card that starved is given so much more to hold.
_MARGIN_SECONDS = 0.01
# The delay to keep is the mean of the first blocks'.
_SETTLING_SECONDS = 1.0


class Interpolator:
    """Reads a stream of samples at a step that may change.

    Args:
        step: input samples for an output sample, about; above 1 the highest sounds are removed.
        channels: columns of the sound.
    """

    def __init__(self, step: float, channels: int) -> None:
        self._half = math.ceil(_CROSSINGS * max(1.0, step))
        cutoff = min(1.0, 1.0 / step)
        offsets = np.arange(2 * self._half) - (self._half - 1)
        distance = offsets - np.linspace(0.0, 1.0, _PHASES + 1)[:, None]
        inside = np.clip(1.0 - (distance / self._half) ** 2, 0.0, None)
        table = np.sinc(cutoff * distance) * np.i0(_BETA * np.sqrt(inside))
        table /= table.sum(axis=1, keepdims=True)
        self._table = table.astype(np.float32)
        self._kept = np.zeros((2 * self._half, channels), np.float32)
        # of the next output in what is kept
        self._position = float(2 * self._half)

    def push(self, samples: Sound, step: float) -> Sound:
        """Take the next samples and return the outputs that they complete.

        Args:
            samples: float32 (n, channels).
            step: input samples for an output sample, about that of the construction.

        Returns:
            float32 (m, channels), m about n / step.
        """
        self._kept = np.concatenate([self._kept, samples])
        count = math.ceil((len(self._kept) - self._half - self._position) / step)
        if count <= 0:
            return np.zeros((0, self._kept.shape[1]), np.float32)
        positions = self._position + step * np.arange(count + 1)
        self._position = float(positions[-1])
        before = positions[:-1].astype(np.int64)
        phase = (positions[:-1] - before) * _PHASES
        row = phase.astype(np.int64)
        share = (phase - row).astype(np.float32)[:, None]
        taps = self._table[row] * (1 - share) + self._table[row + 1] * share
        result = np.empty((count, self._kept.shape[1]), np.float32)
        for channel, line in enumerate(np.ascontiguousarray(self._kept.T)):
            windows = np.lib.stride_tricks.sliding_window_view(line, 2 * self._half)
            result[:, channel] = np.einsum("kw,kw->k", windows[before - self._half + 1], taps)
        drop = max(0, min(int(self._position) - self._half, len(self._kept)))
        self._kept = self._kept[drop:]
        self._position -= drop
        return result


class SoundPacer:
    """Keeps a card in step with the moments at which its blocks are to be heard.

    Args:
        sample_rate: of the blocks.
        card_rate: of the card, as it says itself.

    Attributes:
        starvations: times that the card had nothing to play.
        gaps: times that sound was left out or silence put in, to be in step again.
        stretch: by which blocks are shortened now, 0.001 is 0.1 %.
    """

    def __init__(self, sample_rate: int, card_rate: int) -> None:
        self.starvations = 0
        self.gaps = 0
        self.stretch = 0.0
        self._rate = sample_rate
        self._step = sample_rate / card_rate
        self._interpolator = Interpolator(self._step, channels=2)
        self.start()

    def start(self) -> None:
        """Take the delay of the next blocks as the one to keep."""
        self._delays: list[float] = []
        self._heard_seconds = 0.0
        self._wanted = self._first = 0.0
        self._error = 0.0
        self._delay = 0.0

    def starved(self) -> None:
        """The card had nothing to play: play later from now on than the last block came."""
        self.starvations += 1
        later = max(self._wanted, self._delay) + _MARGIN_SECONDS
        self._wanted = min(later, self._first + _MOST_DELAY_SECONDS)
        self._error = 0.0

    def take(self, samples: Sound, delay_seconds: float) -> Sound:
        """Make of a block what is to be written to the card.

        Args:
            samples: float32 (n, 2).
            delay_seconds: how much later than wanted it would be heard if it were written now,
                up to a constant.

        Returns:
            float32 (m, 2) at the card's rate.
        """
        if self._heard_seconds < _SETTLING_SECONDS:
            self._delays.append(delay_seconds)
            self._wanted = self._first = sum(self._delays) / len(self._delays)
        self._heard_seconds += len(samples) / self._rate
        self._delay = delay_seconds
        error = delay_seconds - self._wanted
        if abs(error) > _GAP_SECONDS:
            samples = self._over_gap(samples, error)
        else:
            share = min(1.0, len(samples) / self._rate / _SMOOTHING_SECONDS)
            self._error += share * (error - self._error)
        stretch = self._error / _CORRECTION_SECONDS
        self.stretch = max(-_MOST_STRETCH, min(stretch, _MOST_STRETCH))
        return self._interpolator.push(samples, self._step * (1.0 + self.stretch))

    def _over_gap(self, samples: Sound, error: float) -> Sound:
        if error > 0 and self._delay <= self._first + _MOST_DELAY_SECONDS:
            self.starved()
            return samples
        self.gaps += 1
        self._error = 0.0
        count = round(abs(error) * self._rate)
        if error < 0:
            return np.concatenate([np.zeros((count, 2), np.float32), samples])
        return samples[count:]
