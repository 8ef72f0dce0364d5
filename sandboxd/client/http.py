"""HTTP/1.1 for the client: h11 over a stream, and a pool of kept-alive connections.

Small on purpose: a general HTTP library costs the client twice the time per request and much of its start-up.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

import h11

from sandboxd.client.address import Address
from sandboxd.client.errors import ConnectionLost, api_error
from sandboxd.client.network import Disconnected, Network, Stream

READ_BYTES = 256 * 1024
MAX_IDLE = 16
Headers = Sequence[tuple[str, str]]
Body = bytes | AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful response: iterate over it for its body piece by piece, or `read` it whole."""

    status: int
    size: int | None
    """Content-Length, where the daemon knows it"""
    _connection: "HttpConnection"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if data := await self._connection.receive_data():
            return data
        raise StopAsyncIteration

    async def read(self) -> bytes:
        return await self._connection.receive_all()


class HttpConnection:
    """One connection, one request at a time. Owns: the stream."""

    def __init__(self, stream: Stream, network: Network) -> None:
        self._stream = stream
        self._network = network
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(self, request: h11.Request, body: Body) -> h11.Response:
        """Send a request; returns the head of its final response. Raises: ConnectionLost, or what `body` raises."""
        head = self._h11.send(request) or b""
        if not isinstance(body, bytes):
            return await self._send_paced(head, body)
        if body:
            head += self._h11.send(h11.Data(body)) or b""
        try:
            await self._stream.send_all(head + (self._h11.send(h11.EndOfMessage()) or b""))
        except Disconnected as error:
            raise ConnectionLost("cannot send the request: the daemon closed the connection") from error
        return await self._receive_head()

    async def _send_paced(self, head: bytes, chunks: AsyncIterable[bytes]) -> h11.Response:
        """Send a body of any length and listen meanwhile: an answer that comes early is a refusal."""
        responses: list[h11.Response] = []

        async def send() -> None:
            with suppress(Disconnected):  # the response, if there is one, says why
                await self._send_chunks(head, chunks)

        async def receive() -> None:
            responses.append(await self._receive_head())

        await self._network.run_until(send, until=receive)
        return responses[0]

    async def _send_chunks(self, head: bytes, chunks: AsyncIterable[bytes]) -> None:
        await self._stream.send_all(head)
        async for chunk in chunks:
            if not self._network.concurrent and self._stream.has_input():
                return  # an answer already: a refusal, and nobody else is there to receive it
            if data := self._h11.send(h11.Data(chunk)):
                await self._stream.send_all(data)
        if data := self._h11.send(h11.EndOfMessage()):
            await self._stream.send_all(data)

    async def _receive_head(self) -> h11.Response:
        while True:
            event = await self._next_event()
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                raise ConnectionLost("cannot read the daemon's answer: it closed the connection")

    async def receive_data(self) -> bytes:
        """The next piece of the body; `b""` at its end."""
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def receive_all(self) -> bytes:
        parts = []
        while data := await self.receive_data():
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _next_event(self) -> h11.Event:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))
        except Disconnected as error:
            raise ConnectionLost("cannot read the daemon's answer: the connection broke") from error
        except h11.RemoteProtocolError as error:
            raise ConnectionLost(f"cannot read the daemon's answer: {error}") from error
        if isinstance(event, type):  # PAUSED: only a server that switches protocols unasked
            raise ConnectionLost("cannot read the daemon's answer: it is not HTTP")
        return event

    def finish(self) -> bool:
        """Whether the exchange is over on both sides and another may follow."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    def is_stale(self) -> bool:
        """Whether the daemon has closed an idle connection (it never speaks first)."""
        return self._stream.has_input()

    def close(self) -> None:
        """Close the connection at once."""
        self._stream.close()


class HttpPool:
    """Kept-alive connections to one address. Owns: the idle ones; `close` drops them."""

    def __init__(self, address: Address, headers: Headers, network: Network) -> None:
        self._address = address
        self._network = network
        self._headers = [("Host", address.authority), *headers]
        self._idle: list[HttpConnection] = []

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    @asynccontextmanager
    async def exchange(
        self, method: str, target: str, body: Body = b"", headers: Headers = ()
    ) -> AsyncIterator[Answer]:
        """One request and its response. `body` is JSON, or a stream whose type and framing `headers` give.

        Raises: ApiError when the daemon refuses, DaemonUnreachable, ConnectionLost.
        """
        request = h11.Request(
            method=method,
            target=self._address.prefix + target,
            headers=[*self._headers, *_json_headers(body), *headers],
        )
        connection = await self._connect()
        try:
            response = await connection.send(request, body)
            if response.status_code >= 400:
                raise api_error(response.status_code, await connection.receive_all())
            yield Answer(response.status_code, _length(response), connection)
        finally:
            self._release(connection)

    async def _connect(self) -> HttpConnection:
        while (connection := self._take_idle()) is not None:
            if not connection.is_stale():
                return connection
            connection.close()
        return HttpConnection(await self._address.connect(self._network), self._network)

    def _take_idle(self) -> HttpConnection | None:
        try:
            return self._idle.pop()
        except IndexError:  # none left; other threads take them too
            return None

    def _release(self, connection: HttpConnection) -> None:
        if len(self._idle) < MAX_IDLE and connection.finish():
            self._idle.append(connection)
        else:
            connection.close()


def _json_headers(body: Body) -> Headers:
    """Of a body that is sent in one piece; a stream's sender says what it is."""
    if not body or not isinstance(body, bytes):
        return []
    return [("Content-Length", str(len(body))), ("Content-Type", "application/json")]


def _length(response: h11.Response) -> int | None:
    return next((int(value) for name, value in response.headers if name == b"content-length"), None)
