"""Which requests are for a port of a sandbox: by path, by host name, or however a dialect says it.

A finder looks at an ASGI scope and gives a `PortRequest`, or None for a request that is not its. Finders run before
routing, since a program's paths must reach it byte for byte, escaped slashes included, and with any method.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from sandboxd.errors import SandboxdError
from sandboxd.http.native.fields import ErrorBody
from sandboxd.http.proxy.headers import first, split_query

Scope = Mapping[str, Any]

_BY_PATH = re.compile(rb"(/v1/sandboxes/([^/]+)/ports/([0-9]{1,5}))(/.*)?", re.DOTALL)
_ABSOLUTE = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?]*")


def native_error(error: SandboxdError) -> bytes:
    return ErrorBody.of(error).model_dump_json().encode()


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
    error_body: Callable[[SandboxdError], bytes] = native_error

    @property
    def target(self) -> bytes:
        return self.path + (b"?" + self.query if self.query else b"")


Finder = Callable[[Scope], PortRequest | None]


def by_path(scope: Scope) -> PortRequest | None:
    """/v1/sandboxes/{sandbox}/ports/{port}/…"""
    match = _BY_PATH.fullmatch(scope["raw_path"])
    if match is None or (match[4] is None and _is_api(scope)):
        return None
    return PortRequest(
        sandbox=unquote_to_bytes(match[2]).decode("utf-8", "replace"),
        port=int(match[3]),
        path=match[4] or b"",
        query=scope["query_string"],
        prefix=match[1].decode("ascii"),
    )


def _is_api(scope: Scope) -> bool:
    """Without a slash behind the port it is a path of the API, unless somebody wants to look at it."""
    return scope["type"] != "http" or scope["method"] not in ("GET", "HEAD")


def by_host(domain: str) -> Finder:
    """`{port}-{sandbox}.{domain}` in the Host header."""
    pattern = re.compile(rb"([0-9]{1,5})-([a-z0-9_-]+)\." + re.escape(domain.encode()) + rb"\.?(?::[0-9]*)?")

    def find(scope: Scope) -> PortRequest | None:
        match = pattern.fullmatch((first(scope["headers"], b"host") or b"").lower())
        if match is None:
            return None
        query, token = split_query(scope["query_string"])
        return PortRequest(
            sandbox=match[2].decode("ascii"),
            port=int(match[1]),
            path=_origin_form(scope["raw_path"]),
            query=query,
            prefix=None,
            token=None if token is None else token.decode("latin-1"),
        )

    return find


def _origin_form(path: bytes) -> bytes:
    """A client that takes us for its proxy sends whole URLs."""
    return path if path.startswith(b"/") or path == b"*" else _ABSOLUTE.sub(b"", path, count=1) or b"/"
