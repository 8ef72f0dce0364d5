"""What has been tried against HTTP/2 servers, frame by frame, on real sockets: it ends the connection, and it alone.

Beside each flood stands as much of the same as real clients send, which goes through.
"""

import contextlib
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import h2.errors
import h2.events
import pytest
import quart
import trio
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.http.server.frames import BATCH_FRAMES, BUDGET, PREFACE_BYTES, RESET_COST, FrameCutter
from sandboxd.http.server.serving import ServingLimits
from tests.http.support import PATIENCE, Http2Client, Served, client, is_serving, serving

KIB = 1024
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SettingsFrame(0).serialize()
LARGE = bytes(1024 * KIB)
UNSENT = 256 * KIB


@pytest.fixture
def app(app: Any) -> Any:
    """With what attackers like: a large response, an endless one, a handler that goes on; and who was called."""
    app.calls = Counter()

    @app.get("/large")
    async def large() -> bytes:
        app.calls["large"] += 1
        return LARGE

    @app.get("/endless")
    async def endless() -> Any:
        async def body() -> Any:
            while True:
                yield bytes(64 * KIB)

        app.calls["endless"] += 1
        return await quart.make_response(body())

    @app.get("/stubborn")
    async def stubborn() -> str:
        """As a handler that finishes what it has begun, whoever leaves."""
        app.calls["stubborn"] += 1
        with trio.CancelScope(shield=True):
            await app.release.wait()
        return ""

    return app


def limits(**changes: Any) -> ServingLimits:
    return ServingLimits(cleartext_http2=True, **changes)


# -- floods


def head(stream: int, *, path: str = "/held", end: bool = True, headers_end: bool = True) -> bytes:
    """A request; encoded without reference to others, so that it may be sent again on another stream."""
    fields = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "x")]
    flags = [*(["END_STREAM"] if end else []), *(["END_HEADERS"] if headers_end else [])]
    return HeadersFrame(stream, Encoder().encode(fields, huffman=False), flags=flags).serialize()


def frames(kind: Callable[[int], Frame]) -> Iterator[bytes]:
    for number in range(20_000):
        yield kind(number).serialize()


def resets() -> Iterator[bytes]:
    for stream in range(1, 40_001, 2):
        yield head(stream) + RstStreamFrame(stream).serialize()


def made_resets() -> Iterator[bytes]:
    """The server has to reset a stream whose window overflows."""
    for stream in range(1, 40_001, 2):
        yield head(stream) + WindowUpdateFrame(stream, 2**31 - 1).serialize()


def nonsense() -> Iterator[bytes]:
    """Requests without a path: each is a stream error."""
    block = Encoder().encode([(":method", "GET"), (":scheme", "http"), (":authority", "x")], huffman=False)
    for stream in range(1, 40_001, 2):
        yield HeadersFrame(stream, block, flags=["END_STREAM", "END_HEADERS"]).serialize()


def empty_data() -> Iterator[bytes]:
    yield head(1, end=False)
    yield from frames(lambda _: DataFrame(1))


def dribble() -> Iterator[bytes]:
    """A window of nothing, then opened byte by byte."""
    yield SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}).serialize()
    yield head(1, path="/large")
    yield from frames(lambda _: WindowUpdateFrame(1, 1))


def continuations() -> Iterator[bytes]:
    yield head(1, headers_end=False)
    yield from frames(lambda _: ContinuationFrame(1))


def many_settings() -> Iterator[bytes]:
    pair = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize_body()
    body = pair * 2700
    for _ in range(1000):
        yield len(body).to_bytes(3, "big") + bytes([4, 0, 0, 0, 0, 0]) + body


def unknown() -> Iterator[bytes]:
    for _ in range(20_000):
        yield bytes([0, 0, 0, 0xEE, 0, 0, 0, 0, 0])


FLOODS = {
    "pings": lambda: frames(lambda _: PingFrame(0, b"8 bytes.")),
    "ping answers": lambda: frames(lambda _: PingFrame(0, b"8 bytes.", flags=["ACK"])),
    "settings": lambda: frames(lambda _: SettingsFrame(0)),
    "settings by the thousand": many_settings,
    "priorities": lambda: frames(lambda number: PriorityFrame(2 * number + 1, stream_weight=1)),
    "windows": lambda: frames(lambda _: WindowUpdateFrame(0, 1)),
    "dribble": dribble,
    "empty data": empty_data,
    "padded nothing": lambda: iter(
        [head(1, end=False), *frames(lambda _: DataFrame(1, b"", pad_length=0, flags=["PADDED"]))]
    ),
    "resets": resets,
    "made resets": made_resets,
    "nonsense": nonsense,
    "continuations": continuations,
    "unknown": unknown,
}


async def flood(stream: trio.SocketStream, pieces: Iterator[bytes]) -> int | None:
    """Send it until the server has had enough; the error code of its GOAWAY, None without one."""
    received = bytearray()

    async def send() -> None:
        batch = bytearray(PREFACE)
        with contextlib.suppress(trio.BrokenResourceError):
            for piece in pieces:
                batch += piece
                if len(batch) > 16 * KIB:
                    await stream.send_all(batch)
                    batch = bytearray()
            await stream.send_all(batch)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with contextlib.suppress(trio.BrokenResourceError), trio.fail_after(PATIENCE):
            async for data in stream:
                received += data
        nursery.cancel_scope.cancel()
    return goaway_in(bytes(received))


def goaway_in(received: bytes) -> int | None:
    while len(received) >= 9:
        size = int.from_bytes(received[:3], "big")
        if received[3] == 7:
            return int.from_bytes(received[13:17], "big")
        received = received[9 + size :]
    return None


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_and_no_other(app: Any, name: str) -> None:
    async with serving(app) as served:
        async with await served.connect() as stream, client(served) as other:
            code = await flood(stream, FLOODS[name]())
            assert code in {h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, h2.errors.ErrorCodes.PROTOCOL_ERROR}
            response, _ = await other.request("GET", "/ok")
            assert response.status_code == 200
        assert await is_serving(served)
        await settled(served)
        assert served.server is not None
        assert served.server.statistics().failed == 0


async def true(condition: Callable[[], bool]) -> None:
    """Until it is: nothing tells of it."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def settled(served: Served) -> None:
    """Until every connection of the test has ended."""
    server = served.server
    assert server is not None
    await true(lambda: server.statistics().connections == 0)


async def test_requests_that_are_reset_at_once_start_no_more_work_than_the_budget_allows(app: Any) -> None:
    app.calls.clear()
    pieces = (head(n, path="/stubborn") + RstStreamFrame(n).serialize() for n in range(1, 40_001, 2))
    async with serving(app) as served, await served.connect() as stream:
        assert await flood(stream, pieces) == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
        app.release.set()
    assert app.calls["stubborn"] <= BUDGET / RESET_COST


async def test_handlers_that_outlive_their_streams_still_count(app: Any, autojump_clock: Any) -> None:
    """As many as may be under way at once, however slowly they are begun and reset."""
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        refused = 0
        with trio.fail_after(PATIENCE * 100):
            for _ in range(150):
                number = await http.request("GET", "/stubborn")
                await trio.sleep(1)
                http.h2.ping(b"8 bytes.")
                await http.flush()
                answered = False
                while not answered:
                    for event in http.h2.receive_data(await stream.receive_some()):
                        answered |= isinstance(event, h2.events.PingAckReceived)
                        if isinstance(event, h2.events.StreamReset):
                            assert event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
                            refused += 1
                            number = 0
                if number:
                    http.h2.reset_stream(number)
                await http.flush()
        assert (app.calls["stubborn"], refused) == (100, 50)
        app.release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"


async def test_requests_under_way_take_slots_as_connections_do(app: Any) -> None:
    """And who is refused one may send the request again."""
    async with serving(app, limits=limits(max_connections=10, max_connections_per_peer=10), tcp=True) as served:
        async with await served.connect() as stream:
            http = Http2Client(stream)
            for _ in range(15):
                await http.request("GET", "/held")
            codes = Counter[int]()
            with trio.fail_after(PATIENCE):
                while codes.total() < 5:
                    for event in http.h2.receive_data(await stream.receive_some()):
                        if isinstance(event, h2.events.StreamReset):
                            codes[event.error_code] += 1
            assert codes == {h2.errors.ErrorCodes.REFUSED_STREAM: 5}
            app.release.set()
        await settled(served)
        assert await is_serving(served)


# -- what real clients send


async def test_no_use_of_a_connection_comes_near_its_budget(app: Any) -> None:
    """Thousands of requests, each with a ping, and megabytes acknowledged as small pieces."""
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        for _ in range(3000):
            assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
            http.h2.ping(b"8 bytes.")
            await http.flush()
        for _ in range(10):
            assert await http.response(await http.request("GET", "/large")) == ("200", LARGE)


async def test_a_page_of_requests_may_be_left(app: Any) -> None:
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        for number in [await http.request("GET", "/held") for _ in range(100)]:
            http.h2.reset_stream(number)
        await http.flush()
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"


@given(data=st.data())
def test_cutting_loses_nothing_and_finds_every_frame(data: st.DataObject) -> None:
    """However the bytes come in."""
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 5, 300]), max_size=60))
    raw = bytes(PREFACE_BYTES) + b"".join(
        size.to_bytes(3, "big") + bytes([0, 0, 0, 0, 0, 1]) + bytes(size) for size in sizes
    )
    cutter, seen, found, position = FrameCutter(), b"", [], 0
    while position < len(raw):
        step = data.draw(st.integers(1, len(raw) - position))
        for piece, batch in cutter.cut(raw[position : position + step]):
            assert piece
            assert len(batch) <= BATCH_FRAMES
            seen += piece
            found += batch
        position += step
    assert seen == raw
    assert [frame.size for frame in found] == sizes


# -- responses that nobody takes


async def open_without_window(http: Http2Client, path: str, *, count: int) -> list[int]:
    http.h2.update_settings({SettingsFrame.INITIAL_WINDOW_SIZE: 0})
    await http.flush()
    return [await http.request("GET", path) for _ in range(count)]


async def all_called(app: Any, path: str, count: int) -> None:
    await true(lambda: app.calls[path] >= count)
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("path", ["large", "endless"])
async def test_responses_without_a_window_are_kept_nowhere(app: Any, path: str) -> None:
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        numbers = await open_without_window(http, f"/{path}", count=50)
        await all_called(app, path, 50)
        assert served.server is not None
        assert served.server.statistics().unsent <= UNSENT
        # The control: with a window they come.
        http.h2.increment_flow_control_window(2**20, numbers[0])
        http.h2.increment_flow_control_window(2**20)
        await http.flush()
        got = 0
        with trio.fail_after(PATIENCE):
            while got < 2**20:
                for event in http.h2.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.DataReceived):
                        got += len(event.data)


@pytest.mark.parametrize("version", [1, 2])
async def test_peers_that_read_nothing_share_one_bound(
    app: Any, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Many of them have no more than a piece each, once all together have a lot."""
    monkeypatch.setattr("sandboxd.http.server.transport.MAX_UNSENT_BYTES", 1024 * KIB)
    async with serving(app) as served, trio.open_nursery() as nursery:
        streams = [await served.connect() for _ in range(40)]
        for stream in streams:
            if version == 1:
                await stream.send_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
            else:
                http = Http2Client(stream)
                http.h2.update_settings({SettingsFrame.INITIAL_WINDOW_SIZE: 2**31 - 1})
                http.h2.increment_flow_control_window(2**30)
                await http.request("GET", "/large")
        await all_called(app, "large", 40)
        assert served.server is not None
        assert 1024 * KIB <= served.server.statistics().unsent <= (1024 + 40 * 48) * KIB
        for stream in streams:
            nursery.start_soon(stream.aclose)


async def test_a_complete_response_that_nobody_takes_is_given_up(app: Any, autojump_clock: Any) -> None:
    """An endless one is its handler's business, and may be read at leisure."""
    async with serving(app, limits=limits(flush_timeout=5)) as served, await served.connect() as stream:
        http = Http2Client(stream)
        await open_without_window(http, "/endless", count=1)
        (number,) = await open_without_window(http, "/large", count=1)
        began = trio.current_time()
        reset = None
        with trio.fail_after(PATIENCE):
            while reset is None:
                for event in http.h2.receive_data(await stream.receive_some()):
                    if isinstance(event, h2.events.StreamReset):
                        reset = event
        assert reset.stream_id == number
        assert trio.current_time() - began == pytest.approx(5, abs=0.5)


async def test_a_connection_whose_peer_takes_nothing_of_a_complete_response_is_given_up(
    app: Any, autojump_clock: Any
) -> None:
    async with serving(app, limits=limits(flush_timeout=5)) as served, await served.connect() as stream:
        await stream.send_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        began = trio.current_time()
        await all_called(app, "large", 1)
        await settled(served)
        assert trio.current_time() - began < 20


async def test_a_response_that_breaks_off_is_not_taken_for_whole(app: Any) -> None:
    async with serving(app) as served, await served.connect() as stream:
        http = Http2Client(stream)
        number = await http.request("GET", "/half-failing")
        with trio.fail_after(PATIENCE):
            while True:
                events = http.h2.receive_data(await stream.receive_some())
                assert not any(isinstance(event, h2.events.StreamEnded) for event in events)
                if any(isinstance(event, h2.events.StreamReset) for event in events):
                    break
        assert (await http.response(await http.request("GET", "/ok")))[0] == "200"
        assert number == 1


async def test_a_connection_with_nothing_but_refused_requests_is_idle(app: Any, autojump_clock: Any) -> None:
    """It must not look busy for ever: nobody would close it."""
    async with serving(app, limits=limits(header_timeout=1)) as served, await served.connect() as stream:
        pieces = iter([next(nonsense()), head(3), RstStreamFrame(3).serialize()])
        began = trio.current_time()
        await flood(stream, pieces)
        await settled(served)
        assert trio.current_time() - began < PATIENCE


# -- what is left of it


async def test_nothing_is_left_of_connections_that_have_ended(app: Any) -> None:
    """Without any search for garbage: in the daemon those are rare."""
    ours = ("sandboxd.http.server", "hypercorn", "quart")

    async def abandon(served: Served, path: str) -> None:
        async with await served.connect() as stream:
            http = Http2Client(stream)
            await open_without_window(http, path, count=5)
            number = await http.request("GET", path)
            await all_called(app, path[1:], 5)
            http.h2.reset_stream(number)
            await http.flush()
        async with await served.connect() as stream:
            await stream.send_all(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
            await stream.receive_some(10)

    def count() -> Counter[str]:
        kinds = (type(each) for each in gc.get_objects())
        return Counter(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith(ours))

    async with serving(app) as served:
        for path in ("/large", "/endless"):
            await abandon(served, path)
        await settled(served)
        gc.collect()
        before = count()
        gc.disable()
        try:
            for path in ("/large", "/endless") * 3:
                app.calls.clear()
                await abandon(served, path)
            await settled(served)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert count() - before == Counter()
        finally:
            gc.enable()


# -- clear text


@pytest.mark.parametrize("allowed", [False, True])
async def test_http2_without_tls_has_to_be_allowed(app: Any, allowed: bool) -> None:
    async with serving(app, limits=ServingLimits(cleartext_http2=allowed)) as served:
        async with await served.connect() as stream:
            await stream.send_all(PREFACE)
            answer = bytes(await stream.receive_some())
            if allowed:
                assert answer[3] == 4  # SETTINGS
            else:
                assert answer.startswith(b"HTTP/1.1 505 ")
                assert b"http.cleartext_http2 = true" in answer
        assert await is_serving(served)
