"""MIDI files to tokens and conditions: the part of preparing that runs on all cores."""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.data.columns import MOOD_SOURCES, Content
from kmidi_mlx.data.sources import Source
from kmidi_mlx.emotion import from_label
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.chords import ChordSegments, parse_key, read_chords
from kmidi_mlx.music.events import STEPS_PER_SECOND, encode
from kmidi_mlx.music.midi_bytes import MAX_FILE_BYTES
from kmidi_mlx.music.midi_file import parse_midi
from kmidi_mlx.music.mood import mood_curve, to_steering
from kmidi_mlx.music.notes import Notes

__all__ = [
    "MOOD_HOP_STEPS",
    "MOOD_WINDOW_STEPS",
    "TOKENISER_VERSION",
    "Tokenised",
    "content_digest",
    "stated_mood",
    "tokenise",
]

#: Raise it when the same file would now become other tokens: then everything is read again.
TOKENISER_VERSION = 1

#: Row k of a mood curve is the mood of the window that begins at k hops.
MOOD_HOP_STEPS = 200
MOOD_WINDOW_STEPS = 2000

_FEWEST_NOTES = 8


@dataclass(frozen=True, eq=False)
class Tokenised:
    """Some sources after reading.

    Attributes:
        tokens: uint16 (sum of lengths,), the events of the usable pieces one after another.
        content: columns of the usable pieces.
        pieces: one note for each usable piece: path, size, mtime_ns, content, conditions, digest.
        rejected: one note for each other source: path, reason, and what is known of the file.
    """

    tokens: NDArray[np.uint16]
    content: Content
    pieces: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def tokenise(sources: Sequence[Source]) -> Tokenised:
    """Read sources; bad ones are reported, not raised."""
    tokens: list[NDArray[np.uint16]] = []
    contents: list[Content] = []
    pieces: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    for source in sources:
        note: dict[str, Any] = {"path": source.path, "conditions": source.conditions}
        try:
            data = _read(Path(source.path), note)
            notes = parse_midi(data, "the file")  # its path stands beside the reason
            if len(notes) < _FEWEST_NOTES:
                raise KmidiError(
                    f"too short: {len(notes)} notes, at least {_FEWEST_NOTES} are needed"
                    if len(notes)
                    else "no notes"
                )
            events = encode(notes)
            contents.append(_content(source, notes, events))
        except KmidiError as error:
            rejected.append({**note, "reason": str(error)})
            continue
        note["digest"] = hashlib.blake2b(events.tobytes(), digest_size=16).hexdigest()
        tokens.append(events)
        pieces.append(note)
    joined = np.concatenate(tokens) if tokens else np.zeros(0, np.uint16)
    return Tokenised(joined, Content.join(contents), pieces, rejected)


def content_digest(data: bytes) -> str:
    """Return the digest by which a file's content is recognised."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def stated_mood(values: Mapping[str, Any]) -> tuple[NDArray[np.float64], str] | None:
    """Return the mood that a manifest's line states, on the steering scale.

    Args:
        values: the line, checked.

    Returns:
        float64 (1, 2) of valence and arousal, and how they came about (`given` or `rated`); None if
        the line states neither both numbers nor a label.
    """
    valence, arousal = values.get("valence"), values.get("arousal")
    if valence is not None and arousal is not None:
        point = np.array([[valence, arousal]], np.float64)
        return (
            (point, "given") if values.get("scale") == "steering" else (to_steering(point), "rated")
        )
    if values.get("label") is not None:
        named = from_label(values["label"])
        return np.array([[named.valence, named.arousal]]), "given"
    return None


def _read(path: Path, note: dict[str, Any]) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise KmidiError("not a regular file")
        note.update(size=status.st_size, mtime_ns=status.st_mtime_ns)
        if status.st_size > MAX_FILE_BYTES:
            raise KmidiError(f"too large: {status.st_size} bytes, at most {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise KmidiError(f"cannot be read: {error.strerror}") from error
    note["content"] = content_digest(data)
    return data


def _content(source: Source, notes: Notes, events: NDArray[np.uint16]) -> Content:
    values = source.values
    stated = stated_mood(values)
    mood, mood_source = stated if stated is not None else (_curve(notes), "estimated")
    intensity = values.get("intensity")
    chord_step, chord = _changes(_chords(values))
    key_step, key = _changes(_keys(values))
    duration = round(notes.duration_seconds * STEPS_PER_SECOND)
    return Content(
        length=np.array([len(events)], np.int32),
        duration_steps=np.array([duration], np.int32),
        mood_source=np.array([MOOD_SOURCES.index(mood_source)], np.uint8),
        intensity=np.array([np.nan if intensity is None else intensity], np.float16),
        mood_offset=np.array([0, len(mood)], np.int64),
        valence=mood[:, 0].astype(np.float16),
        arousal=mood[:, 1].astype(np.float16),
        chord_offset=np.array([0, len(chord)], np.int64),
        chord_step=chord_step,
        chord=chord,
        key_offset=np.array([0, len(key)], np.int64),
        key_step=key_step,
        key=key,
    )


def _curve(notes: Notes) -> NDArray[np.float64]:
    return mood_curve(
        notes,
        window_seconds=MOOD_WINDOW_STEPS / STEPS_PER_SECOND,
        hop_seconds=MOOD_HOP_STEPS / STEPS_PER_SECOND,
    )


_Span = tuple[float, float, int]


def _chords(values: dict[str, Any]) -> list[_Span]:
    given = values.get("chords")
    if given is None:
        return []
    segments = (
        read_chords(given) if isinstance(given, str) else ChordSegments.from_rows(given, "chords")
    )
    return list(
        zip(
            segments.start_seconds.tolist(),
            segments.end_seconds.tolist(),
            segments.chord.tolist(),
            strict=True,
        )
    )


def _keys(values: dict[str, Any]) -> list[_Span]:
    main, segments = values.get("key"), values.get("key_segments")
    whole = 0 if main is None else parse_key(main)
    if not segments:
        return [(0.0, math.inf, whole)] if whole else []
    spans: list[_Span] = []
    end = 0.0
    for start, stop, name in segments:
        # The key that holds longest fills what the segments leave open.
        if start > end:
            spans.append((end, start, whole))
        spans.append((start, stop, parse_key(name)))
        end = stop
    return [*spans, (end, math.inf, whole)]


def _changes(spans: list[_Span]) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return when (steps) which id comes into force; id 0 where a gap begins."""
    steps: list[int] = []
    ids: list[int] = []

    def change(seconds: float, to: int) -> None:
        step = round(seconds * STEPS_PER_SECOND)
        if steps and step <= steps[-1]:
            ids[-1] = to
        elif to != (ids[-1] if ids else 0):
            steps.append(step)
            ids.append(to)

    end = 0.0
    for start, stop, value in spans:
        if start > end and round(start * STEPS_PER_SECOND) > round(end * STEPS_PER_SECOND):
            change(end, 0)
        change(start, value)
        end = stop
    if spans and math.isfinite(end):
        change(end, 0)
    return np.array(steps, np.int32), np.array(ids, np.uint8)
