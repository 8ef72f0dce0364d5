"""A command with live input and output: `Client.exec` opens one, its events come from `receive`.

The bytes travel over a websocket: binary messages are output (first byte: which stream) and stdin, text messages are
JSON. Stdin is paced by a window, so that what a command does not read stays with its sender.
"""

import json
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from sandboxd.client.errors import (
    ClientError,
    ConnectionLost,
    InputClosed,
    StreamEnded,
    WebSocketClosed,
    error_from,
)
from sandboxd.client.network import Network

if TYPE_CHECKING:
    from sandboxd.client.websocket import WebSocket

# The daemon closes the connection of a client that is further ahead of its command than this.
STDIN_WINDOW = 1024 * 1024
# Small enough that an interrupt between two messages is quick, large enough to cost little each.
STDIN_MESSAGE = 64 * 1024
# Well under the daemon's patience with a silent client, which is two of its pings of 20 s.
HEARTBEAT_INTERVAL = 15.0

_STREAMS: Mapping[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}
# Websocket close codes 4400..4599 carry an HTTP status.
_CLOSE_STATUS = range(4400, 4600)


@dataclass(frozen=True, slots=True)
class Started:
    pid: int
    """inside the sandbox"""
    command_id: str


@dataclass(frozen=True, slots=True)
class Output:
    stream: Literal["stdout", "stderr"]
    """a terminal's output is all "stdout" """
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputLost:
    """A gap in the output: this client read so slowly that the daemon kept newer bytes in place of these."""

    stream: Literal["stdout", "stderr"]
    size: int


@dataclass(frozen=True, slots=True)
class StdinClosed:
    """The command no longer reads; `Exec.send_stdin` raises from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    exit_code: int
    """128+n when signal n ended it"""
    signal: str | None = None
    duration_ms: float = 0
    timed_out: bool = False
    oom_killed: bool = False
    output_incomplete: bool = False
    """processes it left behind still hold its output open"""


ExecEvent = Started | Output | OutputLost | StdinClosed | Exited


E = TypeVar("E")


class StdinWindow:
    """How much of stdin may be under way: what was sent and has not been taken by the command. Pure."""

    def __init__(self, limit: int = STDIN_WINDOW) -> None:
        self._limit = limit
        self._sent = 0
        self._taken = 0

    @property
    def room(self) -> int:
        return self._limit - (self._sent - self._taken)

    def record_sent(self, size: int) -> None:
        if size > self.room:
            raise ValueError(f"{size} bytes do not fit into a window with room for {self.room}")
        self._sent += size

    def record_taken(self, total: int) -> None:
        """`total` counts from the start. Raises: ConnectionLost for a count that cannot be."""
        if not self._taken <= total <= self._sent:
            raise ConnectionLost(f"cannot go on: the daemon counts {total} bytes of stdin, {self._sent} were sent")
        self._taken = total


class Conversation(Generic[E]):
    """With one running command: `Exec` and `PtyAttachment` are the two kinds.

    One task should keep calling `receive`: it also carries the acknowledgements that `send_stdin` waits for. On
    blocking sockets `send_stdin` receives by itself while it must wait, and keeps what comes for the next `receive`.
    """

    def __init__(
        self, websocket: "WebSocket", network: Network, read: Callable[[str, dict[str, Any]], E | None]
    ) -> None:
        """`read` makes events of the daemon's messages, but for output and stdin."""
        self._websocket = websocket
        self._network = network
        self._read = read
        self._window = StdinWindow()
        self._room_made = network.parking_lot()
        self._receiving = network.lock()
        self._received: deque[E | Output | StdinClosed] = deque()
        self._stdin_open = True
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E | Output | StdinClosed:
        try:
            return await self.receive()
        except StreamEnded:
            raise StopAsyncIteration from None

    async def receive(self) -> E | Output | StdinClosed:
        """The next event; `Exited` is the last. Raises: ApiError, ConnectionLost; StreamEnded after the last."""
        try:
            async with self._receiving:
                while not self._received:
                    await self._receive_message()
                return self._received.popleft()
        finally:
            if not self._network.concurrent:
                self._room_made.unpark_all()  # a thread that sends has to receive by itself now

    async def _receive_message(self) -> None:
        """Take one message of the daemon's, which may be an event. The caller holds `_receiving`."""
        if self._ended:
            raise StreamEnded("there is nothing more to receive: the command has ended")
        try:
            event = self._interpret(await self._websocket.receive())
        except WebSocketClosed as closed:
            self._end()
            raise _failure(closed) from closed
        except ClientError:
            self._end()
            raise
        if event is not None:
            self._received.append(event)
        if isinstance(event, Exited):
            self._end()

    def _interpret(self, message: str | bytes | bytearray) -> E | Output | StdinClosed | None:
        if not isinstance(message, str):
            return _output(message)
        try:
            fields = json.loads(message)
            return self._interpret_json(fields.pop("type"), fields)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ConnectionLost(f"cannot read the daemon's message: {error!r}") from error

    def _interpret_json(self, kind: str, fields: dict[str, Any]) -> E | StdinClosed | None:
        match kind:
            case "stdin_ack":
                self._window.record_taken(fields["total"])
                self._room_made.unpark_all()
            case "stdin_closed":
                self._close_window()
                return StdinClosed()
            case "error":
                raise error_from(fields, status=500)
        return self._read(kind, fields)

    async def send_stdin(self, data: bytes) -> None:
        """Wait until the command has taken enough, then send. Raises: InputClosed once it no longer reads.

        Cancelled: any part of `data` may have been sent.
        """
        rest = memoryview(data)
        while rest:
            await self._wait_for_room()
            size = min(len(rest), self._window.room, STDIN_MESSAGE)
            await self._send_stdin_message(bytes(rest[:size]))
            rest = rest[size:]

    async def _wait_for_room(self) -> None:
        ticket = self._room_made.ticket()
        while self._stdin_open and self._window.room <= 0:
            if self._network.concurrent or self._receiving.locked():
                await self._room_made.park(ticket)
            else:
                async with self._receiving:
                    await self._receive_message()
            ticket = self._room_made.ticket()

    async def _send_stdin_message(self, data: bytes) -> None:
        if not self._stdin_open:
            raise InputClosed("cannot write to the command: it no longer reads its stdin")
        self._window.record_sent(len(data))
        try:
            await self._websocket.send(data)
        except WebSocketClosed as error:
            raise InputClosed("cannot write to the command: the connection to the daemon is closed") from error

    async def close_stdin(self) -> None:
        """The command sees the end of its stdin once it has read what was sent."""
        if self._stdin_open:
            self._close_window()
            await self._send(type="stdin_close")

    async def resize(self, *, cols: int, rows: int) -> None:
        """Tell the command's terminal its new size."""
        await self._send(type="resize", cols=cols, rows=rows)

    async def signal(self, name: str, *, scope: Literal["leader", "group", "tree"] = "group") -> None:
        """Send a signal, e.g. "SIGINT", to the command itself, its process group, or all it started."""
        await self._send(type="signal", signal=name, scope=scope)

    async def kill(self) -> None:
        """End the command and all it started, at once."""
        await self._send(type="kill")

    async def keep_alive(self) -> None:
        """Run this in a task of its own where `receive` may not be called for half a minute (a paused pager)."""
        while not self._ended:
            await self._network.sleep(HEARTBEAT_INTERVAL)
            try:
                await self._websocket.send_heartbeat()
            except WebSocketClosed:
                return  # `receive` will say it

    async def begin(self, **message: Any) -> None:
        """Say what the conversation is about. A daemon that has refused already says so to `receive`."""
        await self._send(**message)

    async def _send(self, **message: Any) -> None:
        with suppress(WebSocketClosed):  # whoever receives learns why; there is nothing left to control
            await self._websocket.send(json.dumps(message))

    def _close_window(self) -> None:
        self._stdin_open = False
        self._room_made.unpark_all()

    def _end(self) -> None:
        self._ended = True
        self._close_window()


class Exec(Conversation[ExecEvent]):
    """Leaving its context ends the connection, and with it the command if it still runs."""

    def __init__(self, websocket: "WebSocket", network: Network) -> None:
        super().__init__(websocket, network, read_event)


def read_event(kind: str, fields: Mapping[str, Any]) -> ExecEvent | None:
    """An event from its JSON, as the websocket and the event stream have in common; None for an unknown kind."""
    match kind:
        case "started":
            return Started(pid=fields["pid"], command_id=str(fields["command_id"]))
        case "stdout" | "stderr":
            encoded = fields.get("data_b64")
            return Output(kind, fields["text"].encode() if encoded is None else b64decode(encoded))
        case "gap":
            return OutputLost(fields["stream"], fields["lost_bytes"])
        case "exit":
            return Exited(**{name: fields[name] for name in Exited.__slots__ if name in fields})
    return None


def _output(message: bytes | bytearray) -> Output | None:
    stream = _STREAMS.get(message[0]) if message else None
    return Output(stream, bytes(memoryview(message)[1:])) if stream else None


def _failure(closed: WebSocketClosed) -> ClientError:
    if closed.code in _CLOSE_STATUS:
        return error_from({"error": f"cannot run the command: {closed.reason}"}, status=closed.code - 4000)
    return ConnectionLost(f"cannot follow the command any more: {closed.reason or closed}")
