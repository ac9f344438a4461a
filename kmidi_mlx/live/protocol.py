"""Messages between the application and its front ends, version 1: JSON text and binary frames.

`docs/live_protocol.md` explains it to people, `protocol.schema.json` to programs.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmidi_mlx import __version__
from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.cloud_slot import CloudFrame
from kmidi_mlx.live.commands import COMMANDS, STREAMS, check_arguments
from kmidi_mlx.live.stage import SoundBlock

__all__ = [
    "HEADER_BYTES", "LARGEST_ID", "LARGEST_MESSAGE", "VERSION", "BinaryFrame", "ProtocolError",
    "Request", "failure", "hello", "notice", "pack_cloud", "pack_sound", "parse_body",
    "parse_message", "reply", "report", "unpack",
]  # fmt: skip

VERSION = 1
#: Bytes of the largest message that a client may send.
LARGEST_MESSAGE = 65_536
#: Largest number of a request: every JSON reader keeps it exactly.
LARGEST_ID = 2**53 - 1
_DEEPEST = 6

HEADER_BYTES = 40
_HEADER = struct.Struct("<4sHHIIdff8x")
_CLOUD, _SOUND = b"KMC1", b"KMS1"
_DTYPES: dict[bytes, np.dtype[Any]] = {_CLOUD: np.dtype("<f2"), _SOUND: np.dtype("<i2")}
_KEYS = ("v", "id", "command", "arguments")


class ProtocolError(KmidiError):
    """A message that cannot be understood.

    Attributes:
        id: number of the request, where it could be read.
    """

    def __init__(self, problem: str, id: int | None = None) -> None:  # noqa: A002
        super().__init__(problem)
        self.id = id


@dataclass(frozen=True)
class Request:
    """What a client wants.

    Attributes:
        id: number that the reply carries; None for `credit`, which is not answered.
        command: one of `COMMANDS`.
        arguments: checked by name and type.
    """

    id: int | None
    command: str
    arguments: dict[str, Any]


def parse_message(text: str | bytes) -> Request:
    """Read a client's message.

    Args:
        text: JSON, UTF-8 where it is bytes.

    Raises:
        ProtocolError: one sentence that says what is wrong.
    """
    message = _load(text)
    number = message.get("id")
    known = number if _is_id(number) else None
    try:
        return _request(message)
    except KmidiError as error:
        raise ProtocolError(str(error), known) from error


def parse_body(command: str, body: bytes) -> dict[str, Any]:
    """Read the arguments of a command that came by HTTP.

    Args:
        command: its name.
        body: JSON object; empty: no arguments.

    Raises:
        ProtocolError: one sentence that says what is wrong.
    """
    arguments = _load(body) if body.strip() else {}
    try:
        check_arguments(command, arguments)
    except KmidiError as error:
        raise ProtocolError(str(error)) from error
    return arguments


def _request(message: dict[str, Any]) -> Request:
    for key in message:
        if key not in _KEYS:
            raise KmidiError(f"a message has no field {key[:40]!r}; there are {', '.join(_KEYS)}.")
    if message.get("v") != VERSION or isinstance(message["v"], bool):
        raise KmidiError(f'this is version {VERSION} of the protocol; send "v": {VERSION}.')
    command, arguments = message.get("command"), message.get("arguments", {})
    if not isinstance(command, str):
        raise KmidiError('a message needs "command", a text.')
    number = message.get("id")
    if not _is_id(number) and not ("id" not in message and command == "credit"):
        raise KmidiError(f'a message needs "id", a whole number from 0 to {LARGEST_ID}.')
    if not isinstance(arguments, dict):
        raise KmidiError('"arguments" has to be an object.')
    check_arguments(command, arguments)
    return Request(None if number is None else int(number), command, arguments)


def _is_id(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= LARGEST_ID and float(value).is_integer()


def _load(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object strictly: no twins among the keys, no NaN, not deep, valid Unicode."""
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="replace"))
    if size > LARGEST_MESSAGE:
        raise ProtocolError(f"a message of {size} bytes is too large; send {LARGEST_MESSAGE}.")
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        decoded.encode()
        message = json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short,
        )
        # a pair of halves may be written as two escapes, one half may not
        json.dumps(message, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ProtocolError("a message is not valid Unicode; send UTF-8.") from error
    except RecursionError as error:
        raise ProtocolError("a message is nested too deeply; flatten it.") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ProtocolError(f"a message is not JSON ({error.msg}, {place}).") from error
    if not isinstance(message, dict):
        raise ProtocolError("a message has to be a JSON object.")
    if _depth(message) > _DEEPEST:
        raise ProtocolError(f"a message is nested more than {_DEEPEST} deep; flatten it.")
    return message


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ProtocolError("a message has the same field twice in an object; send it once.")
    return made


def _refuse_constant(name: str) -> float:
    raise ProtocolError(f"a message has {name}, which is not JSON; send numbers.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ProtocolError("a message has a number that is too large; send a smaller one.")
    return number


def _short(text: str) -> int:
    if len(text) > 20:
        raise ProtocolError("a message has a number that is too large; send a smaller one.")
    return int(text)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            item
            for parent in level
            if isinstance(parent, dict | list)
            for item in (parent.values() if isinstance(parent, dict) else parent)
        ]
    return depth


def reply(id: int | None, result: Mapping[str, Any]) -> str:  # noqa: A002
    """Return the message that answers a request that was carried out."""
    return _dump({"type": "reply", "id": id, "ok": True, "result": result})


def failure(id: int | None, error: str) -> str:  # noqa: A002
    """Return the message that answers a request that was refused; id None: it had none."""
    return _dump({"type": "reply", "id": id, "ok": False, "error": error})


def hello(**more: Any) -> str:
    """Return the first message of a connection; `more` is added to it."""
    about = {
        "type": "hello",
        "v": VERSION,
        "name": "kmidi",
        "version": __version__,
        "time": time.monotonic(),
        "commands": list(COMMANDS),
        "streams": list(STREAMS),
    }
    return _dump({**about, **more})


def notice(level: str, text: str) -> str:
    """Return a message for the person; level is info, warning or error."""
    return _dump({"type": "notice", "level": level, "text": text})


def report(stream: str, content: Mapping[str, Any]) -> str:
    """Return a message of the streams state, stats or plan.

    Raises:
        ValueError: when the content cannot be JSON, such as NaN.
    """
    return _dump({"type": stream, **content} | {"type": stream})


def _dump(message: Mapping[str, Any]) -> str:
    return json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, eq=False)
class BinaryFrame:
    """A binary frame as a client reads it.

    Attributes:
        stream: "cloud" or "sound".
        sequence: number of the frame modulo 2**32; a gap means that frames were left out.
        time_monotonic: the server's clock, see `ping`.
        valence: of a cloud; of sound the sample rate.
        arousal: of a cloud; of sound 0.
        rows: float16 (points, 10) of a cloud, int16 (samples, 2) of sound.
    """

    stream: str
    sequence: int
    time_monotonic: float
    valence: float
    arousal: float
    rows: NDArray[Any]


def pack_cloud(frame: CloudFrame) -> bytes:
    """Return the binary frame of a cloud."""
    moment = frame.time_monotonic
    return _pack(_CLOUD, frame.sequence, moment, frame.valence, frame.arousal, frame.points)


def pack_sound(block: SoundBlock, sample_rate: int) -> bytes:
    """Return the binary frame of a block of sound."""
    moment = block.time_monotonic
    return _pack(_SOUND, block.sequence, moment, sample_rate, 0.0, block.samples)


def _pack(
    magic: bytes, sequence: int, moment: float, first: float, second: float, rows: NDArray[Any]
) -> bytes:
    count, columns = rows.shape
    body = np.ascontiguousarray(rows, _DTYPES[magic])
    number = sequence % 2**32
    header = _HEADER.pack(magic, HEADER_BYTES, columns, number, count, moment, first, second)
    return header + body.tobytes()


def unpack(data: bytes) -> BinaryFrame:
    """Read a binary frame, as a client does.

    Raises:
        ProtocolError: if it is not one of this version, or is cut short.
    """
    if len(data) < HEADER_BYTES or data[:4] not in _DTYPES:
        raise ProtocolError("this is not a binary frame of version 1.")
    magic, size, columns, sequence, count, moment, first, second = _HEADER.unpack_from(data)
    dtype = _DTYPES[magic]
    if size < HEADER_BYTES or len(data) != size + count * columns * dtype.itemsize:
        raise ProtocolError(f"a binary frame of {len(data)} bytes does not fit its header.")
    rows = np.frombuffer(data, dtype, count * columns, size).reshape(count, columns)
    stream = "cloud" if magic == _CLOUD else "sound"
    return BinaryFrame(stream, sequence, moment, first, second, rows)
