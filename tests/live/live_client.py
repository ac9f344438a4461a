"""A small client of the live protocol, as a program of somebody else would write it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from kmidi_mlx.live.protocol import BinaryFrame, unpack


class LiveClient:
    """Connects, sends commands and reads what comes; every frame is given back as a credit.

    Args:
        port: of the server on this machine.
        token: that it showed.
        headers: of the handshake, to be rude.
    """

    def __init__(
        self, port: int, token: str, headers: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.socket: ClientConnection = connect(
            f"ws://127.0.0.1:{port}/ws",
            subprotocols=["kmidi.v1", f"kmidi.token.{token}"],  # type: ignore[list-item]
            additional_headers=headers,
            compression=None,
            # the library must not stop reading while a test only sends
            max_queue=None,
            **options,
        ).__enter__()
        self.seen: Counter[str] = Counter()
        self.frames: list[BinaryFrame] = []
        self.last: dict[str, dict[str, Any]] = {}
        self.replies: list[dict[str, Any]] = []
        self.generous = True
        self._id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, command: str, **arguments: Any) -> int:
        """Send a command; returns its number."""
        self._id += 1
        message = {"v": 1, "id": self._id, "command": command, "arguments": arguments}
        self.socket.send(json.dumps(message))
        return self._id

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and return its reply, ok or not."""
        number = self.send(command, **arguments)
        self.read_until(lambda: any(reply["id"] == number for reply in self.replies))
        return next(reply for reply in self.replies if reply["id"] == number)

    def subscribe(self, *streams: str, **more: Any) -> dict[str, Any]:
        """Choose streams."""
        return self.ask("subscribe", streams=list(streams), **more)

    def credit(self, stream: str, count: int = 1) -> None:
        """Say that frames were received."""
        arguments = {"stream": stream, "count": count}
        self.socket.send(json.dumps({"v": 1, "command": "credit", "arguments": arguments}))

    def read(self, timeout: float) -> str | None:
        """Take one message in; its kind, or None when none came in time."""
        try:
            message = self.socket.recv(timeout)
        except TimeoutError:
            return None
        if isinstance(message, bytes):
            frame = unpack(message)
            self.frames.append(frame)
            if self.generous:
                self.credit(frame.stream)
            kind = frame.stream
        else:
            content = json.loads(message)
            kind = content["type"]
            self.last[kind] = content
            if kind == "reply":
                self.replies.append(content)
        self.seen[kind] += 1
        return kind

    def read_for(self, seconds: float) -> None:
        """Take in what comes for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def read_until(self, done: Callable[[], bool], seconds: float = 5.0) -> None:
        """Take in what comes until something holds; fails when it takes too long."""
        end = time.monotonic() + seconds
        while not done():
            left = end - time.monotonic()
            assert left > 0, f"nothing came of it; {dict(self.seen)}"
            self.read(left)
