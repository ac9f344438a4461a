"""Clients that are rude, deaf, too many or gone: nobody else notices."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from live_client import LiveClient
from serving import (
    CREDIT,
    SUBSCRIBE,
    Performance,
    client,
    fetch,
    masked,
    raw_client,
    wait_for,
)
from stage_double import StageDouble
from websockets.exceptions import ConnectionClosed

from kmidi_mlx.live import connection, wire
from kmidi_mlx.live.server import Server


def test_nonsense_is_answered_and_the_connection_goes_on(server: Server) -> None:
    with client(server) as live:
        live.read(5.0)
        for number, nonsense in enumerate(
            ["", "x", "[]", "{}", '{"v":1}', "\x00", b"\x00\xff", "[" * 60_000, '{"v":1,"id":"a"}']
        ):
            live.socket.send(nonsense)
            live.read_until(lambda n=number: len(live.replies) == n + 1)
            assert live.replies[-1]["ok"] is False
            assert live.replies[-1]["error"]
        assert live.ask("ping")["ok"]


def test_what_is_too_large_ends_its_own_connection_only(server: Server) -> None:
    with client(server) as other, client(server) as live:
        live.read(5.0)
        live.socket.send("x" * 65_537)
        with pytest.raises(ConnectionClosed) as closed:
            live.read_for(5.0)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert other.ask("ping")["ok"]
    with client(server) as live:
        assert live.ask("ping")["ok"]


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"\xff\xff\xff\xff\xff",
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST /api/ports HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_rubbish_on_the_wire_hurts_nobody(server: Server, rubbish: bytes, capfd: Any) -> None:
    with client(server) as other:
        with socket.create_connection(("127.0.0.1", server.port)) as wire:
            wire.settimeout(0.5)
            wire.sendall(rubbish)
            try:
                answer = wire.recv(100)
            except (TimeoutError, ConnectionError):
                answer = b""
        assert b"200" not in answer.partition(b"\r\n")[0]
        assert other.ask("ping")["ok"]
    assert capfd.readouterr() == ("", "")


def test_a_frame_of_the_websocket_that_breaks_its_rules_ends_its_own_connection(
    server: Server,
) -> None:
    with client(server) as other:
        for rubbish in (b"\xff" * 64, b"\x81\x05hello", b"\x81\x83aaaa\x9e\x9f\x9e", b"\x89\xff"):
            with raw_client(server) as rude:
                rude.sendall(rubbish)
                # closed by the server: at once, or when the rest of a frame does not come
                rude.shutdown(socket.SHUT_WR)
                while rude.recv(4096):
                    pass
        wait_for(lambda: server.clients == 1)
        assert other.ask("ping")["ok"]


def test_a_client_that_reads_nothing_delays_nobody(server: Server, stage: StageDouble) -> None:
    with Performance(stage), ExitStack() as stack:
        others = [stack.enter_context(client(server)) for _ in range(2)]
        # it takes next to nothing, and gives credits as if it did
        deaf = stack.enter_context(raw_client(server, buffer_bytes=4096))
        for other in others:
            other.subscribe("cloud", "sound")
        deaf.sendall(masked(SUBSCRIBE))
        wait_for(lambda: server.clients == 3)
        before = stage.frames
        for other in others:
            other.read_for(0.1)
            other.seen.clear()
            other.frames.clear()
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            deaf.sendall(masked(CREDIT))
            for other in others:
                other.read_for(0.01)
        lasted = time.monotonic() - begun
        assert server.clients == 3
        for other in others:
            assert other.seen["cloud"] / lasted > 30.0
            sound = [frame.sequence for frame in other.frames if frame.stream == "sound"]
            assert len(sound) > 0.9 * (sound[-1] - sound[0] + 1) > 40
        assert (stage.frames - before) * 24_040 > 1_500_000
    # what was kept for it is bounded by buffers, not by what it said it would take
    deaf_bytes = 0
    with raw_client(server, buffer_bytes=4096) as deaf:
        deaf.sendall(masked(SUBSCRIBE))
        for _ in range(100):
            stage.put_cloud()
            deaf.sendall(masked(CREDIT))
            time.sleep(0.005)
        deaf.settimeout(0.1)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with suppress(TimeoutError):
                deaf_bytes += len(deaf.recv(65_536))
    assert 100_000 < deaf_bytes < 1_000_000


def test_a_client_that_reads_nothing_does_not_hold_up_the_end(
    server: Server, stage: StageDouble
) -> None:
    with Performance(stage), raw_client(server, buffer_bytes=4096) as deaf:
        deaf.sendall(masked(SUBSCRIBE))
        for _ in range(100):
            deaf.sendall(masked(CREDIT))
            time.sleep(0.005)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 1.0


def test_a_client_that_reads_nothing_for_long_is_given_up(
    server: Server, stage: StageDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SEND_SECONDS", 0.3)
    with Performance(stage), raw_client(server, buffer_bytes=4096) as deaf:
        deaf.sendall(masked(SUBSCRIBE))
        wait_for(lambda: server.clients == 1)
        with suppress(ConnectionError):
            while server.clients:
                deaf.sendall(masked(CREDIT))
                time.sleep(0.005)
        wait_for(lambda: server.clients == 0)


def test_a_connection_that_asks_for_nothing_is_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_REQUEST_SECONDS", 0.2)
    with client(server) as live:
        for beginning in (b"", b"GET / HTTP/1.1\r\nHost: a"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5.0) as idle:
                idle.sendall(beginning)
                with suppress(ConnectionError):
                    assert idle.recv(1) == b""
        assert live.ask("ping")["ok"]


def test_a_hundred_clients_meet_the_limit_and_the_first_play_on(
    server: Server, stage: StageDouble
) -> None:
    with Performance(stage), ExitStack() as stack:
        first = stack.enter_context(client(server))
        first.subscribe("cloud")
        others = [stack.enter_context(client(server)) for _ in range(99)]
        for live in others[:7]:
            assert live.ask("ping")["ok"]
        for live in others[7:]:
            with pytest.raises(ConnectionClosed) as closed:
                live.read(5.0)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1013
            assert closed.value.rcvd.reason == "8 clients are connected, which is the limit"
        assert server.clients == 8
        first.seen.clear()
        first.read_for(0.5)
        assert first.seen["cloud"] > 10
    wait_for(lambda: server.clients == 0)
    with client(server) as live:
        assert live.ask("ping")["ok"]


def test_a_hundred_silent_connections_do_not_keep_a_client_out(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        time.sleep(0.2)
        assert len(server._uvicorn.server_state.connections) <= 80 if server._uvicorn else False
    wait_for(lambda: fetch(server, "/health")[0] == 200)


def test_clients_that_vanish_are_noticed(server: Server, stage: StageDouble) -> None:
    with Performance(stage), client(server) as stays:
        stays.subscribe("stats")
        for _ in range(5):
            with raw_client(server) as rude:
                rude.sendall(masked(SUBSCRIBE))
                while b"KMC1" not in rude.recv(65_536):
                    pass
                # no goodbye: the connection is reset
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wait_for(lambda: server.clients == 1)
        stays.read_until(lambda: stays.last.get("stats", {}).get("clients") == 1)
        wait_for(lambda: stage.sound.readers == [])


def test_a_client_that_comes_back_starts_afresh(server: Server, stage: StageDouble) -> None:
    for turn in range(3):
        with client(server) as live:
            assert live.read(5.0) == "hello"
            live.subscribe("state", "cloud")
            live.read_until(lambda c=live: c.seen["state"] > 0)
            frame = stage.put_cloud()
            live.read_until(
                lambda c=live, f=frame: c.frames[-1:] != [] and c.frames[-1].sequence == f.sequence
            )
            live.ask("set", **{"music.tempo": 60 + turn})
    assert stage.state()["music"]["tempo"] == 62


def flood(live: LiveClient) -> None:
    for _ in range(40):
        for _ in range(100):
            live.send("transport", action="pause")
        live.read_for(0.01)
    live.read_for(5.0)


def test_a_flood_is_cut_off_alone(server: Server, stage: StageDouble) -> None:
    with client(server) as other, client(server) as live:
        with pytest.raises(ConnectionClosed) as closed:
            flood(live)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "too many messages")
        assert other.ask("transport", action="play")["ok"]
        assert stage.session.transport == "playing"


def test_nothing_is_left_after_stop(stage: StageDouble) -> None:
    threads = threading.active_count()
    server = Server(stage)
    server.start()
    with Performance(stage), client(server) as live:
        live.subscribe("cloud", "sound", "plan")
        live.read_for(0.2)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 1.0
        with pytest.raises(ConnectionClosed):
            live.read_for(2.0)
    wait_for(lambda: threading.active_count() <= threads)
    # changes afterwards reach nobody and hurt nobody
    assert stage.apply("set", {"music.tempo": 77})
    server.notify("info", "nobody is there.")
