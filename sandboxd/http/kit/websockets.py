"""The websocket pump every dialect uses; no handler touches Quart's websocket itself.

    async with websocket_session(conversation) as session:
        async for message in session:
            await session.send(answer(message))

A receiver always runs, so that a peer's leaving is noticed whatever the handler is doing. What it has received and
the handler not yet taken is bounded, and what happens beyond the bound is the caller's explicit choice. However the
session ends, the peer gets a close frame whose code says why.

Whether the peer is alive at all is the transport's business: it pings, and closes when nothing at all comes back.
"""

import enum
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self, cast

import trio
from quart import websocket

from sandboxd.errors import SandboxdError
from sandboxd.http.kit.conversation import Conversation, key_revoked
from sandboxd.http.server.connection import HandlerWebsocket, WebsocketDisconnected

log = logging.getLogger(__name__)

Message = str | bytes

# Bytes received and not yet taken. A paste into a terminal is a few KiB; what a program types ahead fits too.
INBOUND_BYTES = 256 * 1024

# Seconds a handler has, once its peer has left, to take what had arrived before it is cancelled.
DISCONNECT_GRACE = 1.0

# RFC 6455 §5.5: a control frame carries 125 bytes, two of them the code.
MAX_REASON_BYTES = 123


class Overflow(enum.Enum):
    """What happens when the peer sends faster than the handler takes."""

    WAIT = enum.auto()  # the connection is not read meanwhile: back-pressure, as a terminal's input needs
    CLOSE = enum.auto()  # the session ends with 1008: for peers that should hardly send at all


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame. Codes: RFC 6455 §7.4 and the IANA registry; 4000-4999 are for applications."""

    code: int
    reason: str = ""

    def __post_init__(self) -> None:
        if not ((1000 <= self.code <= 1014 and self.code not in (1004, 1005, 1006)) or 3000 <= self.code <= 4999):
            raise ValueError(f"cannot send websocket close code {self.code}: RFC 6455 reserves it")

    @property
    def short_reason(self) -> str:
        """The reason cut to what a close frame can carry, at a character's edge."""
        return self.reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")


NORMAL = Close(1000)
GOING_AWAY = Close(1001, "the daemon is stopping")
OVERFLOW = Close(1008, f"cannot take messages that fast: {INBOUND_BYTES} bytes are waiting")
INTERNAL_ERROR = Close(1011, "internal error")


def close_for(error: Exception) -> Close:
    """The close frame for an error: 1008 when the peer erred, 1011 when the daemon did."""
    if isinstance(error, SandboxdError):
        return Close(1008 if error.status < 500 else 1011, error.message)
    return INTERNAL_ERROR


class WebsocketSession:
    """One accepted websocket. Iterate over it for the peer's messages; the iteration ends when the peer leaves."""

    def __init__(self, socket: HandlerWebsocket, *, overflow: Overflow) -> None:
        self._socket = socket
        self._overflow = overflow
        self._inbound: deque[Message] = deque()
        self._inbound_bytes = 0
        self._arrived = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()
        self._peer_left = False
        self._closed = False
        self._body = trio.CancelScope()

    async def send(self, message: Message) -> None:
        """Send one message, text or binary by its type; waits while the peer reads more slowly than this sends.

        Cancelled: the message may have been sent whole, or not at all; never in part.
        Raises: `WebsocketDisconnected`, which ends the session quietly if it is let through.
        """
        if self._peer_left or self._closed:
            raise WebsocketDisconnected
        await self._socket.send(cast("bytes", message))  # or text: it goes by the type

    async def close(self, close: Close = NORMAL) -> None:
        """Say goodbye; only the first counts. Leaving the session does it too."""
        if not (self._closed or self._peer_left):
            self._closed = True
            await self._socket.close(close.code, close.short_reason)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        while not self._inbound:
            if self._peer_left or self._closed:
                raise StopAsyncIteration
            await self._arrived.park()
        message = self._inbound.popleft()
        self._inbound_bytes -= len(message)
        self._taken.unpark_all()
        return message

    async def _receive_all(self) -> None:
        try:
            while not self._closed:
                await self._queue(await self._socket.receive())
        except WebsocketDisconnected:
            self._peer_left = True
            self._body.deadline = trio.current_time() + DISCONNECT_GRACE
        self._arrived.unpark_all()

    async def _queue(self, message: Message) -> None:
        while self._inbound and self._inbound_bytes + len(message) > INBOUND_BYTES:
            if self._overflow is Overflow.CLOSE:
                await self._end(OVERFLOW)
                return
            await self._taken.park()
        self._inbound.append(message)
        self._inbound_bytes += len(message)
        self._arrived.unpark()

    async def _end_when(self, event: trio.Event, close: Close) -> None:
        await event.wait()
        await self._end(close)

    async def _end(self, close: Close) -> None:
        await self.close(close)
        self._arrived.unpark_all()
        self._body.cancel(close.reason)


@asynccontextmanager
async def websocket_session(
    conversation: Conversation,
    *,
    subprotocol: str | None = None,
    overflow: Overflow = Overflow.WAIT,
    close_for: Callable[[Exception], Close] = close_for,
) -> AsyncIterator[WebsocketSession]:
    """Accept the current websocket and run a session on it.

    An exception that leaves the body ends here: the peer is told by the close code `close_for` gives it, and an
    unexpected one is logged. A body still running when the peer has left, the daemon stops or the key is revoked is
    cancelled.
    """
    socket = cast("HandlerWebsocket", websocket._get_current_object())  # type: ignore[attr-defined]
    await socket.accept(subprotocol=subprotocol)
    session = WebsocketSession(socket, overflow=overflow)
    close = NORMAL
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session._receive_all)
            nursery.start_soon(session._end_when, conversation.stopping, GOING_AWAY)
            revoked = trio.Event()
            nursery.start_soon(session._end_when, revoked, close_for(key_revoked()))
            with conversation.ended_gently(revoked.set), session._body:
                yield session
            nursery.cancel_scope.cancel("the session has ended")
    except Exception as error:
        close = _explain(error, close_for)
    await session.close(close)


def _explain(error: Exception, close_for: Callable[[Exception], Close]) -> Close:
    causes = [cause for cause in _leaves(error) if not isinstance(cause, WebsocketDisconnected)]
    if not causes:
        return NORMAL
    for cause in causes:
        if not isinstance(cause, SandboxdError):
            log.error("websocket handler failed", exc_info=cause)
    return close_for(min(causes, key=lambda cause: not isinstance(cause, SandboxdError)))


def _leaves(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
