"""One accepted connection: a byte stream below, hypercorn's protocol state machines above.

This replaces hypercorn's `TCPServer`. Differences that matter:

- One task writes. Senders put bytes into a bounded buffer, so a sender may be cancelled at any moment without tearing
  a frame, and no send needs a shield that a peer who stops reading could hold for ever.
- What is produced in one go leaves in one system call: headers, body and end of a small response are one write.
- Closing drains: what the peer is still sending is read and dropped for a while, since closing a socket with unread
  bytes makes the kernel send a reset, which destroys the response on its way (RFC 9112 §9.6).
- The idle limit is a deadline, not two tasks started and cancelled for every request.
"""

import contextlib
import logging
import math
import os
import select
from collections import deque
from dataclasses import dataclass

import trio

from sandboxd.http.server.admission import Slot
from sandboxd.http.server.exchange import ExchangeTasks, PeerGoneError
from sandboxd.http.server.protocol import Address, ProtocolContext, ProtocolSwitch
from sandboxd.http.server.stack import (
    ASGIFramework,
    Closed,
    ConnectionState,
    Event,
    HypercornConfig,
    RawData,
    Updated,
    WorkerContext,
)

log = logging.getLogger(__name__)

ByteStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

READ_BYTES = 64 * 1024

# A sender waits while more than this is unsent: two reads' worth keeps a download at full speed.
UNSENT_BYTES = 128 * 1024

# Seconds in which a first request must have come; configuration may make it less. Who connects means to send one at
# once.
FIRST_REQUEST_LIMIT = 30.0

# The same while all connections together have so much unsent: many peers who do not read are to cost no more than one
# piece each.
MAX_UNSENT_BYTES = 64 * 1024 * 1024

# Seconds an application has to end once its connection has, before it is cancelled.
ENDING_GRACE = 5.0

# Seconds a closing connection lingers in all, however long its peer goes on sending; as nginx's lingering_time.
LINGER_LIMIT = 30.0

# Seconds a closing connection lingers once the daemon is stopping; nearly every peer needs none.
STOPPING_LINGER = 0.25

REQUEST_TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection waits for its peer, in seconds."""

    handshake: float
    headers: float
    idle: float
    flush: float
    linger: float
    websocket: float


@dataclass(slots=True)
class OutputBudget:
    """What all connections of a server have unsent, in bytes."""

    used: int = 0

    @property
    def per_connection(self) -> int:
        """How much one of them may have unsent before its senders wait."""
        return UNSENT_BYTES if self.used < MAX_UNSENT_BYTES else 0


class Transport:
    """Owns: the stream; it is closed when `run` ends, however it ends.

    Cancelled: applications are cancelled, unsent bytes are dropped, nothing is waited for.
    Raises: whatever a protocol raises on bytes it cannot digest, in a group. The caller guards.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        app: ASGIFramework,
        config: HypercornConfig,
        context: WorkerContext,
        client: Address | None,
        state: ConnectionState,
        patience: Patience,
        cleartext_http2: bool,
        slot: Slot,
        budget: OutputBudget,
    ) -> None:
        self._stream = stream
        self._app = app
        self._config = config
        self._context = context
        self._client = client
        self._state = state
        self._patience = patience
        self._cleartext_http2 = cleartext_http2
        self._slot = slot
        self._budget = budget
        self._tls = isinstance(stream, trio.SSLStream)
        plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
        self._socket: trio.socket.SocketType = plain.socket

        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._corked = False
        self._writing = False
        self._output_added = trio.lowlevel.ParkingLot()
        self._output_taken = trio.lowlevel.ParkingLot()

        self._protocol: ProtocolSwitch | None = None
        self._opening = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._idle = True
        self._served = False
        self._request_begun = False
        self._websocket = False
        self._closing = False
        self._linger_until = -math.inf
        self._lost = False
        self._written = trio.Event()

    async def run(self) -> None:
        try:
            with self._opening:
                alpn = await self._handshake()
            if not self._opening.cancelled_caught:
                await self._converse(alpn)
        except trio.BrokenResourceError:
            pass  # there is nobody to tell
        finally:
            self._note_unsent(0)
            self._socket.close()
            if self._protocol is not None:
                self._protocol.dispose()
                self._protocol = None

    def retire(self) -> None:
        """The daemon is stopping: leave now if no request is under way, otherwise after the present one."""
        if self._idle or self._closing:
            self._reading.cancel("the daemon is stopping")

    def let_go(self) -> None:
        """Another needs the slot of this connection, on which no request is under way: leave now."""
        self._opening.cancel("its slot is needed")
        self._reading.cancel("its slot is needed")

    async def _converse(self, alpn: str | None) -> None:
        async with trio.open_nursery() as helpers:
            async with trio.open_nursery() as applications:
                self._protocol = protocol = self._make_protocol(applications, helpers, alpn)
                helpers.start_soon(self._write_all)
                await protocol.initiate()
                self._reading.deadline = trio.current_time() + self._idle_limit()
                await self._read_all(protocol)
                await protocol.handle(Closed())
                applications.cancel_scope.deadline = trio.current_time() + ENDING_GRACE
            await self._finish_writing()
            helpers.cancel_scope.cancel("the connection ended")

    # Set-up

    async def _handshake(self) -> str | None:
        if not isinstance(self._stream, trio.SSLStream):
            return None
        self._opening.deadline = trio.current_time() + self._patience.handshake
        await self._stream.do_handshake()
        alpn: str | None = self._stream.selected_alpn_protocol()
        return alpn

    def _make_protocol(self, applications: trio.Nursery, helpers: trio.Nursery, alpn: str | None) -> ProtocolSwitch:
        tasks = ExchangeTasks(
            applications=applications,
            helpers=helpers,
            hung_up=self._peer_hung_up,
            output=self,
            slot=self._slot,
            patience=self._patience.flush,
            on_begin=self._begin,
            on_websocket=self._expect_pongs,
        )
        context = ProtocolContext(
            app=self._app,
            config=self._config,
            context=self._context,
            cleartext_http2=self._cleartext_http2,
            task_group=tasks,
            connection_state=self._state,
            ssl=self._tls,
            client=self._client,
            server=self._socket.getsockname()[:2] if self._client is not None else None,
            send=self._on_protocol_event,
        )
        return ProtocolSwitch(context, alpn=alpn)

    # Reading

    async def _read_all(self, protocol: ProtocolSwitch) -> None:
        try:
            with self._reading:
                while await self._read_some(protocol):
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError, PeerGoneError):
            self._lose()
        if self._reading.cancelled_caught and self._request_begun and protocol.awaits_request:
            self._enqueue(REQUEST_TIMEOUT)

    async def _read_some(self, protocol: ProtocolSwitch) -> bool:
        """Read once and act on it; False at the end of what the peer sends."""
        data = bytes(await self._stream.receive_some(READ_BYTES))
        if not self._closing:
            if self._websocket:
                self._reading.deadline = math.inf  # no pong can be seen while the handler holds us up
            await protocol.handle(RawData(data))
        if not self._closing:
            await self._note_progress(protocol)
        elif self._written.is_set():
            self._linger()
        return data != b""

    async def _note_progress(self, protocol: ProtocolSwitch) -> None:
        now = trio.current_time()
        if protocol.websocket_overflowed:
            await self._end()
        elif self._websocket:
            self._reading.deadline = now + self._patience.websocket
        elif protocol.awaits_request and not self._request_begun:
            # Slow headers are a cheap way to hold a connection: the time runs from the first byte, not from each.
            self._request_begun = True
            self._reading.deadline = min(self._reading.deadline, now + self._patience.headers)

    def _expect_pongs(self) -> None:
        """From now on the peer is pinged, so a peer that sends nothing at all for long is not there any more."""
        self._websocket = True

    def _begin(self) -> None:
        """The first request is under way: whoever sends one may keep the connection."""
        self._served = True

    def _peer_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    # What the protocol wants done

    async def _on_protocol_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            self._enqueue(event.data)
            await self.wait_for_room()
        elif isinstance(event, Updated):
            if event.idle:
                self._wait_for_request()
            else:
                self._idle = False
                self._reading.deadline = math.inf
                self._slot.begin()
        elif isinstance(event, Closed):
            await self._end()

    def _wait_for_request(self) -> None:
        self._idle = True
        self._request_begun = False
        self._reading.deadline = trio.current_time() + self._idle_limit()
        self._rest()
        if self._context.terminated.is_set():
            self.retire()

    def _rest(self) -> None:
        """Nothing is under way any more once the peer has taken its response, too."""
        if self._idle and not self._unsent_bytes:
            self._slot.rest()

    def _idle_limit(self) -> float:
        if not self._served:
            return min(self._patience.headers, FIRST_REQUEST_LIMIT)
        return self._patience.idle

    async def _end(self) -> None:
        """Close in order: send what is unsent, say that no more comes, let the peer do the same."""
        if not self._closing:
            self._closing = True
            self._reading.deadline = trio.current_time() + self._patience.flush
            self._output_added.unpark_all()
        if self._protocol is not None:
            await self._protocol.handle(Closed())

    def _lose(self) -> None:
        """The peer is not there any more: forget what it was to get, and wake all who wait for it to take it."""
        self._lost = True
        self._unsent.clear()
        self._note_unsent(0)
        self._output_taken.unpark_all()
        self._reading.cancel("the peer has left")

    # Writing

    def _enqueue(self, data: bytes) -> None:
        if data and not (self._lost or self._written.is_set()):
            self._unsent.append(data)
            self._note_unsent(self._unsent_bytes + len(data))
            if not self._corked:
                self._output_added.unpark_all()

    def _note_unsent(self, size: int) -> None:
        self._budget.used += size - self._unsent_bytes
        self._unsent_bytes = size

    async def wait_for_room(self) -> None:
        """Until the peer has taken so much that more may be made for it."""
        while self._unsent_bytes > self._budget.per_connection:
            self._output_added.unpark_all()
            await self._output_taken.park()

    def cork(self) -> None:
        self._corked = True

    def uncork(self) -> None:
        """Write here and now what the socket takes: waking the writer for a small response costs more than it."""
        self._corked = False
        if not self._unsent:
            return
        if not (self._tls or self._writing):
            data = b"".join(self._unsent)
            with contextlib.suppress(OSError):  # full, or broken: the writer will see
                data = data[os.write(self._socket.fileno(), data) :]
            self._unsent = deque([data] if data else [])
            self._note_unsent(len(data))
            self._output_taken.unpark_all()
            self._rest()
        if self._unsent:
            self._output_added.unpark_all()

    async def _write_all(self) -> None:
        try:
            while self._unsent or not self._closing:
                if self._unsent:
                    await self._write_some()
                else:
                    await self._output_added.park()
            await self._half_close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._lose()
        finally:
            self._written.set()

    async def _write_some(self) -> None:
        data = self._unsent.popleft() if len(self._unsent) == 1 else b"".join(self._unsent)
        self._unsent.clear()
        self._writing = True
        await self._stream.send_all(data)
        self._writing = False
        self._note_unsent(sum(map(len, self._unsent)))
        self._output_taken.unpark_all()
        self._rest()

    async def _half_close(self) -> None:
        if isinstance(self._stream, trio.SSLStream):
            await self._stream.aclose()  # TLS has no half: this says goodbye and closes
        else:
            await self._stream.send_eof()
        self._slot.rest()  # all has been said; who only lingers is in nobody's way
        limit = STOPPING_LINGER if self._context.terminated.is_set() else LINGER_LIMIT
        self._linger_until = trio.current_time() + limit
        self._linger()

    def _linger(self) -> None:
        """Wait for a peer that is still sending to fall silent, or to leave: a reset would cost it the response."""
        self._reading.deadline = min(self._linger_until, trio.current_time() + self._patience.linger)

    async def _finish_writing(self) -> None:
        self._closing = True
        self._output_added.unpark_all()
        with trio.move_on_after(self._patience.flush):
            await self._written.wait()
