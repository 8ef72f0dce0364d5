"""Real servers on real Unix sockets, and small clients that say exactly what goes over the wire.

Server and client share one event loop, and what one writes to a Unix socket the other can read at once. So nothing is
under way while all tasks wait, and a test about time takes `autojump_clock`: its clock moves only then, whatever the
machine does meanwhile. Not over TCP, whose packets the kernel may deliver a little later.
"""

import dataclasses
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import hypercorn.trio
import trio
import trio_websocket
from hypercorn.config import Config

from sandboxd.http.server.listeners import TcpAddress, UnixAddress, bind
from sandboxd.http.server.serving import Server, ServingLimits
from tests.support.waiting import PATIENCE


@dataclass
class Served:
    """A running server. `died` is what ended it, if it ended by itself."""

    connect: Callable[[], Any]
    stop: trio.Event = field(default_factory=trio.Event)
    server: Server | None = None
    died: BaseException | None = None
    ended: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def serving(
    app: Any,
    *,
    limits: ServingLimits | None = None,
    grace: float = 1.0,
    tcp: bool = False,
    dialect: str | None = None,
) -> AsyncIterator[Served]:
    """Serve `app` with the daemon's own stack."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "s")
        with bind([TcpAddress("127.0.0.1", 0) if tcp else UnixAddress(path)]) as listeners:
            port = listeners[0].socket.getsockname()[1] if tcp else 0
            server = Server(app, limits=limits or ServingLimits(cleartext_http2=True))
            over_unix = partial(trio.open_unix_socket, path)
            over_tcp = partial(trio.open_tcp_stream, "127.0.0.1", port)
            served = Served(over_tcp if tcp else over_unix, server=server)
            as_told = [dataclasses.replace(listener, dialect=dialect) for listener in listeners]
            run = partial(server.serve, as_told, stop=served.stop, grace=grace)
            async with _running(served, run):
                yield served


@asynccontextmanager
async def stock_serving(app: Any, *, grace: float = 1.0, **settings: Any) -> AsyncIterator[Served]:
    """Serve `app` with hypercorn as shipped: the control that shows a test can fail."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(64)
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.graceful_timeout = grace
        config.errorlog = None
        for name, value in settings.items():
            setattr(config, name, value)
        served = Served(partial(trio.open_unix_socket, path))
        async with _running(served, partial(hypercorn.trio.serve, app, config, shutdown_trigger=served.stop.wait)):
            yield served


@asynccontextmanager
async def _running(served: Served, run: Callable[..., Any]) -> AsyncIterator[None]:
    async def supervise(task_status: Any) -> None:
        try:
            await run(task_status=task_status)
        except trio.Cancelled:
            raise
        except BaseException as error:
            served.died = error
        finally:
            served.ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(supervise)
        try:
            yield
        finally:
            served.stop.set()
            with trio.move_on_after(PATIENCE / 3, shield=True):
                await served.ended.wait()
            nursery.cancel_scope.cancel()


async def read_to_end(stream: trio.SocketStream) -> bytes:
    """All that comes until the server closes; fails if it never does."""
    received = b""
    with trio.fail_after(PATIENCE):
        async for data in stream:
            received += data
    return received


async def exchange(served: Served, raw: bytes) -> bytes:
    """Send `raw` on a connection of its own and return everything the server says until it closes."""
    async with await served.connect() as stream:
        await stream.send_all(raw)
        return await read_to_end(stream)


async def is_serving(served: Served) -> bool:
    """Whether a new connection gets an answer."""
    if served.ended.is_set():
        return False
    try:
        with trio.move_on_after(PATIENCE):
            return b" 200 " in await exchange(served, b"GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    except (OSError, trio.BrokenResourceError):
        pass
    return False


class Client:
    """An HTTP/1.1 client over one connection, on h11."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def send(self, event: Any) -> None:
        data = self._h11.send(event)
        if data:
            await self.stream.send_all(data)

    async def begin(self, method: str, target: str, *, length: int | None) -> None:
        """Send the head of a request with a body of `length` bytes, or of chunks."""
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        await self.send(h11.Request(method=method, target=target, headers=[("host", "x"), framing]))

    async def next_event(self) -> Any:
        with trio.fail_after(PATIENCE):
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.receive_some(65536))
        return event

    async def response(self) -> tuple[h11.Response, bytes]:
        response = await self.next_event()
        while isinstance(response, h11.InformationalResponse):
            response = await self.next_event()
        assert isinstance(response, h11.Response), response
        body = b""
        while isinstance(event := await self.next_event(), h11.Data):
            body += bytes(event.data)
        return response, body

    async def request(
        self, method: str, target: str, *, body: bytes = b"", headers: list[tuple[str, str]] | None = None
    ) -> tuple[h11.Response, bytes]:
        fields = [("host", "x"), *(headers or [])]
        if body:
            fields.append(("content-length", str(len(body))))
        await self.send(h11.Request(method=method, target=target, headers=fields))
        if body:
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())
        return await self.response()

    def expect_response(self) -> None:
        """Get ready to read the response to a request that was sent by other means."""
        self._h11.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        self._h11.send(h11.EndOfMessage())

    def reuse(self) -> None:
        """Get ready for another request on this connection; h11 raises if that is not possible."""
        self._h11.start_next_cycle()


class Http2Client:
    """An HTTP/2 client by prior knowledge, on h2."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.h2.initiate_connection()

    async def request(self, method: str, path: str, *, end_stream: bool = True) -> int:
        number = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.h2.send_headers(number, pseudo, end_stream=end_stream)
        await self.flush()
        return number

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def send_data(self, number: int, data: bytes, *, end_stream: bool = False) -> None:
        """Send a frame of data, once the server leaves room for it."""
        with trio.fail_after(PATIENCE):
            while self.h2.local_flow_control_window(number) < len(data):
                self.h2.receive_data(await self.stream.receive_some())
        self.h2.send_data(number, data, end_stream=end_stream)
        await self.flush()

    async def response(self, number: int) -> tuple[str, bytes]:
        status, body = "", b""
        with trio.fail_after(PATIENCE):
            while True:
                for event in self.h2.receive_data(await self.stream.receive_some()):
                    if isinstance(event, h2.events.ResponseReceived) and event.stream_id == number:
                        status = dict(event.headers)[b":status"].decode()
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded) and event.stream_id == number:
                        await self.flush()
                        return status, body
                await self.flush()


@asynccontextmanager
async def client(served: Served) -> AsyncIterator[Client]:
    async with await served.connect() as stream:
        yield Client(stream)


@asynccontextmanager
async def websocket(served: Served, path: str, **options: Any) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    async with await served.connect() as stream, trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            connection = await trio_websocket.wrap_client_stream(nursery, stream, "x", path, **options)
        yield connection
        nursery.cancel_scope.cancel()


async def close_code(connection: trio_websocket.WebSocketConnection) -> int:
    """Read to the end of a websocket and return the code the server closed it with."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await connection.get_message()
            except trio_websocket.ConnectionClosed as closed:
                return closed.reason.code


def leaf(error: BaseException | None) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
