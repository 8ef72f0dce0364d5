"""The HTTP requests on one connection, each judged before it passes: a connection that was opened for an allowed name
must not carry a later request for another. No I/O.

Parsed messages pass, never bytes: h11 decides where a message ends, and what is written is what was read, so that
nothing is smuggled in between. A message whose length can be read in two ways is refused.

A websocket's handshake makes the rest of the connection opaque, if the server agrees. So it may only come first on
its connection, and what the client sends after it waits for the server's answer. Other upgrades are left away, as a
proxy may (RFC 9110, 7.8): h2c would carry requests that nobody here reads.
"""

from collections.abc import Callable
from enum import Enum, auto

import h11

from sandboxd.gateway.sniff import MAX_HEAD, Sighting, sight_request

_SWITCHED = (b"HTTP/1.1 101", b"HTTP/1.0 101")


class RequestRefused(Exception):
    """A request that may not pass, or bytes that are none. Its text says why."""


class _State(Enum):
    REQUESTS = auto()
    SWITCHING = auto()
    """the server has been asked for a websocket, and has not answered"""
    OPAQUE = auto()


class RequestGuard:
    """What a client sends to a server, request by request.

    `judge` says why a request that shows this may not pass, or nothing.
    """

    def __init__(self, judge: Callable[[Sighting], str]) -> None:
        self._judge = judge
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._state = _State.REQUESTS
        self._requests = 0
        self._chunked = False
        self._held = b""

    @property
    def waits_for_server(self) -> bool:
        """Whether nothing more of the client's may be taken until the server has answered."""
        return self._state is _State.SWITCHING

    def feed(self, data: bytes) -> bytes:
        """What of it may pass now. Raises: RequestRefused."""
        if self._state is _State.OPAQUE:
            return data
        self._held += data
        passed = bytearray()
        while self._state is _State.REQUESTS and self._held:
            self._reader.receive_data(self._held)
            self._held = b""
            self._read_events(passed)
        return bytes(passed)

    def server_answers(self, start: bytes) -> bytes:
        """The server's first bytes: whether it agreed to a websocket. What may pass of what was held back."""
        if self._state is not _State.SWITCHING:
            return b""
        held, self._held = self._held, b""
        if start.startswith(_SWITCHED):
            self._state = _State.OPAQUE
            return held
        self._state = _State.REQUESTS
        return self.feed(held) if held else b""

    def _read_events(self, passed: bytearray) -> None:
        try:
            while True:
                event = self._reader.next_event()
                if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                    return
                if event is h11.PAUSED:
                    return self._next_request()
                if isinstance(event, h11.Request):
                    passed += self._request(event)
                elif isinstance(event, h11.Data):
                    passed += b"%x\r\n%b\r\n" % (len(event.data), event.data) if self._chunked else bytes(event.data)
                elif isinstance(event, h11.EndOfMessage) and self._chunked:
                    passed += b"0\r\n%b\r\n" % _fields(list(event.headers.raw_items()))
        except h11.RemoteProtocolError as error:
            raise RequestRefused(f"it is no proper HTTP request: {error}") from error

    def _next_request(self) -> None:
        """A reader reads one request: to read another it would have to write the answer to the first."""
        self._held = bytes(self._reader.trailing_data[0])
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)

    def _request(self, request: h11.Request) -> bytes:
        headers = list(request.headers.raw_items())
        lower = [(name.lower(), value) for name, value in headers]
        lengths = {name for name, _ in lower} & {b"content-length", b"transfer-encoding"}
        if len(lengths) > 1:
            raise RequestRefused("its length is given in two ways")
        hosts = [value for name, value in lower if name == b"host"]
        if reason := self._judge(sight_request(request.method, request.target, hosts)):
            raise RequestRefused(reason)
        upgrades = {value.strip().lower() for name, value in lower if name == b"upgrade"}
        self._requests += 1
        if upgrades == {b"websocket"}:
            if self._requests > 1:
                raise RequestRefused("a websocket has to be the first request on its connection")
            self._state = _State.SWITCHING
        elif upgrades:
            headers = [(name, value) for name, value in headers if name.lower() != b"upgrade"]
        self._chunked = b"transfer-encoding" in lengths
        line = b"%b %b HTTP/%b\r\n" % (request.method, request.target, request.http_version)
        return line + _fields(headers) + b"\r\n"


def _fields(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
