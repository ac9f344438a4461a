"""Messages: what is refused and how it is said, binary frames, and that the schema is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_double import Block, PlayingDouble, StageDouble

from kmidi_mlx.live import protocol
from kmidi_mlx.live.cloud_slot import CloudFrame
from kmidi_mlx.live.commands import COMMANDS, STREAMS
from kmidi_mlx.live.protocol import ProtocolError, parse_body, parse_message

SCHEMA = json.loads(Path(protocol.__file__).with_name("protocol.schema.json").read_text())


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{name}"}]})


CLIENT, SERVER = validator("client"), validator("server")


def accepted(message: Any) -> bool:
    try:
        parse_message(json.dumps(message))
    except ProtocolError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 400
        return False
    return True


def test_a_message_is_read() -> None:
    request = parse_message('{"v":1,"id":7,"command":"set","arguments":{"music.tempo":100}}')
    assert (request.id, request.command, request.arguments) == (7, "set", {"music.tempo": 100})
    assert parse_message(b'{"v":1,"id":0,"command":"ports"}').arguments == {}
    assert parse_message('{"v":1,"command":"credit","arguments":{"stream":"cloud"}}').id is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON"),
        ("[]", "has to be a JSON object"),
        ('{"v":1,"id":1,"command":"ping"', "not JSON"),
        ('{"id":1,"command":"ping"}', 'send "v": 1'),
        ('{"v":2,"id":1,"command":"ping"}', "version 1"),
        ('{"v":true,"id":1,"command":"ping"}', "version 1"),
        ('{"v":1,"command":"ping"}', 'needs "id"'),
        ('{"v":1,"id":-1,"command":"ping"}', 'needs "id"'),
        ('{"v":1,"id":1.5,"command":"ping"}', 'needs "id"'),
        ('{"v":1,"id":true,"command":"ping"}', 'needs "id"'),
        ('{"v":1,"id":9007199254740992,"command":"ping"}', 'needs "id"'),
        ('{"v":1,"id":1}', 'needs "command"'),
        ('{"v":1,"id":1,"command":"pong"}', "did you mean ping?"),
        ('{"v":1,"id":1,"command":"ping","arguments":[]}', "has to be an object"),
        ('{"v":1,"id":1,"command":"ping","argument":{}}', "no field 'argument'"),
        ('{"v":1,"id":1,"command":"ping","arguments":{"a":1}}', "it takes none"),
        ('{"v":1,"id":1,"command":"transport"}', "needs action"),
        ('{"v":1,"id":1,"command":"transport","arguments":{"action":"go"}}', "play, pause, stop"),
        ('{"v":1,"id":1,"command":"update_emotion","arguments":{"valance":1}}', "mean valence?"),
        ('{"v":1,"id":1,"command":"update_emotion","arguments":{"valence":"1"}}', "a number"),
        ('{"v":1,"id":1,"command":"update_emotion","arguments":{"valence":NaN}}', "NaN"),
        ('{"v":1,"id":1,"command":"update_emotion","arguments":{"valence":1e999}}', "too large"),
        ('{"v":1,"id":1,"command":"generate_midi","arguments":{"seconds":9e', "not JSON"),
        ('{"v":1,"id":1,"command":"set","arguments":{}}', "needs an option"),
        ('{"v":1,"id":1,"command":"set","arguments":{"a":[1]}}', "a number, a text"),
        ('{"v":1,"id":1,"command":"set","arguments":{"a":null}}', "a number, a text"),
        ('{"v":1,"id":1,"command":"set","arguments":{"a":1,"a":2}}', "same field twice"),
        ('{"v":1,"id":1,"command":"set","arguments":{"a":"\\ud800"}}', "not valid Unicode"),
        ('{"v":1,"id":' + "9" * 5000 + ',"command":"ping"}', "too large"),
        ("[" * 50_000, "nested"),
        ('{"a":' * 10 + "1" + "}" * 10, "nested"),
        ('{"v":1,"id":1,"command":"subscribe","arguments":{"streams":["a"]}}', "different streams"),
        (
            '{"v":1,"id":1,"command":"subscribe","arguments":{"streams":["plan","plan"]}}',
            "different streams",
        ),
        (
            '{"v":1,"id":1,"command":"credit","arguments":{"stream":"cloud","count":65}}',
            "from 1 to 64",
        ),
        ('{"v":1,"id":1,"command":"record","arguments":{"action":"start","name":7}}', "a text"),
        (" " * 65_536 + "{}", "too large"),
    ],
)
def test_every_mistake_has_its_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_message(text)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith((".", "?"))
    assert "\n" not in str(caught.value)


def test_the_number_of_a_refused_request_is_kept_where_it_can_be_read() -> None:
    for text, number in (
        ('{"v":1,"id":12,"command":"nothing"}', 12),
        ('{"v":1,"id":"12","command":"ping"}', None),
        ("{", None),
    ):
        with pytest.raises(ProtocolError) as caught:
            parse_message(text)
        assert caught.value.id == number


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_no_bytes_at_all_do_worse_than_a_sentence(data: str | bytes) -> None:
    with pytest.raises(ProtocolError, match=r"[.?]$"):
        parse_message(data)


def test_a_body_of_http_is_arguments_alone() -> None:
    assert parse_body("ports", b"") == {}
    assert parse_body("transport", b'{"action":"play"}') == {"action": "play"}
    with pytest.raises(ProtocolError, match="there is no command"):
        parse_body("start", b"{}")
    with pytest.raises(ProtocolError, match="not valid Unicode"):
        parse_body("ports", b"\xff")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.floats(-300, 300), st.just(2.0),
    st.sampled_from(["play", "stop", "start", "cloud", "sound", "x" * 4096, "x" * 4097, ""]),
    st.lists(st.sampled_from([*STREAMS, "x", 1]), max_size=3), st.dictionaries(st.just("a"),
                                                                               st.integers()),
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Messages near the border of what is valid: right ones with up to two things spoilt."""
    command = draw(st.sampled_from([*COMMANDS, "nothing"]))
    names = [*COMMANDS.get(command, {}), "other", "music.tempo"]
    arguments = draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    right = {
        "valence": 0.5, "arousal": -1, "seconds": 3, "action": "start", "name": "take",
        "streams": ["cloud"], "stream": "sound", "count": 2, "points": 200, "seed": 1,
        "scale": 0.7,
    }  # fmt: skip
    if draw(st.booleans()):
        known = COMMANDS.get(command, {})
        arguments = {name: right[name] for name in known if name in right} | arguments
    message: dict[str, Any] = {"v": 1, "id": 3, "command": command, "arguments": arguments}
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(["v", "id", "command", "arguments", "more"]))
        if draw(st.booleans()):
            message.pop(key, None)
        else:
            message[key] = draw(VALUES)
    return message


@settings(max_examples=400, deadline=None)
@given(messages())
def test_the_schema_says_of_every_message_what_the_parser_says(message: Any) -> None:
    assert CLIENT.is_valid(message) == accepted(message)


def test_the_schema_knows_the_same_commands() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    named = [
        choice["properties"]["command"]["const"] for choice in SCHEMA["$defs"]["client"]["oneOf"]
    ]
    assert named == list(COMMANDS)
    for command, arguments in COMMANDS.items():
        described = SCHEMA["$defs"][f"{command}_arguments"]
        assert described["description"]
        if command != "set":
            assert list(described["properties"]) == list(arguments)


def test_what_the_server_says_fits_the_schema() -> None:
    quiet, playing = StageDouble(), PlayingDouble()
    for stage in (quiet, playing):
        for message in (
            protocol.hello(),
            protocol.hello(type="ready", url="http://127.0.0.1:1/"),
            protocol.reply(1, stage.apply("describe", {})),
            protocol.failure(None, "no."),
            protocol.notice("warning", "late."),
            protocol.report("state", stage.state()),
            protocol.report("stats", {**stage.stats(), "clients": 1}),
            protocol.report("plan", stage.plan()),
        ):
            SERVER.validate(json.loads(message))
            assert "\n" not in message


def test_a_report_that_json_cannot_hold_is_an_error_here_not_in_the_page() -> None:
    with pytest.raises(ValueError, match="JSON"):
        protocol.report("stats", {"fps": float("nan")})


@settings(max_examples=30, deadline=None)
@given(
    points=st.integers(0, 40),
    sequence=st.integers(0, 2**40),
    moment=st.floats(0, 1e9),
    valence=st.floats(-1, 1, width=32),
)
def test_a_cloud_comes_back_as_it_was(
    points: int, sequence: int, moment: float, valence: float
) -> None:
    body = np.random.default_rng(points).standard_normal((points, 10)).astype(np.float16)
    data = protocol.pack_cloud(CloudFrame(sequence, moment, body, valence, -valence))
    assert len(data) == 40 + 20 * points
    frame = protocol.unpack(data)
    assert (frame.stream, frame.sequence) == ("cloud", sequence % 2**32)
    assert (frame.time_monotonic, frame.valence, frame.arousal) == (moment, valence, -valence)
    assert np.array_equal(frame.rows, body)


def test_the_bytes_of_a_frame_are_where_the_document_says() -> None:
    body = np.arange(20, dtype=np.float16).reshape(2, 10)
    data = protocol.pack_cloud(CloudFrame(258, 1.5, body, 0.25, -0.5))
    assert data[:40].hex() == (
        "4b4d4331" "2800" "0a00" "02010000" "02000000" "000000000000f83f" "0000803e" "000000bf"
        "0000000000000000"
    )  # fmt: skip
    assert data[40:44].hex() == "0000003c"
    samples = np.array([[1, -1], [256, 0]], np.int16)
    sound = protocol.pack_sound(Block(1, 2.0, samples), 44_100)
    assert sound[:4] == b"KMS1"
    assert sound[40:].hex() == "0100ffff00010000"
    frame = protocol.unpack(sound)
    assert (frame.stream, frame.valence, frame.rows.tolist()) == ("sound", 44_100, samples.tolist())


@pytest.mark.parametrize("cut", [0, 10, 39, 40, 59])
def test_a_frame_that_is_cut_short_is_refused(cut: int) -> None:
    data = protocol.pack_cloud(CloudFrame(1, 0.0, np.zeros((1, 10), np.float16), 0.0, 0.0))
    with pytest.raises(ProtocolError):
        protocol.unpack(data[:cut])
    with pytest.raises(ProtocolError):
        protocol.unpack(b"KMC2" + data[4:])
