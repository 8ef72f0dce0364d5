"""Which requests are for a program on a port of a sandbox, rather than for the daemon.

They are found before routing, since a program's paths must reach it byte for byte, escaped slashes included, and with
any method.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Scope = Mapping[str, Any]

TOKEN_NAME = b"sandboxd_token"
"""of the query parameter, and of the cookie"""

_ABSOLUTE = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRequest:
    """A request as it is meant for a program in a sandbox."""

    sandbox: str
    """id or name"""
    port: int
    path: bytes
    """raw; empty when the client left out the slash behind the prefix"""
    query: bytes
    """raw, without the token"""
    prefix: str | None
    """what came before the path; None when the port has a host name, and so an origin, of its own"""
    token: str | None = None
    """as given in the query"""

    @property
    def target(self) -> bytes:
        """The path and the query, as a request line has them."""
        return self.path + (b"?" + self.query if self.query else b"")


PortFinder = Callable[[Scope], PortRequest | None]
"""Looks at the head of a request (an ASGI scope); None: it is not for a port."""


def by_host(domain: str) -> PortFinder:
    """Requests whose Host header is `{port}-{sandbox}.{domain}`."""
    pattern = re.compile(rb"([0-9]{1,5})-([a-z0-9_-]+)\." + re.escape(domain.encode()) + rb"\.?(?::[0-9]*)?")

    def find(scope: Scope) -> PortRequest | None:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        match = pattern.fullmatch(host.lower())
        if match is None:
            return None
        query, token = split_query(scope["query_string"])
        return PortRequest(
            sandbox=match[2].decode("ascii"),
            port=int(match[1]),
            path=origin_form(scope["raw_path"]),
            query=query,
            prefix=None,
            token=None if token is None else token.decode("latin-1"),
        )

    return find


def origin_form(path: bytes) -> bytes:
    """The path of a request target: a client that takes us for its proxy sends whole URLs."""
    return path if path.startswith(b"/") or path == b"*" else _ABSOLUTE.sub(b"", path, count=1) or b"/"


def split_query(query: bytes) -> tuple[bytes, bytes | None]:
    """The query without the token, byte for byte, and the token."""
    parts = query.split(b"&")
    tokens = [part.partition(b"=")[2] for part in parts if part.partition(b"=")[0] == TOKEN_NAME]
    return b"&".join(part for part in parts if part.partition(b"=")[0] != TOKEN_NAME), next(iter(tokens), None)
