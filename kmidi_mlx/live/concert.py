"""The live application as a whole: everything that plays, draws, listens and records, put together.

Front ends see it as a `kmidi_mlx.live.stage.Stage`; what a person can change is the session's.
"""

from __future__ import annotations

import base64
import io
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kmidi_mlx.emotion import Emotion
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.clock import BAR_STEPS, BEAT_STEPS, SongClock
from kmidi_mlx.live.cloud_slot import CloudSlot
from kmidi_mlx.live.devices import Devices, about_devices
from kmidi_mlx.live.engine_loop import EngineLoop, Piece
from kmidi_mlx.live.planned import NoteRing
from kmidi_mlx.live.played import PlayedLog
from kmidi_mlx.live.player import Player
from kmidi_mlx.live.recorder import Recorder
from kmidi_mlx.live.session import Session, Settings
from kmidi_mlx.live.sinks import Sink
from kmidi_mlx.live.sound import SoundEngine, SoundFan
from kmidi_mlx.live.stats import Stats, StatsLog, resident_gb
from kmidi_mlx.live.styles import Styles
from kmidi_mlx.live_config import LiveConfig
from kmidi_mlx.music.midi_file import write_midi
from kmidi_mlx.shipped import in_force

__all__ = ["Concert"]

#: A finished piece that is asked for while it plays is at most so long.
LONGEST_PIECE_SECONDS = 600.0
_LARGEST_PICTURE = 2048
_SMALLEST_PICTURE = 16
# The page shows so many bars of what was played.
_PAST_STEPS = 2 * BAR_STEPS


class Concert:
    """Plays, draws and records; implements `Stage`.

    Args:
        config: everything that it is told.
        folder: for recordings.

    Attributes:
        clouds: the newest cloud.
        sound: what is heard.
        session: what a person can change.
        player: sends the notes.
        engine: writes and draws.
    """

    def __init__(self, config: LiveConfig, folder: Path) -> None:
        self.config = config
        self.clouds = CloudSlot()
        self.sound = SoundFan()
        self.clock = SongClock(config.music.tempo)
        self.ring = NoteRing(config.loop.note_ring)
        self.figures = Stats()
        self._figures: dict[str, Callable[[], float]] = {}
        self.player = Player(self.ring, self.clock, self._lost_sink, self.figures.late)
        self.session = Session(config, self.player.silence)
        self._played = PlayedLog(self.clock)
        music = config.sound
        self._piano = SoundEngine(self.sound, music.block_ms, music.polyphony, music.volume)
        self.recorder = Recorder(folder, self.sound, self.clouds, self._recording_failed)
        self.engine = EngineLoop(
            config, self.session, self.clock, self.ring, self.player, self._played, self.sound,
            self.clouds, self.figures, self._pass_keys, self._felt,
        )  # fmt: skip
        self._devices = Devices(
            self.session, self.player, self._piano, self.sound, folder, self.session.settings,
            self.engine.listen, self._pass_keys,
        )  # fmt: skip
        self.engine.hands = self._devices.keyboard
        self._keys_lock = threading.Lock()
        self._log: StatsLog | None = None
        handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "generate_midi": self._generate_midi,
            "render_spectocloud": self._render_spectocloud,
            "get_performance_stats": self.stats,
            "adapters": self._list_adapters,
            "load_adapter": self._load_adapter,
            "record": self._record,
            "ports": about_devices,
        }
        for name, work in handlers.items():
            # arguments were checked where they came in
            self.session.handle(name, partial(_by_name, work))

    def start(self) -> None:
        """Begin; returns when the weights are loaded, which still have to be warmed up.

        Raises:
            KmidiError: if something that is asked for cannot be had; nothing runs then.
        """
        config = self.config
        try:
            self._log = StatsLog(
                self.stats, self.session.notice, config.alerts, config.loop.memory_gb, self._playing
            )
            self.session.notice("loading", "info", "The models are being loaded and warmed up.")
            self.player.add(self._played)
            self.player.add(self._piano)
            self.player.add(self.recorder.sink)
            self.player.start()
            self._piano.start()
            self.engine.start()
            self.engine.loaded.wait()
            self.raise_failure()
            self._check(None, self.session.settings)
            self.session.guard(self._check)
            self.session.subscribe(self._hold_at_once)
            threading.Thread(target=self._when_ready, daemon=True).start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End everything, whatever state it is in; nothing sounds afterwards."""
        self.recorder.close()
        self.engine.stop()
        self.player.stop()
        self._piano.stop()
        self._devices.close()
        if self._log is not None:
            self._log.stop()

    def apply(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command; see `Stage`."""
        return self.session.apply(command, arguments)

    def subscribe(self, callback: Callable[..., None]) -> None:
        """Call `callback` after every change; see `Stage`."""
        self.session.subscribe(callback)

    def state(self) -> dict[str, Any]:
        """Return what a front end shows."""
        return {
            **self.session.state(),
            "draws": self.engine.draws,
            "recording": self.recorder.name,
            "ready": self.engine.ready.is_set(),
            "adapters": [] if self.engine.styles is None else self.engine.styles.rows(),
        }

    def stats(self) -> dict[str, Any]:
        """Return figures of performance."""
        return {
            **self.figures.snapshot(),
            "sounding": self.player.sounding,
            "memory_gb": resident_gb(),
            "memory_cap_gb": self.config.loop.memory_gb,
            "draws": self.engine.draws,
            **{name: figure() for name, figure in self._figures.items()},
        }

    def add_figure(self, name: str, figure: Callable[[], float]) -> None:
        """Have `stats` tell one more figure from now on."""
        self._figures[name] = figure

    def start_take(self, folder: Path) -> None:
        """Record everything into a folder that is not there yet, wherever it is.

        Raises:
            KmidiError: if it is there, or the disk refuses.
        """
        self.recorder.close()
        self.player.remove(self.recorder.sink)
        self.recorder = Recorder(folder.parent, self.sound, self.clouds, self._recording_failed)
        self.player.add(self.recorder.sink)
        self._record("start", folder.name)

    def plan(self) -> dict[str, Any]:
        """Return the music around now: what was played, and what is planned."""
        now = time.monotonic()
        step = self.clock.step_at(now)
        # in this order, so that what moves on meanwhile is seen twice rather than not at all
        planned = self.ring.snapshot()
        planned = (*self.player.handed_out(self._played), *planned)
        rows = self._played.rows_since(step - _PAST_STEPS)
        known = {(row[0], row[2]) for row in rows}
        open_rows = {row[2]: row for row in rows if row[1] is None}
        for event in planned:
            if not event.velocity:
                if event.pitch in open_rows:
                    open_rows.pop(event.pitch)[1] = event.step
            elif (event.step, event.pitch) not in known:
                row: list[float | int | None] = [event.step, None, event.pitch, event.velocity, 0]
                known.add((event.step, event.pitch))
                rows.append(row)
                open_rows[event.pitch] = row
        return {
            "time": now,
            "now_step": step,
            "steps_per_second": 1.0 / self.clock.seconds_of(1.0) if self.clock.running else 0.0,
            "beat_steps": BEAT_STEPS,
            "bar_steps": BAR_STEPS,
            "notes": rows,
        }

    def _playing(self) -> bool:
        return self.session.transport == "playing" and self.engine.ready.is_set()

    def _when_ready(self) -> None:
        self.engine.ready.wait()
        self.session.notice("loading", "info", None)
        if self._log is not None and self.engine.error is None:
            self._log.start()

    def raise_failure(self) -> None:
        """Raise what ended the engine, if anything did.

        Raises:
            BaseException: that.
        """
        error = self.engine.error
        if error is not None:
            raise error

    def _check(self, before: Settings | None, after: Settings) -> None:
        """Have the devices follow the settings, and refuse what cannot be."""
        cloud = after.cloud
        if cloud.source == "network" and not self.engine.has_network:
            raise KmidiError(
                f"cloud.source: there is no network in {self.config.models.spectocloud}; train one "
                "or choose engine."
            )
        if cloud.feel and not cloud.listen:
            raise KmidiError(
                "cloud.feel: the music cannot set its own emotion; choose something to listen to "
                "with cloud.listen."
            )
        if cloud.feel and not in_force(Path(self.config.models.recognizer)).exists():
            raise KmidiError(
                f"cloud.feel: there is no emotion recogniser in {self.config.models.recognizer}; "
                "name one with models.recognizer."
            )
        self._devices.change(before, after)

    def _hold_at_once(self, session: Session) -> None:
        """Fall silent when playing ends, even if the engine is busy; it then does the rest."""
        if session.transport != "playing" and self.clock.running:
            self.clock.pause(time.monotonic())
            self.player.silence()

    def _lost_sink(self, sink: Sink, error: Exception) -> None:
        self._devices.lost_sink(sink, error)

    def _felt(self, emotion: Emotion) -> None:
        """Follow the emotion of what is listened to."""
        told = {"valence": emotion.valence, "arousal": emotion.arousal}
        # the session may be busy with a port that opens slowly; the engine must not wait for it
        self._devices.later(lambda: self.session.apply("update_emotion", told))

    def _recording_failed(self, sentence: str) -> None:
        self.session.notice("recording", "error", sentence)

    def _pass_keys(self) -> None:
        """Let what a person played be heard at once, and be answered."""
        with self._keys_lock:
            for key in self._devices.keyboard.drain():
                self.player.play_now(key.pitch, key.velocity)
                if self.engine.conductor is not None:
                    self.engine.conductor.hear(key)

    def _generate_midi(
        self,
        seconds: float,
        valence: float | None = None,
        arousal: float | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """Write a finished piece beside the live music."""
        if not 0.0 < seconds <= LONGEST_PIECE_SECONDS:
            raise KmidiError(
                f"seconds: give more than 0 and up to {LONGEST_PIECE_SECONDS:g}, not {seconds:g}."
            )
        music = self.session.settings.music
        wanted = replace(
            music,
            valence=music.valence if valence is None else valence,
            arousal=music.arousal if arousal is None else arousal,
            seed=music.seed if seed is None else seed,
        )
        piece = Piece(seconds, Emotion.of(wanted.valence, wanted.arousal), wanted.seed)
        self.engine.write(piece)
        try:
            notes = piece.written.result()
        except CancelledError:
            raise KmidiError("the piece was not finished: kmidi is ending.") from None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "piece.mid"
            write_midi(notes, path)
            data = path.read_bytes()
        return {
            "midi": base64.b64encode(data).decode(),
            "seconds": round(notes.duration_seconds, 3),
            "notes": len(notes),
        }

    def _render_spectocloud(self, points: int | None = None, size: int = 0) -> dict[str, Any]:
        """Give the present cloud: numbers, or a picture where a size is given."""
        frame = self.clouds.newest
        if frame is None:
            raise KmidiError("there is no cloud yet; wait until the models are ready.")
        cloud = frame.points if points is None else frame.points[: max(points, 1)]
        if not size:
            data = base64.b64encode(np.ascontiguousarray(cloud).tobytes()).decode()
            return {"points": len(cloud), "float16": data}
        if not _SMALLEST_PICTURE <= size <= _LARGEST_PICTURE:
            raise KmidiError(
                f"size: {size} is not from {_SMALLEST_PICTURE} to {_LARGEST_PICTURE} pixels."
            )
        try:
            from PIL import Image
        except ModuleNotFoundError:
            raise KmidiError(
                "a picture needs Pillow, which is not installed: pip install 'kmidi-mlx[cloud]'."
            ) from None
        from kmidi_mlx.spectocloud.picture import draw

        file = io.BytesIO()
        Image.fromarray(draw(cloud.astype(np.float32), size=(size, size))).save(file, "PNG")
        return {"points": len(cloud), "png": base64.b64encode(file.getvalue()).decode()}

    @property
    def _styles(self) -> Styles:
        styles = self.engine.styles
        # until the engine is warm it cannot say whether an adapter fits
        if styles is None or not self.engine.ready.is_set():
            raise KmidiError("the models are being loaded and warmed up; try again in a moment.")
        return styles

    def _load_adapter(
        self, name: str | None, scale: float = 1.0, alone: bool = False
    ) -> dict[str, Any]:
        """Play in another style, heard from one of the next beats on."""
        styles = self._styles
        styles.load(name, scale, alone)
        self.session.touch()
        return {"adapters": styles.rows()}

    def _list_adapters(self) -> dict[str, Any]:
        """Look which adapters there are now."""
        styles = self._styles
        before = styles.rows()
        after = styles.look()
        if after != before:
            self.session.touch()
        return {"adapters": after}

    def _record(self, action: str, name: str = "") -> dict[str, Any]:
        if action == "start":
            settings = self.session.state()
            about = {key: settings[key] for key in ("music", "sampling", "cloud")}
            rows = [] if self.engine.styles is None else self.engine.styles.rows()
            about["adapters"] = {row["name"]: row["scale"] for row in rows if row["scale"]}
            result = self.recorder.start(name, about)
        else:
            result = self.recorder.stop()
        # what failed before is past; front ends are told of the recording by the same
        self.session.notice("recording", "error", None)
        return result


def _by_name(work: Callable[..., dict[str, Any]], arguments: Mapping[str, Any]) -> dict[str, Any]:
    return work(**arguments)
