"""The commands that front ends may send, with their arguments; one table for every transport."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kmidi_mlx.adapter_file import LARGEST_SCALE
from kmidi_mlx.errors import KmidiError, nearest

__all__ = [
    "AT_ONCE",
    "COMMANDS",
    "SLOW_COMMANDS",
    "STREAMS",
    "STREAM_COMMANDS",
    "Argument",
    "check_arguments",
]

#: What a client can have sent to it without asking each time.
STREAMS = ("state", "stats", "plan", "cloud", "sound")
#: Streams of binary frames, which are sent against credits.
_CREDIT_STREAMS = ("cloud", "sound")
#: Commands that are answered before those that came earlier and are still being carried out.
AT_ONCE = ("ping", "credit")
#: Commands about the connection itself; the others go to the application.
STREAM_COMMANDS = ("subscribe", *AT_ONCE)
#: Commands that may take seconds: they do not hold up the commands that come after them.
SLOW_COMMANDS = ("generate_midi", "render_spectocloud", "load_adapter", "adapters", "record")

_LONGEST_TEXT = 4096
_MOST_OPTIONS = 64
_KINDS = {
    "number": "a number",
    "integer": "a whole number",
    "text": "a text",
    "name": "a text, or null",
    "flag": "true or false",
    "value": "a number, a text, true or false",
    "streams": f"a list of different streams out of {', '.join(STREAMS)}",
}


@dataclass(frozen=True)
class Argument:
    """What an argument of a command has to be.

    Attributes:
        kind: key of the kinds above.
        required: whether it has to be given.
        choices: texts that are valid; empty: all.
        low: smallest number.
        high: largest number.
    """

    kind: str
    required: bool = False
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf


_EMOTION = {"valence": Argument("number"), "arousal": Argument("number")}

#: Arguments of every command by name. Ranges of musical values are checked by who uses them.
COMMANDS: dict[str, dict[str, Argument]] = {
    "update_emotion": {**_EMOTION, "label": Argument("text")},
    # any option of the settings by its dotted name
    "set": {"*": Argument("value")},
    "transport": {"action": Argument("text", True, ("play", "pause", "stop", "panic"))},
    "generate_midi": {
        "seconds": Argument("number", True),
        **_EMOTION,
        "seed": Argument("integer"),
    },
    "render_spectocloud": {"points": Argument("integer"), "size": Argument("integer")},
    "get_performance_stats": {},
    "load_adapter": {
        "name": Argument("name", True),
        "scale": Argument("number", low=-LARGEST_SCALE, high=LARGEST_SCALE),
        "alone": Argument("flag"),
    },
    "adapters": {},
    "record": {
        "action": Argument("text", True, ("start", "stop")),
        "name": Argument("text"),
    },
    "ports": {},
    "describe": {},
    "subscribe": {
        "streams": Argument("streams", True),
        "cloud_rate": Argument("number", low=1.0, high=240.0),
        "base64": Argument("flag"),
    },
    "credit": {
        "stream": Argument("text", True, _CREDIT_STREAMS),
        "count": Argument("integer", low=1, high=64),
    },
    "ping": {},
}


def check_arguments(command: str, arguments: Mapping[str, Any]) -> None:
    """Check that a command exists and its arguments have the right names and types.

    Args:
        command: its name.
        arguments: as they came, out of JSON.

    Raises:
        KmidiError: one sentence that says what is wrong.
    """
    wanted = COMMANDS.get(command)
    if wanted is None:
        raise KmidiError(
            f"there is no command {_shown(command)}{nearest(command, COMMANDS, 'there are')}"
        )
    if "*" in wanted:
        _check_options(command, wanted["*"], arguments)
        return
    for name in arguments:
        if name not in wanted:
            hint = nearest(name, wanted, "there are") if wanted else "; it takes none."
            raise KmidiError(f"{command} has no argument {_shown(name)}{hint}")
    for name, argument in wanted.items():
        if name in arguments:
            _check_value(f"{name} of {command}", argument, arguments[name])
        elif argument.required:
            raise KmidiError(f"{command} needs {name}: {_what(argument)}.")


def _check_options(command: str, argument: Argument, options: Mapping[str, Any]) -> None:
    if not options:
        raise KmidiError(f'{command} needs an option, such as "music.tempo": 100.')
    if len(options) > _MOST_OPTIONS:
        raise KmidiError(f"{command} has {len(options)} options; send {_MOST_OPTIONS} at the most.")
    for name, value in options.items():
        _check_value(f"{_shown(name)} of {command}", argument, value)


def _check_value(name: str, argument: Argument, value: Any) -> None:
    if not _fits(argument.kind, value) or (argument.choices and value not in argument.choices):
        raise KmidiError(f"{name} has to be {_what(argument)}.")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise KmidiError(f"{name} is longer than {_LONGEST_TEXT} characters; shorten it.")
    if _is_number(value) and not argument.low <= value <= argument.high:
        raise KmidiError(f"{name} has to be {_what(argument)}.")


def _fits(kind: str, value: Any) -> bool:
    match kind:
        case "number":
            return _is_number(value)
        case "integer":
            # JSON does not tell 2.0 from 2
            return _is_number(value) and float(value).is_integer()
        case "text":
            return isinstance(value, str)
        case "name":
            return value is None or isinstance(value, str)
        case "flag":
            return isinstance(value, bool)
        case "value":
            return isinstance(value, str | bool) or _is_number(value)
    return _are_streams(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_streams(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) and name in STREAMS for name in value)
        and len(set(value)) == len(value)
    )


def _what(argument: Argument) -> str:
    if argument.choices:
        return f"one of {', '.join(argument.choices)}"
    bounds = f" from {argument.low:g} to {argument.high:g}" if argument.high < math.inf else ""
    return _KINDS[argument.kind] + bounds


def _shown(word: str) -> str:
    return repr(word if len(word) <= 40 else f"{word[:40]}…")
