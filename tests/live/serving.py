"""A server on a real port for tests, and ways to talk to it, polite and rude."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any

import numpy as np
from live_client import LiveClient
from stage_double import Block, StageDouble

from kmidi_mlx.live.server import Server

SUBSCRIBE = (
    '{"v":1,"id":1,"command":"subscribe",'
    '"arguments":{"streams":["cloud","sound","state","plan","stats"]}}'
)
CREDIT = '{"v":1,"command":"credit","arguments":{"stream":"cloud","count":3}}'
TOKEN = "a-token-for-tests-only"


class Performance:
    """A stage whose clouds and sound go on at their rates, as in a concert."""

    def __init__(self, stage: StageDouble) -> None:
        self.stage = stage
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)

    def __enter__(self) -> StageDouble:
        self._thread.start()
        return self.stage

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _play(self) -> None:
        silence = np.zeros((882, 2), np.int16)
        due, blocks = time.monotonic(), 0
        while not self._stopping.wait(max(0.0, due - time.monotonic())):
            due += 1 / 60
            frame = self.stage.put_cloud()
            while blocks < frame.sequence * 50 / 60:
                self.stage.sound.put(Block(blocks, time.monotonic(), silence))
                blocks += 1


def client(server: Server, **options: Any) -> LiveClient:
    return LiveClient(server.port, server.token, **options)


def fetch(
    server: Server,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    token: str | None = TOKEN,
    host: str | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    """One request of HTTP, with any headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
        if token is not None:
            connection.putheader("Authorization", f"Bearer {token}")
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        carried = {name.lower(): value for name, value in response.getheaders()}
        return response.status, carried, response.read()
    finally:
        connection.close()


def post(server: Server, command: str, arguments: Any, **more: Any) -> tuple[int, Any]:
    more = {"Content_Type": "application/json", **more}
    status, _, body = fetch(
        server, f"/api/{command}", "POST", json.dumps(arguments).encode(), **more
    )
    return status, json.loads(body)


def wait_for(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def raw_client(server: Server, buffer_bytes: int = 0) -> socket.socket:
    """A WebSocket without a library, to break every rule with."""
    wire = socket.socket()
    if buffer_bytes:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    wire.settimeout(5.0)
    wire.connect(("127.0.0.1", server.port))
    wire.sendall(
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {'A' * 22}==\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
    )
    assert wire.recv(12) == b"HTTP/1.1 101"
    return wire


def masked(text: str) -> bytes:
    """A text frame of a client, masked with zeros."""
    data = text.encode()
    assert 125 < len(data) < 65_536 or len(data) <= 125
    length = (
        bytes([0x80 | len(data)]) if len(data) <= 125 else b"\xfe" + len(data).to_bytes(2, "big")
    )
    return b"\x81" + length + bytes(4) + data
