"""The sounding voices of a sampler, as columns of numbers that are computed together.

Everything a voice does is a function of its age in samples: where it reads is its age times a step
of whole numbers (fixed point, so that no rounding adds up), and how loud it is follows in closed
form from the age. What comes out is therefore the same however time is cut into blocks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.instrument import Instrument, Layer

__all__ = ["Voices"]

# Fixed point of positions: 24 bits leave room for an hour of any note in 64.
_FRACTION_BITS = 24
_ONE = 1 << _FRACTION_BITS
_FRACTION_MASK = _ONE - 1

_NEPERS_PER_DB = math.log(10.0) / 20.0
_FULL_FALL_DB = 100.0  # what the times of decay and release count (SoundFont 2.04, section 8.1.2)
_SILENT_DB = -120.0
# A stolen voice is gone within 30 ms: quick, but far slower than a click.
_STEAL_DB_PER_SECOND = 4000.0
_NEVER = np.iinfo(np.int64).max
_HELD_BONUS = 1e6
_TILE = 32  # voices that are computed together

_COLUMNS = np.dtype(
    [
        ("pitch", np.int64),
        ("held", np.bool_),  # the key is down
        ("sustained", np.bool_),  # the key is up, the pedal is down
        ("stolen", np.bool_),
        ("onset", np.int64),  # sample of the output
        ("release", np.int64),  # sample of the output; _NEVER while held
        ("first", np.int64),  # frame where the recording begins, like the next three fixed point
        ("loop_start", np.int64),
        ("loop_end", np.int64),
        ("step", np.int64),  # frames a sample
        ("once", np.bool_),
        ("loudness", np.float64),  # nepers
        ("delay", np.float64),  # this and the next four in samples of age
        ("attack", np.float64),
        ("rise_end", np.float64),
        ("decay_start", np.float64),
        ("decay_end", np.float64),
        ("decay_slope", np.float64),  # nepers a sample, <= 0
        ("release_slope", np.float64),
    ]
)


class Voices:
    """What sounds now.

    Args:
        instrument: what is played.
        sample_rate: samples a second of the output.
        longest: most samples that `mix` is ever asked for.
    """

    def __init__(self, instrument: Instrument, sample_rate: int, longest: int) -> None:
        self._instrument = instrument
        self._rate = sample_rate
        self._rows = np.zeros(0, _COLUMNS)
        self._times = np.arange(longest, dtype=np.int64)
        self._float_times = np.arange(longest, dtype=np.float32)
        # to work in, as making arrays takes time
        self._integers = np.empty((2, _TILE * longest), np.int64)
        self._floats = np.empty((2, _TILE * longest), np.float32)
        self._frames = np.empty((2, _TILE * longest), np.complex64)

    def __len__(self) -> int:
        """Return how many voices sound, those that fade because they were stolen left out."""
        return int(np.count_nonzero(~self._rows["stolen"]))

    @property
    def any_left(self) -> bool:
        """Whether anything sounds, be it the end of a stolen voice."""
        return len(self._rows) > 0

    def start(self, layer: Layer, pitch: int, velocity: int, now: int) -> None:
        """Add the voice of a layer.

        Args:
            layer: what to play.
            pitch: MIDI pitch.
            velocity: 1-127.
            now: sample at which it begins.
        """
        region, recording = layer.region, self._instrument.recording_of(layer, velocity)
        envelope = region.envelope
        cents = (pitch - region.root_key) * region.cents_per_key
        ratio = math.pow(2.0, cents / 1200.0) * recording.rate / self._rate
        # concave: twice as quiet for half the velocity, in decibels (section 8.4.1)
        quieter_db = region.velocity_to_db / 96.0 * min(40.0 * math.log10(127.0 / velocity), 96.0)
        above = 60 - pitch
        hold = envelope.hold_seconds * 2.0 ** (above * envelope.hold_cents_per_key / 1200.0)
        decay = envelope.decay_seconds * 2.0 ** (above * envelope.decay_cents_per_key / 1200.0)
        row = np.zeros(1, _COLUMNS)
        row["pitch"], row["held"], row["once"] = pitch, True, recording.once
        row["onset"], row["release"] = now, _NEVER
        row["first"] = recording.start << _FRACTION_BITS
        row["loop_start"] = recording.loop_start << _FRACTION_BITS
        row["loop_end"] = recording.loop_end << _FRACTION_BITS
        row["step"] = max(1, round(ratio * _ONE))
        row["loudness"] = -(region.attenuation_db + quieter_db) * _NEPERS_PER_DB
        row["delay"] = envelope.delay_seconds * self._rate
        row["attack"] = max(envelope.attack_seconds * self._rate, 1.0)
        row["rise_end"] = row["delay"] + row["attack"]
        row["decay_start"] = row["rise_end"] + hold * self._rate
        fall = decay * envelope.sustain_db / _FULL_FALL_DB
        row["decay_end"] = row["decay_start"] + max(fall * self._rate, 1.0)
        row["decay_slope"] = (
            -envelope.sustain_db * _NEPERS_PER_DB / (row["decay_end"] - row["decay_start"])
        )
        release_samples = max(envelope.release_seconds * self._rate, 1.0)
        row["release_slope"] = -_FULL_FALL_DB * _NEPERS_PER_DB / release_samples
        self._rows = np.concatenate([self._rows, row])

    def release(self, now: int, pitch: int | None, *, pedal: bool = False) -> None:
        """Let voices end.

        Args:
            now: sample at which they are let go.
            pitch: key whose voices are meant; None for all.
            pedal: whether the pedal keeps them for now.
        """
        rows = self._rows
        # not a view: what is chosen stays chosen while rows change
        chosen = rows["held"] & (True if pitch is None else rows["pitch"] == pitch)
        rows["held"][chosen] = False
        if pedal:
            rows["sustained"][chosen] = True
        else:
            rows["release"][chosen] = now

    def release_sustained(self, now: int, pitch: int | None = None) -> None:
        """Let the voices end that only the pedal keeps: of one key, or of all."""
        rows = self._rows
        chosen = rows["sustained"].copy()
        if pitch is not None:
            chosen &= rows["pitch"] == pitch
        rows["sustained"][chosen] = False
        rows["release"][chosen] = now

    def steal(self, now: int, count: int) -> None:
        """Fade the voices that are missed least: let go before held, quiet before loud.

        Args:
            now: sample at which they begin to fade.
            count: how many.
        """
        rows = self._rows
        level = self._level(rows, now)
        # a voice in its attack is about to be loud
        worth = level + _HELD_BONUS * (rows["held"] | rows["sustained"])
        worth[rows["stolen"]] = np.inf
        chosen = np.argsort(worth, kind="stable")[:count]
        rows["loudness"][chosen] = level[chosen]
        rows["decay_slope"][chosen] = 0.0
        rows["release"][chosen] = now
        slope = -_STEAL_DB_PER_SECOND * _NEPERS_PER_DB / self._rate
        rows["release_slope"][chosen] = slope
        rows["stolen"][chosen] = True
        for name in ("held", "sustained"):
            rows[name][chosen] = False
        # what has not begun to sound needs no fade
        self._rows = rows[~(rows["stolen"] & (rows["onset"] == now))]

    def drop_silent(self, now: int) -> None:
        """Forget the voices that nobody can hear any more."""
        rows = self._rows
        heard = self._level(rows, now) > _SILENT_DB * _NEPERS_PER_DB
        played = rows["first"] + (now - rows["onset"]) * rows["step"]
        heard &= ~(rows["once"] & (played >= rows["loop_end"]))
        if not heard.all():
            self._rows = rows[heard]

    def mix(self, now: int, count: int) -> NDArray[np.complex64]:
        """Return the next samples of all voices together.

        Args:
            now: first sample.
            count: how many; no voice may start, be let go or be stolen among them.

        Returns:
            complex64 (count,): stereo, left as the real part.
        """
        mixed = np.zeros(count, np.complex64)
        position = self._position(now)
        begin = self._level(self._rows, now)
        slope = (self._level(self._rows, now + count - 1) - begin) / max(count - 1, 1)
        turning = self._turning(now, count)
        # A few voices at a time: the numbers of all would fall out of the processor's cache.
        for first in range(0, len(self._rows), _TILE):
            tile = slice(first, first + _TILE)
            frames, fraction = self._read(tile, position[tile], count)
            weight = self._weigh(begin[tile], slope[tile], count)
            for voice in np.flatnonzero(turning[tile]):
                weight[voice] = self._in_full(self._rows[first + voice], now, count)
            left, right = frames
            # a straight line between two frames
            np.subtract(right, left, out=right)
            np.multiply(right, fraction, out=right)
            np.add(left, right, out=left)
            np.multiply(left, weight, out=left)
            mixed += left.sum(axis=0)
        return mixed

    def _position(self, now: int) -> NDArray[np.int64]:
        """Return where each voice reads, in fixed point."""
        rows = self._rows
        loop_start, loop_end = rows["loop_start"], rows["loop_end"]
        position: NDArray[np.int64] = rows["first"] + (now - rows["onset"]) * rows["step"]
        looping = position >= loop_end
        if looping.any():
            again = loop_start + (position - loop_start) % (loop_end - loop_start)
            position[looping] = again[looping]
        return position

    def _turning(self, now: int, count: int) -> NDArray[np.bool_]:
        """Return which envelopes rise, or turn a corner between this sample and the last."""
        rows = self._rows
        age = now - rows["onset"]
        final = age + (count - 1)
        turning: NDArray[np.bool_] = age < rows["rise_end"]
        for name in ("decay_start", "decay_end"):
            corner = rows[name]
            turning |= (age < corner) & (corner < final)
        return turning

    def _read(
        self, tile: slice, position: NDArray[np.int64], count: int
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Return the frames before and after each position (2, voices, count), and how far on."""
        rows = self._rows[tile]
        shape, size = (len(rows), count), len(rows) * count
        positions, index = (part[:size].reshape(shape) for part in self._integers)
        frames = self._frames[:, :size].reshape(2, *shape)
        fraction = self._floats[0, :size].reshape(shape)
        np.multiply(rows["step"][:, None], self._times[:count], out=positions)
        np.add(positions, position[:, None], out=positions)
        for voice in np.flatnonzero(positions[:, -1] >= rows["loop_end"]):
            start, end = rows["loop_start"][voice], rows["loop_end"][voice]
            beyond = positions[voice, np.searchsorted(positions[voice], end) :]
            beyond[:] = start + (beyond - start) % (end - start)
        np.right_shift(positions, _FRACTION_BITS, out=index)
        np.bitwise_and(positions, _FRACTION_MASK, out=positions)
        fraction[...] = positions
        np.multiply(fraction, np.float32(1.0 / _ONE), out=fraction)
        # the mode says only how to treat indices out of range, of which there are none
        self._instrument.frames.take(index, out=frames[0], mode="clip")
        np.add(index, 1, out=index)
        self._instrument.frames.take(index, out=frames[1], mode="clip")
        return frames, fraction

    def _weigh(
        self, begin: NDArray[np.float64], slope: NDArray[np.float64], count: int
    ) -> NDArray[np.float32]:
        """Return the loudness (voices, count) of envelopes that are straight in decibels."""
        weight = self._floats[1, : len(begin) * count].reshape(len(begin), count)
        np.multiply(slope.astype(np.float32)[:, None], self._float_times[:count], out=weight)
        np.add(weight, begin.astype(np.float32)[:, None], out=weight)
        np.exp(weight, out=weight)
        return weight

    def _in_full(self, row: np.void, now: int, count: int) -> NDArray[np.float64]:
        """Return the loudness (count,) of one voice, whatever its envelope does."""
        times = now + self._times[:count]
        rise = np.clip((times - row["onset"] - row["delay"]) / row["attack"], 0.0, 1.0)
        loudness: NDArray[np.float64] = rise * np.exp(self._level(row, times))
        return loudness

    @staticmethod
    def _level(
        rows: NDArray[np.void] | np.void, times: int | NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return loudness in nepers at a time, without the rise at the beginning."""
        age = times - rows["onset"]
        start = rows["decay_start"]
        decayed = np.minimum(np.maximum(age, start), rows["decay_end"]) - start
        released = np.maximum(times - rows["release"], 0)
        level: NDArray[np.float64] = (
            rows["loudness"] + rows["decay_slope"] * decayed + rows["release_slope"] * released
        )
        return level
