"""What the cloud listens to instead of the music: a sound file, or what a microphone hears."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from kmidi_mlx.audio.resample_stream import ResampleStream
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.sinks import PortLostError
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundFan
from kmidi_mlx.live.sound_device import Microphone

__all__ = ["FileListening", "InputListening", "Listening", "listen_to"]

OnLost = Callable[[Exception], None]
Sound = NDArray[np.float32]

_FULL_SCALE = 32_767
_MOST_CHANNELS = 64
# as `read_audio`: 40 dB over full scale are numbers that are no sound
_LOUDEST = 100.0
_BLOCK_FRAMES = 16_384
# A disk that sleeps wakes up within the seconds that are decoded ahead.
_AHEAD_SECONDS = 4.0
# An input is read in pieces of this length, and a file's end is looked for as often.
_PIECE_SECONDS = 0.02


class Listening(Protocol):
    """Something to listen to.

    Attributes:
        name: for people.
        fan: hands out what is heard.
    """

    name: str
    fan: SoundFan

    def close(self) -> None:
        """Listen no more; may be called twice and from any thread."""


def listen_to(name: str, on_lost: OnLost) -> FileListening | InputListening:
    """Begin to listen.

    Args:
        name: a sound file, `input` for the usual microphone, or `input:` and a part of the name
            of an input (`kmidi_mlx.live.sound_device.list_devices`).
        on_lost: called once, from another thread, with what happened if it comes to an end by
            itself: a file that breaks off, a microphone that is unplugged. It may close.

    Returns:
        A `FileListening` is heard where it is pulled (`SoundEngine.beside`), an `InputListening`
        is not to be heard.

    Raises:
        KmidiError: one sentence, if there is no such file or input or it cannot be used.
    """
    kind, _, device = name.partition(":")
    if kind == "input":
        return InputListening(device, on_lost)
    return FileListening(Path(name).expanduser(), on_lost)


class FileListening:
    """A sound file that plays over and over, without a gap, decoded while it plays.

    Memory does not depend on its length. Decoding has its own thread; where it comes too late
    there is silence, and the file goes on afterwards where it stopped.

    Args:
        path: any file libsndfile reads: WAV, FLAC, Ogg Vorbis, MP3, AIFF, ...
        on_lost: called by the decoding thread with what is wrong in the file, when it has been
            played up to there.

    Attributes:
        name: of the file, without its folder.
        fan: hands out what is heard of it.
        late_samples: silence that was played because decoding was late.

    Raises:
        KmidiError: if it is missing, no sound file, empty, or its beginning cannot be decoded.
    """

    def __init__(self, path: Path, on_lost: OnLost) -> None:
        self.name = path.name
        self.fan = SoundFan(SAMPLE_RATE)
        self.late_samples = 0
        self._path = path
        self._on_lost = on_lost
        self._file = _open(path)
        # one thread appends, one takes: neither needs a lock
        self._decoded: deque[Sound] = deque()
        self._appended = 0
        self._pulled = 0
        self._lost = False
        self._closing = threading.Event()
        self._wanted = threading.Event()
        blocks = self._blocks()
        try:
            self._stream = ResampleStream(self._file.samplerate, SAMPLE_RATE, channels=2)
            self._append(next(blocks))
        except BaseException:
            self._file.close()
            raise
        self._thread = threading.Thread(
            target=self._decode, args=(blocks,), name="kmidi listening", daemon=True
        )
        self._thread.start()

    def pull(self, count: int) -> Sound:
        """Return the next samples; never waits.

        Args:
            count: of samples.

        Returns:
            float32 (count, 2) at 44,100 Hz; silence where decoding is late or the file was lost.
        """
        result = np.zeros((count, 2), np.float32)
        filled = 0
        while filled < count and self._decoded:
            block = self._decoded[0]
            part = block[: count - filled]
            result[filled : filled + len(part)] = part
            filled += len(part)
            if len(part) < len(block):
                self._decoded[0] = block[len(part) :]
            else:
                self._decoded.popleft()
        self._pulled += filled
        if not self._lost:
            self.late_samples += count - filled
        if self._ahead < _AHEAD_SECONDS / 2:
            self._wanted.set()
        return result

    def heard(self, samples: Sound, time_monotonic: float) -> None:
        """Hand out what is heard from a moment on.

        Args:
            samples: float32 (n, 2).
            time_monotonic: moment of the first.
        """
        self.fan.put(_whole(samples), time_monotonic)

    def close(self) -> None:
        """Stop decoding and close the file."""
        self._closing.set()
        self._wanted.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def _ahead(self) -> float:
        return (self._appended - self._pulled) / SAMPLE_RATE

    def _append(self, block: Sound) -> None:
        resampled = self._stream.push(block)
        if len(resampled):
            self._appended += len(resampled)
            self._decoded.append(resampled)

    def _decode(self, blocks: Iterator[Sound]) -> None:
        try:
            while not self._closing.is_set():
                if self._ahead < _AHEAD_SECONDS:
                    self._append(next(blocks))
                else:
                    self._wanted.clear()
                    # asked again after the clear: what came in between is not missed
                    if self._ahead >= _AHEAD_SECONDS / 2 and not self._closing.is_set():
                        self._wanted.wait()
        except KmidiError as error:
            # what came before it is still played
            while self._decoded and not self._closing.wait(_PIECE_SECONDS):
                pass
            self._lost = True
            if not self._closing.is_set():
                self._on_lost(error)
        finally:
            self._file.close()

    def _blocks(self) -> Iterator[Sound]:
        """Decode the file over and over, (n, 2) at its own rate; KmidiError where it breaks."""
        try:
            while True:
                position = 0
                while len(block := self._file.read(_BLOCK_FRAMES, "float32", always_2d=True)):
                    yield self._stereo(block, position)
                    position += len(block)
                if not position:
                    raise KmidiError(f"{self._path} holds no sound: it has 0 samples.")
                # MP3 headers only estimate their length
                if position < self._file.frames and self._file.format != "MP3":
                    raise KmidiError(
                        f"{self._path} breaks off after {position / self._file.samplerate:.2f} s; "
                        "listen to a whole file."
                    )
                self._file.seek(0)
        except (soundfile.SoundFileError, OSError) as error:
            raise KmidiError(
                f"{self._path} cannot be read on: {_reason(error)}; listen to another file."
            ) from error

    def _stereo(self, block: Sound, position: int) -> Sound:
        good = np.abs(block) <= _LOUDEST  # false for NaN
        if not good.all():
            index = int(np.argmin(good.all(axis=1)))
            seconds = (position + index) / self._file.samplerate
            raise KmidiError(
                f"{self._path} has a sample of {block[index][~good[index]][0]:g} at "
                f"{seconds:.3f} s; sound has to be numbers from about -1 to 1."
            )
        if block.shape[1] > 2:
            block = block.mean(axis=1, dtype=np.float32, keepdims=True)
        if block.shape[1] == 1:
            block = block.repeat(2, axis=1)
        if len(block) < _BLOCK_FRAMES and self._file.frames == len(block):
            # all of a short file at once: reading it thousands of times a second costs too much
            block = np.tile(block, (math.ceil(_BLOCK_FRAMES / len(block)), 1))
        return block


class InputListening:
    """What a microphone or another input of the machine hears, such as a loopback device.

    Args:
        device: a part of its name; empty: the usual one.
        on_lost: called by the reading thread when the input goes away.

    Attributes:
        name: of the input.
        fan: hands out what it hears; a block's moment is the one at which it sounded.
        overruns: times that the machine was too slow and some of it was lost.

    Raises:
        KmidiError: if sounddevice is not installed, there is no such input or it cannot be opened.
    """

    def __init__(self, device: str, on_lost: OnLost) -> None:
        self._microphone = Microphone(device)
        self.name = self._microphone.name
        self.fan = SoundFan(SAMPLE_RATE)
        self.overruns = 0
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="kmidi microphone", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the input back."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _listen(self) -> None:
        microphone = self._microphone
        stream = ResampleStream(microphone.sample_rate, SAMPLE_RATE, channels=2)
        piece = round(_PIECE_SECONDS * microphone.sample_rate)
        try:
            while not self._closing.is_set():
                waiting = microphone.waiting()
                if waiting < piece:
                    self._closing.wait((piece - waiting) / microphone.sample_rate)
                    continue
                begun = time.monotonic() - waiting / microphone.sample_rate
                samples, complete = microphone.read(piece)
                self.overruns += not complete
                resampled = stream.push(samples)
                if len(resampled):
                    self.fan.put(_whole(resampled), begun - stream.delay_seconds)
        except PortLostError as error:
            if not self._closing.is_set():
                self._on_lost(error)
        finally:
            microphone.close()


def _open(path: Path) -> soundfile.SoundFile:
    if not path.is_file():
        raise KmidiError(
            f"{path} is not a file." if path.exists() else f"no such sound file: {path}."
        )
    try:
        file = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise KmidiError(
            f"{path} cannot be read as sound: {_reason(error)}; give a WAV, FLAC, Ogg or MP3 file."
        ) from error
    if file.channels > _MOST_CHANNELS:
        file.close()
        raise KmidiError(
            f"{path} has {file.channels} channels; {_MOST_CHANNELS} at most can be mixed."
        )
    return file


def _whole(samples: Sound) -> NDArray[np.int16]:
    return (np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype(np.int16)


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return text.strip().rstrip(".") or "unknown reason"
