"""One proxied websocket: the handshake passed on, then messages in both directions, then the close with its code.

Pings are answered on each side by itself: that a client is alive is the server's business, and a program's connection
breaks when the program dies. Extensions are not negotiated; messages are passed on whole.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11
import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, generate_accept_token, generate_nonce

from sandboxd.errors import BadGateway
from sandboxd.http.kit.conversation import conversation_of, key_revoked
from sandboxd.http.kit.errors import Close, close_for
from sandboxd.http.kit.websockets import GOING_AWAY
from sandboxd.http.proxy.forwarding import Forwarding
from sandboxd.http.proxy.headers import RawHeaders, first, to_client
from sandboxd.http.proxy.upstream import READ_BYTES, Upstream, UpstreamPool, no_answer
from sandboxd.service.sandboxes.entry import Entry

# As the daemon takes from its own clients.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# Seconds a program gets to answer a goodbye.
CLOSE_PATIENCE = 1.0

TOO_BIG = Close(1009, f"cannot pass on a message of more than {MAX_MESSAGE_BYTES} bytes")
REVOKED = close_for(key_revoked())
BROKEN = Close(1014, "the program closed the connection without a word")

# RFC 6455 §7.1.5: what a connection that broke is said to be closed with.
ABNORMAL = 1006


@dataclass(eq=False, kw_only=True)
class ProxyWebsocket(Forwarding):
    """Owns: the connection to the program, closed when `run` ends.

    Cancelled: when the client has left; the program's connection is closed.
    Raises (from `run`, only before the handshake is answered): SandboxdError, what the client is to be told.
    """

    def __post_init__(self) -> None:
        self._nonce = generate_nonce()
        self._sending = trio.StrictFIFOLock()
        self._closed = False
        self._stream: trio.SocketStream
        self._connection: Connection

    async def run(self, pool: UpstreamPool, entry: Entry) -> None:
        request = self._request()
        upstream = await pool.take(entry, self.wanted.port, reuse=False)
        try:
            await upstream.send(request, h11.EndOfMessage())
            response = await self._response(upstream)
            if isinstance(response, h11.InformationalResponse):
                await self._accept(upstream, response)
            else:
                await self._reject(upstream, response)
        finally:
            upstream.close()

    # -- the handshake -------------------------------------------------------------------------------------------

    def _request(self) -> h11.Request:
        handshake = [
            (b"connection", b"Upgrade"),
            (b"upgrade", b"websocket"),
            (b"sec-websocket-version", b"13"),
            (b"sec-websocket-key", self._nonce),
        ]
        if subprotocols := self.scope["subprotocols"]:
            handshake.append((b"sec-websocket-protocol", ", ".join(subprotocols).encode("latin-1")))
        return self._head(b"GET", handshake)

    async def _response(self, upstream: Upstream) -> h11.Response | h11.InformationalResponse:
        limit = self.limits.ports.response_timeout
        with trio.move_on_after(limit) as timer:
            response = await upstream.receive()
        if timer.cancelled_caught:
            raise no_answer(self.wanted.port, limit)
        assert isinstance(response, h11.Response | h11.InformationalResponse)
        return response

    async def _accept(self, upstream: Upstream, response: h11.InformationalResponse) -> None:
        given: RawHeaders = list(response.headers)
        if first(given, b"sec-websocket-accept") != generate_accept_token(self._nonce):
            raise BadGateway(f"cannot open a websocket on port {self.wanted.port}: its answer is none")
        subprotocol = (first(given, b"sec-websocket-protocol") or b"").decode("latin-1") or None
        if subprotocol is not None and subprotocol not in self.scope["subprotocols"]:
            raise BadGateway(f"cannot open a websocket on port {self.wanted.port}: it chose an unknown subprotocol")
        headers = [item for item in to_client(given, prefix=self.wanted.prefix) if not item[0].startswith(b"sec-")]
        self._stream, rest = upstream.switched()
        self._connection = Connection(ConnectionType.CLIENT, [], rest)
        await self.send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers})
        async with trio.open_nursery() as nursery:
            conversation, revoked = conversation_of(self.scope), trio.Event()
            nursery.start_soon(self._end_when, conversation.stopping, GOING_AWAY, nursery.cancel_scope)
            nursery.start_soon(self._end_when, revoked, REVOKED, nursery.cancel_scope)
            nursery.start_soon(self._from_client, nursery.cancel_scope)
            with conversation.ended_gently(revoked.set):
                await self._from_program()
            nursery.cancel_scope.cancel("the program has closed it")

    async def _reject(self, upstream: Upstream, response: h11.Response) -> None:
        """The program refuses in HTTP: its answer is the client's."""
        headers = to_client(response.headers, prefix=self.wanted.prefix)
        body = b""
        while isinstance(event := await upstream.receive(), h11.Data):
            body += event.data
            if len(body) > MAX_MESSAGE_BYTES:
                raise BadGateway(f"cannot pass on the answer of port {self.wanted.port}: it is too long")
        headers = [item for item in headers if item[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        start = {"type": "websocket.http.response.start", "status": response.status_code, "headers": headers}
        await self.send(start)
        await self.send({"type": "websocket.http.response.body", "body": body, "more_body": False})

    # -- messages ------------------------------------------------------------------------------------------------

    async def _from_client(self, everything: trio.CancelScope) -> None:
        while (message := await self.receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                await self._tell(_event_of(message))
        if message.get("code", ABNORMAL) != ABNORMAL:  # otherwise the program too is left without a word
            await self._tell(CloseConnection(code=message["code"], reason=message.get("reason") or None))
            await trio.sleep(CLOSE_PATIENCE)  # cut short when the program's answer comes
        everything.cancel("the client has left")

    async def _from_program(self) -> None:
        """Until its close, which is passed on."""
        parts = _Parts()
        while True:
            for event in self._connection.events():
                if isinstance(event, Ping):
                    await self._tell(event.response())
                elif isinstance(event, Message):
                    parts.add(event)
                    if parts.size > MAX_MESSAGE_BYTES:
                        await self._end(TOO_BIG.code, TOO_BIG.reason)
                        return
                    if event.message_finished:
                        await self.send({"type": "websocket.send", **parts.take()})
                elif isinstance(event, CloseConnection):
                    await self._end(event.code, event.reason)
                    return
            if not (data := await self._read()):
                await self._close(BROKEN.code, BROKEN.reason)
                return
            self._connection.receive_data(data)

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _end_when(self, event: trio.Event, close: Close, everything: trio.CancelScope) -> None:
        await event.wait()
        # The client first: a program that hears of it may be gone before the client knows why.
        await self._close(close.code, close.reason)
        await self._tell(CloseConnection(code=close.code, reason=close.reason))
        everything.cancel(close.reason)

    async def _end(self, code: int, reason: str | None) -> None:
        """Close on both sides; towards the program this is its answer, if it began."""
        await self._tell(CloseConnection(code=code, reason=reason))
        await self._close(code, reason)

    async def _close(self, code: int, reason: str | None) -> None:
        """Only the first counts."""
        if self._closed:
            return
        self._closed = True
        await self.send({"type": "websocket.close", "code": code, "reason": reason})

    async def _tell(self, event: Event) -> None:
        # What is closed, or closing, `_from_program` sees too, and says so.
        async with self._sending:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, LocalProtocolError):
                await self._stream.send_all(bytes(self._connection.send(event)))


class _Parts:
    """A message while it comes in."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[Any] = []

    def add(self, event: Message[Any]) -> None:
        self._parts.append(event.data)
        self.size += len(event.data)

    def take(self) -> dict[str, str | bytes]:
        parts, self._parts, self.size = self._parts, [], 0
        return {"text": "".join(parts)} if isinstance(parts[0], str) else {"bytes": b"".join(parts)}


def _event_of(message: Mapping[str, Any]) -> Event:
    data = message.get("bytes")
    return TextMessage(data=message["text"]) if data is None else BytesMessage(data=data)
