"""The application's side of a request: Quart on trio, with its request path cut to what a daemon needs.

Extends Quart at its class attributes. What differs from quart-trio as shipped:

- No task watches for a disconnect: the server cancels the application's task (`exchange.py`). quart-trio's watcher
  also cancels a request that hypercorn is finishing, so connections that are asked to close stay open for ever.
- A request body is pulled from the connection when the handler reads it, so an upload waits for its consumer.
- Responses have no time limit: a live log may be quiet for hours.
- An empty binary websocket message arrives as `b""`, not as None; a failed handler closes with 1011, not 1000.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, cast
from urllib.parse import unquote, urlsplit

import trio
from quart import Quart, request, websocket
from quart.sessions import NullSession, SessionInterface, SessionMixin
from quart.typing import ResponseTypes
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import RequestTimeout
from werkzeug.wrappers import Response as WerkzeugResponse

from sandboxd.errors import TooLarge
from sandboxd.http.server.dispatch import DirectApp
from sandboxd.http.server.exchange import BODY_FOLLOWS, BODY_IN_MEMORY
from sandboxd.http.server.stack import (
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGIWebsocketConnection,
    DataBody,
    HTTPScope,
    QuartTrio,
    TrioASGIHTTPConnection,
    TrioASGIWebsocketConnection,
    TrioBody,
    TrioRequest,
    TrioWebsocket,
    WebsocketScope,
)

# A body read in one piece (JSON) may be this long; one that is read chunk by chunk may be of any length.
MAX_WHOLE_BODY = 8 * 1024 * 1024

# Seconds without a byte of the body, and for the whole of one read in one piece; Quart's own default.
BODY_TIMEOUT = 60

# What is handed over at once of a response that is in memory: two frames of HTTP/2, or a good write of HTTP/1.1.
PIECE_BYTES = 32 * 1024

# What a handler left of a body is read and dropped up to here, to keep the connection for the next request.
DRAIN_BYTES = 256 * 1024
DRAIN_SECONDS = 0.5

WEBSOCKET_INTERNAL_ERROR = 1011


class WebsocketDisconnected(Exception):
    """The peer of a websocket has left; raised to a handler that waits for its next message."""


class PacedBody(TrioBody):
    """A request body read from the connection on demand: what the handler does not take, the peer keeps.

    Iterate over it for a body of any length, or await it for one of at most `MAX_WHOLE_BODY` bytes.
    Raises: `TooLarge` when awaited and too long, werkzeug's `RequestTimeout` when the peer stops sending; a peer who
    leaves cancels the handler, so that half a body never looks like a whole one.
    """

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(expected_content_length, None)
        self._expected = expected_content_length
        self._limit = MAX_WHOLE_BODY if max_content_length is None else max_content_length
        self._receive: ASGIReceiveCallable
        self._timeout: float = math.inf
        self._received = 0
        self._ended = False
        self._whole: bytes | None = None

    def pull_from(self, receive: ASGIReceiveCallable, *, timeout: float | None) -> None:
        self._receive = receive
        self._timeout = math.inf if timeout is None else timeout

    def expect_nothing(self) -> None:
        """The request has no body."""
        self._ended = True

    async def __anext__(self) -> bytes:
        while not self._ended:
            with self._deadline():
                data = await self._next()
            if data:
                return data
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, bytes]:
        return self.read(limit=self._limit).__await__()

    async def read(self, *, limit: int) -> bytes:
        """All of it, at most `limit` bytes; a body that says it is longer is refused before it is read."""
        if self._whole is None:
            if (self._expected or 0) > limit:
                self._refuse(limit)
            parts = []
            with self._deadline():
                while not self._ended:
                    parts.append(await self._next())
                    if self._received > limit:
                        self._refuse(limit)
            self._whole = b"".join(parts)
        return self._whole

    async def drain(self) -> None:
        """Read and drop a short rest, so that the connection can carry another request."""
        limit = self._received + DRAIN_BYTES
        with trio.move_on_after(DRAIN_SECONDS):
            while not (self._ended or self.is_long or self._received > limit):
                await self._next()

    @property
    def ended(self) -> bool:
        """Whether all of it has been read."""
        return self._ended

    @property
    def is_long(self) -> bool:
        """Whether more is known to come than `drain` would take."""
        return self._expected is not None and self._expected - self._received > DRAIN_BYTES

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        with trio.move_on_after(self._timeout) as timer:
            yield
        if timer.cancelled_caught:
            raise RequestTimeout(f"cannot read the request body: it did not come within {self._timeout:g} s")

    async def _next(self) -> bytes:
        message = cast("dict[str, Any]", await self._receive())
        if message["type"] != "http.request":
            raise trio.BrokenResourceError("the client left before its request body was complete")
        self._ended = not message.get("more_body", False)
        data: bytes = message.get("body", b"")
        self._received += len(data)
        return data

    def _refuse(self, limit: int) -> NoReturn:
        raise TooLarge(
            f"cannot take a request body of more than {limit} bytes here; send less, or upload it as a file",
            limit=limit,
        )


class PacedRequest(TrioRequest):
    body_class = PacedBody
    body: PacedBody


def _origin_form(target: str) -> str:
    """The path of a request target that may be a whole URL; Quart fails on some that are neither."""
    if target.startswith("/"):
        return target
    with suppress(ValueError):
        target = urlsplit(target).path
    return target if target.startswith("/") else f"/{target}"


class HttpConnection(TrioASGIHTTPConnection):
    """One request. The server cancels it if the peer leaves before the response has been handed over."""

    def __init__(self, app: Quart, scope: HTTPScope) -> None:
        scope["path"] = _origin_form(scope["path"])
        super().__init__(app, scope)

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = cast("PacedRequest", self._create_request_from_scope(send))
        request.body.pull_from(receive, timeout=self.app.config["BODY_TIMEOUT"])
        if self._has_no_body(request):
            request.body.expect_nothing()
        response = await self.app.handle_request(request)
        await self._respond(request, response, send)

    async def _respond(self, request: PacedRequest, response: ResponseTypes, send: ASGISendCallable) -> None:
        headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
        if request.body.is_long and request.http_version < "2":
            headers.append((b"connection", b"close"))
        start: Any = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        data = _in_memory(response)
        if data is not None:
            start[BODY_IN_MEMORY] = True
        if data is not None and request.body.ended:
            start[BODY_FOLLOWS] = True
            await send(start)
            await _send_whole(data, send, more=False)
            return
        if data is not None:
            await send(start)
            await _send_whole(data, send, more=True)
        else:
            await self._stream(request, start, cast("Response", response), send)
        if request.http_version < "2":  # an HTTP/2 stream ends without its neighbours
            await request.body.drain()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stream(self, request: PacedRequest, start: Any, response: Response, send: ASGISendCallable) -> None:
        """Send a body piece by piece; whatever happens from here on, its context is left."""
        async with response.response as chunks:
            await send(start)
            if request.method == "HEAD":
                return  # hypercorn would drop it piece by piece, and there may be no last piece
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                await send({"type": "http.response.body", "body": data, "more_body": True})

    def _has_no_body(self, request: PacedRequest) -> bool:
        """HTTP/1 announces a body; in HTTP/2 the end of the stream tells."""
        headers = request.headers
        announced = "content-length" in headers or "transfer-encoding" in headers
        return request.http_version < "2" and not announced


async def _send_whole(data: bytes, send: ASGISendCallable, *, more: bool) -> None:
    """Hand over a body that is in memory in pieces, so that no more than one of them is there a second time."""
    last = max(0, len(data) - 1) // PIECE_BYTES * PIECE_BYTES
    for begin in range(0, last, PIECE_BYTES):
        await send({"type": "http.response.body", "body": data[begin : begin + PIECE_BYTES], "more_body": True})
    await send({"type": "http.response.body", "body": data[last:], "more_body": more})


def _in_memory(response: ResponseTypes) -> bytes | None:
    """The whole body of a response, if it is there already."""
    if isinstance(response, WerkzeugResponse):
        return response.get_data()
    body = response.response
    return body.data[body.begin : body.end] if isinstance(body, DataBody) else None


class HandlerWebsocket(TrioWebsocket):
    """Quart's websocket; `accepted` says whether the handshake is over."""

    accepted = False

    async def accept(self, headers: Any = None, subprotocol: str | None = None) -> None:
        await super().accept(headers, subprotocol)
        self.accepted = True


class _Messages:
    """What quart-trio expects of its channel of inbound messages, pulled from the connection instead."""

    def __init__(self) -> None:
        self.pull: ASGIReceiveCallable

    async def receive(self) -> str | bytes:
        while True:
            event = cast("dict[str, Any]", await self.pull())
            if event["type"] == "websocket.disconnect":
                raise WebsocketDisconnected
            if event["type"] == "websocket.receive":
                data: str | bytes | None = event.get("bytes")
                return cast("str", event["text"]) if data is None else data


class WebsocketConnection(TrioASGIWebsocketConnection):
    """One websocket."""

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        scope["path"] = _origin_form(scope["path"])
        self.app = app
        self.scope = scope
        self._accepted = False
        self._closed = False
        self._messages = _Messages()
        self.receive_channel = cast("Any", self._messages)

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._messages.pull = receive
        websocket = self._create_websocket_from_scope(send)
        await ASGIWebsocketConnection.handle_websocket(self, websocket, send)


class NoSessions(SessionInterface):
    """No cookies: clients of this daemon identify themselves with keys."""

    _NONE = NullSession()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> SessionMixin:
        return self._NONE

    async def save_session(
        self, app: Quart, session: SessionMixin, response: Response | WerkzeugResponse | None
    ) -> None:
        raise NotImplementedError("null sessions are not saved")


class SandboxdApp(DirectApp):
    """The base of the daemon's application. Serve it with `sandboxd.http.server.serving`.

    Lifespan, background tasks and before/after-serving hooks of Quart do not run: nothing durable may live in a web
    framework's nursery, where one failed task goes unnoticed (the service owns such tasks).
    """

    asgi_http_class = HttpConnection
    asgi_websocket_class = WebsocketConnection
    request_class = PacedRequest
    websocket_class = HandlerWebsocket
    session_interface: Any = NoSessions()

    def __init__(self, import_name: str) -> None:
        super().__init__(import_name, static_folder=None, template_folder=None)
        self.config["MAX_CONTENT_LENGTH"] = None  # it limits streamed bodies too; PacedBody limits those read whole
        self.config["BODY_TIMEOUT"] = BODY_TIMEOUT
        self.config["RESPONSE_TIMEOUT"] = None

    async def handle_websocket_exception(self, error: Exception) -> ResponseTypes | None:
        """End a websocket whose handler failed with a code that says so; a peer that left is no failure."""
        if isinstance(error, WebsocketDisconnected):
            # Quart raised it again from a frame that has it as a variable: a circle, and all the frames hang on it.
            error.__traceback__ = None
            return None
        response = await super().handle_websocket_exception(error)
        current = cast("HandlerWebsocket", websocket)
        if current.accepted:
            await current.close(WEBSOCKET_INTERNAL_ERROR)
        return response


async def read_body(*, limit: int = MAX_WHOLE_BODY) -> bytes:
    """The current request's body in one piece, at most `limit` bytes (`TooLarge`)."""
    return await cast("PacedRequest", request).body.read(limit=limit)


def raw_path_segments(scope: HTTPScope | WebsocketScope) -> tuple[str, ...]:
    """The path's segments as the client meant them, each decoded by itself.

    The server decodes `%2F` before routing, so a parameter with a slash in it looks like two. Bytes that are not
    UTF-8 survive as surrogates, as in `os.fsdecode`.
    """
    path = scope["raw_path"].decode("ascii", "replace").removeprefix("/")
    return tuple(unquote(segment, errors="surrogateescape") for segment in path.split("/"))
