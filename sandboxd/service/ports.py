"""Ports of sandboxes: which are exposed, which are listened on, and a byte stream to one.

The stream goes through sandbox-init, which connects to the sandbox's own loopback: no network interface is needed,
and nothing of the host's network is touched.
"""

import contextlib
import hashlib
import hmac
import secrets
import select
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import trio

from sandboxd import clock
from sandboxd.errors import BadGateway, GatewayTimeout, InvalidRequest, NotFound, TooManyRequests, Unavailable
from sandboxd.isolation.init.client import InitError, InitGone
from sandboxd.isolation.init.messages import ListeningSocket
from sandboxd.isolation.init.wire import WireError
from sandboxd.model import Exposure
from sandboxd.service.commands.attached import init_errors
from sandboxd.service.sandboxes.entry import Entry
from sandboxd.store import Store

TOKEN_PREFIX = "sbp_"

# Of one sandbox at once, of those that sandbox-init takes (MAX_FOLLOWERS): commands need the rest of them.
MAX_CONNECTIONS = 256

# A loopback connection takes microseconds, unless the program's backlog is full.
CONNECT_LIMIT = 10.0

# Where sandbox-init connects to.
_REACHABLE = frozenset({"0.0.0.0", "127.0.0.1", "::", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PortNames:
    """What exposed ports are called: `{port}-{sandbox}.{domain}`."""

    scheme: str = "http"
    domain: str = "localhost"
    port: int | None = None
    """of the daemon; None: the scheme's own"""
    reachable: bool = False
    """whether the daemon listens where such a name leads"""

    @classmethod
    def of(cls, base_url: str) -> "PortNames":
        parts = urlsplit(base_url)
        return cls(scheme=parts.scheme, domain=parts.hostname or "localhost", port=parts.port, reachable=True)

    def host(self, sandbox: str, port: int) -> str:
        """As a Host header has it."""
        return f"{port}-{sandbox}.{self.domain}" + (f":{self.port}" if self.port else "")

    def url(self, sandbox: str, port: int) -> str | None:
        return f"{self.scheme}://{self.host(sandbox, port)}/" if self.reachable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningPort:
    port: int
    addresses: tuple[str, ...]
    reachable: bool
    """by this daemon: not if only on an address that is not the loopback's"""
    uid: int
    """inside"""
    pid: int | None
    """of one process that listens, inside; None where none was found"""
    program: str | None
    """its name, which it chose: at most 15 characters"""


class PortConnection:
    """A byte stream to a port. Owns: the stream, and one of its sandbox's `MAX_CONNECTIONS`; `close` cannot block."""

    def __init__(self, stream: trio.SocketStream, held: contextlib.ExitStack) -> None:
        self.stream = stream
        self._held = held

    def was_reset(self) -> bool:
        """Once the stream has ended though we have not: whether by a reset, or because the program sends no more.

        A Unix socket knows no reset, but sandbox-init closes its end altogether then, and only then.
        """
        poll = select.poll()
        poll.register(self.stream.socket.fileno(), select.POLLIN)
        return any(events & select.POLLHUP for _, events in poll.poll(0))

    def close(self) -> None:
        """Fine to repeat."""
        self._held.close()
        self.stream.socket.close()


@dataclass(slots=True)
class _Count:
    value: int = 0

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        self.value += 1
        try:
            yield
        finally:
            self.value -= 1


class Ports:
    """Owns: the exposures in memory, always equal to those in the store."""

    def __init__(self, store: Store, names: PortNames) -> None:
        self.names = names
        self._store = store
        self._exposed: WeakKeyDictionary[Entry, dict[int, Exposure]] = WeakKeyDictionary()
        self._open: WeakKeyDictionary[Entry, _Count] = WeakKeyDictionary()

    async def load(self, entries: Iterable[Entry]) -> None:
        by_id = {entry.sandbox.id: entry for entry in entries}
        for exposure in await self._store.exposures():
            if (entry := by_id.get(exposure.sandbox)) is not None:
                self._exposed.setdefault(entry, {})[exposure.port] = exposure
            else:  # saved while its sandbox was being deleted
                await self._store.remove_exposure(exposure.sandbox, exposure.port)

    # -- exposing -------------------------------------------------------------------------------------------------

    async def expose(
        self, entry: Entry, port: int, *, protected: bool, lifetime: float | None
    ) -> tuple[Exposure, str | None]:
        """Give the port a host name; and a token, shown this once, if it is to be `protected`.

        What was exposed before at this port is replaced, its token included. Raises: Conflict, InvalidRequest.
        """
        await entry.ready()
        check_port(port)
        token = TOKEN_PREFIX + secrets.token_urlsafe(24) if protected else None
        now = clock.wall()
        exposure = Exposure(
            sandbox=entry.sandbox.id,
            port=port,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
            token_hash=None if token is None else _hash(token),
        )
        await self._store.save_exposure(exposure)
        self._exposed.setdefault(entry, {})[port] = exposure
        return exposure, token

    async def conceal(self, entry: Entry, port: int) -> Exposure:
        """Take its host name away. Connections that are open stay. Raises: NotFound."""
        exposure = self.exposure(entry, port)
        if exposure is None:
            raise NotFound(f"cannot find port {port} among the exposed ports of sandbox {entry.sandbox.id}")
        await self._store.remove_exposure(exposure.sandbox, port)
        self._exposed[entry].pop(port, None)
        return exposure

    def exposure(self, entry: Entry, port: int) -> Exposure | None:
        found = self._exposed.get(entry, {}).get(port)
        return found if found is not None and _in_force(found) else None

    def exposures(self, entry: Entry) -> list[Exposure]:
        return [found for _, found in sorted(self._exposed.get(entry, {}).items()) if _in_force(found)]

    # -- looking --------------------------------------------------------------------------------------------------

    async def listening(self, entry: Entry) -> list[ListeningPort]:
        """What listens inside, by port. Raises: Conflict, SandboxLost."""
        running = await entry.ready()
        with init_errors(entry):
            return _by_port(await running.init.listening_sockets())

    # -- connecting -----------------------------------------------------------------------------------------------

    async def connect(self, entry: Entry, port: int) -> PortConnection:
        """Connect to a port on the sandbox's loopback; the caller closes it.

        Raises: Conflict, InvalidRequest, BadGateway (nothing listens), GatewayTimeout, Unavailable (too many).
        """
        check_port(port)
        running = await entry.ready()
        count = self._open.setdefault(entry, _Count())
        if count.value >= MAX_CONNECTIONS:
            raise Unavailable(
                f"cannot connect to port {port} of sandbox {entry.sandbox.id}: {MAX_CONNECTIONS} are open",
                kind="too_many_connections",
            )
        with contextlib.ExitStack() as held:
            held.enter_context(count.one_more())
            held.enter_context(entry.in_use())
            stream = await _connect(running.init.connect_port(port), entry, port)
            return PortConnection(stream, held.pop_all())


async def _connect(connecting: Awaitable[trio.SocketStream], entry: Entry, port: int) -> trio.SocketStream:
    where = f"port {port} of sandbox {entry.sandbox.id}"
    try:
        with trio.fail_after(CONNECT_LIMIT):
            return await connecting
    except InitError as error:
        if error.kind == "too_many":
            raise TooManyRequests(f"cannot reach {where}: {error.message}", kind="too_many_operations") from error
        raise BadGateway(
            f"cannot reach {where}: nothing listens there", kind="port_closed", port=port, errno=error.errno
        ) from error
    except trio.TooSlowError as error:
        raise GatewayTimeout(f"cannot reach {where}: nothing accepts the connection", port=port) from error
    except (InitGone, WireError, OSError) as error:
        raise BadGateway(f"cannot reach {where}: the sandbox has ended", kind="sandbox_lost") from error


def check_port(port: int) -> None:
    """Raises: InvalidRequest."""
    if not 1 <= port <= 65535:
        raise InvalidRequest(f"cannot use port {port}: ports are 1 to 65535")


def opens(exposure: Exposure, token: str) -> bool:
    """Whether this is the exposure's token."""
    return exposure.token_hash is not None and hmac.compare_digest(exposure.token_hash, _hash(token))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _in_force(exposure: Exposure) -> bool:
    return exposure.expires_at is None or exposure.expires_at > clock.wall()


def _by_port(sockets: list[ListeningSocket]) -> list[ListeningPort]:
    ports: dict[int, list[ListeningSocket]] = {}
    for socket in sockets:
        ports.setdefault(socket.port, []).append(socket)
    return [_listening_port(port, group) for port, group in sorted(ports.items())]


def _listening_port(port: int, sockets: list[ListeningSocket]) -> ListeningPort:
    owned = next((socket for socket in sockets if socket.pid is not None), sockets[0])
    return ListeningPort(
        port=port,
        addresses=tuple(sorted({socket.address for socket in sockets})),
        reachable=any(socket.address in _REACHABLE for socket in sockets),
        uid=owned.uid,
        pid=owned.pid,
        program=owned.program,
    )
