"""Tenants of one daemon over real TCP, and conversations of theirs that are slower than what happens meanwhile."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from tests.security.support import Holder
from tests.support.daemon import Answer, Daemon

LIMIT = 60.0
SANDBOXES = "/v1/sandboxes"

# A request whose head was sent is taken as being waited on after so long. Were it too short on a stalled machine, an
# attack would come too early and fail for another reason: it cannot make a sound daemon look unsound.
HEAD_START = 0.3


@dataclass(frozen=True)
class Town:
    daemon: Daemon
    port: int

    def tenant(self, *, own: bool = True, **terms: Any) -> "Tenant":
        return Tenant(self, own=own, **terms)


class Tenant(Holder):
    """A holder who is kept to what it creates, and who takes its time."""

    def __init__(self, town: Town, **terms: Any) -> None:
        super().__init__(town.daemon, town.port, **terms)
        self.town = town

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.secret}"}

    def delete(self, sandbox: str) -> None:
        assert self.call("DELETE", f"{SANDBOXES}/{sandbox}").status == 200

    def revoke(self) -> None:
        """By the administrator."""
        assert self.town.daemon.call("DELETE", f"/v1/keys/{self.id}").status == 200

    @contextlib.contextmanager
    def asked(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPConnection]:
        """A request that was sent, and whose answer has not been read."""
        content = None if body is None else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)) as connection:
            connection.request(method, path, content, self.headers)
            yield connection

    @contextlib.contextmanager
    def opened(
        self, method: str, path: str, body: Any = None
    ) -> Iterator[tuple[http.client.HTTPConnection, http.client.HTTPResponse]]:
        """A request whose answer has begun, and its connection."""
        with self.asked(method, path, body) as connection, connection.getresponse() as response:
            yield connection, response

    @contextlib.contextmanager
    def slow_request(self, method: str, path: str, body: bytes) -> Iterator["SlowRequest"]:
        """A request of which everything but the last byte of its body has been sent, and is waited for."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT) as sock:
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {self.secret}\r\n"
            sock.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:-1])
            time.sleep(HEAD_START)
            yield SlowRequest(sock, body[-1:])

    @contextlib.asynccontextmanager
    async def websocket(self, path: str) -> AsyncIterator["Conversation"]:
        """A websocket whose handshake is over; leaving the block cuts the connection."""
        with trio.fail_after(LIMIT):
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with trio.open_nursery() as nursery:
                headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
                opened = await wrap_client_stream(nursery, stream, "x", path, extra_headers=headers)
                try:
                    yield Conversation(opened)
                finally:
                    nursery.cancel_scope.cancel()
                    await trio.aclose_forcefully(stream)


@dataclass(frozen=True)
class SlowRequest:
    socket: socket.socket
    rest: bytes

    def finish(self) -> Answer:
        """Send the rest; the answer, whose body ends with its connection or its length."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have been answered already
            self.socket.sendall(self.rest)
        return self.answer()

    def answer(self) -> Answer:
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return Answer(response.status, dict(response.getheaders()), response.read())


@dataclass(frozen=True)
class Conversation:
    socket: WebSocketConnection

    async def say(self, **message: Any) -> None:
        await self.socket.send_message(json.dumps(message))

    async def next(self) -> Any:
        """The next text message."""
        while isinstance(message := await self.socket.get_message(), bytes):
            pass
        return json.loads(message)

    async def until(self, kind: str) -> Any:
        """Read on until a message of that type has come."""
        while (message := await self.next())["type"] != kind:
            pass
        return message

    async def rest(self) -> tuple[list[Any], int, str]:
        """What comes until it is closed: text messages, the close code, and its reason."""
        messages: list[Any] = []
        try:
            while True:
                messages.append(await self.next())
        except ConnectionClosed as closed:
            reason: Any = closed.reason
            return messages, int(reason.code), reason.reason or ""
