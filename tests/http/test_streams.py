from collections.abc import AsyncGenerator
from typing import Any

import pytest
import quart
import trio
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.http.kit.conversation import Conversation, conversation_of, conversing
from sandboxd.http.kit.streams import (
    SSE_KEEP_ALIVE_EVENT,
    ServerSentEvent,
    sse_response,
    stream_response,
    to_json,
)
from sandboxd.http.native.errors import ERRORS
from sandboxd.http.server.connection import SandboxdApp
from tests.http.support import PATIENCE, exchange, read_to_end, serving

GET = b"GET /stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


# Encoding


def parse_sse(text: str) -> list[dict[str, str]]:
    """The HTML standard's parsing of an event stream, to its letter."""
    events = []
    event: dict[str, str] = {}
    data: list[str] = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]:
        if line == "":
            if data:
                events.append({**event, "data": "\n".join(data)})
            event, data = {}, []
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                data.append(value)
            else:
                event[name] = value
    return events


_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))
_TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\u2028: "))


@given(data=_TEXT, event=st.none() | _LINE, id=st.none() | _LINE)
def test_event_survives_a_conforming_parser(data, event, id):  # noqa: A002 - the field's name
    encoded = ServerSentEvent(data, event=event, id=id).encode().decode()
    (parsed,) = parse_sse(encoded)
    assert parsed["data"] == data.replace("\r\n", "\n").replace("\r", "\n")
    assert parsed.get("event") == event
    assert parsed.get("id") == id


def test_event_looks_as_expected():
    event = ServerSentEvent.of({"a": "ü\n"}, event="output", id="7")
    assert event.encode() == 'event: output\nid: 7\ndata: {"a":"ü\\n"}\n\n'.encode()
    assert ServerSentEvent("x", retry=100).encode() == b"retry: 100\ndata: x\n\n"


@pytest.mark.parametrize("field", ["event", "id"])
@pytest.mark.parametrize("value", ["a\nb", "a\rb"])
def test_event_cannot_be_forged_through_a_field(field, value):
    with pytest.raises(ValueError, match="line end"):
        ServerSentEvent("x", **{field: value})


def test_id_with_a_nul_is_refused():
    with pytest.raises(ValueError, match="NUL"):
        ServerSentEvent("x", id="a\0")


def test_text_that_is_no_unicode_does_not_break_the_stream():
    assert ServerSentEvent("\udcff").encode() == b"data: ?\n\n"


def test_json_that_is_none_is_an_error_of_ours():
    with pytest.raises(ValueError, match="JSON"):
        to_json(float("nan"))


# Responses


def app_with(make: Any) -> Any:
    app: Any = SandboxdApp("streams")
    app.ended = trio.Event()
    app.asgi_app = conversing(app.asgi_app, errors=ERRORS)

    @app.get("/stream")
    async def stream() -> Any:
        return make(app)

    return app


def talk() -> Conversation:
    return conversation_of(quart.request.scope)


def body_of(raw: bytes) -> bytes:
    """The body of a chunked response that ended properly."""
    _, _, rest = raw.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert rest == b"\r\n"
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


@trio.as_safe_channel
async def numbers(app: Any, count: int = 3) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        for number in range(count):
            yield ServerSentEvent.of(number)
    finally:
        app.ended.set()


@trio.as_safe_channel
async def quiet(app: Any) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        yield ServerSentEvent("first")
        await trio.sleep_forever()
    finally:
        app.ended.set()


async def test_events_arrive_and_the_response_ends_with_its_source():
    app = app_with(lambda app: sse_response(talk(), numbers(app)))
    async with serving(app) as served:
        raw = await exchange(served, GET)
    head, _, _ = raw.lower().partition(b"\r\n\r\n")
    for header in (b"content-type: text/event-stream", b"cache-control: no-cache", b"x-accel-buffering: no"):
        assert header in head
    assert body_of(raw) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert app.ended.is_set()


async def test_memory_channel_is_a_source_too():
    def encode(value: Any) -> bytes:
        return to_json(value).encode()

    def make(app: Any) -> Any:
        send, receive = trio.open_memory_channel[Any](2)
        send.send_nowait({"a": 1})
        send.send_nowait([])
        send.close()
        return stream_response(talk(), receive, encode=encode, content_type="x/json")

    async with serving(app_with(make)) as served:
        raw = await exchange(served, GET)
    assert body_of(raw) == b'{"a":1}[]'
    assert b"content-type: x/json" in raw


async def test_headers_arrive_before_the_first_event():
    def make(app: Any) -> Any:
        app.send, receive = trio.open_memory_channel[ServerSentEvent](0)
        return sse_response(talk(), receive)

    app = app_with(make)
    async with serving(app) as served, await served.connect() as stream:
        await stream.send_all(GET)
        with trio.fail_after(PATIENCE):
            assert (await stream.receive_some()).endswith(b"\r\n\r\n")
            await app.send.send(ServerSentEvent("x"))
            assert b"data: x" in await stream.receive_some()
        app.send.close()


@pytest.mark.parametrize("filler", [b":\n\n", SSE_KEEP_ALIVE_EVENT])
async def test_silence_is_filled(filler):
    app = app_with(lambda app: sse_response(talk(), quiet(app), keep_alive=filler, interval=0.05))
    async with serving(app) as served, await served.connect() as stream:
        await stream.send_all(GET)
        received = b""
        with trio.fail_after(PATIENCE):
            while received.count(filler) < 3:
                received += await stream.receive_some()
    assert received.index(b"data: first") < received.index(filler)


async def test_no_event_is_lost_between_fillers():
    """The interval is shorter than the source's pace: every wait is cut short several times."""

    @trio.as_safe_channel
    async def slow() -> AsyncGenerator[ServerSentEvent, None]:
        for number in range(30):
            await trio.sleep(0.012)
            yield ServerSentEvent.of(number)

    app = app_with(lambda app: sse_response(talk(), slow(), interval=0.005))
    async with serving(app) as served:
        events = parse_sse(body_of(await exchange(served, GET)).decode())
    assert [event["data"] for event in events] == [str(number) for number in range(30)]


async def test_client_that_leaves_ends_the_source():
    app = app_with(lambda app: sse_response(talk(), quiet(app)))
    async with serving(app) as served:
        async with await served.connect() as stream:
            await stream.send_all(GET)
            await stream.receive_some()
        with trio.fail_after(PATIENCE):
            await app.ended.wait()


async def test_stopping_the_daemon_ends_the_stream_properly_and_at_once(autojump_clock):
    app = app_with(lambda app: sse_response(talk(), quiet(app)))
    async with serving(app, grace=PATIENCE) as served, await served.connect() as stream:
        await stream.send_all(GET)
        received = b""
        while b"first" not in received:
            received += await stream.receive_some()
        began = trio.current_time()
        served.stop.set()
        received += await read_to_end(stream)
        assert body_of(received) == b"data: first\n\n"
        assert trio.current_time() - began < 2
    assert app.ended.is_set()


async def test_source_that_fails_cuts_the_response(caplog):
    @trio.as_safe_channel
    async def failing() -> AsyncGenerator[ServerSentEvent, None]:
        yield ServerSentEvent("first")
        raise RuntimeError("boom")

    async with serving(app_with(lambda app: sse_response(talk(), failing()))) as served:
        raw = await exchange(served, GET)
    assert b"first" in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert "boom" in caplog.text


async def test_slow_client_holds_its_source_back(autojump_clock):
    produced = 0

    @trio.as_safe_channel
    async def flood() -> AsyncGenerator[bytes, None]:
        nonlocal produced
        while True:
            produced += 1
            yield bytes(16_384)

    def make(app: Any) -> Any:
        return stream_response(talk(), flood(), encode=bytes, content_type="application/octet-stream")

    async with serving(app_with(make)) as served, await served.connect() as stream:
        await stream.send_all(GET)
        await stream.receive_some(1000)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert produced * 16_384 < 2**20


async def test_stream_of_bytes_without_filler_stays_silent(autojump_clock):
    def make(app: Any) -> Any:
        app.send, receive = trio.open_memory_channel[bytes](0)
        return stream_response(talk(), receive, encode=bytes, content_type="text/plain", interval=0.01)

    app = app_with(make)
    async with serving(app) as served, await served.connect() as stream:
        await stream.send_all(GET)
        await stream.receive_some()
        with trio.move_on_after(0.2) as waiting:
            await stream.receive_some()
        assert waiting.cancelled_caught
        app.send.close()
