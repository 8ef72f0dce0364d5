"""Where the daemon listens: addresses, and sockets bound before any task exists.

Binding here rather than in hypercorn, which removes any socket file it finds (a live daemon's too), takes the mode
from the process-wide umask, leaves the file behind, and reports a failure three exception groups deep.
"""

import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from sandboxd.errors import StartupError
from sandboxd.http.server.tls import ServerTls

# The kernel's sun_path is 108 bytes with its final NUL.
UNIX_PATH_BYTES = 107

BACKLOG = 1024

# systemd hands over sockets from this descriptor on (sd_listen_fds(3)).
FIRST_ACTIVATED_FD = 3


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


ListenAddress = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True, eq=False)
class Listener:
    """A listening stream socket.

    `label` names it in logs and in `Peer.listener`. With `tls`, connections begin with a TLS handshake. `dialect` is
    the one that this listener was given to, None where all are spoken.
    """

    label: str
    socket: socket.socket
    tls: ServerTls | None = None
    dialect: str | None = None


def parse_listen_address(text: str) -> ListenAddress:
    """`unix:PATH`, `tcp:HOST:PORT` or `tcp:[IPV6]:PORT` as a value; `StartupError` says what is wrong with others."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        return _unix_address(rest)
    if scheme == "tcp" and rest:
        return _tcp_address(rest)
    raise _invalid(text, "expected unix:PATH, tcp:HOST:PORT or tcp:[IPV6]:PORT")


def _unix_address(path: str) -> UnixAddress:
    if "\0" in path:
        raise _invalid(f"unix:{path!r}", "a path cannot contain a NUL byte")
    absolute = Path(os.path.abspath(path))
    if (length := len(os.fsencode(absolute))) > UNIX_PATH_BYTES:
        raise _invalid(f"unix:{path}", f"its path is {length} bytes long and the kernel allows {UNIX_PATH_BYTES}")
    return UnixAddress(absolute)


def _tcp_address(rest: str) -> TcpAddress:
    host, colon, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise _invalid(f"tcp:{rest}", "an IPv6 address goes in brackets, as in tcp:[::1]:4000")
    if not (colon and host):
        raise _invalid(f"tcp:{rest}", "expected tcp:HOST:PORT")
    if not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise _invalid(f"tcp:{rest}", f"{port!r} is not a port between 0 and 65535")
    return TcpAddress(host, int(port))


def _invalid(text: str, why: str) -> StartupError:
    return StartupError(f"cannot listen on {text}: {why}", kind="invalid_address", address=text)


@contextlib.contextmanager
def bind(
    addresses: Iterable[ListenAddress], *, mode: int = 0o660, group: str | None = None
) -> Iterator[tuple[Listener, ...]]:
    """Listen on every address, in order, or on none.

    `mode` and `group` are those of Unix socket files.
    Owns: the sockets, the socket files and their lock files; all are gone when the context ends, except a socket
    file that is no longer ours.
    Raises: `StartupError`, one sentence, naming the address and what to do.
    """
    with contextlib.ExitStack() as stack:
        listeners = []
        for address in addresses:
            if isinstance(address, UnixAddress):
                listeners.append(stack.enter_context(_bind_unix(address, mode=mode, group=group)))
            else:
                listeners.append(stack.enter_context(_bind_tcp(address)))
        yield tuple(listeners)


@contextlib.contextmanager
def _bind_tcp(address: TcpAddress) -> Iterator[Listener]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, name = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(address, error) from error
    with sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(name)
            sock.listen(BACKLOG)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        host, port = sock.getsockname()[:2]
        yield Listener(str(TcpAddress(host, port)), sock)


@contextlib.contextmanager
def _bind_unix(address: UnixAddress, *, mode: int, group: str | None) -> Iterator[Listener]:
    with _lock(address), socket.socket(socket.AF_UNIX) as sock:
        _clear_the_way(address)
        try:
            # The file takes its mode from the unbound socket: nobody sees it with a wider one, and the process-wide
            # umask stays alone. It can only narrow, hence the chmod after the group is right.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(os.fspath(address.path))
            ours = _identity(address.path)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        try:
            _hand_to(address, mode=mode, group=group)
            sock.listen(BACKLOG)
            yield Listener(str(address), sock)
        finally:
            with contextlib.suppress(OSError):
                if _identity(address.path) == ours:
                    address.path.unlink()


def _hand_to(address: UnixAddress, *, mode: int, group: str | None) -> None:
    try:
        if group is not None:
            os.chown(address.path, -1, grp.getgrnam(group).gr_gid)
        address.path.chmod(mode)
    except KeyError:
        raise StartupError(
            f"cannot give {address.path} to group {group!r}: there is no such group; "
            f"create it with: groupadd --system {group}, or set another one",
            kind="unknown_group",
        ) from None
    except OSError as error:
        raise _cannot_listen(address, error) from error


@contextlib.contextmanager
def _lock(address: UnixAddress) -> Iterator[None]:
    """Hold `PATH.lock`, which says that a daemon is alive on this path, or fail at once."""
    path = address.path.with_name(f"{address.path.name}.lock")
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise _in_use(address, f"another daemon holds {path}") from error
        # The last holder removed the file before it let go; then this lock is on a file nobody else can find.
        if _is_at(fd, path):
            break
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _clear_the_way(address: UnixAddress) -> None:
    """Remove the socket of a dead daemon; refuse to touch anything else."""
    try:
        status = address.path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_listen(address, error) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise StartupError(
            f"cannot listen on {address}: a file that is not a socket is there; remove it or choose another path",
            kind="address_in_use",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(address.path))
        except ConnectionRefusedError:
            address.path.unlink()
            return
        except BlockingIOError:
            pass  # a full backlog: alive, and busy
        except OSError as error:
            raise _cannot_listen(address, error) from error
    raise _in_use(address, "a live process answers there")


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _in_use(address: ListenAddress, why: str) -> StartupError:
    return StartupError(f"cannot listen on {address}: {why}; stop it or choose another path", kind="address_in_use")


_HINTS = {
    errno.ENOENT: "its directory does not exist; create it first",
    errno.EACCES: "this user may not; run as one who may, or choose another address",
    errno.EPERM: "this user may not; run as one who may, or choose another address",
    errno.EADDRINUSE: "another process listens there; stop it or choose another port",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.EROFS: "its file system is read-only; choose another path",
}


def _cannot_listen(address: ListenAddress, error: OSError) -> StartupError:
    why = (
        f"its host name does not resolve ({error.strerror})"
        if isinstance(error, socket.gaierror)
        else _HINTS.get(error.errno or 0, str(error.strerror or error))
    )
    return StartupError(f"cannot listen on {address}: {why}", kind="cannot_listen", address=str(address))


def activated(environ: MutableMapping[str, str]) -> tuple[Listener, ...]:
    """The sockets systemd passed to this very process (`LISTEN_FDS`, `LISTEN_PID`), empty without activation.

    The variables are removed, so that no child takes them for its own. The caller owns the sockets from here on.
    Raises: `StartupError` if a descriptor is not a listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return ()
    return tuple(_activated_listener(fd) for fd in range(FIRST_ACTIVATED_FD, FIRST_ACTIVATED_FD + int(count)))


def _activated_listener(fd: int) -> Listener:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartupError(
            f"cannot use descriptor {fd} passed by the service manager: {error.strerror}",
            kind="bad_activation",
        ) from error
    if sock.type != socket.SOCK_STREAM or not listening:
        sock.detach()
        raise StartupError(
            f"cannot use descriptor {fd} passed by the service manager: it is not a listening stream socket; "
            "set ListenStream= in the socket unit",
            kind="bad_activation",
        )
    return Listener(_label(sock), sock)


def _label(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name if isinstance(name, str) else '@' + name[1:].decode('utf-8', 'replace')}"
    return str(TcpAddress(name[0], name[1]))
