"""The tables of a SoundFont file: presets, instruments, sample headers and the zones between them.

The layout is that of the SoundFont Technical Specification 2.04, section 7. Every number that
points somewhere is checked here, so that a damaged file is refused before anything follows it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError

__all__ = ["Chunks", "Zone", "read_chunks"]

Table = NDArray[np.void]

_BAG = [("generators", "<u2"), ("modulators", "<u2")]
_GENERATOR = [("what", "<u2"), ("amount", "<i2")]
_MODULATOR = [
    *(("source", "<u2"), ("destination", "<u2"), ("amount", "<i2")),
    *(("amount_source", "<u2"), ("transform", "<u2")),
]
_LAYOUTS: dict[bytes, list[Any]] = {
    b"phdr": [("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("x", "V12")],
    b"pbag": _BAG,
    b"pmod": _MODULATOR,
    b"pgen": _GENERATOR,
    b"inst": [("name", "S20"), ("bag", "<u2")],
    b"ibag": _BAG,
    b"imod": _MODULATOR,
    b"igen": _GENERATOR,
    b"shdr": [
        *(("name", "S20"), ("start", "<u4"), ("end", "<u4")),
        *(("loop_start", "<u4"), ("loop_end", "<u4"), ("rate", "<u4")),
        *(("root", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")),
    ],
}
_LARGEST_TABLE = 1 << 26
# Bits of a modulator's source (8.2): a MIDI controller instead of one of the general sources.
_CONTROLLER, _SOURCE_NUMBER, _FROM_VELOCITY = 0x80, 0x7F, 2


@dataclass(frozen=True)
class Zone:
    """What one zone says, its global zone included.

    Attributes:
        target: the instrument (of a preset's zone) or sample (of an instrument's) it plays.
        generators: signed amount of each generator it names.
        velocity_modulators: amount of each modulator from velocity, by the generator it moves.
    """

    target: int
    generators: dict[int, int]
    velocity_modulators: dict[int, float]

    def value(self, generator: int, default: int) -> int:
        """Return the signed amount of a generator, or `default` where the zone names none."""
        return self.generators.get(generator, default)

    def range_of(self, generator: int) -> tuple[int, int]:
        """Return lowest and highest value of a range generator; all of 0-127 where none is."""
        packed = self.generators.get(generator, 0x7F00) & 0xFFFF
        return packed & 0xFF, packed >> 8


@dataclass(frozen=True)
class Chunks:
    """The tables of a file.

    Attributes:
        path: the file.
        presets: structured (n,): name, program, bank, bag.
        samples: structured (n,): name, start, end, loop_start, loop_end, rate, root, ...
        sample_position: first byte of the recordings in the file.
        sample_size: their size in bytes.
        tables: all tables by the name of their chunk, with the closing record of each.
    """

    path: Path
    presets: Table
    samples: Table
    sample_position: int
    sample_size: int
    tables: dict[bytes, Table]

    def preset_zones(self, preset: int, terminal: int) -> Iterator[Zone]:
        """Return the zones of a preset; the target of each is an instrument."""
        count = len(self.tables[b"inst"]) - 1
        return self._zones(b"p", self.tables[b"phdr"]["bag"], preset, terminal, count)

    def instrument_zones(self, instrument: int, terminal: int) -> Iterator[Zone]:
        """Return the zones of an instrument; the target of each is a sample."""
        return self._zones(
            b"i", self.tables[b"inst"]["bag"], instrument, terminal, len(self.samples)
        )

    def _zones(
        self, side: bytes, starts: Table, owner: int, terminal: int, targets: int
    ) -> Iterator[Zone]:
        bags, generators, modulators = (
            self.tables[side + name] for name in (b"bag", b"gen", b"mod")
        )
        first, last = int(starts[owner]), int(starts[owner + 1])
        shared: Zone | None = None
        for bag in range(first, last):
            here, following = bags[bag], bags[bag + 1]
            own = generators[here["generators"] : following["generators"]]
            named = {int(item["what"]): int(item["amount"]) for item in own}
            moved = {
                int(item["destination"]): float(item["amount"])
                for item in modulators[here["modulators"] : following["modulators"]]
                if not item["source"] & _CONTROLLER
                and item["source"] & _SOURCE_NUMBER == _FROM_VELOCITY
            }
            if terminal not in named:
                # only the first zone may lack its target: it then speaks for all (7.3, 7.7)
                if bag == first:
                    shared = Zone(-1, named, moved)
                continue
            if shared is not None:
                named = {**shared.generators, **named}
                moved = {**shared.velocity_modulators, **moved}
            target = named[terminal] & 0xFFFF
            if target >= targets:
                raise KmidiError(f"{self.path} is damaged: a zone plays what is not there.")
            yield Zone(target, named, moved)


def read_chunks(path: Path) -> Chunks:
    """Read the tables of a SoundFont.

    Args:
        path: an SF2 or SF3 file.

    Raises:
        KmidiError: if the file is missing, is no SoundFont, or is damaged.
    """
    if not path.is_file():
        raise KmidiError(f"no such SoundFont: {path}.")
    try:
        with path.open("rb") as file:
            found = _scan(path, file)
    except OSError as error:
        raise KmidiError(f"{path} cannot be read: {error.strerror or error}.") from error
    missing = [name.decode() for name in (*_LAYOUTS, b"smpl") if name not in found]
    if missing:
        raise KmidiError(f"{path} is not a whole SoundFont: it has no {missing[0]} chunk.")
    sample_position, sample_size, _ = found.pop(b"smpl")
    tables = {name: _table(path, name, found[name][2]) for name in _LAYOUTS}
    _check_links(path, tables)
    return Chunks(
        path=path,
        presets=tables[b"phdr"][:-1],
        samples=tables[b"shdr"][:-1],
        sample_position=sample_position,
        sample_size=sample_size,
        tables=tables,
    )


def _scan(path: Path, file: BinaryIO) -> dict[bytes, tuple[int, int, bytes]]:
    """Return position, size and (but for recordings) content of every chunk."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise KmidiError(f"{path} is not a SoundFont; give an .sf2 or .sf3 file.")
    found: dict[bytes, tuple[int, int, bytes]] = {}
    position = len(head)
    while position + 8 <= length:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        position += 8
        if name == b"LIST":
            position += 4  # go on with the chunks inside
            continue
        if position + size > length:
            raise KmidiError(f"{path} breaks off within its {name.decode('latin-1')!r} chunk.")
        if name in _LAYOUTS:
            if size > _LARGEST_TABLE:
                raise KmidiError(f"{path}: its {name.decode()} chunk is too large to be true.")
            found[name] = (position, size, file.read(size))
        elif name == b"smpl":
            found[name] = (position, size, b"")
        position += size + size % 2
    return found


def _table(path: Path, name: bytes, content: bytes) -> Table:
    layout = np.dtype(_LAYOUTS[name])
    if len(content) % layout.itemsize or not content:
        raise KmidiError(f"{path} is damaged: its {name.decode()} chunk has a wrong size.")
    table: Table = np.frombuffer(content, layout)
    least = 2 if name in (b"phdr", b"inst", b"shdr") else 1  # the last is a closing record
    if len(table) < least:
        raise KmidiError(f"{path} has nothing to play: its {name.decode()} chunk is empty.")
    return table


def _check_links(path: Path, tables: dict[bytes, Table]) -> None:
    for origin, field, target in (
        (b"phdr", "bag", b"pbag"),
        (b"pbag", "generators", b"pgen"),
        (b"pbag", "modulators", b"pmod"),
        (b"inst", "bag", b"ibag"),
        (b"ibag", "generators", b"igen"),
        (b"ibag", "modulators", b"imod"),
    ):
        pointers = tables[origin][field].astype(np.int64)
        if (np.diff(pointers) < 0).any() or pointers[-1] >= len(tables[target]):
            raise KmidiError(f"{path} is damaged: {origin.decode()} points outside its tables.")
