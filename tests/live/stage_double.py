"""A stage without networks: plays a shipped piece over and over, for tests and to work on the page.

`python tests/live/stage_double.py --port 8765` serves it; the address is printed.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import io
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx.audio.sampler import Sampler
from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudFrame, CloudSlot
from kmidi_mlx.live.session import Session
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.music.midi_file import read_midi
from kmidi_mlx.music.notes import Notes
from kmidi_mlx.spectocloud import Song, advance, begin

PIECE = Path(__file__).parents[2] / "kmidi_mlx" / "assets" / "pop909" / "331.mid"
SAMPLE_RATE = 44_100
BLOCK = 882


@dataclass(frozen=True, eq=False)
class Block:
    sequence: int
    time_monotonic: float
    samples: NDArray[np.int16]


class Reader:
    """Keeps the newest blocks only, as a real one."""

    def __init__(self, readers: list[Reader], most: int = 16) -> None:
        self._readers = readers
        self._blocks: deque[Block] = deque(maxlen=most)
        self._changed = threading.Condition()
        readers.append(self)

    def put(self, block: Block) -> None:
        with self._changed:
            self._blocks.append(block)
            self._changed.notify()

    def read(self, timeout: float) -> Block | None:
        with self._changed:
            self._changed.wait_for(lambda: self._blocks, timeout)
            return self._blocks.popleft() if self._blocks else None

    def close(self) -> None:
        if self in self._readers:
            self._readers.remove(self)


class Sound:
    sample_rate = SAMPLE_RATE

    def __init__(self) -> None:
        self.readers: list[Reader] = []

    def reader(self) -> Reader:
        return Reader(self.readers)

    def put(self, block: Block) -> None:
        for reader in list(self.readers):
            reader.put(block)


class StageDouble:
    """The commands of a stage, carried out on a real session; nothing plays by itself.

    Tests put clouds and sound by hand; `applied` keeps the commands that came, in their order.
    """

    def __init__(self) -> None:
        self.clouds = CloudSlot()
        self.sound = Sound()
        self.applied: list[tuple[str, dict[str, Any]]] = []
        self.session = Session(LiveConfig())
        self.session.notice("double", "info", "A shipped piece is played; no network is at work.")
        self.recording = ""
        self.adapters: dict[str, float] = {}
        self.frames = 0
        self.quality = (0, "everything")
        self._lock = threading.Lock()
        for name in (
            "generate_midi", "render_spectocloud", "get_performance_stats", "load_adapter",
            "adapters", "record", "ports",
        ):  # fmt: skip
            work = getattr(self, f"_{name}")
            self.session.handle(name, lambda arguments, work=work: work(**arguments))

    def subscribe(self, callback: Callable[..., None]) -> None:
        self.session.subscribe(callback)

    def apply(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.applied.append((command, arguments))
        if command == "transport" and arguments["action"] == "panic":
            return {"transport": self.session.transport}
        return self.session.apply(command, arguments)

    def state(self) -> dict[str, Any]:
        rows = [{"name": name, "scale": scale} for name, scale in sorted(self.adapters.items())]
        drawn = {"draws": "engine", "recording": self.recording}
        return {**self.session.state(), **drawn, "adapters": rows}

    def stats(self) -> dict[str, Any]:
        return {
            "fps": 60.0, "draws": "engine", "frame_ms_p50": 4.0, "frame_ms_p99": 9.0,
            "token_ms_p50": 1.2, "token_ms_p99": 2.0, "lookahead_seconds": 4.0,
            "lookahead_bars": 2.0, "lateness_ms_p50": 0.1, "lateness_ms_p99": 2.0, "sounding": 3,
            "memory_gb": 0.4,
            "dropped_frames": 0, "underruns": 0, "quality": self.quality[0],
            "quality_text": self.quality[1],
        }  # fmt: skip

    def plan(self) -> dict[str, Any]:
        return {
            "now_step": 0, "steps_per_second": 100.0, "beat_steps": 50, "bar_steps": 200,
            "notes": [],
        }  # fmt: skip

    def put_cloud(self, points: int = 1200) -> CloudFrame:
        """Put the next cloud, which is its number over and over."""
        body = np.full((points, 10), self.frames % 1000, np.float16)
        frame = CloudFrame(self.frames, time.monotonic(), body, 0.5, -0.5)
        self.frames += 1
        self.clouds.put(frame)
        return frame

    def _generate_midi(self, seconds: float, **more: Any) -> dict[str, Any]:
        return {"midi": base64.b64encode(PIECE.read_bytes()).decode(), "seconds": seconds}

    def _render_spectocloud(self, points: int = 1200, size: int = 0) -> dict[str, Any]:
        frame = self.clouds.newest
        if frame is None:
            raise KmidiError("there is no cloud yet; press play.")
        if not size:
            data = base64.b64encode(frame.points[:points].tobytes()).decode()
            return {"points": len(frame.points[:points]), "float16": data}
        from PIL import Image

        from kmidi_mlx.spectocloud.picture import draw

        file = io.BytesIO()
        Image.fromarray(draw(frame.points.astype(np.float32), size=(size, size))).save(file, "PNG")
        return {"png": base64.b64encode(file.getvalue()).decode()}

    def _get_performance_stats(self) -> dict[str, Any]:
        return self.stats()

    def _load_adapter(
        self, name: str | None, scale: float = 1.0, alone: bool = False
    ) -> dict[str, Any]:
        if name and name not in self.adapters:
            raise KmidiError(f"there is no adapter called {name!r}.")
        if alone or not name:
            self.adapters = dict.fromkeys(self.adapters, 0.0)
        if name:
            self.adapters[name] = scale
        self.session.touch()
        return self._adapters()

    def _adapters(self) -> dict[str, Any]:
        return {"adapters": self.state()["adapters"]}

    def _record(self, action: str, name: str = "take") -> dict[str, Any]:
        self.recording = name if action == "start" else ""
        return {"recording": self.recording}

    def _ports(self) -> dict[str, Any]:
        return {
            "outputs": ["virtual", "Stage Piano"], "inputs": ["virtual", "Stage Piano"],
            "sound_outputs": ["Speakers"], "sound_inputs": ["Microphone"],
        }  # fmt: skip


class PlayingDouble(StageDouble):
    """Plays the first half minute of a shipped piece in a loop, with sound and clouds.

    Args:
        frames_per_second: clouds a second.
    """

    seconds = 32.0

    def __init__(self, frames_per_second: int = 60) -> None:
        super().__init__()
        notes = read_midi(PIECE)
        wanted = notes.onset_seconds < self.seconds
        self.notes = Notes.build(
            notes.pitch[wanted], notes.velocity[wanted], notes.onset_seconds[wanted],
            np.minimum(notes.offset_seconds[wanted], self.seconds),
        )  # fmt: skip
        self.song = Song(notes=self.notes)
        self.session.apply("transport", {"action": "play"})
        self._rate = frames_per_second
        self._sampler = Sampler()
        self._position = 0.0
        self._sounding = 0
        self._late = 0
        self._frame_ms: deque[float] = deque(maxlen=240)
        self._moments: deque[float] = deque(maxlen=240)
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._play, self._draw)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def shift(self) -> int:
        """Semitones by which what is not played yet follows the feeling."""
        return round(5 * self.session.settings.music.valence)

    def stats(self) -> dict[str, Any]:
        times = sorted(self._frame_ms) or [0.0]
        moments = list(self._moments)
        span = moments[-1] - moments[0] if len(moments) > 1 else 0.0
        return {
            **super().stats(),
            "fps": (len(moments) - 1) / span if span else 0.0,
            "frame_ms_p50": times[len(times) // 2],
            "frame_ms_p99": times[int(0.99 * (len(times) - 1))],
            "sounding": self._sounding,
            "dropped_frames": self._late,
        }

    def plan(self) -> dict[str, Any]:
        now, loop = self._position, self.seconds
        rows = []
        for turn in (int(now // loop) - 1, int(now // loop), int(now // loop) + 1):
            onset = self.notes.onset_seconds + turn * loop
            offset = self.notes.offset_seconds + turn * loop
            near = (offset > now - 4.0) & (onset < now + 4.0) & (onset >= 0.0)
            for index in np.flatnonzero(near):
                played = bool(onset[index] <= now)
                pitch = int(self.notes.pitch[index]) + (0 if played else self.shift)
                rows.append([
                    round(100 * onset[index]), round(100 * offset[index]), pitch,
                    int(self.notes.velocity[index]), int(played),
                ])  # fmt: skip
        return {
            "now_step": 100.0 * now, "steps_per_second": 100.0, "beat_steps": 50,
            "bar_steps": 200, "notes": rows,
        }  # fmt: skip

    def _play(self) -> None:
        sampler, sequence = self._sampler, 0
        begun, rendered, shifted = time.monotonic(), 0, {}
        events = sorted(
            [(t, 1, k) for k, t in enumerate(self.notes.onset_seconds)]
            + [(t, 0, k) for k, t in enumerate(self.notes.offset_seconds)]
        )
        turn, index = 0, 0
        while not self._stopping.is_set():
            wait = begun + rendered / SAMPLE_RATE - time.monotonic()
            if wait > 0:
                self._stopping.wait(wait)
            elif wait < -0.5:
                begun -= wait
            if self.session.transport == "playing":
                horizon = self._position + BLOCK / SAMPLE_RATE
                while events[index][0] + turn * self.seconds < horizon:
                    moment, on, note = events[index]
                    late = moment + turn * self.seconds - self._position
                    at = sampler.position + max(0, int(late * SAMPLE_RATE))
                    if on:
                        shifted[note] = int(self.notes.pitch[note]) + self.shift
                        sampler.note_on(shifted[note], int(self.notes.velocity[note]), at)
                    else:
                        sampler.note_off(shifted.pop(note, int(self.notes.pitch[note])), at)
                    index += 1
                    if index == len(events):
                        turn, index = turn + 1, 0
                self._position = horizon
            elif shifted:
                sampler.all_notes_off(sampler.position)
                shifted.clear()
            if self.session.transport == "stopped" and self._position:
                self._position, turn, index = 0.0, 0, 0
            self._sounding = len(shifted)
            loud = self.session.settings.sound.volume * sampler.render_block(BLOCK)
            samples = (32767 * np.clip(loud, -1, 1)).astype(np.int16)
            moment = begun + rendered / SAMPLE_RATE + 0.06
            self.sound.put(Block(sequence, moment, samples))
            rendered += BLOCK
            sequence += 1

    def _draw(self) -> None:
        state, due, points = None, time.monotonic(), 0
        while not self._stopping.is_set():
            due += 1 / self._rate
            if due < time.monotonic() - 0.1:
                self._late += 1
                due = time.monotonic()
            self._stopping.wait(max(0.0, due - time.monotonic()))
            started = time.monotonic()
            music = self.session.settings.music
            feeling = Emotion.of(music.valence, music.arousal)
            frame = self.song[int(60 * self._position) % len(self.song)]
            wanted = (feeling.valence, feeling.arousal, feeling.intensity)
            frame = dataclasses.replace(frame, emotion=wanted)
            if state is None or points != self.session.settings.cloud.points:
                points = self.session.settings.cloud.points
                state = begin(frame, points)
            state = advance(state, frame)
            self._frame_ms.append(1e3 * (time.monotonic() - started))
            self._moments.append(started)
            body = state.cloud.astype(np.float16)
            self.clouds.put(
                CloudFrame(self.frames, started, body, state.emotion[0], state.emotion[1])
            )
            self.frames += 1


def main() -> None:
    from kmidi_mlx.live.server import Server
    from kmidi_mlx.live.stdio import Stdio

    parser = argparse.ArgumentParser(description="serve the page with a double behind it")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--fps", type=int, default=60)
    parser.add_argument("--lan", action="store_true")
    parser.add_argument("--token", default=None)
    parser.add_argument("--web", type=Path, default=None, help="folder of the page")
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--quiet", action="store_true", help="nothing plays")
    parser.add_argument("--stdio", action="store_true", help="JSON lines instead of a server")
    arguments = parser.parse_args()
    stage = StageDouble() if arguments.quiet else PlayingDouble(arguments.fps)
    stage.adapters = dict.fromkeys(arguments.adapters, 0.0)
    if isinstance(stage, PlayingDouble):
        stage.start()
    if arguments.stdio:
        Stdio(stage).run()
        return
    options = {} if arguments.web is None else {"web": arguments.web}
    server = Server(
        stage, port=arguments.port, lan=arguments.lan, token=arguments.token,
        on_error=lambda error: print(repr(error), file=sys.stderr), **options,
    )  # fmt: skip
    print(server.start(), server.lan_url or "", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.stop()


if __name__ == "__main__":
    main()
