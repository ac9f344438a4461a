"""Real inputs on which an export is compared with its model: a shipped piece, and how it sounds."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import kmidi_mlx
from kmidi_mlx.audio.files import resample
from kmidi_mlx.audio.hearing import hear
from kmidi_mlx.audio.mel import compress, mel_spectrogram
from kmidi_mlx.audio.sampler import render
from kmidi_mlx.config import EmotionRecognizerConfig
from kmidi_mlx.data.audio_emotion import hearing_of
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.emotion import encode as encode_emotion
from kmidi_mlx.music.events import START_TOKEN, encode
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import FRAMES_PER_SECOND, Song

__all__ = ["EMOTION", "Inputs", "cloud_inputs", "piece_ids", "recognizer_inputs"]

Inputs = dict[str, NDArray[np.generic]]

#: What the samples are asked to feel: away from the axes, so that every number counts.
EMOTION = Emotion.of(0.55, -0.35)
_PIECE = Path(kmidi_mlx.__file__).parent / "assets" / "pop909" / "199.mid"
_SOUND_SECONDS = 12.0
_RATE = 44_100


def piece_ids(count: int) -> NDArray[np.int32]:
    """Return the first input ids `(count,)` of a shipped piece, the start of the piece included."""
    events = encode(_piece())
    repeats = -(-count // len(events))
    return np.concatenate([[START_TOKEN], *[events] * repeats])[:count].astype(np.int32)


def cloud_inputs(batch: int) -> Inputs:
    """Return `windows`, `features` and `emotion` of moments of a shipped piece, seconds apart."""
    song = Song(compress(mel_spectrogram(_sound(_RATE))), _piece(), EMOTION)
    last = int(_SOUND_SECONDS * FRAMES_PER_SECOND) - 1
    frames = [song[index] for index in np.linspace(last // 3, last, batch).astype(int)]
    turned = [Emotion.of((-1.0) ** k * EMOTION.valence, EMOTION.arousal) for k in range(batch)]
    return {
        "windows": np.stack([frame.window for frame in frames]),
        "features": np.stack([frame.features for frame in frames]),
        "emotion": np.stack([encode_emotion(emotion) for emotion in turned]),
    }


def recognizer_inputs(config: EmotionRecognizerConfig, batch: int, time: int) -> Inputs:
    """Return `frames` and `counts` of clips of a shipped piece; the first counts whole.

    Args:
        config: of the recogniser.
        batch: number of clips.
        time: frames of a clip.
    """
    heard = hear(_sound(config.data.sample_rate), hearing_of(config))
    starts = np.linspace(0, max(0, len(heard) - time), batch).astype(int)
    clips = [np.resize(heard[start : start + time], (time, heard.shape[1])) for start in starts]
    counts = np.linspace(time, max(config.model.patch_frames, time // 2), batch)
    return {"frames": np.stack(clips), "counts": counts.astype(np.int32)}


@lru_cache(maxsize=1)
def _piece() -> Notes:
    return read_midi(_PIECE)


@lru_cache(maxsize=2)
def _sound(sample_rate: int) -> NDArray[np.float32]:
    """One channel of the piece's first seconds."""
    notes = _piece()
    early = notes.onset_seconds < _SOUND_SECONDS
    part = Notes.build(
        notes.pitch[early],
        notes.velocity[early],
        notes.onset_seconds[early],
        notes.offset_seconds[early],
    )
    sound = render(part, seconds=_SOUND_SECONDS).mean(axis=1)
    return resample(sound.astype(np.float32), _RATE, sample_rate)
