"""The server's gate: every request passes it before anything of the application sees it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kmidi_mlx.live.security import Guard, Rates, Refusal, security_headers

__all__ = ["Gate"]

# Requests of one address: a page with all its files at once, and commands.
_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE = 60.0, 240.0
_OPEN_TO_ALL = ("/health",)
_WITHOUT_TOKEN = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>KmiDi</title>
<h1>This page needs its key</h1>
<p>Open the address that kmidi showed when it started; it ends with <code>?token=…</code></p>
</html>
"""


class Gate:
    """Lets in who may, refuses the others, and puts the security headers on every response.

    Args:
        app: what is behind it.
        guard: judges hosts, origins and tokens.
        port: that the server listens on.
    """

    def __init__(self, app: ASGIApp, guard: Guard, port: int) -> None:
        self._app = app
        self._guard = guard
        self._port = port
        # cookies know no ports: two programs on one machine must not take each other's
        self._cookie = f"kmidi_{port}"
        self._rates = Rates(_REQUESTS_PER_SECOND, _REQUESTS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        refusal = self._guard.refusal_of_host(host, self._port)
        extra = security_headers("" if refusal else host)
        response = _response(refusal) if refusal else self._judge(scope, headers, host)
        if response is not None:
            response.headers.update({**extra, "cache-control": "no-store"})
            # a handshake is refused with a response of HTTP, too
            await response(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                carried = MutableHeaders(raw=message["headers"])
                carried.update(extra)
                # files are asked for anew each time, and sent only if they have changed
                file = scope["method"] in ("GET", "HEAD") and "etag" in carried
                carried["cache-control"] = "no-cache" if file else "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _judge(self, scope: Scope, headers: Headers, host: str) -> Response | None:
        """Return what answers a request that does not get in, or None."""
        path, kind = scope["path"], scope["type"]
        address = (scope.get("client") or ("", 0))[0]
        if not self._rates.take(address):
            return _response(Refusal(429, "too many requests; wait a moment."))
        if kind == "websocket" or path.startswith("/api/"):
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            refusal = self._guard.refusal_of_origin(origin, host, site)
            if refusal:
                return _response(refusal)
        if kind == "http" and path == "/" and scope["method"] == "GET":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
            if given and self._guard.is_token(given[0]):
                return self._hand_over_cookie()
        protocols = headers.get("sec-websocket-protocol", "") if kind == "websocket" else ""
        known: dict[str, Any] = dict(headers)
        if path in _OPEN_TO_ALL or self._guard.knows_token(known, self._cookie, protocols):
            return None
        if kind == "http" and path == "/":
            return HTMLResponse(_WITHOUT_TOKEN, 401)
        return _response(Refusal(401, "the token is missing or wrong."))

    def _hand_over_cookie(self) -> Response:
        """Move the token out of the address, which is seen and kept, into a cookie."""
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self._cookie, self._guard.token, path="/", httponly=True, samesite="strict"
        )
        return response


def _response(refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.reason}, refusal.status)
