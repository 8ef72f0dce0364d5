"""The client's end of a websocket, against wsproto's other end on a real pair of sockets."""

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import wsproto
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from sandboxd.client.errors import ApiError, ConnectionLost
from sandboxd.client.network.on_trio import TRIO, TrioStream
from sandboxd.client.websocket import MAX_MESSAGE_BYTES, WebSocket, WebSocketClosed


class Server:
    """The other end: says what it is told to, and collects what it hears."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)

    async def say(self, *events: Event) -> None:
        """All of it in one piece."""
        await self.stream.send_all(b"".join(self._protocol.send(event) for event in events))

    async def hear(self) -> Sequence[Event]:
        while True:
            self._protocol.receive_data(bytes(await self.stream.receive_some()) or None)
            if events := list(self._protocol.events()):
                return events


@pytest.fixture
async def ends() -> AsyncIterator[tuple[WebSocket, Server]]:
    ours, theirs = (trio.SocketStream(end) for end in trio.socket.socketpair())
    async with ours, theirs:
        yield WebSocket(TrioStream(ours), TRIO), Server(theirs)


@pytest.fixture
async def open_ends(ends: tuple[WebSocket, Server]) -> tuple[WebSocket, Server]:
    client, server = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.open, "host", "/path", [("X-Key", "secret")])
        (request,) = await server.hear()
        assert isinstance(request, Request)
        assert (request.target, dict(request.extra_headers)[b"x-key"]) == ("/path", b"secret")
        await server.say(AcceptConnection())
    return ends


async def test_messages_come_and_go(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await server.say(TextMessage("text"), BytesMessage(b"bytes"), BytesMessage(b""))
    assert [await client.receive() for _ in range(3)] == ["text", b"bytes", b""]
    await client.send("text")
    await client.send(b"bytes")
    assert [event.data for event in await server.hear()] == ["text", b"bytes"]


async def test_a_message_in_pieces_is_one_message(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await server.say(BytesMessage(b"a", message_finished=False), Ping(), BytesMessage(b"b"))
    assert await client.receive() == b"ab"


async def test_a_ping_is_answered(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await server.say(Ping(b"mark"), TextMessage("after"))
    assert await client.receive() == "after"
    assert await server.hear() == [Pong(b"mark")]


async def test_what_comes_between_a_ping_and_the_end_is_not_lost(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await server.say(Ping(), TextMessage("last"), CloseConnection(4404, "gone"))
    assert await client.receive() == "last"
    with pytest.raises(WebSocketClosed) as closed:
        await client.receive()
    assert (closed.value.code, closed.value.reason) == (4404, "gone")


async def test_what_was_said_before_hanging_up_is_heard(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await client.send("never read: the kernel resets the connection")
    await server.say(Ping(), TextMessage("last"))
    await server.stream.aclose()
    assert await client.receive() == "last"
    with pytest.raises(WebSocketClosed) as closed:
        await client.receive()
    assert closed.value.code == 1006


async def test_a_heartbeat_is_a_pong(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await client.send_heartbeat()
    assert await server.hear() == [Pong()]


async def test_closing_says_goodbye(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    await client.aclose()
    (goodbye,) = await server.hear()
    assert isinstance(goodbye, CloseConnection)
    assert goodbye.code == 1000
    with pytest.raises(WebSocketClosed):
        await client.send("too late")
    await client.aclose()


async def test_a_message_over_the_limit_ends_it(open_ends: tuple[WebSocket, Server]) -> None:
    client, server = open_ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.say, BytesMessage(bytes(MAX_MESSAGE_BYTES + 1)))
        with pytest.raises(WebSocketClosed) as closed:
            await client.receive()
        assert closed.value.code == 1009
        nursery.cancel_scope.cancel()


async def test_a_refusal_is_the_daemons_error(ends: tuple[WebSocket, Server]) -> None:
    client, server = ends
    body = b'{"error": "cannot find it", "kind": "not_found", "details": {"id": "x"}}'
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def refuse() -> None:
            await server.hear()
            length = (b"content-length", str(len(body)).encode())
            await server.say(RejectConnection(status_code=404, headers=[length], has_body=True), RejectData(body))

        with pytest.raises(ApiError) as caught:
            await client.open("host", "/path", [])
    assert (caught.value.status, caught.value.kind, caught.value.details) == (404, "not_found", {"id": "x"})


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
async def test_what_is_no_handshake_is_a_lost_connection(ends: tuple[WebSocket, Server], answer: bytes) -> None:
    client, server = ends
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def answer_something() -> None:
            await server.hear()
            await server.stream.send_all(answer)
            await server.stream.aclose()

        with pytest.raises(ConnectionLost):
            await client.open("host", "/path", [])
