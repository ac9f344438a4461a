"""One song to samples for the Spectocloud model: the part of preparing that runs on all cores.

A sample is what the network is told of a moment (window, MIDI features, the emotion that the cloud
feels) and the cloud that the engine draws then. Samples come in pairs of neighbouring video frames,
because a cloud is also judged by how it moves.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio import compress, mel_spectrogram, piano, read_audio, render
from kmidi_mlx.data.cloud_excerpts import OWN_SHARE, Excerpt, emotion_for, plan_excerpts
from kmidi_mlx.data.sources import MIDI_SUFFIXES, Source
from kmidi_mlx.data.tokenise import stated_mood
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.music.augment import slice_notes
from kmidi_mlx.music.features import FEATURE_COUNT
from kmidi_mlx.music.midi_bytes import MAX_FILE_BYTES
from kmidi_mlx.music.midi_file import parse_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import (
    CHANNELS,
    DEFAULT_POINTS,
    FRAMES_PER_SECOND,
    MEL_BANDS,
    MEL_FRAMES_PER_SECOND,
    WINDOW_FRAMES,
    EmotionCurve,
    Frame,
    Song,
    clouds_at,
)

__all__ = [
    "MEL_COLUMNS",
    "SAMPLING_VERSION",
    "TAIL_SECONDS",
    "Pairs",
    "Sampled",
    "SamplingOptions",
    "Task",
    "describe_file",
    "sample_songs",
    "song_id",
    "source_files",
    "stretch_windows",
]

#: Raise it when the same file would now become other samples: then everything is made again.
SAMPLING_VERSION = 1

#: A piece goes on this long after its last note.
TAIL_SECONDS = 1.0
#: Mel columns that hold the windows of both frames of a pair, which are at most 2 columns apart.
MEL_COLUMNS = WINDOW_FRAMES + 2
_MEL_STEPS = 255.0
_HOP, _RATE = 512, 44_100
_MARGIN_COLUMNS = 4  # half a transform is two
_SHORTEST_SECONDS = 3.0
# -60 dB: what is quieter all along is a recording of nothing.
_SILENCE = 1e-3


@dataclass(frozen=True)
class SamplingOptions:
    """What the samples of all songs have in common.

    Attributes:
        samples: wanted for each song; even.
        seed: of all draws.
        own_emotion: whether only a song's own emotion is asked for, instead of any.
    """

    samples: int
    seed: int
    own_emotion: bool


@dataclass(frozen=True)
class Task:
    """A source to sample."""

    source: Source
    options: SamplingOptions


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of neighbouring frames as they are stored, one row a pair.

    Attributes:
        clouds: float16 (n, 2, 1200, 10).
        mel: uint8 (n, 128, 66), 255 times the compressed mel columns under both windows.
        features: float32 (n, 2, 32).
        emotion: float32 (n, 2, 3), valence, arousal and intensity as the cloud feels them.
        shift: uint8 (n,), columns from the first frame's window to the second's, 0 to 2.
        seconds: float32 (n,), when the first frame is in the song.
    """

    clouds: NDArray[np.float16]
    mel: NDArray[np.uint8]
    features: NDArray[np.float32]
    emotion: NDArray[np.float32]
    shift: NDArray[np.uint8]
    seconds: NDArray[np.float32]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.shift)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def empty(cls, count: int) -> Pairs:
        """Return room for `count` pairs."""
        return cls(
            clouds=np.zeros((count, 2, DEFAULT_POINTS, len(CHANNELS)), np.float16),
            mel=np.zeros((count, MEL_BANDS, MEL_COLUMNS), np.uint8),
            features=np.zeros((count, 2, FEATURE_COUNT), np.float32),
            emotion=np.zeros((count, 2, 3), np.float32),
            shift=np.zeros(count, np.uint8),
            seconds=np.zeros(count, np.float32),
        )


@dataclass(frozen=True, eq=False)
class Sampled:
    """A source after sampling.

    Attributes:
        pairs: the samples; None if it cannot be used.
        note: path, files (size, mtime_ns, content of each), and for a usable song its id (equal
            for equal samples), digest (of its content), seconds, emotion_source; else the reason.
    """

    pairs: Pairs | None
    note: dict[str, Any]


def source_files(source: Source) -> list[str]:
    """Return the files that a source's samples are made of: its own, and the notes of a sound."""
    midi = source.values.get("midi") if source.values.get("audio") else None
    return [source.path, *([str(midi)] if midi else [])]


def song_id(task: Task, contents: Sequence[str]) -> str:
    """Return what names a song's samples: it is equal only where they would be equal.

    Args:
        task: the source and how it is sampled.
        contents: digest of each of `source_files`.
    """
    values = task.source.values
    kinds = ("valence", "arousal", "scale", "intensity", "label")
    said = {key: values[key] for key in kinds if values.get(key) is not None}
    options = task.options
    known = [SAMPLING_VERSION, options.samples, options.seed, options.own_emotion, *_name(task)]
    text = json.dumps([*known, *contents, said], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sample_songs(tasks: Sequence[Task]) -> list[Sampled]:
    """Sample songs; bad ones are reported, not raised."""
    return [_sample(task) for task in tasks]


def stretch_windows(mel: NDArray[np.uint8], shift: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the windows of both frames of stored pairs.

    Args:
        mel: uint8 (n, 128, 66).
        shift: uint8 (n,), 0 to 2.

    Returns:
        float32 (n, 2, 128, 64), in [0, 1].
    """
    windows = np.empty((len(mel), 2, MEL_BANDS, WINDOW_FRAMES), np.float32)
    windows[:, 0] = mel[:, :, :WINDOW_FRAMES]
    for step in range(MEL_COLUMNS - WINDOW_FRAMES + 1):
        rows = shift == step
        windows[rows, 1] = mel[rows, :, step : step + WINDOW_FRAMES]
    windows *= np.float32(1.0 / _MEL_STEPS)
    return windows


def _name(task: Task) -> tuple[str, str]:
    return task.source.song, Path(task.source.path).name


def _sample(task: Task) -> Sampled:
    note: dict[str, Any] = {"path": task.source.path, "files": []}
    try:
        music = _read(task, note)
        contents = [file["content"] for file in note["files"]]
        note["digest"] = hashlib.blake2b("".join(contents).encode(), digest_size=16).hexdigest()
        note["id"] = song_id(task, contents)
        own, emotion_source = _own_emotion(task, music)
        pairs = _pairs(task, music, own)
    except KmidiError as error:
        return Sampled(None, {**note, "reason": str(error)})
    return Sampled(
        pairs,
        {**note, "seconds": round(music.seconds, 3), "emotion_source": emotion_source},
    )


@dataclass(frozen=True, eq=False)
class _Music:
    """A song as it was read.

    Attributes:
        notes: the piece, or None.
        samples: float32 (n,), its sound at 44,100 Hz, or None where the piano has to play it.
        seconds: its length.
    """

    notes: Notes | None
    samples: NDArray[np.float32] | None
    seconds: float

    @property
    def columns(self) -> int:
        return int(self.seconds * MEL_FRAMES_PER_SECOND)

    def mel(self, excerpt: Excerpt, notes: Notes | None) -> NDArray[np.float32]:
        """Return the compressed mel spectrogram of an excerpt with these notes."""
        if self.samples is None:
            stereo = render(notes or Notes.empty(), piano(), _RATE, excerpt.columns * _HOP / _RATE)
            sound, before = stereo.mean(axis=1), 0
        else:
            before = min(excerpt.first_column, _MARGIN_COLUMNS)
            end = (excerpt.first_column + excerpt.columns + _MARGIN_COLUMNS) * _HOP
            sound = self.samples[(excerpt.first_column - before) * _HOP : end]
        return compress(mel_spectrogram(sound)[:, before : before + excerpt.columns])


def _read(task: Task, note: dict[str, Any]) -> _Music:
    paths = [Path(path) for path in source_files(task.source)]
    sounding = bool(task.source.values.get("audio"))
    samples = None
    if sounding or paths[0].suffix.lower() not in MIDI_SUFFIXES:
        note["files"].append(describe_file(paths[0]))
        samples = _told_without_path(paths[0])
        if not max(float(samples.max()), -float(samples.min())) > _SILENCE:
            raise KmidiError("silent: nothing is louder than -60 dB of full scale")
        paths = paths[1:]
    notes = None
    if paths:
        name = "the file" if samples is None else str(paths[0])
        try:
            note["files"].append(describe_file(paths[0], MAX_FILE_BYTES))
        except KmidiError as error:
            raise KmidiError(f"{name}: {error}") from error
        notes = parse_midi(paths[0].read_bytes(), name)
        if samples is None and not len(notes):
            raise KmidiError("no notes")
    if samples is None:
        seconds = notes.duration_seconds + TAIL_SECONDS if notes is not None else 0.0
    else:
        seconds = len(samples) / _RATE
    if seconds < _SHORTEST_SECONDS:
        raise KmidiError(f"too short: {seconds:.2f} s, at least {_SHORTEST_SECONDS:g} s are needed")
    return _Music(notes, samples, seconds)


def _told_without_path(path: Path) -> NDArray[np.float32]:
    try:
        return read_audio(path)
    except KmidiError as error:
        # The path stands beside the reason.
        raise KmidiError(str(error).replace(str(path), "the file")) from error


def describe_file(path: Path, most_bytes: int | None = None) -> dict[str, Any]:
    """Return size, mtime_ns and digest of the content (BLAKE2b, 16 bytes) of a file.

    Raises:
        KmidiError: if it is not a regular file, too large or not readable; without its name.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise KmidiError("not a regular file")
        if most_bytes is not None and status.st_size > most_bytes:
            raise KmidiError(f"too large: {status.st_size} bytes, at most {most_bytes}")
        content = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except OSError as error:
        raise KmidiError(f"cannot be read: {error.strerror}") from error
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "content": content.hexdigest()}


def _own_emotion(task: Task, music: _Music) -> tuple[EmotionCurve | None, str]:
    stated = stated_mood(task.source.values)
    if stated is not None:
        (valence, arousal), intensity = stated[0][0], task.source.values.get("intensity")
        return EmotionCurve.constant(Emotion.of(valence, arousal, intensity)), stated[1]
    if music.notes is not None and len(music.notes):
        return EmotionCurve.of_notes(music.notes), "estimated"
    if task.options.own_emotion:
        raise KmidiError("no emotion: name one in a manifest, or ask for varied ones")
    return None, "none"


class _PartOfSong(Sequence[Frame]):
    """The frames of an excerpt, which know where in the whole song they are."""

    def __init__(self, song: Song, start_seconds: float, duration_seconds: float) -> None:
        self._song = song
        self._start_seconds = start_seconds
        self._duration_seconds = duration_seconds

    def __len__(self) -> int:
        return len(self._song)

    def __getitem__(self, index: Any) -> Any:
        seconds = self._start_seconds + index / FRAMES_PER_SECOND
        progress = min(1.0, seconds / self._duration_seconds)
        return replace(self._song[index], progress=progress)


def _pairs(task: Task, music: _Music, own: EmotionCurve | None) -> Pairs:
    options = task.options
    words = hashlib.blake2b("\n".join(_name(task)).encode(errors="surrogatepass")).digest()
    rng = np.random.default_rng((options.seed, *np.frombuffer(words[:16], "<u4").tolist()))
    excerpts = plan_excerpts(music.columns, options.samples // 2, rng)
    pairs = Pairs.empty(sum(len(excerpt.frames) for excerpt in excerpts))
    own_share = 1.0 if options.own_emotion else OWN_SHARE
    row = 0
    for excerpt in excerpts:
        start, emotion = excerpt.start_seconds, emotion_for(excerpt, own, own_share, rng)
        notes = None
        if music.notes is not None:
            notes = slice_notes(music.notes, start, start + excerpt.seconds)
        frames = _PartOfSong(Song(music.mel(excerpt, notes), notes, emotion), start, music.seconds)
        wanted = np.column_stack([excerpt.frames, excerpt.frames + 1]).ravel().tolist()
        states = clouds_at(frames, wanted)
        for frame, first, second in zip(excerpt.frames.tolist(), states, states, strict=False):
            before, after = frames[frame], frames[frame + 1]
            pairs.clouds[row] = first.cloud, second.cloud
            pairs.features[row] = before.features, after.features
            pairs.emotion[row] = first.emotion, second.emotion
            pairs.mel[row], pairs.shift[row] = _stretch(before.window, after.window)
            pairs.seconds[row] = start + frame / FRAMES_PER_SECOND
            row += 1
    return pairs


def _stretch(
    before: NDArray[np.float32], after: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], int]:
    """Lay two overlapping windows over each other; unused columns are 0."""
    for shift in range(MEL_COLUMNS - WINDOW_FRAMES + 1):
        if np.array_equal(before[:, shift:], after[:, : WINDOW_FRAMES - shift]):
            stretch = np.zeros((MEL_BANDS, MEL_COLUMNS), np.float32)
            stretch[:, :WINDOW_FRAMES] = before
            stretch[:, shift : shift + WINDOW_FRAMES] = after
            return np.rint(stretch * _MEL_STEPS).astype(np.uint8), shift
    raise AssertionError("windows of neighbouring frames overlap")
