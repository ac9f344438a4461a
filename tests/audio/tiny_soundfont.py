"""Writes small SoundFonts, byte by byte and without the package's own reader."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

PAN, ATTENUATION, ATTACK, DECAY, SUSTAIN, RELEASE = 17, 48, 34, 36, 37, 38
CUTOFF, KEYS, VELOCITIES, LOOP, ROOT, COARSE, FINE = 8, 43, 44, 54, 58, 51, 52
INSTRUMENT, SAMPLE = 41, 53
FROM_VELOCITY = 0x0102


@dataclass
class Zone:
    """Generators of a zone; its target comes last by itself. Negative target: a global zone."""

    target: int = 0
    generators: dict[int, int] = field(default_factory=dict)
    modulators: list[tuple[int, int, int, int, int]] = field(default_factory=list)


@dataclass
class Sample:
    wave: np.ndarray
    loop: tuple[int, int] = (0, 0)
    rate: int = 44_100
    root: int = 60
    correction: int = 0
    type: int = 1


def span(low: int, high: int) -> int:
    """A key or velocity range as a generator's amount."""
    return struct.unpack("<h", bytes([low, high]))[0]


def sine_sample(hz: float = 441.0, rate: int = 44_100, root: int = 60) -> Sample:
    """A tone that loops over whole periods."""
    length = rate
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(length) / rate)
    return Sample(wave, (length // 2, length // 2 + round(100 * rate / hz)), rate, root)


def write_soundfont(
    path: Path,
    samples: Sequence[Sample],
    instruments: Sequence[Sequence[Zone]],
    presets: Sequence[tuple[int, int, Sequence[Zone]]] = ((0, 0, (Zone(),)),),
    compressed: bool = False,
) -> Path:
    """Write an SF2 file, or SF3 where `compressed`; presets are (bank, program, zones)."""
    waves, headers, position = [], [], 0
    for sample in samples:
        if compressed:
            file = io.BytesIO()
            soundfile.write(file, sample.wave, sample.rate, format="OGG", subtype="VORBIS")
            data, unit, origin = file.getvalue(), 1, 0
        else:
            whole = np.rint(sample.wave * 32_767).astype("<i2")
            data, unit, origin = whole.tobytes() + bytes(92), 2, position
        size = len(data) if compressed else len(sample.wave)
        headers.append(
            struct.pack(
                "<20s5IBbHH",
                b"sample",
                position,
                position + size,
                origin + sample.loop[0],
                origin + sample.loop[1],
                sample.rate,
                sample.root,
                sample.correction,
                0,
                sample.type | (0x10 if compressed else 0),
            )
        )
        waves.append(data)
        position += len(data) // unit
    preset_bags = _bags([zones for _, _, zones in presets], INSTRUMENT)
    instrument_bags = _bags(instruments, SAMPLE)
    phdr = b"".join(
        struct.pack("<20sHHHIII", b"preset", program, bank, first, 0, 0, 0)
        for (bank, program, _), first in zip(presets, preset_bags[0], strict=False)
    ) + struct.pack("<20sHHHIII", b"EOP", 0, 0, preset_bags[0][-1], 0, 0, 0)
    inst = b"".join(
        struct.pack("<20sH", b"instrument", first) for first in instrument_bags[0][:-1]
    ) + struct.pack("<20sH", b"EOI", instrument_bags[0][-1])
    body = _list(b"INFO", {b"ifil": struct.pack("<HH", 3 if compressed else 2, 1)})
    body += _list(b"sdta", {b"smpl": b"".join(waves)})
    tables = {b"phdr": phdr}
    tables |= dict(zip((b"pbag", b"pmod", b"pgen"), preset_bags[1:], strict=True))
    tables |= {b"inst": inst}
    tables |= dict(zip((b"ibag", b"imod", b"igen"), instrument_bags[1:], strict=True))
    tables |= {b"shdr": b"".join(headers) + struct.pack("<20s5IBbHH", b"EOS", *[0] * 9)}
    body += _list(b"pdta", tables)
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"sfbk" + body)
    return path


def _list(name: bytes, chunks: dict[bytes, bytes]) -> bytes:
    content = b"".join(
        key + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
        for key, data in chunks.items()
    )
    return b"LIST" + struct.pack("<I", 4 + len(content)) + name + content


def _bags(owners: Sequence[Sequence[Zone]], terminal: int) -> tuple[list[int], bytes, bytes, bytes]:
    """First bag of each owner and of the end; the bag, modulator and generator chunks."""
    firsts, bags, modulators, generators = [], b"", b"", b""
    for zones in owners:
        firsts.append(len(bags) // 4)
        for zone in zones:
            bags += struct.pack("<HH", len(generators) // 4, len(modulators) // 10)
            for modulator in zone.modulators:
                modulators += struct.pack("<HHhHH", *modulator)
            for what, amount in zone.generators.items():
                generators += struct.pack("<Hh", what, amount)
            if zone.target >= 0:
                generators += struct.pack("<HH", terminal, zone.target)
    firsts.append(len(bags) // 4)
    bags += struct.pack("<HH", len(generators) // 4, len(modulators) // 10)
    return firsts, bags, modulators + bytes(10), generators + bytes(4)
