"""Chord and key symbols as small numbers, and the annotation files that carry them.

The written form is Harte's: `root:quality/bass`, such as `Eb:min7/b3` (Harte, Sandler, Abdallah,
Gómez, "Symbolic representation of musical chords", ISMIR 2005). Lead-sheet names (`Am`, `F#m7`,
`Gsus4`) are read too. A chord is kept as root and one of nine qualities; the bass is dropped.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.errors import KmidiError

__all__ = [
    "CHORD_COUNT",
    "KEY_COUNT",
    "NO_CHORD",
    "QUALITIES",
    "ROOTS",
    "UNKNOWN",
    "ChordSegments",
    "chord_name",
    "key_name",
    "parse_chord",
    "parse_key",
    "read_chords",
    "read_key",
    "transpose_chord",
    "transpose_key",
]

#: Pitch classes 0-11 by name.
ROOTS = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
#: Chord qualities in the order of their ids.
QUALITIES = ("maj", "min", "7", "maj7", "min7", "sus4", "dim", "aug", "hdim7")

UNKNOWN = 0
NO_CHORD = 1
_FIRST_CHORD = 2
#: Chord ids: 0 unknown, 1 no chord, then 2 + 9·root + quality.
CHORD_COUNT = _FIRST_CHORD + 12 * len(QUALITIES)
#: Key ids: 0 unknown, 1-12 major keys from C up, 13-24 minor keys from C up.
KEY_COUNT = 25

_NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
# Every spelling that is read, by the quality it becomes: sixths, ninths and so on become the
# nearest of the nine, suspensions by second or fourth are one quality.
_SPELLINGS = {
    "maj": ("", "maj", "M", "major", "maj6", "6", "add9", "6/9", "5", "1", "2"),
    "min": ("min", "m", "-", "minor", "min6", "m6", "minmaj7", "mM7", "mmaj7", "madd9"),
    "7": ("7", "9", "11", "13", "dom7", "7b9", "7#9"),
    "maj7": ("maj7", "M7", "maj9", "M9", "maj11", "maj13", "Δ", "Δ7"),
    "min7": ("min7", "m7", "-7", "min9", "m9", "min11", "m11", "min13", "m13"),
    "sus4": ("sus4", "sus", "sus2", "7sus4", "9sus4", "7sus"),
    "dim": ("dim", "dim7", "o", "o7", "°", "°7"),
    "aug": ("aug", "+", "aug7", "+7", "7#5"),
    "hdim7": ("hdim7", "hdim", "m7b5", "min7b5", "ø", "ø7"),
}
_QUALITY_OF = {
    spelling: QUALITIES.index(quality)
    for quality, spellings in _SPELLINGS.items()
    for spelling in spellings
}
_SYMBOL = re.compile(r"([A-G])([b#♭♯]*):?(.*)")
_BASS = re.compile(r"/[b#♭♯]*(?:[A-G][b#♭♯]*|\d{1,2})$")
_DEGREES = re.compile(r"(?<=.)\([^()]*\)$")
_MAJOR_WORDS = ("", "maj", "major", "M")
_MINOR_WORDS = ("min", "minor", "m")


@functools.lru_cache(maxsize=4096)  # a song has hundreds of chords, but few symbols
def parse_chord(symbol: str) -> int:
    """Return the id of a chord symbol.

    Args:
        symbol: Harte's form (`C:min7/b3`, `N` for no chord, `X` for unknown) or a lead-sheet name
            (`Am`, `F#m7`, `Gsus4`, `C/E`).

    Returns:
        0 unknown, 1 no chord, otherwise 2-109.

    Raises:
        KmidiError: for a symbol that is neither.
    """
    text = symbol.strip()
    if text in ("N", "NC", "N.C."):
        return NO_CHORD
    if text == "X":
        return UNKNOWN
    match = _SYMBOL.fullmatch(text)
    if match:
        quality = match[3].replace("♭", "b").replace("♯", "#")
        # "6/9" is a quality and not a bass, so the whole ending is looked up first.
        for ending in (quality, _BASS.sub("", quality)):
            for spelling in (ending, _DEGREES.sub("", ending)):
                if spelling in _QUALITY_OF:
                    root = _pitch_class(match[1], match[2])
                    return _FIRST_CHORD + root * len(QUALITIES) + _QUALITY_OF[spelling]
    raise KmidiError(
        f"chord symbol {symbol!r} is not understood; write it like C:maj, Eb:min7, Am, F#m7, Gsus4 "
        "or N for no chord."
    )


def chord_name(chord: int) -> str:
    """Return the symbol of a chord id; `parse_chord` turns it back into the id.

    Raises:
        KmidiError: for an id outside 0 … CHORD_COUNT - 1.
    """
    _check_id("chord", chord, CHORD_COUNT)
    if chord < _FIRST_CHORD:
        return "X" if chord == UNKNOWN else "N"
    root, quality = divmod(chord - _FIRST_CHORD, len(QUALITIES))
    return f"{ROOTS[root]}:{QUALITIES[quality]}"


def transpose_chord(chord: int, semitones: int) -> int:
    """Move a chord id up by semitones (any sign); unknown and no chord stay.

    Raises:
        KmidiError: for an id outside 0 … CHORD_COUNT - 1.
    """
    _check_id("chord", chord, CHORD_COUNT)
    if chord < _FIRST_CHORD:
        return chord
    root, quality = divmod(chord - _FIRST_CHORD, len(QUALITIES))
    return _FIRST_CHORD + (root + semitones) % 12 * len(QUALITIES) + quality


@functools.lru_cache(maxsize=4096)
def parse_key(name: str) -> int:
    """Return the id of a key name such as `Gb:maj`, `C:min`, `Am`, `F# minor`, `D` or `X`.

    Returns:
        0 unknown, 1-12 major keys from C up, 13-24 minor keys from C up.

    Raises:
        KmidiError: for a name that is none of these.
    """
    text = name.strip()
    if text == "X":
        return UNKNOWN
    match = _SYMBOL.fullmatch(text)
    mode = match[3].strip() if match else ""
    if not match or mode not in _MAJOR_WORDS + _MINOR_WORDS:
        raise KmidiError(f"key {name!r} is not understood; write it like C:maj, Gb:maj or A:min.")
    return 1 + _pitch_class(match[1], match[2]) + (12 if mode in _MINOR_WORDS else 0)


def key_name(key: int) -> str:
    """Return the name of a key id; `parse_key` turns it back into the id.

    Raises:
        KmidiError: for an id outside 0-24.
    """
    _check_id("key", key, KEY_COUNT)
    if key == UNKNOWN:
        return "X"
    return f"{ROOTS[(key - 1) % 12]}:{'min' if key > 12 else 'maj'}"


def transpose_key(key: int, semitones: int) -> int:
    """Move a key id up by semitones (any sign); unknown stays.

    Raises:
        KmidiError: for an id outside 0-24.
    """
    _check_id("key", key, KEY_COUNT)
    if key == UNKNOWN:
        return key
    mode, root = divmod(key - 1, 12)
    return 1 + mode * 12 + (root + semitones) % 12


@dataclass(frozen=True, eq=False)
class ChordSegments:
    """Which chord sounds when: segments in order of time that do not overlap.

    Attributes:
        start_seconds: float64 (n,), >= 0.
        end_seconds: float64 (n,), > start.
        chord: uint8 (n,), chord ids.
    """

    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]
    chord: NDArray[np.uint8]

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[object]], where: str = "chords") -> ChordSegments:
        """Build segments from rows `[start_seconds, end_seconds, symbol]`, in order of time.

        Raises:
            KmidiError: for a row of another form, an unknown symbol, a segment that does not end
                after it starts or starts before the one above it ends; `where` and the row's
                number (from 1) are in the message.
        """
        parsed: list[tuple[float, float, int]] = []
        earliest = -math.inf
        for number, row in enumerate(rows, start=1):
            try:
                start, end, symbol = _span(row)
                if start < earliest - _OVERLAP_SECONDS:
                    raise KmidiError(
                        f"the chord starts at {start:g} s, before the one above it ends "
                        f"({earliest:g} s); put the chords in order without overlap."
                    )
                parsed.append((start, end, parse_chord(symbol)))
            except KmidiError as error:
                raise KmidiError(f"{where}, row {number}: {error}") from error
            earliest = end
        starts, ends, chords = zip(*parsed, strict=True) if parsed else ((), (), ())
        return cls(np.array(starts, float), np.array(ends, float), np.array(chords, np.uint8))

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.chord)

    def at(self, seconds: ArrayLike) -> NDArray[np.uint8]:
        """Return the chord ids uint8 (m,) at the times (m,) in seconds; 0 where none is given."""
        times = np.asarray(seconds, np.float64)
        if not len(self):
            return np.zeros(times.shape, np.uint8)
        index = np.searchsorted(self.start_seconds, times, side="right") - 1
        inside = (index >= 0) & (times < self.end_seconds[index])
        return np.where(inside, self.chord[index], np.uint8(UNKNOWN))

    def transpose(self, semitones: int) -> ChordSegments:
        """Return the same segments with every chord moved up by semitones (any sign)."""
        table = np.array([transpose_chord(c, semitones) for c in range(CHORD_COUNT)], np.uint8)
        return ChordSegments(self.start_seconds, self.end_seconds, table[self.chord])


# Annotation times are rounded, so neighbours may overlap by a hair.
_OVERLAP_SECONDS = 0.005


def read_chords(path: Path | str) -> ChordSegments:
    """Read a chord annotation file: lines of start, end (seconds) and symbol, as in POP909.

    Raises:
        KmidiError: if the file cannot be read or a line is wrong; file and line are named.
    """
    return ChordSegments.from_rows(_read_rows(path), where=str(path))


def read_key(path: Path | str) -> int:
    """Read a key annotation file (start, end, key) and return the id of the key that holds longest.

    Returns:
        A key id; 0 for a file without lines. Of equally long keys the first wins.

    Raises:
        KmidiError: if the file cannot be read or a line is wrong; file and line are named.
    """
    seconds = np.zeros(KEY_COUNT)
    for number, row in enumerate(_read_rows(path), start=1):
        try:
            start, end, name = _span(row)
            seconds[parse_key(name)] += end - start
        except KmidiError as error:
            raise KmidiError(f"{path}, row {number}: {error}") from error
    return int(np.argmax(seconds))


def _read_rows(path: Path | str) -> list[list[str]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KmidiError(f"cannot read annotation file {path}: {error}.") from error
    return [line.split(maxsplit=2) for line in text.rstrip().splitlines()]


def _span(row: Sequence[object]) -> tuple[float, float, str]:
    try:
        begin, stop, symbol = row
        start, end = float(begin), float(stop)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise KmidiError(
            f"expected start and end in seconds and a symbol, got {list(row)!r}."
        ) from error
    if not 0.0 <= start < end < math.inf:
        raise KmidiError(f"{start:g} to {end:g} s is not a stretch of time.")
    if not isinstance(symbol, str):
        raise KmidiError(f"the symbol has to be text, got {symbol!r}.")
    return start, end, symbol


def _pitch_class(letter: str, accidentals: str) -> int:
    flats = accidentals.count("b") + accidentals.count("♭")
    return (_NATURALS[letter] + len(accidentals) - 2 * flats) % 12


def _check_id(kind: str, value: int, count: int) -> None:
    if not 0 <= value < count:
        raise KmidiError(f"{kind} id {value} is out of range; ids go from 0 to {count - 1}.")
