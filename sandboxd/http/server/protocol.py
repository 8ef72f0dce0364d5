"""hypercorn's HTTP/1.1 and HTTP/2 state machines, with what its configuration cannot reach put right.

They know no socket: bytes come in as `RawData`, go out through a callback, and `transport.py` drives them. Each
override names the fault it repairs; all of them are reachable by one client's bytes.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h2.errors
import h2.events
import h2.exceptions
import h11
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.events import Event as WebsocketEvent

from sandboxd.http.server.exchange import ExchangeTasks, WatchedEvent
from sandboxd.http.server.stack import (
    STREAM_ID,
    ASGIFramework,
    ASGIWebsocketState,
    Closed,
    Event,
    H2Protocol,
    H2ProtocolAssumedError,
    H11Protocol,
    H11WSConnection,
    HypercornConfig,
    RawData,
    StreamBody,
    StreamClosed,
    StreamEvent,
    StreamRequest,
    Updated,
    WorkerContext,
    WSStream,
)
from sandboxd.http.server.stack import ConnectionState as ServedState

Address = tuple[str, int]
RawHeaders = Iterable[tuple[bytes, bytes]]

# hypercorn decodes these as ASCII without a net when it reads a websocket handshake.
_HANDSHAKE_LISTS = frozenset({b"connection", b"sec-websocket-extensions", b"sec-websocket-protocol"})


def _handshake_is_readable(headers: RawHeaders) -> bool:
    return all(value.isascii() for name, value in headers if name in _HANDSHAKE_LISTS)


def _without_extensions(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Hide the offer of permessage-deflate: hypercorn always takes it, and it inflates 64 KiB to 64 MiB unasked.

    Compression would also cost a terminal more time per key than the bytes it saves on a local socket.
    """
    return [(name, value) for name, value in headers if name != b"sec-websocket-extensions"]


def is_websocket(request: h11.Request) -> bool:
    headers = dict(request.headers)
    tokens = [token.strip().lower() for token in headers.get(b"connection", b"").split(b",")]
    return request.method == b"GET" and b"upgrade" in tokens and headers[b"upgrade"].strip().lower() == b"websocket"


class Websocket(WSStream):
    """A websocket whose application learns with what code and reason its peer closed; hypercorn always says 1006."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._goodbye: CloseConnection | None = None

    async def _send_wsproto_event(self, event: WebsocketEvent) -> None:
        if isinstance(event, CloseConnection) and self.connection.state is ConnectionState.REMOTE_CLOSING:
            self._goodbye = event  # an answer repeats what was said
        await super()._send_wsproto_event(event)

    async def handle(self, event: StreamEvent) -> None:
        if not isinstance(event, StreamClosed) or self._goodbye is None or self.closed or self.app_put is None:
            await super().handle(event)
            return
        self.closed = True
        code, reason = self._goodbye.code, self._goodbye.reason or ""
        await self.app_put({"type": "websocket.disconnect", "code": code, "reason": reason})


class Http1(H11Protocol):
    """HTTP/1.0 and 1.1, and websockets over them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Stock hypercorn notices a pipelining client's leaving only when its first request has been answered.
        self.can_read = WatchedEvent(cast("ExchangeTasks", self.task_group).hung_up)

    async def handle(self, event: Event) -> None:
        stream = self.stream
        if not isinstance(event, RawData) or not isinstance(stream, WSStream) or stream.handshake.accepted:
            await super().handle(event)
        elif event.data and stream.state is ASGIWebsocketState.HANDSHAKE:
            await self._refuse()  # a client has nothing to send before it is accepted (RFC 6455 §4.1)

    async def _refuse(self) -> None:
        """Answer 400 and close, where hypercorn would trip over its own states."""
        await self._send_error_response(400)
        await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        """Take HTTP/2 by prior knowledge only.

        The h2c upgrade, which stock hypercorn also takes, is obsolete (RFC 9113 §3.1) and one parser more to attack.
        """
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            if self.connection.trailing_data[0] or not _handshake_is_readable(request.headers):
                await self._refuse()
                return
            request = h11.Request(
                method=request.method,
                headers=_without_extensions(request.headers),
                target=request.target,
                http_version=request.http_version,
            )
            if is_websocket(request):
                await self._create_websocket(request)
                return
        await super()._create_stream(request)

    async def _create_websocket(self, request: h11.Request) -> None:
        """As in hypercorn, but for the class."""
        stream = Websocket(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        self.stream = stream
        self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        await stream.handle(
            StreamRequest(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method="GET",
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        await self.context.mark_request()

    @property
    def websocket_overflowed(self) -> bool:
        """Whether a websocket message has passed its limit.

        hypercorn answers it with a close frame (1009) but goes on collecting the message for as long as it lasts.
        """
        stream = self.stream
        return isinstance(stream, WSStream) and stream.buffer.length > stream.buffer.max_length


class Http2(H2Protocol):
    """HTTP/2, and websockets over it.

    hypercorn acknowledges body data as it comes and then waits for the handler, so that one slow upload holds up all
    its neighbours. Here data is acknowledged as the handler takes it, which is what HTTP/2's windows are for.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._unacknowledged: dict[int, int] = {}

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if not isinstance(event, h2.events.DataReceived):
                await super()._handle_events([event])
            elif event.stream_id in self._unacknowledged:
                await self._take_data(event)
            elif event.stream_id in self.streams:
                await super()._handle_events([event])
            else:
                self._refuse_late_data(event)
        await self._flush()

    async def _take_data(self, event: h2.events.DataReceived) -> None:
        padding = event.flow_controlled_length - len(event.data)
        self.connection.acknowledge_received_data(padding, event.stream_id)
        self._unacknowledged[event.stream_id] += len(event.data)
        await self.streams[event.stream_id].handle(StreamBody(stream_id=event.stream_id, data=event.data))

    async def _acknowledge(self, stream_id: int, size: int) -> None:
        if size and stream_id in self._unacknowledged:
            self._unacknowledged[stream_id] -= size
            self.connection.acknowledge_received_data(size, stream_id)
            await self._flush()

    async def _close_stream(self, stream_id: int) -> None:
        """What nobody will read any more still counts against the connection's window."""
        await self._acknowledge(stream_id, self._unacknowledged.get(stream_id, 0))
        self._unacknowledged.pop(stream_id, None)
        await super()._close_stream(stream_id)

    def _refuse_late_data(self, event: h2.events.DataReceived) -> None:
        """Take body data that arrives after the response has ended (stock: KeyError), and ask the peer to stop."""
        self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it may be closed on both sides already
            self.connection.reset_stream(event.stream_id, h2.errors.ErrorCodes.NO_ERROR)

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        headers = request.headers or []
        names = {name for name, _ in headers}
        routable = names >= {b":method", b":path"}
        readable = all(value.isascii() for name, value in headers if name.startswith(b":"))
        if not (routable and readable and _handshake_is_readable(headers)):
            self.connection.reset_stream(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        request.headers = _without_extensions(headers)
        websocket = any(name == b":method" and value.upper() == b"CONNECT" for name, value in headers)
        if not websocket:
            self._unacknowledged[request.stream_id] = 0
        credit = None if websocket else partial(self._acknowledge, request.stream_id)
        cast("ExchangeTasks", self.task_group).grant_by(credit)
        await super()._create_stream(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolContext:
    """What every protocol on one connection is made from; the fields are hypercorn's constructor arguments."""

    app: ASGIFramework
    config: HypercornConfig
    context: WorkerContext
    task_group: Any
    connection_state: ServedState
    ssl: bool
    client: Address | None
    server: Address | None
    send: Callable[[Event], Awaitable[None]]

    def make(self, protocol: type[H11Protocol] | type[H2Protocol]) -> Any:
        return protocol(
            cast("Any", self.app),  # only our own task group calls it, as plain ASGI
            self.config,
            self.context,
            self.task_group,
            self.connection_state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )


class ProtocolSwitch:
    """The protocol now spoken on a connection: HTTP/1.1 until the peer proves that it speaks HTTP/2."""

    def __init__(self, context: ProtocolContext, *, alpn: str | None = None) -> None:
        self._context = context
        self._current: Http1 | Http2 = context.make(Http2 if alpn == "h2" else Http1)

    async def initiate(self) -> None:
        await self._current.initiate()

    async def handle(self, event: Event) -> None:
        try:
            await self._current.handle(event)
        except H2ProtocolAssumedError as switch:
            self._current = self._context.make(Http2)
            await self._current.initiate()
            # The preface counted as a request; without this a connection that sends nothing else is never idle.
            await self._context.send(Updated(idle=True))
            await self._current.handle(RawData(switch.data))

    @property
    def websocket_overflowed(self) -> bool:
        return isinstance(self._current, Http1) and self._current.websocket_overflowed

    @property
    def awaits_request(self) -> bool:
        """Whether HTTP/1.1 is between requests, so that an unfinished one may be answered with an error."""
        return isinstance(self._current, Http1) and self._current.connection.our_state is h11.IDLE
