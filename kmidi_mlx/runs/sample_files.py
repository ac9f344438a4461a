"""What a MIDI sample looks and sounds like: files beside it, for trackers that show such things."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kmidi_mlx.audio.files import write_wav
from kmidi_mlx.audio.sampler import render
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.music.pianoroll import draw_roll
from kmidi_mlx.spectocloud.picture import write_png

__all__ = ["SAMPLE_RATE", "with_renderings"]

#: Of the sound of a sample: enough for a piano, a third of the bytes of a CD in mono.
SAMPLE_RATE = 24_000


def with_renderings(files: Iterable[Path]) -> tuple[list[Path], list[KmidiError]]:
    """Return files with a picture (.png) and the sound (.wav) of every MIDI file among them.

    They are written beside it, unless they are there and not older than it.

    Returns:
        The files, sorted, each once; and why some could not be made.
    """
    found, problems = set(files), []
    for midi in [file for file in found if file.suffix == ".mid"]:
        for suffix, write in ((".png", _write_roll), (".wav", _write_sound)):
            made = midi.with_suffix(suffix)
            try:
                if not made.exists() or made.stat().st_mtime_ns < midi.stat().st_mtime_ns:
                    write(made, read_midi(midi))
                found.add(made)
            except KmidiError as error:
                found.discard(made)
                problems.append(error)
    return sorted(found), problems


def _write_roll(path: Path, notes: Notes) -> None:
    write_png(path, draw_roll(notes))


def _write_sound(path: Path, notes: Notes) -> None:
    write_wav(path, render(notes, sample_rate=SAMPLE_RATE).mean(axis=1), SAMPLE_RATE)
