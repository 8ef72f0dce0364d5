"""What a client's first bytes say of whom it wants to talk to. Pure; everything here is hostile input.

Bytes that no real client sends (a second SNI, two Host headers, a name that is none) are told as contradictory and
never guessed at: another parser might read them otherwise. Whatever is neither TLS nor HTTP is raw, and has no name.
"""

import contextlib
import ipaddress
import struct
from dataclasses import dataclass
from enum import Enum

from sandboxd.gateway.names import name_from_wire

MAX_HEAD = 16384
"""of a ClientHello, or of an HTTP request's head; longer than any client's"""

_METHODS = (
    b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE ", b"PROPFIND ",
    b"PRI ",  # HTTP/2 without TLS, which tells no name that could be read here
)  # fmt: skip
_LONGEST_METHOD = max(map(len, _METHODS))
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME = 0


class Speech(Enum):
    TLS = "tls"
    HTTP = "http"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen: how the client speaks, and the name that it showed."""

    speech: Speech
    name: str | None = None
    """in its one form; None if it showed none, or an address"""
    contradictory: str = ""
    """why it is not to be believed; then there is no name"""


RAW = Sighting(Speech.RAW)


def classify(data: bytes) -> Sighting | None:
    """What these first bytes say; None if it takes more of them to tell. At most MAX_HEAD and a read's worth."""
    if not data:
        return None
    if data[0] == _HANDSHAKE:
        return _tls(data)
    start = data[:_LONGEST_METHOD]
    if start.startswith(_METHODS):
        return _http(data)
    return None if any(method.startswith(start) for method in _METHODS) else RAW


# -- TLS ----------------------------------------------------------------------------------------------------------


def _tls(data: bytes) -> Sighting | None:
    """The ClientHello, put together from the records that it is spread over (RFC 8446, 5.1)."""
    hello, at = bytearray(), 0
    while len(data) >= at + 5:
        kind, version, length = struct.unpack_from("!BHH", data, at)
        if kind != _HANDSHAKE or version >> 8 != 3 or not 0 < length <= MAX_HEAD:
            return _odd_tls("a record that is no handshake")
        hello += data[at + 5 : at + 5 + length]
        if len(hello) >= 4:
            needed = 4 + int.from_bytes(hello[1:4], "big")
            if hello[0] != _CLIENT_HELLO or needed > MAX_HEAD:
                return _odd_tls("a handshake that begins with no ClientHello")
            if len(hello) >= needed:
                return _client_hello(bytes(hello[4:needed]))
        at += 5 + length
    # One byte in each record makes six of one: what comes after so many is no client's.
    return _odd_tls("a ClientHello without end") if len(data) > 6 * MAX_HEAD else None


def _odd_tls(what: str) -> Sighting:
    return Sighting(Speech.TLS, contradictory=what)


def _client_hello(body: bytes) -> Sighting:
    try:
        extensions = _extensions(body)
    except (IndexError, struct.error, ValueError):
        return _odd_tls("a ClientHello that is malformed")
    if _SERVER_NAME not in extensions:
        return Sighting(Speech.TLS)
    raw = _server_name(extensions[_SERVER_NAME])
    name = None if raw is None else name_from_wire(raw)
    return Sighting(Speech.TLS, name) if name else _odd_tls("a server name that is none")


def _extensions(body: bytes) -> dict[int, bytes]:
    """Raises: IndexError, struct.error, ValueError for what is truncated, or there twice."""
    at = 2 + 32
    at += 1 + body[at]  # session id
    at += 2 + struct.unpack_from("!H", body, at)[0]  # cipher suites
    at += 1 + body[at]  # compression methods
    if at == len(body):
        return {}
    end = at + 2 + struct.unpack_from("!H", body, at)[0]
    if end != len(body):
        raise ValueError("the extensions end elsewhere")
    at += 2
    found: dict[int, bytes] = {}
    while at < end:
        kind, length = struct.unpack_from("!HH", body, at)
        at += 4 + length
        if at > end or kind in found:
            raise ValueError("an extension is cut short, or there twice")
        found[kind] = body[at - length : at]
    return found


def _server_name(body: bytes) -> bytes | None:
    """The one host name of the list (RFC 6066, 3); None for anything else."""
    if len(body) < 5 or body[2] != 0:
        return None
    whole, length = int.from_bytes(body[:2], "big"), int.from_bytes(body[3:5], "big")
    return body[5:] if whole == len(body) - 2 and length == len(body) - 5 else None


# -- HTTP ---------------------------------------------------------------------------------------------------------


def _http(data: bytes) -> Sighting | None:
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD + 4)
    if end < 0:
        return _odd_http("a request head without end") if len(data) > MAX_HEAD else None
    request, *fields = data[:end].split(b"\r\n")
    parts = request.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
        return _odd_http("a request that is not HTTP/1")
    hosts = []
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or name != name.strip() or not name:
            return _odd_http("a header that is malformed")
        if name.lower() == b"host":
            hosts.append(value.strip())
    return sight_request(parts[0], parts[1], hosts)


def sight_request(method: bytes, target: bytes, hosts: list[bytes]) -> Sighting:
    """Whom a request is for: its target, if that has a host (RFC 9112, 3.2.2), and the Host that must agree."""
    if len(hosts) > 1:
        return _odd_http("two Host headers")
    authority = hosts[0] if hosts else None
    named: bytes | None = None
    if method == b"CONNECT":
        return _odd_http("a CONNECT, which would hide whom it leads to")
    if target.startswith(b"/") or target == b"*":
        pass
    else:
        scheme, found, rest = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            return _odd_http("a request target that is malformed")
        named = rest.partition(b"/")[0].partition(b"?")[0].rpartition(b"@")[2]
    if named is not None:
        if authority is not None and _one_form(named) != _one_form(authority):
            return _odd_http("a Host header other than the request's target")
        authority = named
    return Sighting(Speech.HTTP) if not authority else _sight_host(_host_of(authority))


def _one_form(authority: bytes) -> bytes | str:
    host = _host_of(authority)
    return name_from_wire(host) or host


def _host_of(authority: bytes) -> bytes:
    host, colon, port = authority.rpartition(b":")
    bare = host if colon and (port.isdigit() or not port) and not host.count(b":") else authority
    return (host if authority.startswith(b"[") and host.endswith(b"]") else bare).lower()


def _sight_host(host: bytes) -> Sighting:
    with contextlib.suppress(ValueError):  # UnicodeDecodeError is one
        ipaddress.ip_address(host.decode("ascii").removeprefix("[").removesuffix("]"))
        return Sighting(Speech.HTTP)
    name = name_from_wire(host)
    return Sighting(Speech.HTTP, name) if name else _odd_http("a host name that is none")


def _odd_http(what: str) -> Sighting:
    return Sighting(Speech.HTTP, contradictory=what)
