"""The server on a real port: what clients get."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
from serving import (
    TOKEN,
    Performance,
    client,
    fetch,
    post,
    wait_for,
)
from stage_double import StageDouble
from websockets.exceptions import ConnectionClosed

from kmidi_mlx.live import protocol
from kmidi_mlx.live.server import Server


def test_the_address_works_when_start_returns_and_no_longer_after_stop(stage: StageDouble) -> None:
    server = Server(stage, token=TOKEN)
    address = server.start()
    assert re.fullmatch(rf"http://127\.0\.0\.1:{server.port}/\?token={TOKEN}", address)
    assert server.lan_url is None
    assert fetch(server, "/health", token=None)[0] == 200
    begun = time.monotonic()
    server.stop()
    assert time.monotonic() - begun < 1.0
    with pytest.raises(ConnectionRefusedError):
        fetch(server, "/health")
    server.stop()


def test_commands_by_http_and_websocket_are_the_same(server: Server, stage: StageDouble) -> None:
    assert post(server, "set", {"music.tempo": 90}) == (200, {"music.tempo": 90})
    with client(server) as live:
        assert live.ask("set", **{"music.tempo": 91})["result"] == {"music.tempo": 91}
        refused = live.ask("set", **{"music.tempo": 1000})
    status, answer = post(server, "set", {"music.tempo": 1000})
    assert status == 400
    assert answer == {"error": refused["error"]}
    assert [command for command, _ in stage.applied] == ["set"] * 4


def test_replies_come_in_the_order_of_the_commands(server: Server, stage: StageDouble) -> None:
    with client(server) as live:
        numbers = [live.send("set", **{"music.tempo": 50 + k}) for k in range(100)]
        live.read_until(lambda: len(live.replies) == 100)
        assert [reply["id"] for reply in live.replies] == numbers
    assert [arguments["music.tempo"] for _, arguments in stage.applied] == list(range(50, 150))


def test_hello_is_first_and_time_is_the_servers(server: Server) -> None:
    with client(server) as live:
        assert live.read(5.0) == "hello"
        before = time.monotonic()
        moment = live.ask("ping")["result"]["time"]
        assert before <= moment <= time.monotonic()
        assert live.socket.subprotocol == "kmidi.v1"


def test_every_client_hears_of_every_change(server: Server) -> None:
    with client(server) as one, client(server) as other:
        other.subscribe("state")
        other.read_until(lambda: other.seen["state"] > 0)
        one.ask("update_emotion", valence=-0.5, arousal=0.75)
        other.read_until(lambda: other.last["state"]["music"]["valence"] == -0.5)
        assert other.last["state"]["music"]["arousal"] == 0.75
        assert one.seen["state"] == 0


def test_many_changes_at_once_are_told_together(server: Server) -> None:
    with client(server) as live:
        live.subscribe("state")
        live.read_until(lambda: live.seen["state"] > 0)
        for tempo in range(40, 240):
            live.send("set", **{"music.tempo": tempo})
        live.read_until(lambda: live.seen["reply"] == 201)
        live.read_until(lambda: live.last["state"]["music"]["tempo"] == 239)
        assert live.seen["state"] < 60


def test_streams_come_at_their_rates(server: Server, stage: StageDouble) -> None:
    with Performance(stage), client(server) as live:
        live.subscribe("stats", "plan", "cloud", "sound")
        live.read_for(0.3)
        live.seen.clear()
        live.frames.clear()
        begun = time.monotonic()
        live.read_for(1.5)
        lasted = time.monotonic() - begun
    # wide, as the machine may be busy
    assert 2.0 < live.seen["stats"] / lasted < 6.0
    assert 6.0 < live.seen["plan"] / lasted < 14.0
    assert 30.0 < live.seen["cloud"] / lasted < 70.0
    sound = [frame.sequence for frame in live.frames if frame.stream == "sound"]
    assert len(sound) > 50
    assert sound == list(range(sound[0], sound[0] + len(sound)))
    clouds = [frame for frame in live.frames if frame.stream == "cloud"]
    assert all(frame.rows.shape == (1200, 10) for frame in clouds)
    assert all((frame.rows == frame.sequence % 1000).all() for frame in clouds)
    assert live.last["stats"]["clients"] == 1


def test_without_credits_frames_stop_and_go_on_with_the_newest(
    server: Server, stage: StageDouble
) -> None:
    with client(server) as live:
        live.generous = False
        assert live.subscribe("cloud")["result"]["credits"] == {"cloud": 3}
        for _ in range(3):
            number = stage.put_cloud().sequence
            live.read_until(lambda n=number: live.frames and live.frames[-1].sequence == n)
        for _ in range(20):
            stage.put_cloud()
        assert live.read(0.2) is None
        live.credit("cloud")
        live.read_until(lambda: len(live.frames) == 4)
        assert live.frames[-1].sequence == 22
        assert live.read(0.1) is None


def test_a_command_that_takes_long_delays_nobody_else(
    server: Server, stage: StageDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def wait(arguments: Any) -> dict[str, Any]:
        begun.set()
        let_go.wait(5.0)
        return {}

    stage.session.handle("ports", wait)
    with client(server) as slow, client(server) as other:
        slow.send("ports")
        assert begun.wait(5.0)
        asked = time.monotonic()
        assert other.ask("transport", action="play")["ok"]
        assert slow.ask("ping")["ok"]
        assert time.monotonic() - asked < 1.0
        let_go.set()
        slow.read_until(lambda: any(reply["id"] == 1 for reply in slow.replies))


def test_a_bug_in_a_command_is_an_answer_and_is_reported(stage: StageDouble) -> None:
    errors: list[Exception] = []
    server = Server(stage, on_error=errors.append)
    server.start()

    def fail(arguments: Any) -> dict[str, Any]:
        raise ZeroDivisionError("oh")

    stage.session.handle("ports", fail)
    stage.stats = lambda: {"fps": float("nan")}  # type: ignore[method-assign]
    try:
        with client(server) as live:
            assert "failed inside kmidi (ZeroDivisionError: oh)" in live.ask("ports")["error"]
            live.subscribe("stats")
            live.read_until(lambda: live.seen["notice"] == 1)
            assert live.last["notice"]["level"] == "error"
            assert live.ask("describe")["ok"]
    finally:
        server.stop()
    assert [type(error) for error in errors] == [ZeroDivisionError, ValueError]


def test_a_bug_of_the_server_is_reported(
    stage: StageDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oh")

    errors: list[Exception] = []
    server = Server(stage, token=TOKEN, on_error=errors.append)
    server.start()
    try:
        monkeypatch.setattr(protocol, "parse_body", fail)
        assert post(server, "ports", {}) == (
            500, {"error": "this failed inside kmidi (ZeroDivisionError: oh)."},
        )  # fmt: skip
        monkeypatch.setattr(protocol, "parse_message", fail)
        with client(server) as live, pytest.raises(ConnectionClosed):
            live.ask("ping")
        wait_for(lambda: len(errors) == 2)
    finally:
        server.stop()
    assert [type(error) for error in errors] == [ZeroDivisionError] * 2


def test_notices_reach_everybody(server: Server) -> None:
    with client(server) as one, client(server) as other:
        one.ask("ping")
        other.ask("ping")
        server.notify("warning", "a port has gone.")
        for live in (one, other):
            live.read_until(lambda c=live: c.seen["notice"] == 1)
            assert live.last["notice"]["text"] == "a port has gone."


def test_the_page_is_served_and_asked_for_anew_each_time(server: Server) -> None:
    status, headers, body = fetch(server, "/")
    assert (status, body) == (200, b"<!doctype html><title>page</title>")
    assert headers["cache-control"] == "no-cache"
    status, _, body = fetch(server, "/page.js", If_None_Match=fetch(server, "/page.js")[1]["etag"])
    assert (status, body) == (304, b"")
    status, headers, _ = fetch(server, "/page.js")
    assert "javascript" in headers["content-type"]
    for name in ("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "//etc/passwd"):
        status, _, body = fetch(server, name)
        assert status == 404
        assert b"not for you" not in body


def test_every_response_has_the_security_headers(server: Server) -> None:
    for status, headers, _ in (
        fetch(server, "/"),
        fetch(server, "/nothing"),
        fetch(server, "/", token=None),
        fetch(server, "/health", host="evil.example"),
        fetch(server, f"/?token={TOKEN}", token=None),
    ):
        assert status in (200, 303, 401, 404, 421)
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"]
        assert "server" not in headers


def test_the_token_moves_from_the_address_into_a_cookie(server: Server) -> None:
    status, headers, _ = fetch(server, f"/?token={TOKEN}", token=None)
    assert (status, headers["location"]) == (303, "/")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert {item.lower() for item in attributes} == {"httponly", "samesite=strict", "path=/"}
    assert fetch(server, "/", token=None, Cookie=cookie)[0] == 200
    assert fetch(server, "/?token=wrong", token=None)[0] == 401
