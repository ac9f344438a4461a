"""Another sample rate for sound that comes in pieces: what `resample` gives for the whole of it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.files import low_pass, resample

__all__ = ["ResampleStream"]

# Outputs that are computed together; their windows and taps then stay in the processor's cache.
_OUTPUTS_AT_ONCE = 512


class ResampleStream:
    """Changes the sample rate of a stream with the polyphase filter of `resample`.

    An output is ready as soon as the filter's inputs have come in: `delay_seconds` after its
    moment. Pieces may be of any size; the result does not depend on how they were cut.

    Args:
        rate: samples a second of what comes in, 1,000-768,000.
        new_rate: samples a second of the result, 1,000-768,000.
        channels: columns of the sound.

    Attributes:
        delay_seconds: half the length of the filter; 0 where the rates are the same.

    Raises:
        KmidiError: if a rate is out of range.
    """

    def __init__(self, rate: int, new_rate: int, channels: int) -> None:
        # the same complaint about rates, in the same words
        resample(np.zeros(0, np.float32), rate, new_rate)
        shared = math.gcd(rate, new_rate)
        self._up, self._down = new_rate // shared, rate // shared
        self._channels = channels
        self.delay_seconds = 0.0
        self._half = 0
        if self._up != self._down:
            taps = low_pass(self._up, self._down) * np.float32(self._up)
            self._half = len(taps) // 2
            self.delay_seconds = self._half / (self._up * rate)
            self._width = math.ceil(len(taps) / self._up)
            # row p: the taps of all outputs that lie p / up behind an input, newest input last
            padded = np.zeros(self._width * self._up, np.float32)
            padded[: len(taps)] = taps
            self._phases = np.ascontiguousarray(padded.reshape(self._width, self._up).T[:, ::-1])
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if nothing had come yet."""
        self._received = 0
        self._given = 0
        if self._half:
            # the inputs before the first are silence
            self._kept = np.zeros((self._width, self._channels), np.float32)
            self._first = -self._width

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples and return the outputs that they complete.

        Args:
            samples: float32 (n, channels).

        Returns:
            float32 (m, channels).
        """
        self._received += len(samples)
        if not self._half:
            return samples
        self._kept = np.concatenate([self._kept, samples.astype(np.float32, copy=False)])
        # the newest input that output k needs is (k * down + half) // up
        ready = max(0, (self._received * self._up - self._half - 1) // self._down + 1)
        return self._outputs(ready)

    def finish(self) -> NDArray[np.float32]:
        """Return the outputs still due where silence follows, and start anew.

        Returns:
            float32 (m, channels).
        """
        if not self._half:
            self.reset()
            return np.zeros((0, self._channels), np.float32)
        whole = math.ceil(self._received * self._up / self._down)
        silence = np.zeros((self._half // self._up + 1, self._channels), np.float32)
        self._kept = np.concatenate([self._kept, silence])
        rest = self._outputs(whole)
        self.reset()
        return rest

    def _outputs(self, until: int) -> NDArray[np.float32]:
        """Outputs from the next one to `until`; inputs that no later one needs are dropped."""
        result = np.empty((max(0, until - self._given), self._channels), np.float32)
        # a window for each channel: lines of neighbouring samples multiply fastest
        lines = np.ascontiguousarray(self._kept.T)
        for start in range(0, len(result), _OUTPUTS_AT_ONCE):
            part = result[start : start + _OUTPUTS_AT_ONCE]
            index = np.arange(self._given + start, self._given + start + len(part))
            newest, phase = np.divmod(index * self._down + self._half, self._up)
            oldest = newest - (self._width - 1) - self._first
            taps = self._phases[phase]
            for channel, line in enumerate(lines):
                windows = np.lib.stride_tricks.sliding_window_view(line, self._width)
                part[:, channel] = np.einsum("kw,kw->k", windows[oldest], taps)
        self._given += len(result)
        needed = (self._given * self._down + self._half) // self._up - (self._width - 1)
        drop = min(max(0, needed - self._first), len(self._kept))
        self._kept = self._kept[drop:]
        self._first += drop
        return result
