"""One MIDI or sound file as a song of the Spectocloud: read, made to sound, and heard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio import compress, mel_spectrogram, read_audio, render
from kmidi_mlx.audio.files import LONGEST_SECONDS
from kmidi_mlx.data.cloud_sampling import TAIL_SECONDS
from kmidi_mlx.data.sources import MIDI_SUFFIXES
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import Song

__all__ = ["SAMPLE_RATE", "SongFile", "read_song_file"]

SAMPLE_RATE = 44_100


@dataclass(frozen=True, eq=False)
class SongFile:
    """A file that was read.

    Attributes:
        path: of the file.
        seconds: length of the song; of a piece, until its last note has died away.
        notes: the piece, or None where the file is a recording.
        recording: float32 (n,) at 44,100 Hz, or None where the piano has to play the notes.
    """

    path: Path
    seconds: float
    notes: Notes | None
    recording: NDArray[np.float32] | None

    def sound(self) -> NDArray[np.float32]:
        """Return the recording (n,), or how the piano plays the notes, (n, 2); at 44,100 Hz."""
        if self.recording is not None:
            return self.recording
        return render(self.notes or Notes.empty(), seconds=self.seconds)

    def song(self, sound: NDArray[np.float32], emotion: Emotion | None) -> Song:
        """Return the song.

        Args:
            sound: what `sound` returned; it takes seconds to make, and films need it as well.
            emotion: all along; None: what the notes suggest.

        Raises:
            KmidiError: if there are neither notes nor an emotion.
        """
        heard = sound if sound.ndim == 1 else sound.mean(axis=1)
        return Song(compress(mel_spectrogram(heard)), self.notes, emotion)


def read_song_file(path: Path) -> SongFile:
    """Read a MIDI file (by its ending) or any file that libsndfile reads.

    Raises:
        KmidiError: if the file is missing, cannot be read, has no notes or is longer than two
            hours.
    """
    if path.suffix.lower() not in MIDI_SUFFIXES:
        recording = read_audio(path, SAMPLE_RATE)
        return SongFile(path, len(recording) / SAMPLE_RATE, None, recording)
    notes = read_midi(path)
    if not len(notes):
        raise KmidiError(f"{path} has no notes to show.")
    if notes.duration_seconds > LONGEST_SECONDS:
        raise KmidiError(
            f"{path} is longer than {LONGEST_SECONDS / 3600:g} hours; cut it into shorter files."
        )
    return SongFile(path, notes.duration_seconds + TAIL_SECONDS, notes, None)
