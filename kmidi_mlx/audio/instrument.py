"""A preset of a SoundFont made ready to play: its recordings in memory, in stereo, and tuned.

All recordings lie one behind the other in one array, so that a sampler can fetch the frames of
many voices at once. What an instrument plays darker at low velocities is filtered ahead, once for
each step of brightness, the first time that a note asks for it: a filter that runs while playing
would have to go sample by sample.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from kmidi_mlx.audio.decoded_cache import load_recordings, save_recordings
from kmidi_mlx.audio.soundfont import Preset, Region, Sound, decode_sound, read_preset
from kmidi_mlx.errors import KmidiError

__all__ = ["PIANO", "Instrument", "Layer", "Recording", "load_instrument", "piano"]

PIANO = Path(__file__).parent.parent / "assets" / "soundfont" / "fluid_piano.sf3"

# Frames of the loop that are played before the loop begins, so that filters have settled in it.
_SETTLE_FRAMES = 1024
_GUARD_FRAMES = 64
# Brightness in steps of a quarter of an octave: less than between two strokes of a pianist.
_CENTS_PER_STEP = 300
_OPEN_CENTS = 13_500
# Velocity closes a filter to 2.1 kHz at most. Many players leave it alone altogether, so fonts
# with a lower filter of their own, which are made for those, would lose even their fundamentals.
_DARKEST_CENTS = 9_600
_HZ_AT_0_CENTS = 8.176
_FLAT_Q_DB = -3.01
_MOST_FRAMES = 1 << 28


@dataclass(frozen=True)
class Recording:
    """Stereo frames of an instrument at one brightness, as a stretch of `Instrument.frames`.

    Attributes:
        start: first frame.
        loop_start: frame to go back to.
        loop_end: frame before which to go back; what comes after it repeats the loop.
        rate: frames a second.
        once: whether the loop is silence, because the recording is played once.
    """

    start: int
    loop_start: int
    loop_end: int
    rate: int
    once: bool


@dataclass(frozen=True)
class Layer:
    """What a range of keys and velocities plays.

    Attributes:
        region: keys, velocities, tuning, loudness, brightness and envelope; its `sound` and `pan`
            are those of the first of the recordings that are mixed here.
        recording: number of the recording.
    """

    region: Region
    recording: int


class Instrument:
    """A preset with its recordings.

    Several samplers, in several threads, may play one instrument.

    Args:
        preset: what plays when.
        layers: what the keys play.
        recordings: what the layers play, each counted from its own first frame.
        decoded: complex64 (n,) each, the frames of the recordings.

    Attributes:
        preset: what plays when.
        layers: what the keys play.
        frames: complex64 (n,): stereo frames, left as the real part.

    Raises:
        KmidiError: if it is too large.
    """

    def __init__(
        self,
        preset: Preset,
        layers: list[Layer],
        recordings: list[Recording],
        decoded: list[NDArray[np.complex64]],
    ) -> None:
        self.preset = preset
        self.layers = tuple(layers)
        self._lock = threading.Lock()
        self._keys = np.array([layer.region.keys for layer in layers])
        self._velocities = np.array([layer.region.velocities for layer in layers])
        self._lengths = [len(frames) for frames in decoded]
        starts = np.cumsum([0, *self._lengths]).tolist()
        self._open = [
            _moved(recording, start)
            for recording, start in zip(recordings, starts[:-1], strict=True)
        ]
        size = starts[-1]

        # Room for every brightness a velocity can ask for. The system hands out memory when it is
        # written to, so that a brightness nobody plays costs nothing.
        self._filtered: dict[tuple[int, int, float], Recording] = {}
        self._pending: set[tuple[int, int, float]] = set()
        for layer in layers:
            low, high = layer.region.velocities
            for velocity in range(max(low, 1), high + 1):
                key = self._brightness(layer, velocity)
                if key is not None and key not in self._filtered:
                    self._filtered[key] = _moved(recordings[layer.recording], size)
                    size += self._lengths[layer.recording]
                    self._pending.add(key)
        if size > _MOST_FRAMES:
            raise KmidiError(
                f"{preset.path}: {preset.name!r} is too large to play; give a smaller SoundFont."
            )
        self.frames = np.zeros(size, np.complex64)
        for recording, frames in zip(self._open, decoded, strict=True):
            self.frames[recording.start : recording.start + len(frames)] = frames

    def layers_of(self, pitch: int, velocity: int) -> list[Layer]:
        """Return what a key plays at a velocity: nothing, one layer, or several at once.

        Args:
            pitch: MIDI pitch, 0-127.
            velocity: 1-127.
        """
        keys, velocities = self._keys, self._velocities
        hit = (keys[:, 0] <= pitch) & (pitch <= keys[:, 1])
        hit &= (velocities[:, 0] <= velocity) & (velocity <= velocities[:, 1])
        return [self.layers[index] for index in np.flatnonzero(hit)]

    def recording_of(self, layer: Layer, velocity: int) -> Recording:
        """Return the recording of a layer at the brightness of a velocity, filtered by now.

        Args:
            layer: one of `layers`.
            velocity: 1-127, one that the layer answers to.
        """
        key = self._brightness(layer, velocity)
        if key is None:
            return self._open[layer.recording]
        if key in self._pending:
            with self._lock:
                if key in self._pending:
                    self._filter(key)
                    self._pending.discard(key)
        return self._filtered[key]

    def warm(self) -> None:
        """Filter every recording at every brightness now, so that no first note has to wait."""
        with self._lock:
            for key in self._pending:
                self._filter(key)
            self._pending.clear()

    def _brightness(self, layer: Layer, velocity: int) -> tuple[int, int, float] | None:
        region = layer.region
        # linear, falling with velocity (SoundFont 2.04, section 8.4.2)
        cents = region.cutoff_cents + region.velocity_to_cents * (127 - velocity) / 128.0
        cents = max(cents, min(region.cutoff_cents, _DARKEST_CENTS))
        step = round(cents / _CENTS_PER_STEP)
        cutoff_hz = _hz(step)
        if step * _CENTS_PER_STEP >= _OPEN_CENTS or cutoff_hz >= 0.45 * region.sound.rate:
            return None
        return layer.recording, step, region.resonance_db

    def _filter(self, key: tuple[int, int, float]) -> None:
        number, step, resonance_db = key
        source, target = self._open[number], self._filtered[key]
        length = self._lengths[number]
        coefficients = _low_pass(_hz(step), resonance_db, source.rate)
        bright = self.frames[source.start : source.start + length]
        dark = signal.lfilter(*coefficients, bright)
        self.frames[target.start : target.start + length] = dark


def load_instrument(path: Path, bank: int = 0, program: int = 0) -> Instrument:
    """Read a preset of a SoundFont and decode what it plays.

    Compressed recordings are decoded once and kept in the user's cache folder.

    Args:
        path: an SF2 or SF3 file.
        bank: MIDI bank, 0-128.
        program: MIDI program, 0-127; 0 is the grand piano.

    Raises:
        KmidiError: if the file is missing, is no SoundFont, is damaged, or lacks the preset.
    """
    preset = read_preset(path, bank, program)
    layers, mixes = _layers_of(preset)
    compressed = any(region.sound.compressed for region in preset.regions)
    key = _cache_key(path, bank, program) if compressed else ""
    decoded = load_recordings(key) if compressed else None
    if decoded is None or len(decoded) != len(mixes):
        samples: dict[int, NDArray[np.float32]] = {}
        for mix in mixes:
            for sound, _ in mix.parts:
                if sound.index not in samples:
                    samples[sound.index] = decode_sound(path, sound)
        decoded = [_stereo(path, mix, samples) for mix in mixes]
        if compressed:
            save_recordings(key, decoded)
    recordings = [_recording(mix, len(frames)) for mix, frames in zip(mixes, decoded, strict=True)]
    return Instrument(preset, layers, recordings, decoded)


@cache
def piano() -> Instrument:
    """Return the grand piano that comes with the package, read once a process.

    It is the piano of Fluid R3 by Frank Wen, under the MIT license beside it.
    """
    return load_instrument(PIANO)


@dataclass(frozen=True)
class _Mix:
    """Sounds that always play together, each with its pan, and how often they are oversampled."""

    parts: tuple[tuple[Sound, float], ...]
    oversampling: int


def _layers_of(preset: Preset) -> tuple[list[Layer], list[_Mix]]:
    """Join the regions that differ in nothing but sound and pan, as the two sides of a piano do."""
    together: dict[Region, list[Region]] = {}
    for region in preset.regions:
        sound = replace(region.sound, index=0, position=0, size=0, end=None)
        together.setdefault(replace(region, sound=sound, pan=0.0), []).append(region)
    numbers: dict[_Mix, int] = {}
    layers = []
    for regions in together.values():
        parts = tuple((region.sound, region.pan) for region in regions)
        mix = _Mix(parts, _oversampling(regions[0].root_key))
        layers.append(Layer(regions[0], numbers.setdefault(mix, len(numbers))))
    return layers, list(numbers)


def _oversampling(root_key: float) -> int:
    """Return how many frames to make of one, so that straight lines between them are close enough.

    What lies between two frames is read off a straight line; for a high tone that is too coarse.
    """
    return 1 if root_key < 60 else 2 if root_key < 84 else 4


def _stereo(
    path: Path, mix: _Mix, samples: dict[int, NDArray[np.float32]]
) -> NDArray[np.complex64]:
    sides = []
    for sound, pan in mix.parts:
        angle = (pan + 0.5) * math.pi / 2.0  # constant power
        mono = _with_tail(path, sound, samples[sound.index])
        sides.append(mono * np.complex64(complex(math.cos(angle), math.sin(angle))))
    stereo = np.zeros(max(len(side) for side in sides), np.complex64)
    for side in sides:
        stereo[: len(side)] += side
    if mix.oversampling > 1:
        stereo = signal.resample_poly(stereo, mix.oversampling, 1).astype(np.complex64)
    return stereo


def _with_tail(path: Path, sound: Sound, samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut out what is played, with more of the loop, or silence, behind it."""
    tail = _SETTLE_FRAMES + _GUARD_FRAMES
    if sound.loop_end is None:
        return np.pad(samples[sound.start : sound.end], (0, tail))
    if not sound.start <= sound.loop_start < sound.loop_end <= len(samples):
        raise KmidiError(f"{path}: the loop of sample {sound.index} lies outside it.")
    again = sound.loop_start + np.arange(tail) % (sound.loop_end - sound.loop_start)
    return np.append(samples[sound.start : sound.loop_end], samples[again])


def _recording(mix: _Mix, length: int) -> Recording:
    sound, factor = mix.parts[0][0], mix.oversampling
    loop_end = length - _GUARD_FRAMES * factor
    period = 1 if sound.loop_end is None else sound.loop_end - sound.loop_start
    return Recording(
        start=0,
        loop_start=loop_end - period * factor,
        loop_end=loop_end,
        rate=sound.rate * factor,
        once=sound.loop_end is None,
    )


def _moved(recording: Recording, by: int) -> Recording:
    return replace(
        recording,
        start=recording.start + by,
        loop_start=recording.loop_start + by,
        loop_end=recording.loop_end + by,
    )


def _hz(step: int) -> float:
    return _HZ_AT_0_CENTS * math.pow(2.0, step * _CENTS_PER_STEP / 1200.0)


def _low_pass(
    cutoff_hz: float, resonance_db: float, rate: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return numerator and denominator of the two-pole low-pass filter of section 8.1.2.

    The bilinear design of R. Bristow-Johnson's "Cookbook formulae for audio EQ biquad filters".
    """
    omega = 2.0 * math.pi * cutoff_hz / rate
    q = math.pow(10.0, (resonance_db + _FLAT_Q_DB) / 20.0)
    alpha = math.sin(omega) / (2.0 * q)
    opening = 1.0 - math.cos(omega)
    numerator = np.array([opening / 2.0, opening, opening / 2.0])
    denominator = np.array([1.0 + alpha, -2.0 * math.cos(omega), 1.0 - alpha])
    return numerator / denominator[0], denominator / denominator[0]


def _cache_key(path: Path, bank: int, program: int) -> str:
    """Name everything that the decoded recordings depend on."""
    recipe = f"{bank} {program} {_SETTLE_FRAMES} {_GUARD_FRAMES}"
    digest = hashlib.blake2b(recipe.encode(), digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise KmidiError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()
