"""The client's methods for ports, and a byte stream to one: `Client.connect_port`."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from sandboxd.client.calls import Caller, SandboxRef, drop_none, sandbox_path
from sandboxd.client.errors import ConnectionLost, WebSocketClosed, error_from
from sandboxd.client.execution import HEARTBEAT_INTERVAL
from sandboxd.client.models import ExposedPort, ListeningPort
from sandboxd.client.streams import read_object

if TYPE_CHECKING:
    from sandboxd.client.websocket import WebSocket

_EOF = json.dumps({"type": "eof"})


class PortStream:
    """Bytes to and from a program in a sandbox; each direction ends by itself.

    Raises (every method): ConnectionLost when the program has reset the connection, or the daemon has gone.
    """

    def __init__(self, websocket: "WebSocket") -> None:
        self._websocket = websocket
        self._ended = False

    async def send_all(self, data: bytes) -> None:
        try:
            await self._websocket.send(data)
        except WebSocketClosed as error:
            raise _lost(error) from error

    async def send_eof(self) -> None:
        """No more comes from here; the program may go on."""
        try:
            await self._websocket.send(_EOF)
        except WebSocketClosed as error:
            raise _lost(error) from error

    async def receive_some(self) -> bytes:
        """Some bytes; b"" when the program sends no more."""
        try:
            message = "" if self._ended else await self._websocket.receive()
        except WebSocketClosed as error:
            raise _lost(error) from error
        self._ended = isinstance(message, str)
        return b"" if isinstance(message, str) else bytes(message)

    async def send_heartbeat(self) -> None:
        """Say that we are here, though nobody receives."""
        with suppress(WebSocketClosed):  # whoever receives will be told
            await self._websocket.send_heartbeat()


def _lost(error: WebSocketClosed) -> ConnectionLost:
    return ConnectionLost(f"cannot go on: {error.reason or error}")


class PortMethods(Caller):
    async def expose(
        self, sandbox: SandboxRef, port: int, *, token: bool = False, ttl_ms: int | None = None
    ) -> ExposedPort:
        """Give a port a URL; one that opens only with its token, if asked for. The token is in this answer only."""
        body = {"port": port, "token": token, **drop_none(ttl_ms=ttl_ms)}
        return ExposedPort.read(await self._call("POST", sandbox_path(sandbox, "expose"), body))

    async def conceal(self, sandbox: SandboxRef, port: int) -> None:
        """Take its URL away."""
        await self._call("DELETE", sandbox_path(sandbox, f"expose/{port}"))

    async def ports(self, sandbox: SandboxRef) -> tuple[list[ListeningPort], list[ExposedPort]]:
        """What listens inside, and what is exposed."""
        answer = await self._call("GET", sandbox_path(sandbox, "ports"))
        listening = [ListeningPort.read(raw) for raw in answer["ports"]]
        return listening, [ExposedPort.read(raw) for raw in answer["exposed"]]

    @asynccontextmanager
    async def connect_port(self, sandbox: SandboxRef, port: int) -> AsyncIterator[PortStream]:
        """A byte stream to a port, whatever it speaks. Leaving the context closes the connection."""
        async with self._websocket(sandbox_path(sandbox, f"tcp/{port}")) as websocket:
            await _expect_connection(websocket)
            stream = PortStream(websocket)
            async with self._network.every(HEARTBEAT_INTERVAL, stream.send_heartbeat):
                yield stream


async def _expect_connection(websocket: "WebSocket") -> None:
    try:
        message = await websocket.receive()
    except WebSocketClosed as error:
        raise _lost(error) from error
    answer: dict[str, Any] = read_object(bytes(message) if isinstance(message, bytearray) else message)
    if answer.get("type") != "connected":
        raise error_from(answer, status=502)
