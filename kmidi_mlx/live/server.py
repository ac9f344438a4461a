"""The page and the interface for other programs, over HTTP and WebSocket, in a thread of its own.

The music never waits for it: commands are carried out by a few threads of its own, clouds and
sound are fetched from where the newest wins, and a client that is slow is slow alone.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from kmidi_mlx import __version__
from kmidi_mlx.errors import KmidiError, system_reason
from kmidi_mlx.live import protocol
from kmidi_mlx.live.broadcast import Broadcast
from kmidi_mlx.live.commands import COMMANDS, STREAM_COMMANDS
from kmidi_mlx.live.connection import Connection, LostClientError
from kmidi_mlx.live.gate import Gate
from kmidi_mlx.live.protocol import LARGEST_MESSAGE
from kmidi_mlx.live.security import SUBPROTOCOL, Guard
from kmidi_mlx.live.stage import Stage
from kmidi_mlx.live.wire import FAREWELL_SECONDS, HttpWire, SocketWire

__all__ = ["Server"]

_WEB = Path(__file__).parent / "web"
_SCHEMA = Path(__file__).parent / "protocol.schema.json"
_START_SECONDS, _STOP_SECONDS = 10.0, 3.0
# A body that comes drop by drop is not waited for.
_BODY_SECONDS = 10.0
# Connections besides the clients' WebSockets: pages, commands.
_SPARE_CONNECTIONS = 64
_SEND_BUFFER_BYTES = 131_072
_ABNORMAL, _POLICY, _TRY_LATER = 1006, 1008, 1013


class Server:
    """Serves a stage to browsers and programs.

    Args:
        stage: the application.
        port: TCP port; 0: any that is free.
        lan: listen to the network, too, not to this machine alone.
        clients: WebSockets at the most.
        token: that clients have to know; None: a random one.
        origins: of pages that may talk to it besides its own.
        web: folder with the page.
        on_error: called, by any thread, with errors that are bugs.

    Attributes:
        token: that clients have to know.

    Raises:
        KmidiError: if the token cannot be one.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        port: int = 0,
        lan: bool = False,
        clients: int = 32,
        token: str | None = None,
        origins: Sequence[str] = (),
        web: Path = _WEB,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._guard = Guard(token, lan, origins)
        self.token = self._guard.token
        self._wanted_port = port
        self._lan = lan
        self._most_clients = clients
        self._web = web
        self._on_error = on_error
        self._broadcast = Broadcast(stage, on_error)
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._port = 0

    @property
    def port(self) -> int:
        """TCP port; 0 before the start."""
        return self._port

    @property
    def url(self) -> str:
        """Address of the page on this machine, with the token."""
        return f"http://127.0.0.1:{self._port}/?token={self.token}"

    @property
    def lan_url(self) -> str | None:
        """Address of the page for other machines, with the token; None where they are kept out."""
        if not self._lan:
            return None
        return f"http://{_own_address()}:{self._port}/?token={self.token}"

    @property
    def clients(self) -> int:
        """Number of clients at present."""
        return len(self._broadcast.connections)

    def start(self) -> str:
        """Listen; returns when connections are accepted.

        Returns:
            Address of the page, with the token.

        Raises:
            KmidiError: if the port cannot be had.
        """
        listener = self._listen()
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app(),
            loop="asyncio",
            http=HttpWire,
            ws=SocketWire,
            ws_max_size=LARGEST_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=10.0,
            ws_ping_timeout=10.0,
            lifespan="on",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            h11_max_incomplete_event_size=16_384,
            timeout_graceful_shutdown=1,
            # as many again, so that those that are one too many can be told so
            limit_concurrency=2 * self._most_clients + _SPARE_CONNECTIONS,
        )
        server = self._uvicorn = uvicorn.Server(config)

        def serve() -> None:
            try:
                server.run(sockets=[listener])
            finally:
                self._ready.set()

        self._thread = threading.Thread(target=serve, name="kmidi server", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START_SECONDS) or not self._thread.is_alive():
            raise KmidiError(f"the server did not start on port {self._port}; try another port.")
        return self.url

    def stop(self) -> None:
        """Say goodbye to all clients and end; returns when that is done."""
        if self._uvicorn is None or self._thread is None:
            return
        self._uvicorn.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._uvicorn = self._thread = None

    def notify(self, level: str, text: str) -> None:
        """Show a notice to every client; any thread may call.

        Args:
            level: info, warning or error.
            text: one sentence.
        """
        self._broadcast.notify(level, text)

    def _listen(self) -> socket.socket:
        host = "0.0.0.0" if self._lan else "127.0.0.1"
        try:
            listener = socket.create_server((host, self._wanted_port), backlog=128)
        except OSError as error:
            reason = system_reason(error).lower()
            raise KmidiError(
                f"cannot listen on port {self._wanted_port} ({reason}); choose another, or 0 for "
                "any that is free."
            ) from error
        # connections inherit it; the system alone would keep seconds of clouds for a slow client
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        return listener

    def _app(self) -> Gate:
        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            self._broadcast.start()
            # the socket listens already: what connects from now on is served
            self._ready.set()
            yield
            await self._broadcast.stop()

        routes = [
            Route("/health", self._health),
            Route("/api/{command}", self._command, methods=["POST"]),
            Route("/protocol.schema.json", self._schema),
            WebSocketRoute("/ws", self._socket),
            Mount("/", StaticFiles(directory=self._web, html=True, check_dir=False)),
        ]
        app = Starlette(routes=routes, lifespan=life, exception_handlers={Exception: self._failed})
        return Gate(app, self._guard, self._port)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"ok": True, "name": "kmidi", "version": __version__})

    async def _schema(self, request: Request) -> Response:
        return FileResponse(_SCHEMA, media_type="application/schema+json")

    async def _command(self, request: Request) -> Response:
        command = request.path_params["command"]
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            # a form of another page cannot have this type
            return _error(415, "commands are JSON; send Content-Type: application/json.")
        try:
            body = await _body(request)
            if command in STREAM_COMMANDS and command in COMMANDS:
                return _error(400, f"{command} is for the WebSocket and --stdio alone.")
            arguments = protocol.parse_body(command, body)
            return JSONResponse(await self._broadcast.carry_out(command, arguments))
        except _TooLargeError:
            return _error(413, f"a command has {LARGEST_MESSAGE} bytes at the most.")
        except (ClientDisconnect, TimeoutError):
            return _error(408, "the command did not arrive in time.")
        except KmidiError as error:
            return _error(404 if command not in COMMANDS else 400, str(error))

    async def _failed(self, request: Request, error: Exception) -> Response:
        self._on_error(error)
        return _error(500, f"this failed inside kmidi ({type(error).__name__}: {error}).")

    async def _socket(self, websocket: WebSocket) -> None:
        offered = websocket.scope.get("subprotocols", [])
        await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if self.clients >= self._most_clients:
            text = f"{self._most_clients} clients are connected, which is the limit"
            await websocket.close(_TRY_LATER, text)
            return

        async def send(message: str | bytes) -> None:
            try:
                if isinstance(message, str):
                    await websocket.send_text(message)
                else:
                    await websocket.send_bytes(message)
            except RuntimeError as error:
                # the connection was closed from below, which is told by the next message
                raise WebSocketDisconnect(_ABNORMAL) from error

        connection = Connection(self._broadcast, send)
        self._broadcast.add(connection)
        try:
            await connection.run(_messages(websocket), protocol.hello())
        except LostClientError as error:
            with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await websocket.close(_POLICY, str(error))
                    await asyncio.sleep(FAREWELL_SECONDS)
            websocket.scope["state"]["cut_off"]()
        except WebSocketDisconnect:
            pass
        except Exception as error:
            self._on_error(error)
        finally:
            self._broadcast.remove(connection)


class _TooLargeError(Exception):
    """A body is larger than a message may be."""


async def _body(request: Request) -> bytes:
    body = bytearray()
    async with asyncio.timeout(_BODY_SECONDS):
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_MESSAGE:
                raise _TooLargeError
    return bytes(body)


async def _messages(websocket: WebSocket) -> AsyncIterator[str | bytes]:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text = message.get("text")
        yield message["bytes"] if text is None else text


def _error(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status)


def _own_address() -> str:
    """The address by which the network knows this machine; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
