"""Websockets through the daemon to a program in a sandbox, with a client library that is not the proxy's."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    wrap_client_stream,
)

from tests.ports.conftest import Served
from tests.ports.test_http import requests_under_way
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user

LIMIT = 60.0
MIB = 1024 * 1024


@asynccontextmanager
async def websocket(
    served: Served,
    query: str = "",
    *,
    host: str = "x",
    target: str | None = None,
    subprotocols: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[WebSocketConnection]:
    """By path with the key, unless said otherwise. Leaving the block cuts the connection."""
    sent = served.key if headers is None else headers
    extra = [(name.encode(), value.encode()) for name, value in sent.items()]
    with trio.fail_after(LIMIT):
        stream = await trio.open_tcp_stream(*served.address)
        async with trio.open_nursery() as nursery:
            try:
                yield await wrap_client_stream(
                    nursery,
                    stream,
                    host,
                    target or f"{served.path}/ws{query}",
                    subprotocols=subprotocols or None,
                    extra_headers=extra,
                    max_message_size=64 * MIB,
                )
            finally:
                nursery.cancel_scope.cancel()
                await trio.aclose_forcefully(stream)


async def test_messages_pass_both_ways_with_their_type(served: Served) -> None:
    async with websocket(served) as socket:
        for message in ("text é", "", b"\0\xff", b"", "x" * 100_000, b"y" * 100_000):
            await socket.send_message(message)
            assert await socket.get_message() == message


async def test_a_message_in_fragments_arrives_whole(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message("fragments")
        assert await socket.get_message() == "one two three"


async def test_large_messages_pass(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message(f"big {8 * MIB}")
        assert await socket.get_message() == b"x" * (8 * MIB)
        await socket.send_message(b"z" * (2 * MIB))
        assert await socket.get_message() == b"z" * (2 * MIB)


async def test_a_message_beyond_the_bound_ends_with_1009(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message(f"big {17 * MIB}")
        assert await closed(socket) == (1009, "cannot pass on a message of more than 16777216 bytes")


async def test_pings_are_answered_on_both_sides(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.ping(b"mine")
        await socket.send_message("ping")
        assert await socket.get_message() == "pinged"
        await socket.send_message("still here")
        assert await socket.get_message() == "still here"


async def test_the_program_chooses_the_subprotocol(served: Served) -> None:
    async with websocket(served, subprotocols=["one", "two"]) as socket:
        assert socket.subprotocol == "two"


async def test_the_handshakes_headers_pass(served: Served) -> None:
    async with websocket(served, headers={**served.key, "X-Mine": "1", "Origin": "http://mine"}) as socket:
        assert (b"x-program", b"websocket") in list(socket.handshake_headers)
        await socket.send_message("headers")
        seen = dict(json.loads(await socket.get_message()))
    assert (seen["x-mine"], seen["origin"]) == ("1", "http://mine")
    assert served.access.key not in str(seen)
    assert seen["x-forwarded-prefix"] == served.path


async def test_a_refusal_of_the_program_is_its_own_answer(served: Served) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConnectionRejected), flatten_subgroups=True, allow_unwrapped=True
    ) as refused:
        async with websocket(served, "?reject=418"):
            pass
    error = leaf(refused.value)
    assert (error.status_code, error.body) == (418, b"no")
    assert (b"x-why", b"because") in list(error.headers)


def leaf(error: BaseException) -> ConnectionRejected:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ConnectionRejected)
    return error


async def refused_with(served: Served, **options: object) -> tuple[int, str]:
    try:
        async with websocket(served, **options):  # type: ignore[arg-type]
            raise AssertionError("it was accepted")
    except* ConnectionRejected as rejected:
        error = leaf(rejected)
    return error.status_code, json.loads(error.body)["kind"]


async def test_refusals_of_the_daemon_say_why(served: Served) -> None:
    closed_port = served.path.replace("8000", "9") + "/ws"
    assert await refused_with(served, target=closed_port) == (502, "port_closed")
    assert await refused_with(served, headers={}) == (401, "unauthenticated")
    missing = served.path.replace(served.id, "s" + "0" * 20) + "/ws"
    assert await refused_with(served, target=missing) == (404, "not_found")
    no_handshake = (
        f"{served.path}/raw?hex=" + b"HTTP/1.1 101 x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n".hex()
    )
    assert await refused_with(served, target=no_handshake) == (502, "bad_answer")


async def closed(socket: WebSocketConnection) -> tuple[int, str | None]:
    try:
        while True:
            await socket.get_message()
    except ConnectionClosed as end:
        reason: CloseReason = end.reason
        return reason.code, reason.reason


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4321])
async def test_the_programs_close_reaches_the_client(served: Served, code: int) -> None:
    async with websocket(served) as socket:
        await socket.send_message(f"close {code} that is why")
        assert await closed(socket) == (code, "that is why")


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_the_clients_close_reaches_the_program(served: Served, code: int) -> None:
    async with websocket(served) as socket:
        await socket.send_message("hello")
        await socket.get_message()
        await socket.aclose(code, "that was it")
    wait_until(lambda: served.box.shell("cat /tmp/closed")["stdout"] == f"{code} that was it\n")


async def test_a_client_that_vanishes_is_gone_for_the_program_too(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message("hello")
        await socket.get_message()
    await trio.to_thread.run_sync(lambda: wait_until(lambda: requests_under_way(served) == 1))
    assert "1006" in served.box.shell("cat /tmp/closed || echo 1006")["stdout"]


async def test_a_program_that_vanishes_ends_it_with_1014(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message("die")
        assert (await closed(socket))[0] == 1014


async def test_what_is_no_frame_ends_it(served: Served) -> None:
    async with websocket(served) as socket:
        await socket.send_message("garbage")
        assert (await closed(socket))[0] == 1002


async def test_a_program_that_does_not_read_holds_its_client_back(served: Served) -> None:
    """Both wait; nothing is kept for either."""
    async with websocket(served) as socket:
        await socket.send_message("hello")
        await socket.get_message()
        served.box.shell("pkill -STOP -f program.py", user="root")
        sent = 0
        with trio.move_on_after(2):
            while sent < 200:
                await socket.send_message(b"x" * MIB)
                sent += 1
        served.box.shell("pkill -CONT -f program.py", user="root")
    assert sent < 64


async def test_a_token_opens_a_websocket_by_host_name(served: Served) -> None:
    exposed = served.expose(token=True)
    target = f"/ws?sandboxd_token={exposed['token']}"
    async with websocket(served, host=exposed["host"], target=target, headers={}) as socket:
        await socket.send_message("hello")
        assert await socket.get_message() == "hello"
    assert (await refused_with(served, host=exposed["host"], target="/ws", headers={}))[0] == 401


async def test_many_at_once(served: Served) -> None:
    async def talk(number: int) -> None:
        async with websocket(served) as socket:
            for turn in range(5):
                await socket.send_message(f"{number}.{turn}")
                assert await socket.get_message() == f"{number}.{turn}"

    async with trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(talk, number)


async def test_a_stopping_daemon_says_so_to_both(own_served: Served) -> None:
    daemon = own_served.box.daemon
    async with websocket(own_served) as socket:
        await socket.send_message("hello")
        await socket.get_message()
        assert await trio.to_thread.run_sync(daemon.stop) == 0
        assert (await closed(socket))[0] == 1001
    daemon.start()
    wait_until(lambda: own_served.box.shell("cat /tmp/closed")["stdout"] == "1001 the daemon is stopping\n")
