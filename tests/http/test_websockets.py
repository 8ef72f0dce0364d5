from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import quart
import trio
import trio_websocket
from trio.testing import MockClock

from sandboxd.errors import LaunchFailed, NotFound
from sandboxd.http.kit import websockets
from sandboxd.http.kit.conversation import conversation_of, conversing
from sandboxd.http.kit.errors import Close, ErrorAnswer, ErrorFormat
from sandboxd.http.kit.websockets import INBOUND_BYTES, Overflow, WebsocketSession, websocket_session
from sandboxd.http.native.errors import ERRORS
from sandboxd.http.server import exchange
from sandboxd.http.server.connection import SandboxdApp, WebsocketDisconnected
from sandboxd.http.server.serving import ServingLimits
from tests.http.support import PATIENCE, close_code, serving, websocket

PLAIN = ErrorFormat(answer=lambda error: ErrorAnswer(status=error.status, body=b""))


def app_with(handler: Any, *, errors: ErrorFormat = PLAIN, **options: Any) -> Any:
    """An application with one websocket, whose session `handler` runs; `app.ended` is set when that is over."""
    app: Any = SandboxdApp("websockets")
    app.ended = trio.Event()
    app.asgi_app = conversing(app.asgi_app, errors=errors)

    @app.websocket("/ws")
    async def ws() -> None:
        try:
            async with websocket_session(conversation_of(quart.websocket.scope), **options) as session:
                await handler(session)
        finally:
            app.ended.set()

    return app


async def echo(session: WebsocketSession) -> None:
    async for message in session:
        await session.send(message)


async def wait(event: trio.Event) -> None:
    with trio.fail_after(PATIENCE):
        await event.wait()


async def test_messages_keep_their_kind_and_order() -> None:
    async with serving(app_with(echo)) as served, websocket(served, "/ws") as connection:
        for message in ["text", b"bytes", "", b"", "ünï", b"\xff" * 100_000]:
            await connection.send_message(message)
            with trio.fail_after(PATIENCE):
                assert await connection.get_message() == message


async def test_handler_that_returns_closes_normally() -> None:
    async def greet(session: WebsocketSession) -> None:
        await session.send("hello")

    async with serving(app_with(greet)) as served, websocket(served, "/ws") as connection:
        assert await connection.get_message() == "hello"
        assert await close_code(connection) == 1000


async def test_subprotocol_is_accepted() -> None:
    app = app_with(echo, subprotocol="v1.channel")
    async with (
        serving(app) as served,
        websocket(served, "/ws", subprotocols=["v0", "v1.channel"]) as connection,
    ):
        assert connection.subprotocol == "v1.channel"


async def test_compression_is_not_offered() -> None:
    """A few bytes that inflate to a gigabyte are no message at all then."""
    async with serving(app_with(echo)) as served, await served.connect() as stream:
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-extensions: permessage-deflate\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\n"
        )
        answer = await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in answer


# Leaving


async def test_what_had_arrived_is_delivered_when_the_peer_leaves(autojump_clock: MockClock) -> None:
    received = []
    start = trio.Event()

    async def slow(session: WebsocketSession) -> None:
        await start.wait()
        received.extend([message async for message in session])

    app = app_with(slow)
    async with serving(app) as served:
        async with websocket(served, "/ws") as connection:
            for number in range(50):
                await connection.send_message(str(number))
            await connection.aclose()
        start.set()
        await wait(app.ended)
    assert received == [str(number) for number in range(50)]


async def test_handler_that_waits_for_something_else_is_cancelled_when_the_peer_leaves(
    autojump_clock: MockClock,
) -> None:
    async def wait_for_ever(session: WebsocketSession) -> None:
        await trio.sleep_forever()

    app = app_with(wait_for_ever)
    async with serving(app) as served:
        async with await served.connect() as stream, trio.open_nursery() as nursery:
            await trio_websocket.wrap_client_stream(nursery, stream, "x", "/ws")
            nursery.cancel_scope.cancel()
        await wait(app.ended)


async def test_sending_to_a_peer_that_left_ends_the_session_quietly(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (websockets, exchange):  # however late it notices
        monkeypatch.setattr(module, "DISCONNECT_GRACE", PATIENCE)
    noticed = trio.Event()

    async def tick(session: WebsocketSession) -> None:
        try:
            while True:
                await session.send("tick")
        except WebsocketDisconnected:
            noticed.set()
        await session.send("nobody there")

    app = app_with(tick)
    async with serving(app) as served:
        async with websocket(served, "/ws") as connection:
            await connection.get_message()
        await wait(app.ended)
    assert noticed.is_set()
    assert not caplog.records


async def test_stopping_the_daemon_says_goodbye_at_once(autojump_clock: MockClock) -> None:
    app = app_with(echo)
    async with serving(app, grace=PATIENCE) as served, websocket(served, "/ws") as connection:
        began = trio.current_time()
        served.stop.set()
        assert await close_code(connection) == 1001
        await wait(served.ended)
        assert trio.current_time() - began < 3


# Errors


async def fail(error: Exception, session: WebsocketSession) -> None:
    raise error


async def fail_in_a_nursery(error: Exception, session: WebsocketSession) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fail, error, session)


@pytest.mark.parametrize("how", [fail, fail_in_a_nursery])
@pytest.mark.parametrize(
    ("error", "code", "reason", "logged"),
    [
        (RuntimeError("secret"), 1011, "internal error", True),
        (NotFound("cannot find sandbox abc"), 1008, "cannot find sandbox abc", False),
        (LaunchFailed("cannot start it"), 1011, "cannot start it", False),
        (NotFound("cannot " + "ü" * 100), 1008, "cannot " + "ü" * 58, False),
    ],
)
async def test_error_ends_the_session_with_a_code_that_says_why(how, error, code, reason, logged, caplog) -> None:
    async with serving(app_with(partial(how, error))) as served, websocket(served, "/ws") as connection:
        assert await close_code(connection) == code
        assert connection.closed.reason == reason
    assert ("websocket handler failed" in caplog.text) is logged


async def test_dialect_chooses_its_own_codes() -> None:
    app = app_with(partial(fail, NotFound("no")), errors=ERRORS)
    async with serving(app) as served, websocket(served, "/ws") as connection:
        assert await close_code(connection) == 4404


async def test_first_goodbye_counts() -> None:
    async def twice(session: WebsocketSession) -> None:
        await session.close(Close(4001, "first"))
        await session.close(Close(4002, "second"))
        raise RuntimeError("too late")

    async with serving(app_with(twice)) as served, websocket(served, "/ws") as connection:
        assert await close_code(connection) == 4001


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_reserved_close_codes_are_refused(code: int) -> None:
    with pytest.raises(ValueError, match="reserves"):
        Close(code)


# Speed differences


async def send_until_stuck(connection: trio_websocket.WebSocketConnection, *, limit: int) -> int:
    sent = 0
    while sent < limit:
        with trio.move_on_after(0.7) as waiting:
            await connection.send_message(b"x" * 16_384)
        if waiting.cancelled_caught:
            break
        sent += 16_384
    return sent


async def test_handler_that_is_slow_holds_its_peer_back(autojump_clock: MockClock) -> None:
    resume = trio.Event()
    total = 0

    async def slow(session: WebsocketSession) -> None:
        nonlocal total
        await resume.wait()
        async for message in session:
            total += len(message)

    app = app_with(slow, overflow=Overflow.WAIT)
    limits = ServingLimits(websocket_ping_interval=0.2)  # being held back is no sign of death
    async with serving(app, limits=limits) as served:
        async with websocket(served, "/ws") as connection:
            sent = await send_until_stuck(connection, limit=16 * 2**20)
            assert INBOUND_BYTES <= sent < 4 * 2**20
            resume.set()
        await wait(app.ended)
    assert total >= sent


async def test_peer_that_floods_is_sent_away_where_the_handler_says_so() -> None:
    async def deaf(session: WebsocketSession) -> None:
        await trio.sleep_forever()

    app = app_with(deaf, overflow=Overflow.CLOSE)
    async with serving(app) as served, websocket(served, "/ws") as connection:
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await connection.send_message(b"x" * 16_384)
        assert await close_code(connection) == 1008
        await wait(app.ended)


async def test_peer_that_reads_slowly_holds_the_handler_back(autojump_clock: MockClock) -> None:
    sent = 0
    stuck = trio.Event()

    async def flood(session: WebsocketSession) -> None:
        nonlocal sent
        while sent < 64 * 2**20:
            with trio.move_on_after(1.0) as waiting:
                await session.send(bytes(65_536))
            if waiting.cancelled_caught:
                break
            sent += 65_536
        stuck.set()
        await trio.sleep_forever()

    async with serving(app_with(flood)) as served, await served.connect() as stream:
        await stream.send_all(
            b"GET /ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\n"
        )
        await wait(stuck)
        assert sent < 2 * 2**20


async def test_sends_from_many_tasks_arrive_whole_even_when_some_are_cancelled() -> None:
    done = trio.Event()

    async def send_all(session: WebsocketSession, number: int) -> None:
        for _ in range(40):
            with trio.move_on_after(0.001):
                await session.send(bytes([number]) * 30_000)

    async def many(session: WebsocketSession) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(send_all, session, number)
        await session.send("end")
        done.set()

    async with serving(app_with(many)) as served, websocket(served, "/ws", message_queue_size=1) as connection:
        count = 0
        with trio.fail_after(PATIENCE):
            while (message := await connection.get_message()) != "end":
                assert len(message) == 30_000
                assert len(set(message)) == 1
                count += 1
        await wait(done)
        assert count == 400


def test_nothing_waits_longer_than_the_exchange_lets_it() -> None:
    assert websockets.DISCONNECT_GRACE < exchange.DISCONNECT_GRACE
