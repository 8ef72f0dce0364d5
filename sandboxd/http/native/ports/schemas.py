"""Ports on the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import Field

from sandboxd.http.native.fields import DAY_MS, Request, Response, rfc3339_time
from sandboxd.model import Exposure
from sandboxd.service.ports import ListeningPort, PortNames

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
