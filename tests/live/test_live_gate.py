"""The server's gate: who is kept out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_client import LiveClient
from serving import (
    TOKEN,
    client,
    fetch,
    post,
)
from stage_double import StageDouble
from websockets.exceptions import InvalidStatus

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live.server import Server


def test_without_the_token_there_is_nothing_but_health(server: Server) -> None:
    for path in (
        "/",
        "/page.js",
        "/protocol.schema.json",
        "/ws",
        "/nothing",
        f"/page.js?token={TOKEN}",
    ):
        assert fetch(server, path, token=None)[0] == 401
        assert fetch(server, path, token=TOKEN + "x")[0] == 401
    assert post(server, "ports", {}, token=None)[0] == 401
    status, _, body = fetch(server, "/health", token=None)
    assert status == 200
    assert json.loads(body)["ok"] is True
    assert TOKEN.encode() not in body


def test_a_name_that_was_made_to_point_here_is_refused(server: Server) -> None:
    host = f"evil.example:{server.port}"
    for path in ("/", "/health", f"/?token={TOKEN}"):
        assert fetch(server, path, host=host)[0] == 421
    handshake = {
        "Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "A" * 22 + "==",
    }  # fmt: skip
    assert fetch(server, "/ws", host=host, **handshake)[0] == 421
    assert fetch(server, "/ws", **handshake)[0] == 101


def test_pages_of_others_are_refused_even_with_the_cookie(server: Server) -> None:
    cookie = {"Cookie": f"kmidi_{server.port}={TOKEN}"}
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        with pytest.raises(InvalidStatus, match="403"):
            client(server, headers={"Origin": origin, **cookie})
        assert post(server, "ports", {}, Origin=origin, token=None, **cookie)[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert post(server, "ports", {}, Origin=own, token=None, **cookie)[0] == 200
    with LiveClient(server.port, "wrong", headers={"Origin": own, **cookie}) as live:
        assert live.ask("ping")["ok"]


def test_a_wrong_token_does_not_open_a_websocket(server: Server) -> None:
    with pytest.raises(InvalidStatus, match="401"):
        LiveClient(server.port, TOKEN[:-1])


def test_a_form_cannot_send_commands(server: Server, stage: StageDouble) -> None:
    assert post(server, "transport", {"action": "play"}, Content_Type="text/plain")[0] == 415
    assert fetch(server, "/api/transport?action=play")[0] == 404
    assert stage.applied == []


def test_mistakes_by_http(server: Server) -> None:
    assert post(server, "nothing", {})[0] == 404
    assert post(server, "subscribe", {"streams": []})[0] == 400
    assert post(server, "ports", [1])[0] == 400
    assert post(server, "set", {"x": "y" * 70_000})[0] == 413
    status, _, _ = fetch(
        server, "/api/ports", "POST", b"{", Content_Type="application/json; charset=utf-8"
    )
    assert status == 400


def test_the_port_of_another_is_a_sentence(server: Server, stage: StageDouble) -> None:
    with pytest.raises(
        KmidiError, match=rf"cannot listen on port {server.port} \(address already in use\); choose"
    ):
        Server(stage, port=server.port).start()


def test_the_network_is_listened_to_only_when_asked(stage: StageDouble) -> None:
    for lan, address in ((False, "127.0.0.1"), (True, "0.0.0.0")):
        server = Server(stage, lan=lan)
        listener = server._listen()
        assert listener.getsockname()[0] == address
        listener.close()


def test_in_the_network_the_token_is_asked_for_as_well(stage: StageDouble, web: Path) -> None:
    server = Server(stage, lan=True, web=web)
    server.start()
    try:
        assert server.lan_url is not None
        assert server.lan_url.endswith(f":{server.port}/?token={server.token}")
        host = f"192.0.2.7:{server.port}"
        assert fetch(server, "/", token=None, host=host)[0] == 401
        assert fetch(server, "/", token=server.token, host=host)[0] == 200
        assert fetch(server, "/", token=server.token, host=f"evil.example:{server.port}")[0] == 421
    finally:
        server.stop()
