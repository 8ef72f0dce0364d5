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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self, cast

import trio
from quart import websocket

from sandboxd.errors import SandboxdError, leaves
from sandboxd.http.kit.conversation import Conversation, key_revoked
from sandboxd.http.kit.errors import Close, ErrorFormat
from sandboxd.http.server.connection import HandlerWebsocket, WebsocketDisconnected

log = logging.getLogger(__name__)

Message = str | bytes

# Bytes received and not yet taken. A paste into a terminal is a few KiB; what a program types ahead fits too.
INBOUND_BYTES = 256 * 1024

# Seconds a handler has, once its peer has left, to take what had arrived before it is cancelled.
DISCONNECT_GRACE = 1.0


class Overflow(enum.Enum):
    """What happens when the peer sends faster than the handler takes."""

    WAIT = enum.auto()  # the connection is not read meanwhile: back-pressure, as a terminal's input needs
    CLOSE = enum.auto()  # the session ends with 1008: for peers that should hardly send at all


NORMAL = Close(1000)
GOING_AWAY = Close(1001, "the daemon is stopping")
OVERFLOW = Close(1008, f"cannot take messages that fast: {INBOUND_BYTES} bytes are waiting")


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

    async def _fail(self, error: SandboxdError, errors: ErrorFormat) -> None:
        """Say why it ends: in a last message, if the dialect has one, and in the close code."""
        if (message := errors.last_message(error)) is not None:
            await self.send(message)
        await self.close(errors.close(error))

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
) -> AsyncIterator[WebsocketSession]:
    """Accept the current websocket and run a session on it.

    An exception that leaves the body ends here: the peer is told as the dialect does, and an unexpected one is
    logged. A body still running when the peer has left, the daemon stops or the key is revoked is cancelled.
    """
    socket = cast("HandlerWebsocket", websocket._get_current_object())  # type: ignore[attr-defined]
    await socket.accept(subprotocol=subprotocol)
    session = WebsocketSession(socket, overflow=overflow)
    errors = conversation.errors
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session._receive_all)
        nursery.start_soon(session._end_when, conversation.stopping, GOING_AWAY)
        revoked = trio.Event()
        nursery.start_soon(session._end_when, revoked, errors.close(key_revoked()))
        with conversation.ended_gently(revoked.set), session._body, suppress(WebsocketDisconnected):
            try:
                yield session
            except Exception as error:
                if (known := _known(error)) is not None:
                    await session._fail(known, errors)
        await session.close()
        nursery.cancel_scope.cancel("the session has ended")


def _known(error: Exception) -> SandboxdError | None:
    """The domain's error among what was raised; None if the peer has just left. What is unexpected is logged."""
    causes = [cause for cause in leaves(error) if not isinstance(cause, WebsocketDisconnected)]
    if not causes:
        return None
    for cause in causes:
        if not isinstance(cause, SandboxdError):
            log.error("websocket handler failed", exc_info=cause)
    known = next((cause for cause in causes if isinstance(cause, SandboxdError)), None)
    return known or SandboxdError("internal error")
