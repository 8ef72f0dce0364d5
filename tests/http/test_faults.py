"""The known faults of hypercorn and quart-trio: each test has its control on the stack as shipped.

A control that no longer fails is good news: the fault is gone there, and our repair of it can go too.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import h2.config
import h2.connection
import pytest
import quart
import trio
import trio_websocket
from quart_trio import QuartTrio
from trio.testing import MockClock

from sandboxd.http.server.connection import SandboxdApp
from sandboxd.http.server.serving import ServingLimits
from tests.http.support import (
    PATIENCE,
    Served,
    close_code,
    exchange,
    is_serving,
    leaf,
    read_to_end,
    serving,
    stock_serving,
    websocket,
)

Serve = Callable[..., AbstractAsyncContextManager[Served]]

GET = b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n"
CLOSING_GET = b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bKdPyn3u98cTfZJSh4TNeQ==\r\n"
)


def build(kind: type[QuartTrio], **config: Any) -> Any:
    """The same small application on either base class; `app.messages` and the events tell what its handlers saw."""
    app: Any = kind("faults") if kind is SandboxdApp else kind("faults", static_folder=None)
    app.config.update(config)
    app.logger.disabled = True
    to_test, app.messages = trio.open_memory_channel[Any](10)
    app.entered = trio.Event()
    app.left = trio.Event()
    app.release = trio.Event()

    @app.get("/ok")
    async def ok() -> str:
        return "ok"

    @app.get("/ticks")
    async def ticks() -> Any:
        async def body() -> Any:
            for _ in range(10):
                yield b"tick\n"
                await trio.sleep(0.05)

        return await quart.make_response(body())

    @app.get("/flood")
    async def flood() -> Any:
        async def body() -> Any:
            while True:
                yield bytes(65536)

        response = await quart.make_response(body())
        response.timeout = None
        return response

    @app.post("/held")
    async def held() -> dict[str, int]:
        app.entered.set()
        try:
            await app.release.wait()
        finally:
            app.left.set()
        return {"n": sum([len(chunk) async for chunk in quart.request.body])}

    @app.post("/refused")
    async def refused() -> tuple[str, int]:
        return "no", 403

    @app.websocket("/ws")
    async def listen() -> None:
        await quart.websocket.accept()
        while True:
            to_test.send_nowait(await quart.websocket.receive())

    @app.websocket("/sender")
    async def sender() -> None:
        await quart.websocket.accept()
        try:
            while True:
                await quart.websocket.send("tick")
                await trio.sleep(0.02)
        finally:
            app.left.set()

    @app.websocket("/failing")
    async def failing() -> None:
        await quart.websocket.accept()
        raise RuntimeError("boom")

    return app


# One client's bytes end the whole server


async def send_junk_after_upgrade(served: Served) -> None:
    async with await served.connect() as stream:
        await stream.send_all(UPGRADE + b"\r\n\xff\xff\xff")
        await read_some(stream)


async def send_unreadable_subprotocol(served: Served) -> None:
    async with await served.connect() as stream:
        await stream.send_all(UPGRADE + b"Sec-WebSocket-Protocol: \xff\r\n\r\n")
        await read_some(stream)


async def send_unreadable_host(served: Served) -> None:
    async with await served.connect() as stream:
        await stream.send_all(b"GET /ok HTTP/1.1\r\nHost: \xff\r\n\r\n")
        await read_some(stream)


async def send_late_http2_data(served: Served) -> None:
    """An upload over HTTP/2 that goes on after its early refusal."""
    async with await served.connect() as stream:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        connection.initiate_connection()
        pseudo = [(":method", "POST"), (":path", "/refused"), (":scheme", "http"), (":authority", "a")]
        connection.send_headers(1, pseudo)
        await stream.send_all(connection.data_to_send())
        answered = False
        with trio.fail_after(PATIENCE):
            while not answered:
                events = connection.receive_data(await stream.receive_some())
                answered = any(isinstance(event, h2.events.StreamEnded) for event in events)
        connection.send_data(1, b"still uploading")
        connection.ping(b"are you?")
        await stream.send_all(connection.data_to_send())
        await read_some(stream)


async def read_some(stream: trio.SocketStream) -> None:
    """Stay connected for what the server makes of it: some errors come after the first answer."""

    async def read() -> None:
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.cancel_scope.cancel()


ATTACKS = [send_junk_after_upgrade, send_unreadable_subprotocol, send_unreadable_host, send_late_http2_data]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_no_client_bytes_end_the_server(attack: Any) -> None:
    async with serving(build(SandboxdApp)) as served:
        await attack(served)
        assert await is_serving(served)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_control_stock_server_is_ended_by_client_bytes(attack: Any) -> None:
    settings = {"server_names": ["x"]} if attack is send_unreadable_host else {}
    async with stock_serving(build(QuartTrio), **settings) as served:
        await attack(served)
        assert not await is_serving(served)
    assert leaf(served.died) is not None


# Connections that should close stay open


@pytest.mark.parametrize("raw", [CLOSING_GET, b"GET /ok HTTP/1.0\r\n\r\n"])
@pytest.mark.parametrize("tcp", [False, True])
async def test_connection_closes_when_asked_to(raw: bytes, tcp: bool) -> None:
    async with serving(build(SandboxdApp), tcp=tcp) as served:
        assert (await exchange(served, raw)).endswith(b"ok")


async def test_control_stock_connection_stays_open_when_asked_to_close(autojump_clock: MockClock) -> None:
    async with stock_serving(build(QuartTrio)) as served, await served.connect() as stream:
        await stream.send_all(CLOSING_GET)
        with trio.move_on_after(2) as waiting:
            async for _ in stream:
                pass
        assert waiting.cancelled_caught


async def test_idle_connection_is_closed_after_its_limit(autojump_clock: MockClock) -> None:
    limits = ServingLimits(keep_alive_timeout=0.3)
    async with serving(build(SandboxdApp), limits=limits) as served:
        began = trio.current_time()
        assert (await exchange(served, GET)).endswith(b"ok")
        assert trio.current_time() - began == pytest.approx(0.3, abs=0.1)


async def test_stopping_does_not_wait_for_an_idle_peer(autojump_clock: MockClock) -> None:
    async with serving(build(SandboxdApp), grace=PATIENCE) as served, await served.connect() as stream:
        await stream.send_all(GET)
        await stream.receive_some()
        began = trio.current_time()
        served.stop.set()
        with trio.fail_after(PATIENCE / 2):
            await served.ended.wait()
        assert trio.current_time() - began < 2


# A peer that stops reading holds up the end


async def start_flood(stream: trio.SocketStream) -> None:
    await stream.send_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
    await stream.receive_some(10)


@pytest.mark.parametrize("tcp", [False, True])
async def test_stopping_is_bounded_by_the_grace_whatever_a_peer_does(tcp: bool) -> None:
    async with serving(build(SandboxdApp), grace=0.5, tcp=tcp) as served, await served.connect() as stream:
        await start_flood(stream)
        began = trio.current_time()
        served.stop.set()
        with trio.fail_after(PATIENCE):
            await served.ended.wait()
        assert trio.current_time() - began > 0.4


async def test_cancelling_the_server_is_not_held_up_by_a_peer() -> None:
    with trio.fail_after(PATIENCE), trio.CancelScope() as outside:
        async with serving(build(SandboxdApp), grace=100) as served, await served.connect() as stream:
            await start_flood(stream)
            outside.cancel()
    assert outside.cancelled_caught


async def test_control_stock_server_is_held_up_by_a_peer(autojump_clock: MockClock) -> None:
    async with stock_serving(build(QuartTrio), grace=0.5) as served, await served.connect() as stream:
        await start_flood(stream)
        served.stop.set()
        with trio.move_on_after(2.5) as waiting:
            await served.ended.wait()
        assert waiting.cancelled_caught


# Streams are cut


async def test_stream_outlives_the_frameworks_response_timeout(autojump_clock: MockClock) -> None:
    async with serving(build(SandboxdApp, RESPONSE_TIMEOUT=0.1)) as served:
        received = await exchange(served, b"GET /ticks HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert received.count(b"tick") == 10
    assert received.endswith(b"0\r\n\r\n")


async def test_control_stock_stream_is_cut(autojump_clock: MockClock) -> None:
    async with stock_serving(build(QuartTrio, RESPONSE_TIMEOUT=0.1)) as served, await served.connect() as stream:
        await stream.send_all(b"GET /ticks HTTP/1.1\r\nhost: x\r\n\r\n")
        received = b""
        with trio.move_on_after(1.5):
            async for data in stream:
                received += data
    assert received.count(b"tick") < 10
    assert not received.endswith(b"0\r\n\r\n")


# Uploads know no back-pressure


async def upload_until_stuck(served: Served, *, size: int, patience: float) -> int:
    """How many bytes of an upload the server takes though its handler reads none."""
    sent = 0
    piece = bytes(256 * 1024)
    async with await served.connect() as stream:
        await stream.send_all(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        while sent < size:
            with trio.move_on_after(patience) as waiting:
                await stream.send_all(piece)
            if waiting.cancelled_caught:
                break
            sent += len(piece)
    return sent


async def test_upload_waits_for_its_handler(autojump_clock: MockClock) -> None:
    app = build(SandboxdApp)
    async with serving(app) as served:
        assert await upload_until_stuck(served, size=64 * 2**20, patience=1.0) <= 2 * 2**20
        with trio.fail_after(PATIENCE):
            await app.left.wait()  # and the handler is told that the client left, though it never read


async def test_control_stock_swallows_the_upload(autojump_clock: MockClock) -> None:
    app = build(QuartTrio, MAX_CONTENT_LENGTH=None)
    async with stock_serving(app) as served:
        assert await upload_until_stuck(served, size=64 * 2**20, patience=2.0) == 64 * 2**20


async def test_client_that_leaves_cancels_its_handler() -> None:
    app = build(SandboxdApp)
    async with serving(app) as served:
        async with await served.connect() as stream:
            await stream.send_all(b"POST /held HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            with trio.fail_after(PATIENCE):
                await app.entered.wait()
        with trio.fail_after(PATIENCE):
            await app.left.wait()


# Websockets


async def flood_and_vanish(served: Served) -> None:
    async with websocket(served, "/sender") as connection:
        await connection.get_message()
        for _ in range(100):
            with trio.move_on_after(0.5) as waiting:
                await connection.send_message("x" * 10_000)
            if waiting.cancelled_caught:
                break


async def test_websocket_handler_that_never_receives_learns_that_its_peer_left(autojump_clock: MockClock) -> None:
    app = build(SandboxdApp)
    async with serving(app) as served:
        await flood_and_vanish(served)
        with trio.fail_after(PATIENCE):
            await app.left.wait()


async def test_control_stock_websocket_handler_never_learns(autojump_clock: MockClock) -> None:
    app = build(QuartTrio)
    async with stock_serving(app) as served:
        await flood_and_vanish(served)
        with trio.move_on_after(2):
            await app.left.wait()
        assert not app.left.is_set()


async def send_empty_messages(serve: Serve, app: Any) -> list[Any]:
    async with serve(app) as served, websocket(served, "/ws") as connection:
        await connection.send_message(b"")
        await connection.send_message("")
        with trio.fail_after(PATIENCE):
            return [await app.messages.receive(), await app.messages.receive()]


async def test_empty_binary_message_arrives_as_empty_bytes() -> None:
    assert await send_empty_messages(serving, build(SandboxdApp)) == [b"", ""]


async def test_control_stock_loses_the_empty_binary_message() -> None:
    assert await send_empty_messages(stock_serving, build(QuartTrio)) == [None, ""]


async def test_websocket_handler_that_fails_closes_with_internal_error() -> None:
    async with serving(build(SandboxdApp)) as served, websocket(served, "/failing") as connection:
        assert await close_code(connection) == 1011


async def test_control_stock_failing_handler_closes_normally() -> None:
    async with stock_serving(build(QuartTrio)) as served, websocket(served, "/failing") as connection:
        assert await close_code(connection) == 1000


async def test_websocket_peer_that_never_pongs_is_dropped(autojump_clock: MockClock) -> None:
    app = build(SandboxdApp)
    limits = ServingLimits(websocket_ping_interval=0.1)
    async with serving(app, limits=limits) as served, await served.connect() as stream:
        await stream.send_all(UPGRADE + b"\r\n")
        began = trio.current_time()
        await read_to_end(stream)
        assert 0.2 < trio.current_time() - began < 1


async def test_websocket_peer_that_pongs_is_kept(autojump_clock: MockClock) -> None:
    app = build(SandboxdApp)
    limits = ServingLimits(websocket_ping_interval=0.1)
    async with serving(app, limits=limits) as served, websocket(served, "/ws") as connection:
        with trio.move_on_after(1.0), pytest.raises(trio_websocket.ConnectionClosed):
            await connection.get_message()
        await connection.send_message("still here")
        with trio.fail_after(PATIENCE):
            assert await app.messages.receive() == "still here"


# Smaller ones


async def test_lifespan_is_never_started() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(app) as served:
        assert await is_serving(served)
    assert scopes == ["http"]


async def test_http2_upgrade_of_a_request_is_not_taken() -> None:
    raw = (
        b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close, upgrade, http2-settings\r\n"
        b"upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving(build(SandboxdApp)) as served:
        assert (await exchange(served, raw)).startswith(b"HTTP/1.1 200")
