"""Ports: exposed, listed, and as byte streams over a websocket. Their HTTP passes `sandboxd.http.proxy`."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

import trio
from pydantic import Field

from sandboxd.errors import InvalidRequest
from sandboxd.http.kit.call import Call
from sandboxd.http.kit.errors import Close
from sandboxd.http.kit.routes import Route
from sandboxd.http.kit.streams import to_json
from sandboxd.http.kit.validation import validate_message
from sandboxd.http.kit.websockets import WebsocketSession, websocket_session
from sandboxd.http.native.fields import DAY_MS, Request, Response, rfc3339_time, seconds
from sandboxd.model import Exposure, Scope
from sandboxd.service.ports import ListeningPort, PortConnection, PortNames

Port = Annotated[int, Field(ge=1, le=65535)]


class ExposePort(Request):
    port: Port
    token: bool = False
    """whether the URL opens only with a token, which the answer contains; otherwise it is open to all who reach it"""
    ttl_ms: Annotated[int, Field(ge=1, le=365 * DAY_MS)] | None = None
    """how long it is exposed; without one, until it is concealed or the sandbox deleted"""


class ExposedPort(Response):
    port: int
    host: str
    """its host name, and the daemon's port where it is not the scheme's own"""
    url: str | None
    """where a browser finds it; None when the daemon listens on no TCP address"""
    path: str
    """the same below this API, with a key"""
    protected: bool
    """whether it takes a token"""
    created_at: datetime
    end_at: datetime | None

    @classmethod
    def of(cls, exposure: Exposure, names: PortNames, token: str | None = None) -> Self:
        url = names.url(exposure.sandbox, exposure.port)
        fields: dict[str, Any] = {"url": url}
        if token is not None:
            fields = {"token": token, "url": url and f"{url}?sandboxd_token={token}"}
        return cls.model_construct(
            port=exposure.port,
            host=names.host(exposure.sandbox, exposure.port),
            path=f"/v1/sandboxes/{exposure.sandbox}/ports/{exposure.port}/",
            protected=exposure.token_hash is not None,
            created_at=rfc3339_time(exposure.created_at),
            end_at=rfc3339_time(exposure.expires_at),
            **fields,
        )


class NewlyExposedPort(ExposedPort):
    token: str | None = None
    """shown this once; `url` contains it too. Or send it as the header X-Sandboxd-Token"""


class ConcealedPort(Response):
    port: int
    concealed: bool = True


class ListeningPortView(Response):
    port: int
    addresses: list[str]
    reachable: bool
    """through the daemon: not when it listens only on an address other than the loopback's"""
    uid: int
    """of who made the socket, inside"""
    pid: int | None
    """inside, where it can be seen"""
    command: str | None

    @classmethod
    def of(cls, port: ListeningPort) -> Self:
        return cls(
            port=port.port,
            addresses=list(port.addresses),
            reachable=port.reachable,
            uid=port.uid,
            pid=port.pid,
            command=port.program,
        )


class PortList(Response):
    ports: list[ListeningPortView]
    """what listens inside, on TCP"""
    exposed: list[ExposedPort]


READ_BYTES = 64 * 1024

RESET = Close(4502, "the program has reset the connection")


async def expose(call: Call) -> NewlyExposedPort:
    ports, body = call.service.ports, call.body
    entry = call.entry
    lifetime = seconds(body.ttl_ms)
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


READ, WRITE = Scope.READ, Scope.WRITE
SANDBOX = "/v1/sandboxes/<sandbox>"

# fmt: off
PORT_ROUTES = (
    Route(method="POST", path=f"{SANDBOX}/expose", handler=expose, scope=WRITE,
          body=ExposePort, response=NewlyExposedPort, summary="Give a port a URL"),
    Route(method="DELETE", path=f"{SANDBOX}/expose/<port>", handler=conceal, scope=WRITE,
          response=ConcealedPort, summary="Take a port's URL away"),
    Route(method="GET", path=f"{SANDBOX}/ports", handler=list_all, scope=READ,
          response=PortList, summary="What listens inside, and what is exposed"),
    Route(method="GET", path=f"{SANDBOX}/tcp/<port>", handler=stream, scope=WRITE,
          streams="websocket", summary="A byte stream to a port, any protocol"),
)
# fmt: on
