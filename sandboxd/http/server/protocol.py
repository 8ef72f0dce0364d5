"""hypercorn's HTTP/1.1 and HTTP/2 state machines, with what its configuration cannot reach put right.

They know no socket: bytes come in as `RawData`, go out through a callback, and `transport.py` drives them. Each
override names the fault it repairs; all of them are reachable by one client's bytes.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h11
import trio
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.events import Event as WebsocketEvent

from sandboxd.http.server.exchange import TIME_SLICE, ExchangeTasks, WatchedEvent
from sandboxd.http.server.frames import RESET_COST, RESPONSE_GRANT, FrameBudget, FrameCutter
from sandboxd.http.server.stack import (
    STREAM_ID,
    ASGIFramework,
    ASGIWebsocketState,
    Closed,
    EndBody,
    EndData,
    Event,
    H2Protocol,
    H2ProtocolAssumedError,
    H11Protocol,
    H11WSConnection,
    HTTPStream,
    HypercornConfig,
    RawData,
    StreamBody,
    StreamClosed,
    StreamData,
    StreamEvent,
    StreamRequest,
    Updated,
    WorkerContext,
    WSStream,
    filter_pseudo_headers,
)
from sandboxd.http.server.stack import ConnectionState as ServedState

log = logging.getLogger(__name__)

Address = tuple[str, int]
RawHeaders = Iterable[tuple[bytes, bytes]]

# hypercorn decodes these as ASCII without a net when it reads a websocket handshake.
_HANDSHAKE_LISTS = frozenset({b"connection", b"sec-websocket-extensions", b"sec-websocket-protocol"})


NO_HTTP2 = (
    b'{"error": "cannot speak HTTP/2 without TLS here: use HTTP/1.1, or a listener with TLS; '
    b'`http.cleartext_http2 = true` in the configuration allows it", "kind": "http_version_not_supported"}'
)


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

    async def refuse_http2(self) -> None:
        """Answer in HTTP/1.1, which a person with a debugger can read, and close."""
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(NO_HTTP2))),
            ("connection", "close"),
        ]
        await self._send_h11_event(h11.Response(status_code=505, headers=headers))
        await self._send_h11_event(h11.Data(data=NO_HTTP2))
        await self._send_h11_event(h11.EndOfMessage())
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


class Http2Connection(h2.connection.H2Connection):
    """h2 remembers how each of the last 65,536 streams ended, which are some megabytes; 1,000 will do."""

    MAX_CLOSED_STREAMS = 1000


class Http2(H2Protocol):
    """HTTP/2, and websockets over it. What differs from hypercorn:

    - It acknowledges body data as it comes and then waits for the handler, so that one slow upload holds up all its
      neighbours. Here data is acknowledged as the handler takes it, which is what HTTP/2's windows are for.
    - It takes a whole response into a buffer before it waits for the peer's window. Here a sender hands over a frame
      at a time, when the window and the connection have room, and waits otherwise: nothing is kept in between.
    - It starts a task for every request, whatever becomes of it. Here a stream needs a slot as a connection does, and
      what transfers nothing is counted (`frames.py`): who sends too much of it is told to calm down, and goes.
    - Priorities are ignored (RFC 9113 §5.3.1): a tree of them is one thing more to be attacked.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        settings = self.connection.local_settings
        vars(self.connection).clear()  # hypercorn's: it refers to itself
        self.connection = Http2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.connection.local_settings = settings
        self._tasks = cast("ExchangeTasks", self.task_group)
        self._cutter = FrameCutter()
        self._budget = FrameBudget(trio.current_time())
        self._yield_after = trio.current_time() + TIME_SLICE
        self._was_idle = True
        self._unacknowledged: dict[int, int] = {}
        self._unfinished: dict[int, trio.lowlevel.ParkingLot] = {}
        """streams whose response has not ended, and where they wait for their window"""

    async def initiate(self, headers: Any = None, settings: Any = None) -> None:
        self.connection.initiate_connection()
        await self._flush()

    # What the peer sends

    async def handle(self, event: Event) -> None:
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        for data, frames in self._cutter.cut(event.data):
            if self.closed:
                return
            if not self._budget.spend(sum(frame.cost for frame in frames), trio.current_time()):
                await self._calm_down()
                return
            try:
                events = self.connection.receive_data(data)
            except h2.exceptions.ProtocolError:
                await self._flush()
                await self.send(Closed())
                return
            await self._handle_events(events)
            if trio.current_time() > self._yield_after:
                await trio.lowlevel.checkpoint()
                self._yield_after = trio.current_time() + TIME_SLICE

    async def _calm_down(self) -> None:
        """End the connection: it sends frames that transfer nothing faster than any use has for them."""
        log.info("an HTTP/2 connection was ended: its peer sends too many frames that transfer nothing")
        self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.RequestReceived) and not self.context.terminated.is_set():
                await self._create_stream(event)
            elif isinstance(event, h2.events.DataReceived):
                await self._take_data(event)
            elif isinstance(event, h2.events.StreamReset):
                await self._close_stream(event.stream_id)
                if not event.remote_reset:
                    self._budget.grant(-RESET_COST)
            elif isinstance(event, h2.events.PriorityUpdated):
                pass
            else:
                await super()._handle_events([event])
        await self._flush()
        await self._note_idle()

    async def _take_data(self, event: h2.events.DataReceived) -> None:
        if event.stream_id not in self.streams:
            await self._refuse_late_data(event)
        elif event.stream_id not in self._unacknowledged:
            await super()._handle_events([event])
        else:
            padding = event.flow_controlled_length - len(event.data)
            self.connection.acknowledge_received_data(padding, event.stream_id)
            self._unacknowledged[event.stream_id] += len(event.data)
            await self.streams[event.stream_id].handle(StreamBody(stream_id=event.stream_id, data=event.data))
        self._budget.grant_bytes(len(event.data))

    async def _acknowledge(self, stream_id: int, size: int) -> None:
        if size and stream_id in self._unacknowledged:
            self._unacknowledged[stream_id] -= size
            self.connection.acknowledge_received_data(size, stream_id)
            await self._flush()

    async def _refuse_late_data(self, event: h2.events.DataReceived) -> None:
        """Take body data that arrives after the response has ended (stock: KeyError), and ask the peer to stop."""
        self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._reset(event.stream_id, h2.errors.ErrorCodes.NO_ERROR)

    # Streams

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        stream_id, headers = request.stream_id, request.headers or []
        pseudo = dict(header for header in headers if header[0].startswith(b":"))
        readable = all(value.isascii() for value in pseudo.values()) and _handshake_is_readable(headers)
        if not (readable and pseudo.keys() >= {b":method", b":path"}):
            self._reset(stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        if not self._tasks.has_room():
            self._reset(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        method = pseudo[b":method"].decode("ascii").upper()
        websocket = method == "CONNECT"
        stream = (Websocket if websocket else HTTPStream)(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            stream_id,
        )
        self.streams[stream_id] = stream
        self._unfinished[stream_id] = trio.lowlevel.ParkingLot()
        await self._note_idle()
        if not websocket:
            self._unacknowledged[stream_id] = 0
        self._tasks.grant_by(None if websocket else partial(self._acknowledge, stream_id))
        await stream.handle(
            StreamRequest(
                stream_id=stream_id,
                headers=filter_pseudo_headers(_without_extensions(headers)),
                http_version="2",
                method=method,
                raw_path=pseudo[b":path"],
                state=self.connection_state,
            )
        )

    async def _close_stream(self, stream_id: int) -> None:
        """End what is done for a stream, whoever closed it. What nobody will read any more still counts against the
        connection's window."""
        await self._acknowledge(stream_id, self._unacknowledged.get(stream_id, 0))
        self._unacknowledged.pop(stream_id, None)
        if (waiting := self._unfinished.pop(stream_id, None)) is not None:
            waiting.unpark_all()
        if (stream := self.streams.pop(stream_id, None)) is not None:
            await stream.handle(StreamClosed(stream_id=stream_id))

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        """Reset a stream, at the cost of the peer that made it necessary."""
        self._budget.grant(-RESET_COST)
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it may be closed on both sides already
            self.connection.reset_stream(stream_id, code)

    async def _note_idle(self) -> None:
        if self.idle is not self._was_idle:
            self._was_idle = self.idle
            await self.send(Updated(idle=self.idle))

    # What applications send

    async def stream_send(self, event: StreamEvent) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # it was closed while its application sent
            if isinstance(event, StreamBody | StreamData):
                await self._send_body(event.stream_id, event.data)
            elif isinstance(event, EndBody | EndData):
                self._finish(event.stream_id)
                await self._flush()
            elif isinstance(event, StreamClosed):
                await self._end_stream(event.stream_id)
            elif event.stream_id in self._unfinished:
                await super().stream_send(event)

    async def _send_body(self, stream_id: int, data: bytes) -> None:
        """A frame at a time: when the peer's window and the connection's output have room for one."""
        rest = memoryview(data)
        while rest and stream_id in self._unfinished:
            await self._tasks.output.wait_for_room()
            if stream_id not in self._unfinished:
                return
            window = self.connection.local_flow_control_window(stream_id)
            size = min(window, self.connection.max_outbound_frame_size, len(rest))
            if size > 0:
                self.connection.send_data(stream_id, bytes(rest[:size]))
                self._budget.grant_bytes(size)
                rest = rest[size:]
                await self._flush()
            else:
                await self._unfinished[stream_id].park()

    def _finish(self, stream_id: int) -> None:
        if self._unfinished.pop(stream_id, None) is not None:
            self._budget.grant(RESPONSE_GRANT)
            self.connection.end_stream(stream_id)

    async def _end_stream(self, stream_id: int) -> None:
        """The application is done. What it left unfinished the peer must not take for whole, but for a websocket,
        which has said so itself."""
        if stream_id in self._unfinished:
            if isinstance(self.streams.get(stream_id), WSStream):
                self._finish(stream_id)
            else:
                self._reset(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await self._close_stream(stream_id)
        if self.idle and self.context.terminated.is_set():
            self.connection.close_connection()
        await self._flush()
        await self._note_idle()

    async def _window_updated(self, stream_id: int | None) -> None:
        for waiting in (
            self._unfinished.values() if not stream_id else filter(None, [self._unfinished.get(stream_id)])
        ):
            waiting.unpark_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolContext:
    """What every protocol on one connection is made from; the fields are hypercorn's constructor arguments."""

    app: ASGIFramework
    config: HypercornConfig
    context: WorkerContext
    cleartext_http2: bool
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

    def dispose(self) -> None:
        """Nothing will be said any more: let go of all that is kept.

        Connection, protocol and h2's state refer to one another. In such circles everything would stay until a search
        for garbage, and those are rare (see `settle_memory`).
        """
        if isinstance(self._current, Http2):
            vars(self._current.connection).clear()
        vars(self._current).clear()

    async def handle(self, event: Event) -> None:
        try:
            await self._current.handle(event)
        except H2ProtocolAssumedError as switch:
            if not self._context.cleartext_http2:
                await cast("Http1", self._current).refuse_http2()
                return
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
