"""Ports: exposed, listed, and as byte streams over a websocket. Their HTTP passes `sandboxd.http.proxy`."""

from typing import Literal

import trio

from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.errors import Close
from sandboxd.http.kit.streams import to_json
from sandboxd.http.kit.validation import validate_message
from sandboxd.http.kit.websockets import WebsocketSession, websocket_session
from sandboxd.http.native.fields import Request
from sandboxd.http.native.ports.schemas import (
    ConcealedPort,
    ExposedPort,
    ListeningPortView,
    NewlyExposedPort,
    PortList,
)
from sandboxd.service.ports import PortConnection

READ_BYTES = 64 * 1024

RESET = Close(4502, "the program has reset the connection")


async def expose(call: Call) -> NewlyExposedPort:
    ports, body = call.service.ports, call.body
    entry = call.entry
    lifetime = None if body.ttl_ms is None else body.ttl_ms / 1000
    exposure, token = await ports.expose(entry, body.port, protected=body.token, lifetime=lifetime)
    return NewlyExposedPort.of(exposure, ports.names, token)


async def conceal(call: Call, port: str) -> ConcealedPort:
    exposure = await call.service.ports.conceal(call.entry, _number(port))
    return ConcealedPort(port=exposure.port)


async def list_all(call: Call) -> PortList:
    ports = call.service.ports
    entry = call.entry
    listening = await ports.listening(entry)
    return PortList(
        ports=[ListeningPortView.of(port) for port in listening],
        exposed=[ExposedPort.of(exposure, ports.names) for exposure in ports.exposures(entry)],
    )


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise InvalidRequest(f"cannot use {text[:20]!r} as a port: ports are 1 to 65535")
    return int(text)


# -- a byte stream ------------------------------------------------------------------------------------------------


class EndOfStream(Request):
    """No more bytes come from this side; the other may go on."""

    type: Literal["eof"]


async def stream(call: Call, port: str) -> None:
    """Binary messages are the bytes; `{"type": "eof"}` is the end of one direction; both, and it closes with 1000."""
    async with websocket_session(call.conversation) as client:
        connection = await call.service.ports.connect(call.entry, _number(port))
        try:
            await client.send(to_json({"type": "connected"}))
            await _Relay(client, connection).run()
        finally:
            connection.close()


class _Relay:
    def __init__(self, session: WebsocketSession, connection: PortConnection) -> None:
        self._session = session
        self._connection = connection
        self._ended_here = False

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._inwards, nursery.cancel_scope)
                while data := await self._connection.stream.receive_some(READ_BYTES):
                    await self._session.send(bytes(data))
                if not self._ended_here and self._connection.was_reset():
                    raise trio.BrokenResourceError
                await self._session.send(to_json({"type": "eof"}))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._session.close(RESET)

    async def _inwards(self, everything: trio.CancelScope) -> None:
        """The client's bytes; its leaving without an end cuts the connection."""
        async for message in self._session:
            if isinstance(message, bytes):
                await self._connection.stream.send_all(message)
            else:
                validate_message(EndOfStream, message)
                self._ended_here = True
                await self._connection.stream.send_eof()
                return
        everything.cancel("the client left")
