"""One request or websocket on a connection: the application's task, and the bounded queue that feeds it.

hypercorn hands an application ten messages and then waits, for ever if need be: for a handler that has already
answered, for one that never reads, even to deliver the news that the peer has left. Here the queue is bounded in
bytes, forgets everything once the application has finished, and a disconnect overtakes it.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import trio

from sandboxd.errors import SandboxdError
from sandboxd.http.server.admission import NoSlotError, Slot
from sandboxd.http.server.stack import (
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    HypercornConfig,
    Scope,
)

log = logging.getLogger(__name__)

# Bytes of one request that wait for its handler; beyond it the connection is not read. Four reads' worth keeps an
# upload at full speed and a thousand stalled ones at 256 MiB.
INBOX_BYTES = 256 * 1024

# Seconds between looks at whether a peer we are not reading has gone: its unread bytes hide the end of the stream.
HANGUP_CHECK_INTERVAL = 1.0

# Seconds a websocket handler has to end by itself once its peer has left.
DISCONNECT_GRACE = 2.0

# Requests under way on one connection, which HTTP/2 allows to be many; what RFC 9113 §6.5.2 recommends at least.
MAX_EXCHANGES = 100

# Seconds an application may go on sending before it lets other tasks run. Sending small pieces into a roomy buffer
# waits for nothing, and neither does sending to a peer who has left: a loop that does it would stop the daemon.
TIME_SLICE = 0.002

# Keys in the message that starts a response: its body follows at once; all of it is in memory. Other ASGI servers
# ignore them.
BODY_FOLLOWS = "sandboxd.body_follows"
BODY_IN_MEMORY = "sandboxd.body_in_memory"

AppSend = Callable[[ASGISendEvent | None], Awaitable[None]]

# Gives the peer leave to send so many bytes more.
Credit = Callable[[int], Awaitable[None]]


class Output(Protocol):
    """The connection's outgoing bytes, as far as an exchange decides when they leave."""

    def cork(self) -> None:
        """Collect what is sent from now on."""

    def uncork(self) -> None:
        """Let it go, in one system call where possible."""

    async def wait_for_room(self) -> None:
        """Until the peer has taken enough of what it was sent for more to be sent."""


class PeerGoneError(Exception):
    """The peer hung up while its bytes were waiting for a handler that does not read."""


class SlowReaderError(Exception):
    """The peer took nothing of a response for too long."""


class WatchedEvent:
    """hypercorn's event, for its wait between pipelined requests: the connection is not read meanwhile."""

    def __init__(self, hung_up: Callable[[], bool]) -> None:
        self._event = trio.Event()
        self._hung_up = hung_up

    async def clear(self) -> None:
        self._event = trio.Event()

    async def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        """Raises `PeerGoneError` if the peer leaves before the event is set."""
        while not self.is_set():
            with trio.move_on_after(HANGUP_CHECK_INTERVAL) as timer:
                await self._event.wait()
            if timer.cancelled_caught and self._hung_up():
                raise PeerGoneError


class Exchange:
    """An application's view of one request.

    Cancelled: the application is, when the peer leaves before the last part of the response was handed over. From
    then on it is hypercorn that works in the application's task, preparing the connection for what comes next.
    """

    def __init__(
        self,
        send: AppSend,
        *,
        hung_up: Callable[[], bool],
        output: Output | None,
        credit: Credit | None,
        patience: float,
    ) -> None:
        self._deliver = send
        self._output = output
        self._credit = credit
        self._patience = patience
        self._complete = False
        self._hung_up = hung_up
        self._queue: deque[ASGIReceiveEvent] = deque()
        self._queued_bytes = 0
        self._ending = False
        self._yield_after = trio.current_time() + TIME_SLICE
        self._finished = False
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()

    async def run(self, app: ASGIFramework, scope: Scope) -> None:
        """Run the application; whatever it raises costs this exchange only."""
        try:
            with self._scope:
                await app(scope, self._receive, self._send)
        except SlowReaderError:
            log.info("%s was cut short: its client does not take the response", _describe(scope))
        except SandboxdError as error:  # the response had begun: cutting it short is all the answer there can be
            log.info("%s was cut short: %s", _describe(scope), error.message)
        except Exception:
            log.exception("application failed on %s", _describe(scope))
        finally:
            self._finished = True
            self._queue.clear()
            self._room.unpark_all()
        await self._deliver(None)
        if self._output is not None:
            self._output.uncork()
        self._deliver = _drop  # the stream knows us, and what we keep would last as long as it

    async def put(self, event: ASGIReceiveEvent) -> None:
        """Queue `event`, waiting for room if need be. Raises `PeerGoneError` if the peer left meanwhile."""
        if event["type"] == "http.disconnect":
            if not self._ending:
                self._scope.cancel("the client disconnected")
        elif event["type"] == "websocket.disconnect":
            self._scope.deadline = trio.current_time() + DISCONNECT_GRACE
        else:
            await self._wait_for_room(_size(event))
        if not self._finished:
            self._queue.append(event)
            self._queued_bytes += _size(event)
            self._arrival.unpark()

    async def _wait_for_room(self, size: int) -> None:
        if self._credit is not None:
            return  # the peer has sent no more than it was given credit for
        while self._queue and self._queued_bytes + size > INBOX_BYTES and not self._finished:
            with trio.move_on_after(HANGUP_CHECK_INTERVAL) as timer:
                await self._room.park()
            if timer.cancelled_caught and self._hung_up():
                raise PeerGoneError

    async def _receive(self) -> ASGIReceiveEvent:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._queue:
            await self._arrival.park()
        event = self._queue.popleft()
        self._queued_bytes -= _size(event)
        self._room.unpark_all()
        if self._credit is not None:
            await self._credit(_size(event))
        return event

    async def _send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ending = True
        body_follows = BODY_FOLLOWS in message
        complete = self._ending or message["type"] == "websocket.send"
        self._complete = self._complete or BODY_IN_MEMORY in message
        if self._output is not None and (body_follows or complete):
            self._output.cork()
        if self._complete:
            await self._deliver_in_time(message)
        else:
            await self._deliver(message)
        if self._output is not None and complete:
            self._output.uncork()
        if trio.current_time() > self._yield_after and not body_follows:
            await trio.lowlevel.checkpoint()
            self._yield_after = trio.current_time() + TIME_SLICE

    async def _deliver_in_time(self, message: ASGISendEvent) -> None:
        """A response that is there as a whole takes memory until its client has it. A stream may be read at leisure:
        it waits for its reader in whatever makes it."""
        with trio.move_on_after(self._patience) as timer:
            await self._deliver(message)
        if timer.cancelled_caught:
            raise SlowReaderError


async def _drop(message: ASGISendEvent | None) -> None:
    pass


def _describe(scope: Scope) -> str:
    return f"{scope['type']} {scope.get('path')}"


def _size(event: Any) -> int:
    return len(event.get("body") or event.get("bytes") or event.get("text") or b"")


class ExchangeTasks:
    """hypercorn's TaskGroup, over nurseries of the connection: one for applications, one for its own helpers."""

    def __init__(
        self,
        *,
        applications: trio.Nursery,
        helpers: trio.Nursery,
        hung_up: Callable[[], bool],
        output: Output,
        slot: Slot,
        patience: float,
        on_begin: Callable[[], None],
        on_websocket: Callable[[], None],
    ) -> None:
        self._applications = applications
        self._helpers = helpers
        self.hung_up = hung_up
        self.output = output
        self._slot = slot
        self._patience = patience
        self._live = 0
        self._on_begin = on_begin
        self._on_websocket = on_websocket
        self._credit: Credit | None = None

    def grant_by(self, credit: Credit | None) -> None:
        """Let the next application's reading grant its peer credit, rather than hold up the whole connection."""
        self._credit = credit

    def has_room(self) -> bool:
        """Whether one request more may be under way, beside those whose applications have not ended yet."""
        if 0 < self._live < MAX_EXCHANGES:
            try:
                self._slot.another().release()
            except NoSlotError:
                return False
        return self._live < MAX_EXCHANGES

    async def spawn_app(
        self, app: ASGIFramework, config: HypercornConfig, scope: Scope, send: AppSend
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        self._on_begin()
        alone = cast("Any", scope)["http_version"] < "2"
        if alone and scope["type"] == "websocket":
            self._on_websocket()
        exchange = Exchange(
            send,
            hung_up=self.hung_up,
            output=self.output if alone else None,
            credit=self._credit,
            patience=self._patience,
        )
        self._credit = None
        self._live += 1
        extra = self._slot.another() if self._live > 1 else None
        self._applications.start_soon(self._run, exchange, app, scope, extra, name=_describe(scope))
        return exchange.put

    async def _run(self, exchange: Exchange, app: ASGIFramework, scope: Scope, slot: Slot | None) -> None:
        try:
            await exchange.run(app, scope)
        finally:
            self._live -= 1
            if slot is not None:
                slot.release()

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._helpers.start_soon(func, *args)
