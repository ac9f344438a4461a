"""A whole song as the engine sees it: one frame's inputs for every 1/60 s."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.features import features
from kmidi_mlx.music.mood import mood_curve
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud.axes import (
    FRAMES_PER_SECOND,
    MEL_BANDS,
    MEL_FRAMES_PER_SECOND,
    WINDOW_FRAMES,
    check_mel,
)
from kmidi_mlx.spectocloud.engine import Frame
from kmidi_mlx.spectocloud.mel_features import MelFeatures
from kmidi_mlx.spectocloud.pseudo_mel import mel_from_notes

__all__ = ["FEATURE_SECONDS", "EmotionCurve", "Song"]

_Floats = NDArray[np.float64]

#: The MIDI features of a frame describe this many seconds up to it.
FEATURE_SECONDS = 3.0
_MOOD_WINDOW_SECONDS = 20.0


@dataclass(frozen=True, eq=False)
class EmotionCurve:
    """Emotion over time, linear between its knots and constant outside.

    Attributes:
        seconds: (k,) times, ascending, at least one.
        values: (k, 3), valence and arousal in [-1, 1], intensity in [0, 1].

    Raises:
        KmidiError: for wrong shapes, times that do not ascend or values out of range.
    """

    seconds: _Floats
    values: _Floats

    def __post_init__(self) -> None:
        seconds = np.asarray(self.seconds, np.float64)
        values = np.asarray(self.values, np.float64)
        if seconds.ndim != 1 or not len(seconds) or values.shape != (len(seconds), 3):
            raise KmidiError(
                "an emotion curve has times (k,) and values (k, 3) of valence, arousal, intensity; "
                f"got shapes {seconds.shape} and {values.shape}."
            )
        if not (np.isfinite(seconds).all() and (np.diff(seconds) > 0.0).all()):
            raise KmidiError("the times of an emotion curve have to be finite and ascending.")
        if not ((values >= (-1.0, -1.0, 0.0)) & (values <= 1.0)).all():
            raise KmidiError("an emotion curve has a value that is out of range or not a number.")
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "values", values)

    @classmethod
    def constant(cls, emotion: Emotion) -> EmotionCurve:
        """Return the curve of one emotion all the time."""
        values = [[emotion.valence, emotion.arousal, emotion.intensity]]
        return cls(np.zeros(1), np.array(values))

    @classmethod
    def of_notes(cls, notes: Notes) -> EmotionCurve:
        """Return the mood that the notes themselves suggest (`kmidi_mlx.music.mood`)."""
        curve = mood_curve(notes, _MOOD_WINDOW_SECONDS)
        if not len(curve):
            return cls(np.zeros(1), np.zeros((1, 3)))
        intensity = np.minimum(1.0, np.hypot(curve[:, 0], curve[:, 1]))
        seconds = np.asarray(2.0 * np.arange(len(curve)) + 0.5 * _MOOD_WINDOW_SECONDS, np.float64)
        return cls(seconds, np.column_stack([curve, intensity]))

    def at(self, seconds: float) -> tuple[float, float, float]:
        """Return valence, arousal and intensity at a time."""
        v, a, i = (float(np.interp(seconds, self.seconds, axis)) for axis in self.values.T)
        return v, a, i


class Song(Sequence[Frame]):
    """The frames of a song, computed when they are asked for.

    Frame k is the moment k / 60 s: its window ends with the last mel frame whose middle is not
    later, and what lies before the song is silence. Nothing looks ahead, so that a live programme
    makes the same frames from what it has heard.

    Attributes:
        mel: float32 (128, time), log-compressed mel spectrogram in [0, 1].
        notes: the piece, or None where only its sound is known.
        emotion: over time.
    """

    def __init__(
        self,
        mel: ArrayLike | None = None,
        notes: Notes | None = None,
        emotion: Emotion | EmotionCurve | None = None,
    ) -> None:
        """Take a song in.

        Args:
            mel: (128, time), log-compressed mel spectrogram in [0, 1] with 86.13 frames a second;
                None: derived from the notes.
            notes: the piece; None: MIDI features are guessed from the spectrogram.
            emotion: one emotion, or one over time; None: what the notes suggest.

        Raises:
            KmidiError: if there is neither sound nor notes, no emotion where there are no notes, or
                the spectrogram is not one.
        """
        if mel is None and notes is None:
            raise KmidiError("a song needs a spectrogram or notes; give at least one of them.")
        if emotion is None and notes is None:
            raise KmidiError("a song without notes needs an emotion; give one.")
        if notes is not None and mel is None:
            self.mel = mel_from_notes(notes)
        else:
            self.mel = check_mel("mel spectrogram", mel if mel is not None else [])
        self.notes = notes
        if isinstance(emotion, Emotion):
            self.emotion = EmotionCurve.constant(emotion)
        else:
            self.emotion = emotion or EmotionCurve.of_notes(notes or Notes.empty())
        silence = np.zeros((MEL_BANDS, WINDOW_FRAMES), np.float32)
        self._padded = np.concatenate([silence, self.mel], axis=1)
        self._guess = MelFeatures(self.mel) if notes is None else None

    @property
    def duration_seconds(self) -> float:
        """Length of the song in seconds."""
        return float(self.mel.shape[1] / MEL_FRAMES_PER_SECOND)

    def __len__(self) -> int:
        """Return the number of video frames, at least one."""
        return max(1, math.ceil(self.duration_seconds * FRAMES_PER_SECOND))

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...

    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        """Return a frame's inputs."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        now = index / FRAMES_PER_SECOND
        heard = min(int(now * MEL_FRAMES_PER_SECOND) + 1, self.mel.shape[1])
        return Frame(
            window=self._padded[:, heard : heard + WINDOW_FRAMES],
            features=self._features(now, heard),
            emotion=self.emotion.at(now),
            progress=index / len(self),
        )

    def __iter__(self) -> Iterator[Frame]:
        """Iterate over all frames in order."""
        return (self[index] for index in range(len(self)))

    def _features(self, now: float, heard: int) -> NDArray[np.float32]:
        if self._guess is not None:
            return self._guess.at(heard)
        end = now + 1.0 / FRAMES_PER_SECOND
        return features(self.notes or Notes.empty(), (end - FEATURE_SECONDS, end))
