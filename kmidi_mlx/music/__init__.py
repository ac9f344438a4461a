"""Music without a framework: notes, MIDI files, events, features, chords, mood."""

from __future__ import annotations

from kmidi_mlx.music.augment import scale_velocity, slice_notes, time_stretch, transpose
from kmidi_mlx.music.events import (
    DEFAULT_VELOCITY,
    INPUT_SIZE,
    MAX_SHIFT_STEPS,
    NOTE_OFF,
    NOTE_ON,
    PAD_TOKEN,
    START_TOKEN,
    STEPS_PER_SECOND,
    TIME_SHIFT,
    VELOCITY,
    VELOCITY_BINS,
    VOCABULARY_SIZE,
    decode,
    describe,
    encode,
    event_steps,
    first_violation,
    is_valid,
)
from kmidi_mlx.music.midi_file import parse_midi, read_midi, write_midi
from kmidi_mlx.music.notes import MAX_DURATION_SECONDS, Notes

__all__ = [
    "DEFAULT_VELOCITY",
    "INPUT_SIZE",
    "MAX_DURATION_SECONDS",
    "MAX_SHIFT_STEPS",
    "NOTE_OFF",
    "NOTE_ON",
    "PAD_TOKEN",
    "START_TOKEN",
    "STEPS_PER_SECOND",
    "TIME_SHIFT",
    "VELOCITY",
    "VELOCITY_BINS",
    "VOCABULARY_SIZE",
    "Notes",
    "decode",
    "describe",
    "encode",
    "event_steps",
    "first_violation",
    "is_valid",
    "parse_midi",
    "read_midi",
    "scale_velocity",
    "slice_notes",
    "time_stretch",
    "transpose",
    "write_midi",
]
