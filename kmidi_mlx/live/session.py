"""All that a person can change while it plays, in one place, checked, and told to who listens.

Any thread may ask or change. Settings are replaced as a whole, so that a reader sees all of a
change or nothing of it; what cannot be is refused in one sentence and changes nothing.
"""

from __future__ import annotations

import dataclasses
import threading
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kmidi_mlx.config import SamplingConfig
from kmidi_mlx.config_section import ConfigError
from kmidi_mlx.emotion import LABELS, Emotion, from_label, nearest_label
from kmidi_mlx.errors import KmidiError, nearest
from kmidi_mlx.live_config import (
    LiveCloudConfig,
    LiveConfig,
    LiveMusicConfig,
    LivePortsConfig,
    LiveSoundConfig,
)
from kmidi_mlx.music.chords import parse_chord, parse_key

__all__ = ["Session", "Settings"]

Arguments = Mapping[str, Any]
Handler = Callable[[Arguments], dict[str, Any]]
Listener = Callable[["Session"], None]
Guard = Callable[["Settings", "Settings"], None]

_TRANSPORT = {"play": "playing", "pause": "paused", "stop": "stopped"}
_PANIC = "panic"
# more chords than this are no progression that anybody hears as one
_MOST_CHORDS = 64


@dataclass(frozen=True)
class Settings:
    """What can be changed while it plays; sections of `LiveConfig`."""

    music: LiveMusicConfig = field(default_factory=LiveMusicConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    cloud: LiveCloudConfig = field(default_factory=LiveCloudConfig)
    sound: LiveSoundConfig = field(default_factory=LiveSoundConfig)
    ports: LivePortsConfig = field(default_factory=LivePortsConfig)

    def __post_init__(self) -> None:
        """Refuse chords and keys that are none."""
        _ = self.chords, self.key

    @property
    def emotion(self) -> Emotion:
        """What the music is to feel like."""
        return Emotion.of(self.music.valence, self.music.arousal)

    @property
    def chords(self) -> tuple[int, ...]:
        """Chord ids, one a bar, over and over; empty: free."""
        names = self.music.chords.split()
        if len(names) > _MOST_CHORDS:
            raise ConfigError(
                "music.chords", f"{len(names)} chords are too many, {_MOST_CHORDS} fit"
            )
        return tuple(parse_chord(name) for name in names)

    @property
    def key(self) -> int:
        """Key id; 0: free."""
        return parse_key(self.music.key) if self.music.key else 0


class Session:
    """The state of the live application and the commands that change it.

    Args:
        config: what it starts with.
        on_panic: ends every sounding note.

    Attributes:
        settings: in force now.
        transport: `playing`, `paused` or `stopped`.
        version: grows with every change.
    """

    def __init__(self, config: LiveConfig, on_panic: Callable[[], None] = lambda: None) -> None:
        parts = {item.name: getattr(config, item.name) for item in dataclasses.fields(Settings)}
        self.settings = Settings(**parts)
        self.transport = "stopped"
        self.version = 0
        self._lock = threading.RLock()
        self._listeners: list[Listener] = []
        self._guard: Guard = lambda before, after: None
        self._on_panic = on_panic
        self._notices: dict[str, dict[str, str]] = {}
        self._handlers: dict[str, Handler] = {
            "describe": self._describe,
            "set": self._set,
            "transport": self._change_transport,
            "update_emotion": self._update_emotion,
        }

    @property
    def commands(self) -> list[str]:
        """Names of the commands that `apply` takes."""
        return sorted(self._handlers)

    def handle(self, command: str, handler: Handler) -> None:
        """Add a command that another part of the application answers."""
        self._handlers[command] = handler

    def guard(self, guard: Guard) -> None:
        """Have every change of the settings carried out by `guard` before it is in force.

        Args:
            guard: called with the settings before and after; what it raises refuses the change.
        """
        self._guard = guard

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` after every change, in the thread that made it; it must not wait."""
        self._listeners.append(listener)

    def apply(self, command: str, arguments: Arguments) -> dict[str, Any]:
        """Do what a person or a program asks for.

        Args:
            command: one of `commands`.
            arguments: of the command.

        Returns:
            What the command answers, as plain data.

        Raises:
            KmidiError: when it is unknown or cannot be done; nothing has changed then.
        """
        handler = self._handlers.get(command)
        if handler is None:
            raise KmidiError(
                f"unknown command {command[:40]!r}{nearest(command, self.commands, 'there are')}"
            )
        return handler(arguments)

    def change(self, **sections: Any) -> None:
        """Replace sections of the settings, for parts that change them by themselves.

        Raises:
            KmidiError: when the settings cannot be.
        """
        with self._lock:
            wanted = replace(self.settings, **sections)
            self._guard(self.settings, wanted)
            self.settings = wanted
            self._changed()

    def notice(self, topic: str, level: str, text: str | None) -> None:
        """Tell people something that holds until it is taken back.

        Args:
            topic: a later notice of the same topic replaces it.
            level: `info`, `warning` or `error`.
            text: one sentence; None: it no longer holds.
        """
        with self._lock:
            if text is None:
                self._notices.pop(topic, None)
            else:
                self._notices[topic] = {"topic": topic, "level": level, "text": text}
            self._changed()

    def touch(self) -> None:
        """Tell who listens that something has changed which another part keeps."""
        with self._lock:
            self._changed()

    def state(self) -> dict[str, Any]:
        """Everything that a front end shows, as plain data."""
        with self._lock:
            settings = self.settings
            return {
                "version": self.version,
                "transport": self.transport,
                "label": nearest_label(settings.emotion),
                **{item.name: _plain(getattr(settings, item.name)) for item in _SECTIONS},
                "notices": list(self._notices.values()),
            }

    def _changed(self) -> None:
        self.version += 1
        for listener in self._listeners:
            listener(self)

    def _set(self, arguments: Arguments) -> dict[str, Any]:
        with self._lock:
            changed: dict[str, dict[str, Any]] = {}
            for dotted, value in arguments.items():
                section, name = _find(dotted)
                changed.setdefault(section, {})[name] = _fitting(dotted, value)
            sections = {}
            for section, values in changed.items():
                try:
                    sections[section] = replace(getattr(self.settings, section), **values)
                except ConfigError as error:
                    raise KmidiError(f"{section}.{error.key}: {error.problem}.") from error
            self.change(**sections)
            return {dotted: arguments[dotted] for dotted in arguments}

    def _update_emotion(self, arguments: Arguments) -> dict[str, Any]:
        given = dict(arguments)
        label = given.pop("label", None)
        if label is not None:
            if given:
                raise KmidiError("give either a label or valence and arousal, not both.")
            emotion = from_label(str(label))
            given = {"valence": emotion.valence, "arousal": emotion.arousal}
        if set(given) != {"valence", "arousal"}:
            raise KmidiError("update_emotion takes valence and arousal, or a label.")
        self._set({f"music.{name}": value for name, value in given.items()})
        settings = self.settings
        return {**given, "label": nearest_label(settings.emotion)}

    def _change_transport(self, arguments: Arguments) -> dict[str, Any]:
        action = arguments.get("action")
        if action not in (*_TRANSPORT, _PANIC) or len(arguments) != 1:
            raise KmidiError(f"transport takes an action: {', '.join(_TRANSPORT)}, {_PANIC}.")
        if action == _PANIC:
            self._on_panic()
            return {"transport": self.transport}
        with self._lock:
            self.transport = _TRANSPORT[action]
            self._changed()
        return {"transport": self.transport}

    def _describe(self, arguments: Arguments) -> dict[str, Any]:
        """Tell what can be set and how, for front ends that build their own panels."""
        options = []
        for section in _SECTIONS:
            values = getattr(self.settings, section.name)
            for item in dataclasses.fields(values):
                low, high, choices = (item.metadata[name] for name in ("low", "high", "choices"))
                options.append(
                    {
                        "name": f"{section.name}.{item.name}",
                        "value": getattr(values, item.name),
                        "default": item.default,
                        "doc": item.metadata["doc"],
                        "low": low,
                        "high": high,
                        "choices": None if choices is None else list(choices),
                    }
                )
        labels = {name: list(point) for name, point in LABELS.items()}
        return {"options": options, "labels": labels, "commands": self.commands}


_SECTIONS = dataclasses.fields(Settings)
_TYPES: dict[str, Any] = {
    f"{section.name}.{name}": kind
    for section in _SECTIONS
    for name, kind in typing.get_type_hints(section.default_factory).items()
}


def _find(dotted: str) -> tuple[str, str]:
    if dotted not in _TYPES:
        raise KmidiError(
            f"there is nothing called {dotted[:60]!r} to set{nearest(dotted, _TYPES, 'there are')}"
        )
    section, _, name = dotted.partition(".")
    return section, name


def _fitting(dotted: str, value: Any) -> Any:
    """The value as its option's type, where JSON may write it otherwise."""
    wanted = _TYPES[dotted]
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not wanted:
        words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        raise KmidiError(f"{dotted}: expected {words[wanted]}, got {str(value)[:40]!r}.")
    return value


def _plain(section: Any) -> dict[str, Any]:
    return dataclasses.asdict(section)
