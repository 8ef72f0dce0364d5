"""What an application may know about the connection a request came on; it travels in the ASGI scope's state."""

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who opened a Unix connection, as the kernel knows it; ids as seen in the daemon's namespaces."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end of a connection, and through which listener it came.

    `credentials` on a Unix socket, `address` on TCP; the other is None.
    """

    listener: str
    credentials: Credentials | None = None
    address: tuple[str, int] | None = None

    def __str__(self) -> str:
        if self.credentials is not None:
            return f"pid {self.credentials.pid} uid {self.credentials.uid} on {self.listener}"
        return f"{self.address} on {self.listener}"


def identify(sock: trio.socket.SocketType, *, listener: str) -> Peer:
    """Ask the kernel who connected. Raises `OSError` if the peer has left already."""
    if sock.family == socket.AF_UNIX:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return Peer(listener=listener, credentials=Credentials(*_UCRED.unpack(raw)))
    host, port = sock.getpeername()[:2]
    return Peer(listener=listener, address=(host, port))


def peer_of(scope: Mapping[str, Any]) -> Peer:
    """The `Peer` of a request or websocket, from its ASGI scope."""
    peer: Peer = scope["state"]["peer"]
    return peer


def dialect_of(scope: Mapping[str, Any]) -> str | None:
    """The dialect that the listener was given to, through which a request or websocket came; None: to all of them."""
    dialect: str | None = scope["state"]["dialect"]
    return dialect


def stopping_of(scope: Mapping[str, Any]) -> trio.Event:
    """Set when the daemon begins to stop: endless responses should end then, in good order."""
    stopping: trio.Event = scope["state"]["stopping"]
    return stopping
