"""Framing and messages: round trips, arbitrary cuts, and garbage."""

import dataclasses
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.isolation.init.client import SpawnRequest, TerminalSize
from sandboxd.isolation.init.messages import (
    MESSAGES,
    Done,
    End,
    Exited,
    Message,
    ResourceLimit,
    Started,
    encode_fields,
)
from sandboxd.isolation.init.wire import (
    ANY,
    FROM_INIT,
    HEADER_SIZE,
    MAX_DATA,
    MAX_PAYLOAD,
    MAX_PROGRAM,
    Change,
    ChangeKind,
    Flag,
    Frame,
    FrameDecoder,
    Op,
    Output,
    Stream,
    Tag,
    WireError,
    decode_changes,
    decode_fields,
    decode_output,
    encode_changes,
    encode_field,
    encode_frame,
    encode_output,
)

frames = st.lists(st.builds(Frame, st.sampled_from(Op), st.binary(max_size=300)), max_size=8)

# A name as the sandbox has it: any bytes but NUL, which surrogateescape turns into text and back.
names = st.binary(max_size=50).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
prose = st.text(max_size=50).filter(str.isprintable)
PROSE = {"message"}
BOUNDS = {
    "pid": 2**22,
    "mode": 0o7777,
    "errno": 4095,
    "uid": 2**32 - 1,
    "gid": 2**32 - 1,
    "port": 2**16 - 1,
    "started_at_ms": 253_402_300_799_999,
    "ended_at_ms": 253_402_300_799_999,
    "mtime_ns": 2**63 - 1,
    "ctime_ns": 2**63 - 1,
}
NARROW = {"version", "count"}


addresses = st.ip_addresses().map(lambda address: socket.inet_ntop(*_packed(address)))


def _packed(address: IPv4Address | IPv6Address) -> tuple[socket.AddressFamily, bytes]:
    return (socket.AF_INET if address.version == 4 else socket.AF_INET6), address.packed


def values_of(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name == "address":
        return addresses
    if name == "kind":
        return st.from_regex("[a-z_]{1,15}", fullmatch=True)
    if name == "program":
        return st.none() | prose.filter(lambda text: len(text.encode()) <= MAX_PROGRAM)
    if hint is int or hint == int | None:
        limit = BOUNDS.get(name, 2**32 - 1 if name in NARROW else 2**63 - 1)
        numbers = st.integers(-(2**63) if name.endswith("time_ns") else 0, limit)
        return numbers if hint is int else st.none() | numbers
    if hint is str or hint == str | None:
        texts = prose if name in PROSE else names
        return texts if hint is str else st.none() | texts
    if hint is bytes:
        return st.binary(max_size=50)
    if hint == tuple[bytes, ...]:
        return st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"")), max_size=4).map(tuple)
    if hint is Flag:
        return st.sampled_from(Flag)  # which draws combinations too
    assert issubclass(hint, IntEnum)
    return st.sampled_from(hint)


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    hints = get_type_hints(kind)
    fields = {field.name: values_of(field.name, hints[field.name]) for field in dataclasses.fields(kind)}
    if "exit_code" in fields:
        ends = [(code, None) for code in (0, 255)] + [(None, number) for number in (1, 127)]
        base = {name: values for name, values in fields.items() if name not in ("exit_code", "exit_signal")}
        return st.builds(
            lambda end, rest: kind(**rest, exit_code=end[0], exit_signal=end[1]),
            st.sampled_from(ends),
            st.fixed_dictionaries(base),
        )
    return st.builds(kind, **fields)


def only_frame(data: bytes) -> Frame:
    decoder = FrameDecoder(ANY)
    decoder.feed(data)
    (frame,) = decoder.take()
    assert decoder.empty
    return frame


messages = st.sampled_from(MESSAGES).flatmap(messages_of)


@given(frames, st.lists(st.integers(1, 40), max_size=200))
def test_frames_survive_any_cutting(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(encode_frame(frame.op, frame.payload) for frame in sent)
    decoder = FrameDecoder(ANY)
    received: list[Frame] = []
    for cut in cuts:
        decoder.feed(data[:cut])
        received += decoder.take()
        data = data[cut:]
    decoder.feed(data)
    received += decoder.take()
    assert received == sent
    assert decoder.missing() == HEADER_SIZE


@given(frames)
def test_missing_never_reads_past_a_frame(sent: list[Frame]) -> None:
    data = b"".join(encode_frame(frame.op, frame.payload) for frame in sent)
    for frame in sent:
        decoder = FrameDecoder(ANY)
        while (missing := decoder.missing()) > 0:
            decoder.feed(data[:missing])
            data = data[missing:]
        assert decoder.take() == [frame]
    assert data == b""


@given(messages)
def test_messages_round_trip(message: Message) -> None:
    frame = only_frame(message.encode())
    assert frame.op is message.OP
    assert type(message).decode(frame.payload) == message


@given(st.sampled_from(Stream), st.integers(0, 2**63), st.binary(max_size=1000))
def test_output_round_trips(stream: Stream, offset: int, data: bytes) -> None:
    frame = only_frame(encode_output(Output(stream, offset, data)))
    assert decode_output(frame.payload) == Output(stream, offset, data)


changes = st.builds(
    Change,
    st.sampled_from(ChangeKind),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    names.filter(lambda name: name != "" and not name.startswith("/") and ".." not in name.split("/")),
)


@given(st.lists(changes, max_size=20))
def test_changes_round_trip(told: list[Change]) -> None:
    frame = only_frame(encode_changes(told))
    assert decode_changes(frame.payload) == told


@pytest.mark.parametrize("path", ["", "/etc", "..", "a/../../b", "a\0b", "x" * 4096])
def test_changes_of_what_lies_elsewhere_are_refused(path: str) -> None:
    frame = only_frame(encode_changes([Change(ChangeKind.CREATE, False, 0, path)]))
    with pytest.raises(WireError):
        decode_changes(frame.payload)


@given(st.lists(st.binary(max_size=400), max_size=20))
def test_garbage_frames_raise_nothing_but_wire_error(chunks: list[bytes]) -> None:
    decoder = FrameDecoder()
    with suppress(WireError):
        for chunk in chunks:
            decoder.feed(chunk)
            decoder.take()
            decoder.missing()


@given(st.sampled_from(MESSAGES), st.binary(max_size=200))
def test_garbage_payloads_raise_nothing_but_wire_error(kind: type[Message], payload: bytes) -> None:
    decoders: tuple[Callable[[bytes], object], ...] = (
        kind.decode,
        decode_output,
        decode_changes,
        lambda data: list(decode_fields(data)),
    )
    for decode in decoders:
        with suppress(WireError):
            decode(payload)


@given(messages, st.data())
def test_damaged_messages_raise_nothing_but_wire_error(message: Message, data: st.DataObject) -> None:
    payload = bytearray(message.encode()[HEADER_SIZE:])
    if payload:
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        type(message).decode(bytes(payload))


@given(messages)
def test_every_required_field_is_required_and_none_may_repeat(message: Message) -> None:
    fields = list(decode_fields(message.encode()[HEADER_SIZE:]))
    for position, (tag, value) in enumerate(fields):
        if tag is not Tag.ARG:
            twice = b"".join(encode_field(*field) for field in [*fields, (tag, value)])
            with pytest.raises(WireError, match="unexpected field"):
                type(message).decode(twice)
        without = b"".join(encode_field(*field) for field in fields[:position] + fields[position + 1 :])
        name = next(
            field for field in dataclasses.fields(message) if tag in (field.metadata.get("tag"), _tag(field.name))
        )
        if name.default is dataclasses.MISSING:
            with pytest.raises(WireError, match="missing"):
                type(message).decode(without)


def _tag(name: str) -> Tag | None:
    return Tag.__members__.get(name.upper())


@pytest.mark.parametrize("op", ANY)
def test_announced_length_is_refused_before_the_bytes_come(op: Op) -> None:
    def announce(length: int) -> list[Frame]:
        decoder = FrameDecoder(ANY)
        decoder.feed(length.to_bytes(4, "little") + bytes([op]))
        return decoder.take()

    assert announce(ANY[op]) == []
    with pytest.raises(WireError, match="more than"):
        announce(ANY[op] + 1)


@pytest.mark.parametrize(("op", "limit"), [(Op.DATA, MAX_DATA), (Op.STDIN, MAX_DATA), (Op.STAT, MAX_PAYLOAD)])
def test_what_is_too_long_is_not_sent(op: Op, limit: int) -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_frame(op, bytes(limit + 1))


def test_what_init_never_sends_is_refused_before_the_bytes_come() -> None:
    for op in Op:
        decoder = FrameDecoder()
        decoder.feed(encode_frame(op)[:HEADER_SIZE])
        if op in FROM_INIT:
            assert decoder.missing() == 0
        else:
            with pytest.raises(WireError, match="never sent"):
                decoder.missing()


@pytest.mark.parametrize(
    "payload",
    [
        encode_field(Tag.COMMAND, bytes(7)) + encode_field(Tag.PID, bytes(4)),
        encode_field(Tag.COMMAND, bytes(8)) + encode_field(Tag.PID, b"\xff" * 4),
        encode_field(Tag.COMMAND, bytes(8)),
        encode_field(Tag.COMMAND, bytes(8)) + encode_field(Tag.PID, bytes(4)) + b"\x02",
        encode_field(Tag.COMMAND, bytes(8)) + b"\x02\xff\xff\xff\xff",
        b"\xfa\0\0\0\0",
    ],
)
def test_malformed_started(payload: bytes) -> None:
    with pytest.raises(WireError):
        Started.decode(payload)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(WireError, match="unknown bits"):
        End.decode(encode_field(Tag.FLAGS, b"\0\0\0\x80"))


def test_exit_is_a_code_or_a_signal() -> None:
    plain = dict.fromkeys(
        (
            "started_at_ms",
            "ended_at_ms",
            "stdout_total",
            "stderr_total",
            "user_time_us",
            "system_time_us",
            "max_rss_kb",
        ),
        0,
    )
    for end in ({}, {"exit_code": 1, "exit_signal": 1}):
        with pytest.raises(WireError, match="either a code or a signal"):
            Exited.decode(Exited(**plain, flags=Flag(0), **end).encode()[HEADER_SIZE:])


def test_values_that_do_not_fit_are_refused_when_sending() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Done(count=2**32).encode()
    with pytest.raises(ValueError, match="NUL"):
        encode_fields(Op.STAT, {Tag.PATH: "/a\0b"})
    with pytest.raises(ValueError, match="at most"):
        SpawnRequest(argv=["x" * (MAX_PAYLOAD + 1)]).encode(attach=False, lossless=False)


def test_spawn_request_says_everything_once() -> None:
    request = SpawnRequest(
        argv=["a", b"\xff"],
        env={"K": "v=w", "E": ""},
        cwd="/c",
        user="u",
        terminal=TerminalSize(1, 2),
        rlimits=[ResourceLimit(7, 8, 9)],
        label=b"l",
    )
    frame = only_frame(request.encode(attach=True, lossless=False))
    fields = list(decode_fields(frame.payload))
    assert [value for tag, value in fields if tag is Tag.ARG] == [b"a", b"\xff"]
    assert [value for tag, value in fields if tag is Tag.ENV] == [b"K=v=w", b"E="]
    single = [tag for tag, _ in fields if tag not in (Tag.ARG, Tag.ENV)]
    assert len(single) == len(set(single))
    assert (Tag.FLAGS, (Flag.ATTACH | Flag.PROGRAM_LOOKUP).to_bytes(4, "little")) in fields
