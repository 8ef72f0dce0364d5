"""What the two interactive websockets have in common: one client's own command, and a terminal that many share."""

from abc import ABC, abstractmethod

import trio

from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.streams import to_json
from sandboxd.http.kit.websockets import WebsocketSession
from sandboxd.model import StdinAccepted

# Sent ahead of the command's reading by a client: half a pipe of 128 KiB is enough to keep one busy, and what waits
# here is memory of ours.
STDIN_WINDOW = 1024 * 1024


class Interactive(ABC):
    """One client: what it types, in binary messages; what it asks for, in text; and what it is told.

    Input goes through a queue of its own, so that a resize or a signal never waits behind bytes that the command does
    not read; the queue is bounded by the window that the client was told.
    """

    def __init__(self, session: WebsocketSession) -> None:
        self._session = session
        self._queue, self._typed = trio.open_memory_channel[bytes | None](float("inf"))
        """bytes in order, and None where the input ends"""
        self._received = 0
        self._taken = 0

    async def obey(self, everything: trio.CancelScope) -> None:
        """Do what the client's messages say, until it leaves; then all that is done for it ends."""
        async for message in self._session:
            await self._hear(message)
        everything.cancel("the client left")

    async def _hear(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self._type(message)
        else:
            await self._control(message)

    @abstractmethod
    async def _control(self, message: str) -> None:
        """Do what a text message says. Raises: InvalidRequest, Unprocessable."""

    def _type(self, data: bytes) -> None:
        self._received += len(data)
        if self._received - self._taken > STDIN_WINDOW:
            raise InvalidRequest(
                f"cannot take more stdin: at most {STDIN_WINDOW} bytes may be sent ahead of stdin_ack"
            )
        self._queue.send_nowait(data)

    async def _acknowledge(self, accepted: StdinAccepted) -> None:
        """Tell the client how much of its input the command has taken, or that it takes no more."""
        if accepted.closed:
            await self._say("stdin_closed")
        else:
            self._taken = accepted.total
            await self._say("stdin_ack", total=accepted.total)

    async def _say(self, kind: str, /, **facts: object) -> None:
        await self._session.send(to_json({"type": kind, **facts}))
