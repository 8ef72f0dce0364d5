"""The client's end of a websocket: wsproto over a stream, without a task of its own.

Whoever calls `receive` drives the connection: it answers pings and notices the end. Sends may come from other tasks.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import wsproto
from wsproto.connection import ConnectionState
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
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from sandboxd.client.errors import ApiError, ConnectionLost, WebSocketClosed, api_error
from sandboxd.client.network import Disconnected, Network, Stream

READ_BYTES = 256 * 1024
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
ABNORMAL_CLOSURE = 1006
MESSAGE_TOO_BIG = 1009

# Seconds the daemon gets to take our goodbye.
CLOSE_PATIENCE = 1.0


class WebSocket:
    """Owns: the stream, from the moment it is made."""

    def __init__(self, stream: Stream, network: Network) -> None:
        self._stream = stream
        self._network = network
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._sending = network.lock()
        self._events: deque[Event] = deque()
        self._parts: list[str | bytes | bytearray] = []
        self._size = 0

    async def open(self, host: str, target: str, headers: Sequence[tuple[str, str]]) -> None:
        """The handshake. Raises: ApiError when it is refused, ConnectionLost."""
        extra = [(name.encode(), value.encode()) for name, value in headers]
        try:
            await self._send(Request(host=host, target=target, extra_headers=extra))
            event = await self._next_event()
            if isinstance(event, RejectConnection):
                raise await self._refusal(event)
        except WebSocketClosed as error:
            raise ConnectionLost(f"cannot open a connection for the command: {error.reason}") from error
        if not isinstance(event, AcceptConnection):
            raise ConnectionLost("cannot open a connection for the command: the daemon's answer is no websocket")

    async def _refusal(self, rejection: RejectConnection) -> ApiError:
        body = b""
        more = rejection.has_body
        while more:
            event = await self._next_event()
            assert isinstance(event, RejectData)
            body += event.data
            more = not event.body_finished
        return api_error(rejection.status_code, body)

    async def receive(self) -> str | bytes | bytearray:
        """The next message. Raises: WebSocketClosed."""
        while True:
            event = await self._next_event()
            if isinstance(event, TextMessage | BytesMessage):
                self._parts.append(event.data)
                self._size += len(event.data)
                if self._size > MAX_MESSAGE_BYTES:
                    raise WebSocketClosed(MESSAGE_TOO_BIG, f"the daemon sent more than {MAX_MESSAGE_BYTES} bytes")
                if event.message_finished:
                    return self._take_message()
            elif isinstance(event, Ping):
                with suppress(WebSocketClosed):  # the end may be behind it already, with messages in between
                    await self._send(event.response())
            elif isinstance(event, CloseConnection):
                await self._answer(event)
                raise WebSocketClosed(event.code, event.reason or "")

    async def send(self, message: str | bytes) -> None:
        """Raises: WebSocketClosed."""
        await self._send(TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message))

    async def send_heartbeat(self) -> None:
        """An unsolicited pong (RFC 6455 §5.5.3): says that we are alive, however slowly we read."""
        await self._send(Pong())

    async def aclose(self) -> None:
        """Say goodbye if there is still somebody to say it to, and close. Cancelled: closes at once."""
        try:
            if self._protocol.state is ConnectionState.OPEN and self._stream.has_room():
                await self._network.at_most(CLOSE_PATIENCE, self._say_goodbye)
        except WebSocketClosed:
            pass
        finally:
            self._stream.close()

    async def _say_goodbye(self) -> None:
        await self._send(CloseConnection(code=1000))

    def _take_message(self) -> str | bytes | bytearray:
        parts, self._parts, self._size = self._parts, [], 0
        if len(parts) == 1:
            return parts[0]
        if isinstance(parts[0], str):
            return "".join(part for part in parts if isinstance(part, str))
        return b"".join(part for part in parts if not isinstance(part, str))

    async def _answer(self, event: CloseConnection) -> None:
        if self._protocol.state is ConnectionState.REMOTE_CLOSING:
            with suppress(WebSocketClosed):  # it need not wait for our answer
                await self._send(event.response())

    async def _next_event(self) -> Event:
        while not self._events:
            await self._read()
        return self._events.popleft()

    async def _read(self) -> None:
        try:
            data = bytes(await self._stream.receive_some(READ_BYTES))
            if not data:
                raise WebSocketClosed(ABNORMAL_CLOSURE, "the daemon closed the connection")
            self._protocol.receive_data(data)
            self._events.extend(self._protocol.events())
        except Disconnected as error:
            raise WebSocketClosed(ABNORMAL_CLOSURE, "the connection broke") from error
        except (LocalProtocolError, RemoteProtocolError) as error:
            raise WebSocketClosed(ABNORMAL_CLOSURE, f"the daemon said something else: {error}") from error

    async def _send(self, event: Event) -> None:
        async with self._sending:
            try:
                await self._stream.send_all(self._protocol.send(event))
            except Disconnected as error:
                raise WebSocketClosed(ABNORMAL_CLOSURE, "the connection broke") from error
            except LocalProtocolError:
                # Not chained: its text is the whole message that could not be sent.
                raise WebSocketClosed(ABNORMAL_CLOSURE, "the connection is closed") from None
