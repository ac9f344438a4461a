"""TCP connections that nobody can hold for ever: cut off when there are too many, or nothing comes.

Whoever can reach the port can open connections before any token is asked for. Each costs a file
descriptor, of which the rest of the application needs some.
"""

from __future__ import annotations

from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

__all__ = ["FAREWELL_SECONDS", "HttpWire", "SocketWire"]

#: A client that does not take its farewell is cut off after that.
FAREWELL_SECONDS = 0.2
_REQUEST_SECONDS = 10.0


class HttpWire(H11Protocol):
    """A connection of HTTP that has to bring its first request soon."""

    def connection_made(self, transport: Any) -> None:
        """Take a connection, or cut it off when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > cast(int, self.config.limit_concurrency):
            transport.abort()
        else:
            self.loop.call_later(_REQUEST_SECONDS, self._cut_off_idle)

    def _cut_off_idle(self) -> None:
        cycle: object = self.cycle  # None before the first request
        # a WebSocket has another protocol by now
        if cycle is None and self.transport.get_protocol() is self:
            self.transport.abort()


class SocketWire(WebSocketsSansIOProtocol):
    """A WebSocket that can be cut off: closing waits for ever for a client that does not read."""

    def handle_connect(self, event: Any) -> None:
        """Begin the handshake, and give the application the means to end it all."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["state"]["cut_off"] = self.transport.abort

    def keepalive_timeout(self) -> None:
        """End a connection whose client has vanished."""
        super().keepalive_timeout()
        self.transport.abort()

    def shutdown(self) -> None:
        """Say goodbye, for a moment."""
        super().shutdown()
        self.loop.call_later(FAREWELL_SECONDS, self.transport.abort)
