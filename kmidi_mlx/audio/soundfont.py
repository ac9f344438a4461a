"""SoundFont 2 files, and SF3 files whose samples are Ogg Vorbis: what a preset plays, and how.

After the SoundFont Technical Specification 2.04 (E-mu Systems, 2006), section numbers in brackets.
Left out, because no piano needs them: the two LFOs, filters that move within a note, modulators
other than those from velocity to loudness and brightness, the reverb and chorus sends, and 24-bit
samples (their upper 16 are read).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kmidi_mlx.audio.soundfont_chunks import Chunks, Zone, read_chunks
from kmidi_mlx.errors import KmidiError

__all__ = ["Envelope", "Preset", "Region", "Sound", "decode_sound", "read_preset"]

# Generators (8.1.2) that are used here, with what they are where a zone does not say.
_START, _END, _START_LOOP, _END_LOOP = 0, 1, 2, 3
_START_COARSE, _END_COARSE, _START_LOOP_COARSE, _END_LOOP_COARSE = 4, 12, 45, 50
_CUTOFF, _RESONANCE, _SWEEP = 8, 9, 11
_SWEEP_DELAY, _SWEEP_ATTACK, _SWEEP_HOLD, _SWEEP_DECAY, _SWEEP_SUSTAIN = 25, 26, 27, 28, 29
_PAN, _ATTENUATION = 17, 48
_DELAY, _ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 33, 34, 35, 36, 37, 38
_KEY_TO_HOLD, _KEY_TO_DECAY = 39, 40
_INSTRUMENT, _KEY_RANGE, _VELOCITY_RANGE, _SAMPLE = 41, 43, 44, 53
_COARSE_TUNE, _FINE_TUNE, _LOOP_MODE, _CENTS_PER_KEY, _ROOT_KEY = 51, 52, 54, 56, 58
_SHORTEST = -12_000
_DEFAULTS = {
    _CUTOFF: 13_500,
    _CENTS_PER_KEY: 100,
    _ROOT_KEY: -1,
    **dict.fromkeys((_DELAY, _ATTACK, _HOLD, _DECAY, _RELEASE), _SHORTEST),
    **dict.fromkeys((_SWEEP_DELAY, _SWEEP_ATTACK, _SWEEP_HOLD, _SWEEP_DECAY), _SHORTEST),
}
# What belongs to the instrument alone; a preset may not add to it (8.5).
_INSTRUMENT_ONLY = {
    *(_START, _END, _START_LOOP, _END_LOOP),
    *(_START_COARSE, _END_COARSE, _START_LOOP_COARSE, _END_LOOP_COARSE),
    *(_LOOP_MODE, _ROOT_KEY),
}

# The default modulators from velocity (8.4.1, 8.4.2): loudness in decibels, cutoff in cents.
_VELOCITY_TO_DECIBELS = 96.0
_VELOCITY_TO_CENTS = -2400.0
# Fonts are tuned by ear on E-mu's chips, which apply 0.4 of the attenuation a zone asks for.
_ATTENUATION_SCALE = 0.4
_FULL_DECAY_DB = 100.0
_COARSE_STEP = 32_768
_ROM, _COMPRESSED = 0x8000, 0x10
_LOWEST_RATE, _HIGHEST_RATE = 400, 200_000
_MOST_REGIONS = 20_000
_MOST_SAMPLES_OF_A_SOUND = 1 << 27


@dataclass(frozen=True)
class Sound:
    """A recording in the file, and the part of it that a region plays.

    Attributes:
        index: number of the sample header.
        rate: samples a second.
        position: first byte of the recording in the file.
        size: bytes of the recording.
        compressed: whether it is Ogg Vorbis instead of 16-bit numbers.
        start: first sample to play.
        end: end of the samples to play; None for the end of the recording.
        loop_start: sample to go back to, counted like `start`.
        loop_end: sample before which to go back; None for no loop.
    """

    index: int
    rate: int
    position: int
    size: int
    compressed: bool
    start: int
    end: int | None
    loop_start: int
    loop_end: int | None


@dataclass(frozen=True)
class Envelope:
    """Loudness over the time of a note (8.1.2, generators 33-40).

    Attributes:
        delay_seconds: silence at the beginning.
        attack_seconds: rise in a straight line.
        hold_seconds: full loudness.
        decay_seconds: time for 100 dB of fall, straight in decibels.
        sustain_db: where the fall stops, below full, >= 0.
        release_seconds: time for 100 dB of fall after the key is let go.
        hold_cents_per_key: how much shorter, in cents of time, a key above 60 holds.
        decay_cents_per_key: how much faster it decays.
    """

    delay_seconds: float
    attack_seconds: float
    hold_seconds: float
    decay_seconds: float
    sustain_db: float
    release_seconds: float
    hold_cents_per_key: float
    decay_cents_per_key: float


@dataclass(frozen=True)
class Region:
    """What one pair of zones plays for a range of keys and velocities.

    Attributes:
        keys: lowest and highest MIDI pitch.
        velocities: lowest and highest velocity.
        sound: the recording.
        pan: -0.5 (left) to 0.5 (right).
        attenuation_db: how much quieter than the recording.
        root_key: MIDI pitch of the recording, with cents as fraction.
        cents_per_key: 100 for a keyboard in semitones.
        cutoff_cents: low-pass frequency in cents over 8.176 Hz, at velocity 127.
        resonance_db: height of the filter's peak.
        velocity_to_cents: cutoff at velocity 0, against velocity 127.
        velocity_to_db: quietness at the lowest velocities, >= 0 (the curve is in `Sampler`).
        envelope: loudness over time.
    """

    keys: tuple[int, int]
    velocities: tuple[int, int]
    sound: Sound
    pan: float
    attenuation_db: float
    root_key: float
    cents_per_key: float
    cutoff_cents: float
    resonance_db: float
    velocity_to_cents: float
    velocity_to_db: float
    envelope: Envelope


@dataclass(frozen=True)
class Preset:
    """One instrument of a SoundFont.

    Attributes:
        path: the file.
        name: what the file calls the preset.
        regions: what it plays; several of them may answer to one note.
    """

    path: Path
    name: str
    regions: tuple[Region, ...]


def read_preset(path: Path, bank: int = 0, program: int = 0) -> Preset:
    """Read how a preset of an SF2 or SF3 file plays; its recordings are decoded later.

    Args:
        path: the file.
        bank: MIDI bank, 0-128.
        program: MIDI program, 0-127; 0 is the grand piano.

    Raises:
        KmidiError: if the file is missing, is no SoundFont, is damaged, lacks the preset, or the
            preset plays nothing.
    """
    chunks = read_chunks(path)
    found = np.flatnonzero(
        (chunks.presets["bank"] == bank) & (chunks.presets["program"] == program)
    )
    if not len(found):
        first = chunks.presets[0]
        raise KmidiError(
            f"{path} has no preset {program} in bank {bank}; its first is {first['program']} in "
            f"bank {first['bank']}."
        )
    header = chunks.presets[found[0]]
    regions: list[Region] = []
    for preset_zone in chunks.preset_zones(int(found[0]), terminal=_INSTRUMENT):
        for zone in chunks.instrument_zones(preset_zone.target, terminal=_SAMPLE):
            region = _region(chunks, zone, preset_zone)
            if region is not None:
                regions.append(region)
            if len(regions) > _MOST_REGIONS:
                raise KmidiError(f"{path}: preset {program} has more than {_MOST_REGIONS} regions.")
    name = bytes(header["name"]).split(b"\0")[0].decode("latin-1").strip()
    if not regions:
        raise KmidiError(f"{path}: preset {program} in bank {bank}, {name!r}, plays nothing.")
    return Preset(path, name, tuple(regions))


def decode_sound(path: Path, sound: Sound) -> NDArray[np.float32]:
    """Read a whole recording of the file, without regard to `sound.start` and `sound.end`.

    Args:
        path: the file.
        sound: a recording of it.

    Returns:
        float32 (n,), full scale is 1.

    Raises:
        KmidiError: if the recording is damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(sound.position)
            data = file.read(sound.size)
    except OSError as error:
        raise KmidiError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) < sound.size:
        raise KmidiError(f"{path} breaks off within sample {sound.index}.")
    if not sound.compressed:
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32_768.0)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as recording:
            if recording.frames > _MOST_SAMPLES_OF_A_SOUND:
                raise KmidiError(f"{path}: sample {sound.index} is too long to be an instrument's.")
            samples = recording.read(dtype="float32", always_2d=True)[:, 0]
    except soundfile.SoundFileError as error:
        raise KmidiError(f"{path}: sample {sound.index} is damaged.") from error
    if not np.isfinite(samples).all():
        raise KmidiError(f"{path}: sample {sound.index} is damaged.")
    return np.ascontiguousarray(samples)


def _region(chunks: Chunks, zone: Zone, preset_zone: Zone) -> Region | None:
    keys = _common(zone.range_of(_KEY_RANGE), preset_zone.range_of(_KEY_RANGE))
    velocities = _common(zone.range_of(_VELOCITY_RANGE), preset_zone.range_of(_VELOCITY_RANGE))
    header = chunks.samples[zone.target]
    if keys is None or velocities is None or header["type"] & _ROM:
        return None

    def value(generator: int) -> int:
        own = zone.value(generator, _DEFAULTS.get(generator, 0))
        return own if generator in _INSTRUMENT_ONLY else own + preset_zone.value(generator, 0)

    def velocity_modulator(destination: int, default: float) -> float:
        amount = zone.velocity_modulators.get(destination, default)
        return amount + preset_zone.velocity_modulators.get(destination, 0.0)

    root = value(_ROOT_KEY)
    if not 0 <= root <= 127:
        root = int(header["root"]) if header["root"] <= 127 else 60
    cents = 100 * value(_COARSE_TUNE) + value(_FINE_TUNE) + int(header["correction"])
    return Region(
        keys=keys,
        velocities=velocities,
        sound=_sound(chunks, zone.target, value),
        pan=min(max(value(_PAN), -500), 500) / 1000.0,
        attenuation_db=max(value(_ATTENUATION), 0) / 10.0 * _ATTENUATION_SCALE,
        root_key=root - cents / 100.0,  # tuned up = a recording that is lower than it says
        cents_per_key=float(value(_CENTS_PER_KEY)),
        cutoff_cents=value(_CUTOFF) + value(_SWEEP) * _mean_sweep(value),
        resonance_db=min(max(value(_RESONANCE), 0), 960) / 10.0,
        velocity_to_cents=velocity_modulator(_CUTOFF, _VELOCITY_TO_CENTS),
        velocity_to_db=max(velocity_modulator(_ATTENUATION, 10 * _VELOCITY_TO_DECIBELS), 0.0) / 10,
        envelope=Envelope(
            delay_seconds=_seconds(value(_DELAY), 5_000),
            attack_seconds=_seconds(value(_ATTACK), 8_000),
            hold_seconds=_seconds(value(_HOLD), 5_000),
            decay_seconds=_seconds(value(_DECAY), 8_000),
            sustain_db=min(max(value(_SUSTAIN) / 10.0, 0.0), _FULL_DECAY_DB),
            release_seconds=_seconds(value(_RELEASE), 8_000),
            hold_cents_per_key=float(value(_KEY_TO_HOLD)),
            decay_cents_per_key=float(value(_KEY_TO_DECAY)),
        ),
    )


def _sound(chunks: Chunks, index: int, value: Callable[[int], int]) -> Sound:
    header = chunks.samples[index]
    compressed = bool(header["type"] & _COMPRESSED)
    first, last = int(header["start"]), int(header["end"])
    scale = 1 if compressed else 2  # SF3 counts bytes, SF2 16-bit numbers
    if not 0 <= first < last or last * scale > chunks.sample_size:
        raise KmidiError(f"{chunks.path}: sample {index} lies outside the file's recordings.")
    start = value(_START) + _COARSE_STEP * value(_START_COARSE)
    end_offset = value(_END) + _COARSE_STEP * value(_END_COARSE)
    # SF3 counts the loop from the recording's start, SF2 from the chunk's
    origin = 0 if compressed else first
    loop_start = int(header["loop_start"]) - origin
    loop_start += value(_START_LOOP) + _COARSE_STEP * value(_START_LOOP_COARSE)
    loop_end = int(header["loop_end"]) - origin
    loop_end += value(_END_LOOP) + _COARSE_STEP * value(_END_LOOP_COARSE)
    looped = value(_LOOP_MODE) & 1 and 0 <= loop_start < loop_end
    if not _LOWEST_RATE <= header["rate"] <= _HIGHEST_RATE:
        raise KmidiError(f"{chunks.path}: sample {index} has a rate of {header['rate']} Hz.")
    return Sound(
        index=index,
        rate=int(header["rate"]),
        position=chunks.sample_position + first * scale,
        size=(last - first) * scale,
        compressed=compressed,
        start=max(start, 0),
        end=None if compressed else max(last - first + end_offset, 1),
        loop_start=loop_start if looped else 0,
        loop_end=loop_end if looped else None,
    )


def _mean_sweep(value: Callable[[int], int]) -> float:
    """Return where the filter's envelope stands, 0-1, on average over the first second of a note.

    Filters of the sampler hold still. The average is near the top for the slow fall of a piano
    string, and near the level at rest for a short pluck.
    """
    sustain = 1.0 - min(max(value(_SWEEP_SUSTAIN), 0), 1000) / 1000.0
    times = np.linspace(0.0, 1.0, 200) - _seconds(value(_SWEEP_DELAY), 5_000)
    attack = max(_seconds(value(_SWEEP_ATTACK), 8_000), 1e-3)
    hold = _seconds(value(_SWEEP_HOLD), 5_000)
    decay = max(_seconds(value(_SWEEP_DECAY), 8_000), 1e-3)
    rising = np.clip(times / attack, 0.0, 1.0)
    falling = np.clip(1.0 - (times - attack - hold) / decay, sustain, 1.0)
    return float(np.mean(rising * falling))


def _common(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int] | None:
    low, high = max(first[0], second[0]), min(first[1], second[1])
    return (low, high) if low <= high else None


def _seconds(timecents: int, highest: int) -> float:
    # the shortest time there is means none (8.1.2)
    if timecents <= _SHORTEST:
        return 0.0
    return math.pow(2.0, min(timecents, highest) / 1200.0)
