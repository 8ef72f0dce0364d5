"""Where a daemon is, and how to reach it."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sandboxd.client.errors import ClientError, DaemonUnreachable
from sandboxd.client.network import Disconnected, Network, Stream
from sandboxd.errors import first_leaf
from sandboxd.paths import default_runtime_dir

SOCKET_NAME = "sandboxd.sock"


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket (`socket`), or a host and port; `prefix` goes before every path of the API."""

    socket: str = ""
    host: str = ""
    port: int = 0
    tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> "Address":
        """From `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`. Raises: ClientError."""
        if url.startswith("unix:"):
            return cls(socket=_socket_path(url))
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ClientError(f"cannot use {url!r} as the daemon's address: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"cannot use {url!r} as the daemon's address: write unix:PATH or http://HOST:PORT")
        tls = parts.scheme == "https"
        return cls(host=parts.hostname, port=port or (443 if tls else 80), tls=tls, prefix=parts.path.rstrip("/"))

    def __str__(self) -> str:
        if self.socket:
            return f"unix:{self.socket}"
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """For the Host header."""
        if self.socket:
            return "sandboxd"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    async def connect(self, network: Network) -> Stream:
        """Connect. Raises: DaemonUnreachable, with what a person can do about it."""
        try:
            if self.socket:
                return await network.connect_unix(self.socket)
            return await network.connect_tcp(self.host, self.port, tls=self.tls)
        except (OSError, Disconnected) as error:
            raise DaemonUnreachable(_explain(self, error)) from error


def default_address() -> Address:
    """SANDBOXD_URL, or the socket of this user's own daemon; without one, of the system's."""
    if url := os.environ.get("SANDBOXD_URL"):
        return Address.parse(url)
    own = default_runtime_dir() / SOCKET_NAME
    system = Path("/run/sandboxd") / SOCKET_NAME
    return Address(socket=str(own if own.exists() or not system.exists() else system))


def _socket_path(url: str) -> str:
    path = url.removeprefix("unix:")
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path or path.startswith("//"):
        raise ClientError(f"cannot use {url!r} as the daemon's address: write unix:/PATH/TO/sandboxd.sock")
    return path


def _explain(address: Address, error: OSError | Disconnected) -> str:
    what = f"cannot reach sandboxd at {address}"
    if isinstance(error, Disconnected):
        return f"{what}: {error}"
    if not address.socket:
        return f"{what}: {_reason(error)}; is it running (`sandboxd serve --listen tcp:HOST:PORT`)?"
    if error.errno == errno.ENOENT:
        return f"{what}: there is no such socket; start the daemon with `sandboxd serve`, or set SANDBOXD_URL"
    if error.errno == errno.ECONNREFUSED:
        return f"{what}: nobody listens there any more; start the daemon with `sandboxd serve`"
    if error.errno == errno.EACCES:
        return f"{what}: permission denied; {_who_may(address.socket)}"
    return f"{what}: {_reason(error)}"


def _reason(error: OSError) -> str:
    """Some event loops say only how many addresses failed; the first of them says why."""
    cause: BaseException = error
    while isinstance(cause.__cause__, BaseException):
        cause = cause.__cause__
    cause = first_leaf(cause)
    return getattr(cause, "strerror", None) or str(cause)


def _who_may(path: str) -> str:
    """Whom the socket belongs to, as advice."""
    import grp  # only here: loading it costs as much as a request

    try:
        group = grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return "ask root, or the user whose daemon it is"
    return f"become a member of the group {group}, or root"
