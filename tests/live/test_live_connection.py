"""What a client is sent, without a network: credits, order, and that nothing piles up."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.errors import KmidiError
from kmidi_mlx.live import connection as connection_module
from kmidi_mlx.live.connection import Connection, LostClientError


class Wire:
    """A transport in memory: what was sent, and a valve."""

    def __init__(self) -> None:
        self.sent: list[str | bytes] = []
        self.incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()

    async def send(self, message: str | bytes) -> None:
        await self.open.wait()
        self.sent.append(message)

    async def messages(self) -> AsyncIterator[str | bytes]:
        while (message := await self.incoming.get()) is not None:
            yield message

    def say(self, command: str, number: int | None = 1, **arguments: Any) -> None:
        message: dict[str, Any] = {"v": 1, "command": command, "arguments": arguments}
        if number is not None:
            message["id"] = number
        self.incoming.put_nowait(json.dumps(message))

    @property
    def texts(self) -> list[dict[str, Any]]:
        return [json.loads(message) for message in self.sent if isinstance(message, str)]

    @property
    def replies(self) -> list[dict[str, Any]]:
        return [message for message in self.texts if message["type"] == "reply"]

    @property
    def frames(self) -> list[bytes]:
        return [message for message in self.sent if isinstance(message, bytes)]


class Desk:
    """An office whose work takes as long as the test wants."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def carry_out(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        await self.hold.wait()
        self.done.append((command, arguments))
        if command == "ports":
            raise KmidiError("there are no ports.")
        return {"done": command}

    def subscribed(self, connection: Connection) -> None:
        pass


def with_client(
    script: Callable[[Connection, Wire, Desk], Awaitable[None]], **options: Any
) -> Wire:
    """Run a script beside a connection that is served."""

    async def main() -> Wire:
        wire, desk = Wire(), Desk()
        connection = Connection(desk, wire.send, **options)
        serving = asyncio.create_task(connection.run(wire.messages(), '{"type":"hello"}'))
        await settle()
        try:
            await script(connection, wire, desk)
        finally:
            wire.incoming.put_nowait(None)
            wire.open.set()
            desk.hold.set()
            await serving
        return wire

    return asyncio.run(main())


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def cloud(number: int) -> bytes:
    return b"KMC1" + number.to_bytes(4, "little")


def test_hello_comes_first_and_replies_in_the_order_of_the_commands() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        desk.hold.clear()
        for number in range(20):
            wire.say("transport", number, action="play")
        await settle()
        assert wire.replies == []
        desk.hold.set()
        await settle()

    wire = with_client(script)
    assert wire.texts[0]["type"] == "hello"
    assert [reply["id"] for reply in wire.replies] == list(range(20))


def test_a_slow_command_and_a_ping_hold_up_nothing() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        desk.hold.clear()
        wire.say("generate_midi", 1, seconds=9)
        await settle()
        wire.say("ping", 2)
        await settle()
        assert [reply["id"] for reply in wire.replies] == [2]
        assert wire.replies[0]["result"]["time"] == pytest.approx(time.monotonic(), abs=5.0)
        desk.hold.set()
        await settle()
        assert [reply["id"] for reply in wire.replies] == [2, 1]

    with_client(script)


def test_slow_commands_do_not_pile_up() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        desk.hold.clear()
        wire.say("generate_midi", 0, seconds=9)
        await settle()
        for number in range(1, 20):
            wire.say("generate_midi", number, seconds=9)
        await settle()
        refused = [reply["id"] for reply in wire.replies]
        assert len(refused) == 15
        assert all("too much is waiting" in reply["error"] for reply in wire.replies)
        desk.hold.set()
        await settle()
        assert len(desk.done) == 5
        assert len(wire.replies) == 20

    with_client(script)


def test_errors_are_answers() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.say("ports", 1)
        wire.incoming.put_nowait("nonsense")
        wire.incoming.put_nowait(b"\x00binary")
        wire.say("transport", 4, action="fly")
        wire.say("transport", 5, action="play")
        await settle()

    replies = {reply["id"]: reply for reply in with_client(script).replies}
    assert replies[1]["error"] == "there are no ports."
    assert "binary frame" in replies[None]["error"] or "not JSON" in replies[None]["error"]
    assert "has to be one of" in replies[4]["error"]
    assert replies[5]["ok"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["cloud", "cloud", "cloud", "offer", 1, 2, 5]), max_size=30))
def test_never_more_clouds_than_credits_and_always_the_newest(actions: list[Any]) -> None:
    """Against a slow reference: a number of credits and whether a cloud waits."""

    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.say("subscribe", streams=["cloud"])
        await settle()
        credit, waiting, number, expected = 3, False, -1, []
        for action in actions:
            if isinstance(action, int):
                # what waits is sent before the credit is read
                await settle()
                wire.say("credit", None, stream="cloud", count=action)
            else:
                number += 1
                connection.offer_cloud(cloud(number), 0.0)
                waiting = True
            for credits_more in (0, action) if isinstance(action, int) else (0,):
                credit = min(3, credit + credits_more)
                if waiting and credit and action != "offer":
                    expected.append(cloud(number))
                    credit, waiting = credit - 1, False
            if action != "offer":
                await settle()
                assert wire.frames == expected

    with_client(script)


def test_a_client_that_takes_nothing_keeps_one_of_everything() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.say("subscribe", streams=["state", "stats", "plan", "cloud", "sound"])
        await settle()
        wire.open.clear()
        before = len(wire.sent)
        for number in range(1000):
            for stream in ("state", "stats", "plan"):
                connection.offer_report(stream, json.dumps({"type": stream, "n": number}))
            connection.offer_cloud(cloud(number), number / 60)
            connection.offer_sound(b"KMS1" + number.to_bytes(4, "little"))
            connection.offer_notice(json.dumps({"type": "notice", "n": number}))
            if number % 100 == 0:
                await settle()
        wire.open.set()
        await settle()
        late = wire.sent[before:]
        # one message was on its way; then the newest of each, ten blocks of sound, some notices
        assert len(late) <= 1 + 3 + 1 + 10 + 16
        newest = {message["type"]: message["n"] for message in wire.texts if "n" in message}
        assert newest == {"state": 999, "stats": 999, "plan": 999, "notice": 999}
        assert cloud(999) in late
        wire.say("credit", None, stream="sound", count=64)
        await settle()
        sound = [frame for frame in wire.sent[before:] if frame[:4] == b"KMS1"]
        assert sound[-10:] == [b"KMS1" + n.to_bytes(4, "little") for n in range(990, 1000)]
        assert len(sound) <= 11

    with_client(script)


def test_a_client_that_wants_no_answers_cannot_go_on_asking() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.open.clear()
        for number in range(300):
            wire.say("transport", number, action="play")
        await settle()
        await settle()
        # 64 answers wait and one is on its way; the rest has not even been read
        assert len(desk.done) <= 66
        assert wire.incoming.qsize() > 200
        wire.open.set()
        for _ in range(20):
            await settle()
        assert [reply["id"] for reply in wire.replies] == list(range(300))

    with_client(script)


def test_a_flood_is_answered_for_a_while_and_then_cut_off() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        for number in range(2000):
            wire.say("ping", number)
        for _ in range(200):
            await settle()
        assert any(not reply["ok"] for reply in wire.replies)

    with pytest.raises(LostClientError, match="too many messages"):
        with_client(script)


def test_a_client_that_takes_nothing_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "SEND_SECONDS", 0.05)

    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.open.clear()
        connection.offer_notice("{}")
        await asyncio.sleep(0.2)

    with pytest.raises(LostClientError, match="too slow"):
        with_client(script)


def test_fewer_clouds_come_when_fewer_are_wanted() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.say("subscribe", streams=["cloud"], cloud_rate=20)
        await settle()
        for number in range(600):
            connection.offer_cloud(cloud(number), 100.0 + number / 60)
            await settle()
            wire.say("credit", None, stream="cloud")
        assert 190 <= len(wire.frames) <= 210

    with_client(script)


def test_streams_that_are_not_wanted_are_not_sent() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        connection.offer_cloud(cloud(1), 0.0)
        connection.offer_report("plan", '{"type":"plan"}')
        wire.say("subscribe", 1, streams=["plan"])
        await settle()
        connection.offer_report("plan", '{"type":"plan"}')
        connection.offer_sound(b"KMS1")
        wire.say("subscribe", 2, streams=[])
        await settle()
        connection.offer_report("plan", '{"type":"plan"}')
        await settle()

    wire = with_client(script)
    assert [message["type"] for message in wire.texts].count("plan") == 1
    assert wire.frames == []


def test_binary_streams_as_base64_have_to_be_asked_for_where_lines_are_text() -> None:
    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        wire.say("subscribe", 1, streams=["cloud"])
        wire.say("subscribe", 2, streams=["cloud"], base64=True)
        wire.say("subscribe", 3, streams=["plan"])
        await settle()

    assert [reply["ok"] for reply in with_client(script, base64=True).replies] == [
        False, True, True,
    ]  # fmt: skip
    assert [reply["ok"] for reply in with_client(script).replies] == [True, False, True]


def test_nothing_of_a_connection_is_left_when_it_ends() -> None:
    threads = threading.active_count()

    async def script(connection: Connection, wire: Wire, desk: Desk) -> None:
        await settle()

    async def main() -> None:
        wire = Wire()
        connection = Connection(Desk(), wire.send)
        serving = asyncio.create_task(connection.run(wire.messages(), "{}"))
        await settle()
        assert len(asyncio.all_tasks()) == 6
        wire.incoming.put_nowait(None)
        await serving
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert threading.active_count() == threads
