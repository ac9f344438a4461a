"""Sound cards: playing on one, hearing a microphone, and what there is, by sounddevice.

Sound passes through PortAudio's own buffers, which no busy thread of Python can hold up, and is
never waited for: a card that goes away is noticed and said, and holds up nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.sinks import PortLostError
from kmidi_mlx.live.sound import SAMPLE_RATE, SoundFan
from kmidi_mlx.live.sound_pacing import SoundPacer

__all__ = ["Microphone", "SoundDevice", "list_devices"]

OnLost = Callable[[Exception], None]
Sound = NDArray[np.float32]

_WORDS = {"input": "microphone or input", "output": "sound card"}
# Asked of PortAudio: what stays in its buffer. Much less, and a busy machine is heard.
_LATENCY_SECONDS = 0.08
# Room that is left in the card's buffer at the start: blocks do not come as evenly as they go.
_ROOM_SECONDS = 0.04
_MOST_SILENCE_SECONDS = 0.1
# More than the delay that pacing may come to, so that none is lost meanwhile.
_BLOCKS = 32
# A source that is quiet for so long has paused.
_PAUSE_SECONDS = 0.15
_POLL_SECONDS = 0.004
# A card that takes or gives nothing for so long is gone.
_GONE_SECONDS = 2.0
_CLOSING_SECONDS = 1.0

# PortAudio opens, closes and lists for one thread at a time.
_changing = threading.Lock()
_opened = 0
_broken = False


@dataclass(frozen=True)
class _Device:
    index: int
    name: str
    channels: int
    sample_rate: int


def list_devices() -> dict[str, list[str]]:
    """Return the names of the machine's sound cards; never raises.

    Returns:
        `inputs` and `outputs`, the usual one of each first; none where sounddevice is missing.
    """
    try:
        with _changing:
            library = _library()
            return {f"{kind}s": [one.name for one in _devices(library, kind)] for kind in _WORDS}
    except Exception:  # whatever a driver does: then there is nothing to choose from
        return {"inputs": [], "outputs": []}


class _Stream:
    """A running stream of one direction; no call of it waits.

    Args:
        kind: `input` or `output`.
        name: part of the device's name; empty or `default`: the usual one.
    """

    def __init__(self, kind: str, name: str) -> None:
        global _opened  # noqa: PLW0603 - PortAudio counts for the whole process
        with _changing:
            self._library = library = _library()
            device = _find(_devices(library, kind), kind, name)
            self.name = device.name
            self.channels = min(2, device.channels)
            self._errors = library.PortAudioError
            try:
                self._stream = _open(library, kind, device, self.channels)
            except self._errors as error:
                raise KmidiError(
                    f"{device.name} cannot be opened: {_reason(error)}; it may be in use by "
                    "another program, choose another one or none."
                ) from error
            _opened += 1
        self.sample_rate = round(self._stream.samplerate)
        self._kind = kind
        self._count = self._largest = 0
        self._moved = time.monotonic()

    def count(self) -> int:
        """Samples that can be written or read without waiting.

        Raises:
            PortLostError: when the card is no longer there.
        """
        attribute = "write_available" if self._kind == "output" else "read_available"
        try:
            alive = self._stream.active
            count = int(getattr(self._stream, attribute)) if alive else 0
        except self._errors as error:
            raise self._lost() from error
        now = time.monotonic()
        # it took or gave something, or there is nothing left that it could play
        if count > self._count or (self._kind == "output" and count >= self._largest):
            self._moved = now
        self._count = count
        self._largest = max(count, self._largest)
        if not alive or now - self._moved > _GONE_SECONDS:
            raise self._lost()
        return count

    def write(self, samples: Sound) -> bool:
        """Write samples for which there is room; return whether the card had to wait for them."""
        if self.channels == 1:
            samples = samples.mean(axis=1, keepdims=True)
        self._count -= len(samples)
        try:
            return bool(self._stream.write(np.ascontiguousarray(samples)))
        except self._errors as error:
            raise self._lost() from error

    def read(self, count: int) -> tuple[Sound, bool]:
        """Read samples that are there; return them, (count, 2), and whether some were lost."""
        self._count -= count
        try:
            samples, lost = self._stream.read(count)
        except self._errors as error:
            raise self._lost() from error
        stereo = samples if self.channels == 2 else np.repeat(samples, 2, axis=1)
        return stereo, bool(lost)

    def close(self) -> None:
        """Give the card back, or leave it where its driver does not answer."""
        global _opened, _broken  # noqa: PLW0603
        # drivers have been seen to hang here after their card or server went away
        closing = threading.Thread(target=self._close, name="kmidi card closing", daemon=True)
        with _changing:
            closing.start()
            closing.join(_CLOSING_SECONDS)
            _opened -= 1
            if closing.is_alive():
                _broken = True
                _leave_at_exit(self._library)

    def _close(self) -> None:
        # it may run no longer
        with contextlib.suppress(self._errors):
            self._stream.abort()
        self._stream.close()

    def _lost(self) -> PortLostError:
        if _has_jack(self._library):
            _leave_at_exit(self._library)
        return PortLostError(f"{self.name} went away; choose another {_WORDS[self._kind]} or none.")


class Microphone:
    """An input that is open.

    Args:
        name: part of its name; empty or `default`: the usual one.

    Attributes:
        name: of the input.
        sample_rate: at which it gives sound.

    Raises:
        KmidiError: if sounddevice is missing, there is no such input or it cannot be opened.
    """

    def __init__(self, name: str = "") -> None:
        self._stream = _Stream("input", name)
        self.name = self._stream.name
        self.sample_rate = self._stream.sample_rate

    def waiting(self) -> int:
        """Samples that can be read now.

        Raises:
            PortLostError: when the input is no longer there.
        """
        return self._stream.count()

    def read(self, count: int) -> tuple[Sound, bool]:
        """Read samples.

        Args:
            count: at the most `waiting`.

        Returns:
            float32 (count, 2), and whether nothing before them was lost.

        Raises:
            PortLostError: when the input is no longer there.
        """
        samples, lost = self._stream.read(count)
        return samples, not lost

    def close(self) -> None:
        """Give the input back."""
        self._stream.close()


class SoundDevice:
    """Plays on a sound card what a fan hands out.

    Args:
        fan: where the sound comes from.
        name: part of the card's name; `default` or empty: the usual one.
        on_lost: called once, from another thread, when the card goes away. It may close.

    Attributes:
        name: of the card.

    Raises:
        KmidiError: if sounddevice is missing, there is no such card or it cannot be opened.
    """

    def __init__(self, fan: SoundFan, name: str, on_lost: OnLost) -> None:
        self._stream = _Stream("output", name)
        self.name = self._stream.name
        self._reader = fan.reader(_BLOCKS)
        self._pacer = SoundPacer(fan.sample_rate, self._stream.sample_rate)
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._play, name="kmidi sound card", daemon=True)
        self._thread.start()

    @property
    def underruns(self) -> int:
        """Times that the card ran out of sound."""
        return self._pacer.starvations

    @property
    def gaps(self) -> int:
        """Times that sound was left out or silence put in."""
        return self._pacer.gaps

    def close(self) -> None:
        """Stop at once and give the card back; may be called twice and from any thread."""
        self._closing.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _play(self) -> None:
        stream, paused = self._stream, True
        try:
            while not self._closing.is_set():
                block = self._reader.read(_PAUSE_SECONDS)
                room = stream.count()
                if block is None:
                    paused = True
                    continue
                if paused:
                    room = self._fill(room)
                    self._pacer.start()
                delay = time.monotonic() - room / stream.sample_rate - block.time_monotonic
                samples = block.samples.astype(np.float32) / 32_768.0
                known = self._pacer.starvations
                starved = self._write(self._pacer.take(samples, delay), room)
                # after a pause the card had nothing to play, as was meant
                if starved and not paused and self._pacer.starvations == known:
                    self._pacer.starved()
                paused = False
        except PortLostError as error:
            if not self._closing.is_set():
                self._on_lost(error)
        finally:
            self._reader.close()
            stream.close()

    def _fill(self, room: int) -> int:
        """Put silence before the first block, so that the next ones may come late; the new room."""
        left, most = (
            round(seconds * self._stream.sample_rate)
            for seconds in (_ROOM_SECONDS, _MOST_SILENCE_SECONDS)
        )
        count = max(0, min(room - left, most))
        if count:
            self._stream.write(np.zeros((count, 2), np.float32))
        return self._stream.count()

    def _write(self, samples: Sound, room: int) -> bool:
        starved = False
        while len(samples) and not self._closing.is_set():
            if room:
                starved |= self._stream.write(samples[:room])
                samples = samples[room:]
            else:
                self._closing.wait(_POLL_SECONDS)
            if len(samples):
                room = self._stream.count()
        return starved


def _library() -> Any:
    """sounddevice with a list of devices that is new where nothing is open."""
    try:
        import sounddevice
    except ImportError as error:
        raise KmidiError(
            "sound cards need the package sounddevice; run `pip install 'kmidi-mlx[sound]'`."
        ) from error
    except OSError as error:
        raise KmidiError(
            "sounddevice does not find PortAudio; on Debian and Ubuntu run "
            "`apt-get install libportaudio2`."
        ) from error
    if _broken:
        raise KmidiError(
            "the machine's sound system went away and does not answer; start kmidi again to use "
            "sound cards."
        )
    if not _opened and not _has_jack(sounddevice):
        # PortAudio looks for devices only once, when it is initialised
        sounddevice._terminate()
        sounddevice._initialize()
    return sounddevice


def _has_jack(library: Any) -> bool:
    """Whether PortAudio is a client of JACK: it aborts the process if it ends after the server."""
    return any("JACK" in api["name"] for api in library.query_hostapis())


def _leave_at_exit(library: Any) -> None:
    """Let the system clean up behind PortAudio when the process ends."""
    atexit.unregister(library._exit_handler)


def _devices(library: Any, kind: str) -> list[_Device]:
    """All devices of a direction, the usual one first, names only once."""
    usual = library.default.device[0 if kind == "input" else 1]
    rows = sorted(library.query_devices(), key=lambda row: row["index"] != usual)
    found: dict[str, _Device] = {}
    for row in rows:
        channels = row[f"max_{kind}_channels"]
        if channels:
            rate = round(row["default_samplerate"])
            found.setdefault(row["name"], _Device(row["index"], row["name"], channels, rate))
    return list(found.values())


def _find(devices: list[_Device], kind: str, name: str) -> _Device:
    if not devices:
        raise KmidiError(f"this machine has no {_WORDS[kind]}; plug one in.")
    if name in ("", "default"):
        return devices[0]
    wanted = name.lower()
    fitting = [one for one in devices if wanted in one.name.lower()]
    exact = [one for one in fitting if one.name.lower() == wanted]
    fitting = exact or fitting
    names = ", ".join(one.name for one in (fitting or devices))
    if not fitting:
        raise KmidiError(f"there is no {_WORDS[kind]} called {name[:60]!r}; there are: {names}.")
    if len(fitting) > 1:
        raise KmidiError(f"{name[:60]!r} fits more than one {_WORDS[kind]}: {names}.")
    return fitting[0]


def _open(library: Any, kind: str, device: _Device, channels: int) -> Any:
    """A started stream at 44,100 Hz, or at the device's own rate where it has only that."""
    options = {"device": device.index, "channels": channels, "dtype": "float32"}
    check, opened = (
        (library.check_input_settings, library.InputStream)
        if kind == "input"
        else (library.check_output_settings, library.OutputStream)
    )
    rate = SAMPLE_RATE
    try:
        check(**options, samplerate=rate)
    except library.PortAudioError:
        rate = device.sample_rate
    stream = opened(**options, samplerate=rate, latency=_LATENCY_SECONDS)
    try:
        stream.start()
    except BaseException:
        stream.close()
        raise
    return stream


def _reason(error: Exception) -> str:
    """PortAudio's own words, without numbers and place."""
    text = str(error).partition(" [")[0]
    return text.rpartition(": ")[2].strip().rstrip(".") or "unknown reason"
