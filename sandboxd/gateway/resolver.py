"""The gateway's own questions to DNS servers: names of the world, for all sandboxes."""

import contextlib
import socket
from collections import OrderedDict
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.rdatatype
import trio

from sandboxd.gateway import dns_messages as messages
from sandboxd.gateway.addresses import Address

MAX_CACHED = 4096
MAX_SERVERS = 3
ATTEMPT = 2.0
"""seconds that a server has to answer"""
ROUNDS = 2
NEGATIVE_TTL = 5
MAX_ANSWER = 65535
RESOLV_CONF = Path("/etc/resolv.conf")
CONFIGURED_FOR = 30.0
"""seconds after which the host's configuration is read again: laptops change networks"""

Server = tuple[str, int]


class Resolver:
    """Asks the site's servers, or the host's. Answers are kept for their time, of all sandboxes together.

    Cancelled: at any time; nothing is left.
    """

    def __init__(self, servers: tuple[Server, ...] = ()) -> None:
        self._configured = servers
        self._host: tuple[float, tuple[Server, ...]] = (float("-inf"), ())
        self._cache: OrderedDict[tuple[str, int], tuple[float, dns.message.Message]] = OrderedDict()

    def use(self, servers: tuple[Server, ...]) -> None:
        """Ask these from now on; none: the host's. What others said is forgotten."""
        self._configured = servers
        self._cache.clear()

    async def query(self, name: str, kind: dns.rdatatype.RdataType) -> dns.message.Message | None:
        """A server's answer; None if none gives one in time. Only the name and the type are told to anybody."""
        key = (name, int(kind))
        until, known = self._cache.get(key, (float("-inf"), None))
        if known is not None and until > trio.current_time():
            self._cache.move_to_end(key)
            return known
        answer = await self._ask(name, kind)
        if answer is not None:
            self._cache[key] = (trio.current_time() + _time_to_live(answer), answer)
            self._cache.move_to_end(key)
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return answer

    async def addresses(self, name: str) -> list[Address]:
        """All addresses of a name, in their one form; IPv4 ones first."""
        found: dict[int, list[Address]] = {}

        async def look(kind: dns.rdatatype.RdataType) -> None:
            answer = await self.query(name, kind)
            found[kind] = messages.addresses(answer, name, kind) if answer else []

        async with trio.open_nursery() as nursery:
            for kind in (messages.A, messages.AAAA):
                nursery.start_soon(look, kind)
        return [*found[messages.A], *found[messages.AAAA]]

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> dns.message.Message | None:
        servers = self._servers()
        for _ in range(ROUNDS):
            for server in servers[:MAX_SERVERS]:
                # A query anew each time: another id, another port.
                query = dns.message.make_query(name + ".", kind, use_edns=0, payload=messages.MAX_UDP_ANSWER)
                with trio.move_on_after(ATTEMPT), contextlib.suppress(OSError, EOFError):
                    answer: dns.message.Message | None = await _ask_by_udp(server, query)
                    if answer is not None and answer.flags & dns.flags.TC:
                        answer = await _ask_by_tcp(server, query)
                    if answer is not None:
                        return answer
        return None

    def _servers(self) -> tuple[Server, ...]:
        if self._configured:
            return self._configured
        read_at, servers = self._host
        if trio.current_time() - read_at > CONFIGURED_FOR:
            servers = host_servers()
            self._host = (trio.current_time(), servers)
        return servers


def host_servers() -> tuple[Server, ...]:
    """The name servers of this host's resolv.conf(5)."""
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    fields = [line.split() for line in lines]
    return tuple((field[1], 53) for field in fields if len(field) > 1 and field[0] == "nameserver")


def _time_to_live(answer: dns.message.Message) -> float:
    """Seconds."""
    times = [rrset.ttl for rrset in answer.answer]
    return max(1, min([*times, messages.MAX_TTL])) if times else NEGATIVE_TTL


async def _ask_by_udp(server: Server, query: dns.message.Message) -> dns.message.Message:
    with await _connected(server, socket.SOCK_DGRAM) as sock:
        await sock.send(query.to_wire())
        while True:
            answer = _read_answer(await sock.recv(MAX_ANSWER), query)
            if answer is not None:
                return answer


async def _ask_by_tcp(server: Server, query: dns.message.Message) -> dns.message.Message | None:
    """Raises: OSError, EOFError."""
    with await _connected(server, socket.SOCK_STREAM) as sock:
        stream = trio.SocketStream(sock)
        wire = query.to_wire()
        await stream.send_all(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(await _receive_exactly(stream, 2), "big")
        return _read_answer(await _receive_exactly(stream, length), query)


async def _connected(server: Server, kind: socket.SocketKind) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, kind)
    try:
        await sock.connect(server)
    except BaseException:
        sock.close()
        raise
    return sock


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            chunk = await stream.receive_some(length - len(data))
        except trio.BrokenResourceError as error:
            raise EOFError from error
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def _read_answer(wire: bytes, query: dns.message.Message) -> dns.message.Message | None:
    try:
        answer = dns.message.from_wire(wire, ignore_trailing=True)
        return answer if query.is_response(answer) else None
    except Exception:  # a server's bytes are as foreign as a sandbox's
        return None
