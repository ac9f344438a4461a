from __future__ import annotations

import mido
from hypothesis import given, settings
from hypothesis import strategies as st

from kmidi_mlx.live.message_reader import MessageReader

DATA = st.integers(0, 127)
THREE = st.tuples(
    st.sampled_from([0x80, 0x90, 0xA0, 0xB0, 0xE0]), st.integers(0, 15), DATA, DATA
).map(lambda parts: bytes((parts[0] | parts[1], parts[2], parts[3])))
TWO = st.tuples(st.sampled_from([0xC0, 0xD0]), st.integers(0, 15), DATA).map(
    lambda parts: bytes((parts[0] | parts[1], parts[2]))
)
COMMON = st.sampled_from([b"\xf1\x05", b"\xf2\x01\x02", b"\xf3\x07", b"\xf6"])
REAL_TIME = st.sampled_from([b"\xf8", b"\xfa", b"\xfb", b"\xfc", b"\xfe", b"\xff"])


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Parts of these sizes, then the rest."""
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.one_of(THREE, TWO, COMMON), st.booleans(), st.booleans()), max_size=20),
    st.lists(st.integers(0, 4), max_size=20),
)
def test_messages_come_back_however_they_are_written_and_cut(
    messages: list[tuple[bytes, bool, bool]], sizes: list[int]
) -> None:
    wire, wanted, status = b"", [], None
    for message, runs, interrupted in messages:
        written = message[1:] if runs and status == message[0] else message
        if interrupted:
            # real time may come amid a message, and is told before it
            written = written[:-1] + b"\xf8" + written[-1:]
            wanted.append(b"\xf8")
        wire += written
        wanted.append(message)
        status = message[0] if message[0] < 0xF0 else None
    reader = MessageReader()
    assert [m for part in cut(wire, sizes) for m in reader.read(part)] == wanted


@settings(max_examples=100)
@given(st.lists(st.one_of(THREE, TWO, COMMON, REAL_TIME), max_size=10), st.binary(max_size=8))
def test_after_any_rubbish_the_next_message_is_read(messages: list[bytes], rubbish: bytes) -> None:
    reader = MessageReader()
    reader.read(rubbish)
    assert reader.read(b"\xf6" + b"".join(messages))[-len(messages) - 1 :] == [b"\xf6", *messages]


@given(st.lists(st.one_of(THREE, TWO, REAL_TIME), max_size=20))
def test_reads_what_another_library_reads(messages: list[bytes]) -> None:
    wire = b"".join(messages)
    parser = mido.Parser()
    parser.feed(wire)
    assert [m.bytes() for m in parser] == [list(m) for m in MessageReader().read(wire)]


def test_what_belongs_to_nothing_is_left_out() -> None:
    reader = MessageReader()
    exclusive = b"\xf0\x7e\x7f\x06\x01\xf7"
    assert reader.read(b"\x3c\x40" + exclusive + b"\x3c\xf4\x01\xf9\xfd") == []
    assert reader.read(b"\x90\x3c\x40" + exclusive + b"\x3c\x40") == [b"\x90\x3c\x40"]
    # real time amid system exclusive
    assert reader.read(b"\xf0\x01\xfe\x02\xf7") == [b"\xfe"]
    assert reader.read(b"\x90\x3c\x90\x3e\x40") == [b"\x90\x3e\x40"]
