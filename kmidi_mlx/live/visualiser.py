"""The visualiser: what is heard and felt now becomes a cloud, frame by frame.

The network has no memory, so what it draws is where points want to go; they go there as the engine
that taught it lets them, however often it is asked. Without a network that engine draws itself.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.mel import MelSettings, MelStream, compress
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.sound import FanReader, SoundBlock, SoundFan
from kmidi_mlx.models.cloud_network import Network
from kmidi_mlx.models.spectocloud_vit import SpectocloudViT
from kmidi_mlx.music.features import features
from kmidi_mlx.spectocloud import (
    DEFAULT_POINTS,
    FRAMES_PER_SECOND,
    LEVELS_OF_DETAIL,
    MEL_BANDS,
    MEL_FRAMES_PER_SECOND,
    WINDOW_FRAMES,
    EngineState,
    Frame,
    advance,
    begin,
)
from kmidi_mlx.spectocloud.adhesion import dragged
from kmidi_mlx.spectocloud.engine import followed
from kmidi_mlx.spectocloud.mel_features import MelFeatures
from kmidi_mlx.spectocloud.song import FEATURE_SECONDS

__all__ = ["Visualiser"]

_Floats = NDArray[np.float32]

# What is guessed about the notes of other sound needs this much of it.
_HISTORY = round(FEATURE_SECONDS * MEL_FRAMES_PER_SECOND)
# Endless music has no place in the song: what shows it swings to and fro in this time.
_BREATH_SECONDS = 240.0
# After a stall points are not thrown farther than in this many frames.
_MOST_FRAMES = 30
# The engine takes its steps one by one, which costs time where frames are few.
_MOST_ENGINE_STEPS = 4
# Sound waits for its moment; a second of it is as much as anybody hands in early.
_WAITING_BLOCKS = 64
_NEUTRAL = Emotion.of(0.0, 0.0)
_INT16 = np.float32(1.0 / 32_768.0)


class Visualiser:
    """Draws the cloud of now; only one thread may use it.

    Args:
        sound: what is heard of the music.
        played: what is played.
        model: the network; None: the engine draws.

    Attributes:
        felt: valence, arousal and intensity as the cloud feels them, with inertia.
    """

    def __init__(
        self, sound: SoundFan, played: PlayedLog, model: SpectocloudViT | None = None
    ) -> None:
        self._music = sound
        self._played = played
        self._model = model
        self._networks: dict[int, Network] = {}
        self._engine: EngineState | None = None
        self._cloud = np.zeros((0, 10), np.float32)
        self._begun = self._drawn = time.monotonic()
        self.felt = (0.0, 0.0, 0.0)
        self._reader: FanReader = sound.reader(_WAITING_BLOCKS)
        self._listen(sound)

    def listen(self, sound: SoundFan | None) -> None:
        """Hear something else from now on; None: the music."""
        self._reader.close()
        self._reader = (sound or self._music).reader(_WAITING_BLOCKS)
        self._listen(sound or self._music)

    def _listen(self, sound: SoundFan) -> None:
        self._hears_music = sound is self._music
        self._waiting: deque[SoundBlock] = deque()
        self._mel = MelStream(MelSettings())
        self._window = np.zeros((MEL_BANDS, _HISTORY), np.float32)

    def warm(self, network: bool, times: int = 3) -> dict[int, float]:
        """Draw a cloud of every level of detail, so that everything is compiled and in place.

        Args:
            network: whether the network is to be warmed up, or the engine.
            times: that each is then timed.

        Returns:
            Median seconds of a cloud by points.
        """
        seconds = {}
        for points in LEVELS_OF_DETAIL:
            taken = []
            for _ in range(1 + times):
                begun = time.perf_counter()
                self.draw(time.monotonic(), _NEUTRAL, points, network)
                taken.append(time.perf_counter() - begun)
            seconds[points] = sorted(taken[1:])[times // 2]
        return seconds

    def draw(
        self, now: float, emotion: Emotion, points: int = DEFAULT_POINTS, network: bool = True
    ) -> _Floats:
        """Draw the cloud of a moment that is not before the last one.

        Args:
            now: the moment, of `time.monotonic()`.
            emotion: asked for.
            points: of the cloud, one of `LEVELS_OF_DETAIL`.
            network: whether the network draws, if there is one, or the engine.

        Returns:
            float32 (points, 10), columns as in `CHANNELS`; not to be written to.
        """
        self._hear(now)
        frames = min(_MOST_FRAMES, max(1, round((now - self._drawn) * FRAMES_PER_SECOND)))
        self._drawn = now
        frame = self._frame(now, emotion)
        if network and self._model is not None:
            self._draw_network(frame, points, frames)
        else:
            self._draw_engine(frame, points, frames)
        return self._cloud

    def _draw_network(self, frame: Frame, points: int, frames: int) -> None:
        self._engine = None
        for _ in range(frames):
            self.felt = dragged(self.felt, frame.emotion)
        if points not in self._networks:
            assert self._model is not None
            self._networks[points] = Network(self._model, points)
        felt = np.array([self.felt], np.float32)
        (target,) = self._networks[points].clouds(frame.window[None], frame.features[None], felt)
        if len(self._cloud) == points:
            self._cloud = followed(self._cloud, target, frames)
        else:
            self._cloud = target
        self._cloud.flags.writeable = False

    def _draw_engine(self, frame: Frame, points: int, frames: int) -> None:
        if self._engine is None or len(self._engine.cloud) != points:
            self._engine = begin(frame, points)
            frames = 1
        for _ in range(min(frames, _MOST_ENGINE_STEPS)):
            self._engine = advance(self._engine, frame)
        self.felt, self._cloud = self._engine.emotion, self._engine.cloud

    def _frame(self, now: float, emotion: Emotion) -> Frame:
        if self._hears_music:
            seconds = FEATURE_SECONDS
            told = features(self._played.notes_until(now, seconds), (0.0, seconds))
        else:
            told = MelFeatures(self._window).at(_HISTORY)
        phase = (now - self._begun) / _BREATH_SECONDS % 1.0
        return Frame(
            window=self._window[:, -WINDOW_FRAMES:],
            features=told,
            emotion=(emotion.valence, emotion.arousal, emotion.intensity),
            progress=1.0 - abs(2.0 * phase - 1.0),
        )

    def _hear(self, now: float) -> None:
        """Take in the sound that has been heard by now."""
        while (block := self._reader.read(0.0)) is not None:
            self._waiting.append(block)
        heard = []
        while self._waiting and self._waiting[0].time_monotonic <= now:
            samples = self._waiting.popleft().samples
            heard.append((samples[:, 0].astype(np.float32) + samples[:, 1]) * (0.5 * _INT16))
        if heard:
            new = compress(self._mel.push(np.concatenate(heard)))[:, -_HISTORY:]
            if new.shape[1]:
                self._window = np.concatenate([self._window[:, new.shape[1] :], new], axis=1)
