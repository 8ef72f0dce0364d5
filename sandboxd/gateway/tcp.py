"""The TCP connections of one sandbox, each from its acceptance to its end.

    accept → where did it want to go? → does a name matter, and is one known? → look at the first bytes
           → decide → resolve, and connect from here → relay

A connection is accepted before it is decided on: to a sandbox every port of every address looks open, as behind any
transparent proxy. What is denied is told in the client's own protocol where that can be done.
"""

import contextlib
import errno
import os
import socket
from dataclasses import dataclass, field

import trio

from sandboxd.gateway import name_service
from sandboxd.gateway.addresses import GATEWAY4, GATEWAY6, SANDBOX4, SANDBOX6, Address, parse_address
from sandboxd.gateway.dns_messages import MAX_QUERY, MAX_TCP_ANSWER
from sandboxd.gateway.limits import bound_buffers
from sandboxd.gateway.policy import NO_RULE, Basis, Decision, Destination, Judge
from sandboxd.gateway.relay import CHUNK, pump, reset, send_all
from sandboxd.gateway.requests import RequestGuard, RequestRefused
from sandboxd.gateway.resolver import Resolver
from sandboxd.gateway.routes import is_local
from sandboxd.gateway.sandbox import Sandbox
from sandboxd.gateway.sniff import MAX_HEAD, RAW, Sighting, Speech, classify

LISTENER_PORT = 1
"""of the socket that everything is turned to; nobody has business with it as such"""
LOOK_LIMIT = 10.0
"""seconds for a client to show whom it wants to talk to, where that decides"""
TELL_LIMIT = 1.0
"""the same where it is denied already, and only how to tell is asked"""
SHORT_TELL_LIMIT = 0.25
"""the same on a port where clients may wait for the server to speak first"""
CONNECT_LIMIT = 20.0
DENIAL_LIMIT = 2.0
MAX_CANDIDATES = 6
DESCRIPTOR_PAUSE = 0.05
CLIENT_FIRST_PORTS = frozenset({80, 443, 8080, 8443})
_DNS_PORT = 53
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"  # a fatal alert (RFC 8446, 6): curl, pip, npm and git all print it
_LOOPBACK = parse_address("127.0.0.1")


@dataclass(slots=True)
class Budget:
    """Connections of all sandboxes together: each takes descriptors, which end somewhere."""

    most: int
    used: int = 0


@dataclass(eq=False, slots=True)
class Connection:
    """One connection of a sandbox's. Owns: both sockets, until `serve_connection` has ended."""

    sandbox: Sandbox
    client: trio.socket.SocketType
    address: Address
    """whom the sandbox addressed, in its one form"""
    port: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    upstream: trio.socket.SocketType | None = None
    name: str | None = None
    shown: bool = False
    """the client itself told the name; otherwise it is pinned to the address"""
    decision: Decision | None = None
    """once there is one"""
    dialled: Address | None = None
    sent: int = 0
    received: int = 0

    def still_allowed(self, judge: Judge) -> bool:
        if self.decision is None:
            return True  # it is not decided yet, and will be by the new policy
        decision = judge.decide(self.destination(self.name))
        if not decision.allowed or self.dialled is None:
            return decision.allowed
        return may_connect(judge, decision, self.dialled, self.port).allowed

    def cut(self) -> None:
        self.scope.cancel("the policy does not allow it any more")

    def destination(self, name: str | None) -> Destination:
        return Destination(name, None if self.sunk else self.address, self.port)

    @property
    def sunk(self) -> bool:
        """Whether it came to us because we had denied a name."""
        return self.address in (GATEWAY4, GATEWAY6)

    async def count_sent(self, amount: int) -> None:
        self.sent += amount
        await self.sandbox.count(sent=amount)

    async def count_received(self, amount: int) -> None:
        self.received += amount
        await self.sandbox.count(received=amount)

    def note(self, action: str, decision: Decision | None = None, **facts: object) -> None:
        told: dict[str, object] = {"name": self.name, "address": str(self.dialled or self.address), "port": self.port}
        if decision is not None:
            told |= {"rule": decision.rule, "reason": decision.reason}
        self.sandbox.note(action, protocol="tcp", **(told | facts))


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a client has said before it was decided on, and what that shows."""

    data: bytes
    sighting: Sighting


class _Denied(Exception):
    """`name`: what the client has shown, if it is not the connection's; `seen`: what else it has said."""

    def __init__(self, decision: Decision, *, name: str | None = None, seen: _Seen | None = None) -> None:
        super().__init__(decision.reason)
        self.decision = decision
        self.name = name
        self.seen = seen


# -- accepting ----------------------------------------------------------------------------------------------------


async def serve_connections(
    sandbox: Sandbox, listener: trio.socket.SocketType, resolver: Resolver, budget: Budget
) -> None:
    """Accept for as long as the sandbox is here. Raises: OSError."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                client, _ = await listener.accept()
            except OSError as error:
                if error.errno in _OUT_OF_DESCRIPTORS:  # the others wait in the backlog
                    await trio.sleep(DESCRIPTOR_PAUSE)
                    continue
                if error.errno == errno.ECONNABORTED:
                    continue
                raise
            limit = sandbox.judge.policy.limits.connections
            if sandbox.connections >= limit or budget.used >= budget.most:
                whose = f"more than {limit} connections" if sandbox.connections >= limit else "the gateway is full"
                sandbox.note("limit", reason=whose, protocol="tcp")
                reset(client)
                continue
            sandbox.connections += 1
            budget.used += 1
            nursery.start_soon(_guarded, sandbox, client, resolver, budget)


async def _guarded(sandbox: Sandbox, client: trio.socket.SocketType, resolver: Resolver, budget: Budget) -> None:
    """A connection's failure is its own."""
    try:
        with client:
            await serve_connection(sandbox, client, resolver)
    except OSError:
        pass
    except Exception as error:
        sandbox.note("failed", reason=f"the gateway's own fault: {error!r}"[:200])
    finally:
        sandbox.connections -= 1
        budget.used -= 1


async def serve_connection(sandbox: Sandbox, client: trio.socket.SocketType, resolver: Resolver) -> None:
    """From its acceptance to its end. Raises: OSError when its client is gone."""
    host, port = client.getsockname()[:2]
    connection = Connection(sandbox, client, parse_address(host), port)
    sandbox.flows.add(connection)
    whole = False
    try:
        with connection.scope:
            await _serve(connection, resolver)
            whole = True
    finally:
        sandbox.flows.discard(connection)
        # A connection that did not come to its end breaks off on both sides. Closed otherwise, what its peer does not
        # take would stay in the kernel for as long as that peer likes.
        for sock in (client, connection.upstream):
            if sock is not None:
                sock.close() if whole else reset(sock)
        if connection.dialled is not None:
            connection.note("closed", sent=connection.sent, received=connection.received)


async def _serve(c: Connection, resolver: Resolver) -> None:
    if c.port == LISTENER_PORT or c.address in (SANDBOX4, SANDBOX6) or c.address.is_loopback:
        return reset(c.client)
    if c.port == _DNS_PORT:
        return await _serve_dns(c, resolver)
    seen: _Seen | None = None
    try:
        if _must_look(c, _known(c)):
            seen = await _look(c, LOOK_LIMIT if not c.sunk else _tell_limit(c))
            if seen.sighting.name is not None:
                c.name, c.shown = seen.sighting.name, True
        _decide(c, seen)
        await _dial(c, resolver)
    except _Denied as denial:
        return await _deny(c, denial, seen)
    c.sandbox.counters.allowed += 1
    c.note("allowed", c.decision)
    await _relay(c, seen)


# -- deciding -----------------------------------------------------------------------------------------------------


def _known(c: Connection) -> Decision:
    """The decision without a look, under that of the pinned names that is allowed; the connection gets that name."""
    judge = c.sandbox.judge
    decision = judge.decide(c.destination(None))
    for name in () if c.sunk else c.sandbox.names_of(c.address):
        by_name = judge.decide(c.destination(name))
        if c.name is None or (by_name.allowed and not decision.allowed):
            c.name, decision = name, by_name
    return decision


def _must_look(c: Connection, tentative: Decision) -> bool:
    """Whether the client has to speak before there is a decision.

    Otherwise it is connected at once, for its server may be the one to speak first, and what it then says is looked
    at on its way.
    """
    if c.sunk:
        return True
    if not c.sandbox.judge.needs_name(c.address, c.port):
        return False
    return c.port in CLIENT_FIRST_PORTS or not tentative.allowed


def _decide(c: Connection, seen: _Seen | None) -> None:
    if seen is not None and seen.sighting.contradictory:
        raise _Denied(Decision(False, f"it sent {seen.sighting.contradictory}"))
    if c.sunk and c.name is None:
        # Only to tell which name was denied: of all that lead here, the one that was asked for last.
        c.name = next(iter(c.sandbox.names_of(c.address)), None)
        verdict = NO_RULE if c.name is None else c.sandbox.judge.may_resolve(c.name)
        if verdict.allowed:
            verdict = Decision(False, "it was denied a moment ago; look its name up again")
        raise _Denied(verdict)
    decision = c.sandbox.judge.decide(c.destination(c.name))
    if not decision.allowed:
        raise _Denied(decision)
    c.decision = decision


async def _look(c: Connection, limit: float) -> _Seen:
    """The client's first bytes, until they say what they are. Nothing of them has gone anywhere yet."""
    data = b""
    with trio.move_on_after(limit):
        while classify(data) is None:
            more = await c.client.recv(MAX_HEAD)
            if not more:
                break
            data += more
    return _Seen(data, classify(data) or RAW)


def _tell_limit(c: Connection) -> float:
    return TELL_LIMIT if c.port in CLIENT_FIRST_PORTS else SHORT_TELL_LIMIT


def may_connect(judge: Judge, decision: Decision, address: Address, port: int) -> Decision:
    """The last word on the address that a flow that is so decided is really connected to."""
    if decision.basis is Basis.HOST:
        return decision
    if decision.basis is Basis.MODE and (denied := judge.denies_address(address, port)):
        return denied
    return judge.may_dial(address, port, local=is_local(address))


# -- the way out --------------------------------------------------------------------------------------------------


async def _dial(c: Connection, resolver: Resolver) -> None:
    """Connect to whom it was decided for. Raises: _Denied, OSError after telling what failed."""
    decision = c.decision
    assert decision is not None
    refused: Decision | None = None
    failure: OSError | trio.TooSlowError | None = None
    for address in (await _candidates(c, decision, resolver))[:MAX_CANDIDATES]:
        verdict = may_connect(c.sandbox.judge, decision, address, c.port)
        if not verdict.allowed:
            refused = verdict
            continue
        try:
            with trio.fail_after(CONNECT_LIMIT):
                c.upstream = await _connect(address, c.port, nth=c.sandbox.connections)
        except (OSError, trio.TooSlowError) as error:
            failure = error
            continue
        # The policy may have been replaced meanwhile.
        if not may_connect(c.sandbox.judge, decision, address, c.port).allowed:
            raise _Denied(Decision(False, "the policy does not allow it any more"))
        c.dialled = address
        c.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return
    if failure is None and refused is not None:
        raise _Denied(refused)
    c.sandbox.counters.failed += 1
    c.note("failed", reason=_explained(failure) if failure else "its name does not resolve")
    raise OSError(errno.ECONNREFUSED, "it cannot be reached")


async def _candidates(c: Connection, decision: Decision, resolver: Resolver) -> list[Address]:
    """Addresses to try: for a name what our own resolver says, the sandbox's choice first if it is one of those."""
    if decision.basis is Basis.HOST:
        return [_LOOPBACK]
    if c.name is None or decision.basis is Basis.ADDRESS or (decision.basis is Basis.MODE and not c.shown):
        return [c.address]
    found = await resolver.addresses(c.name)
    return sorted(found, key=lambda address: (address != c.address, address.version != c.address.version))


async def _connect(address: Address, port: int, *, nth: int) -> trio.socket.SocketType:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    upstream = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        bound_buffers(upstream, nth)
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await upstream.connect((str(address), port))
    except BaseException:
        upstream.close()
        raise
    return upstream


def _explained(failure: OSError | trio.TooSlowError) -> str:
    if isinstance(failure, trio.TooSlowError) or failure.errno is None:
        return "it does not answer"
    return os.strerror(failure.errno)


# -- telling a denial -----------------------------------------------------------------------------------------------


async def _deny_late(c: Connection, denials: ExceptionGroup[_Denied]) -> None:
    """On a connection that is open: told only if its client cannot take it for something of its server's."""
    denial = next(each for each in denials.exceptions if isinstance(each, _Denied))
    if c.received == 0:
        return await _deny(c, denial)
    _note_denial(c, denial)
    reset(c.client)


async def _deny(c: Connection, denial: _Denied, seen: _Seen | None = None) -> None:
    name = _note_denial(c, denial)
    seen = denial.seen or seen or await _look(c, _tell_limit(c))
    message = explain(seen.sighting, f"{name or c.address}:{c.port}", denial.decision.reason)
    if message is None:
        return reset(c.client)
    with trio.move_on_after(DENIAL_LIMIT), contextlib.suppress(OSError):
        await send_all(c.client, message)
        c.client.shutdown(socket.SHUT_WR)
        # What it still sends has to be taken, or the reset that answers it overtakes the message.
        while await c.client.recv(CHUNK):
            pass


def _note_denial(c: Connection, denial: _Denied) -> str | None:
    """The name that was denied, if it is known."""
    name = denial.name or c.name
    c.sandbox.counters.denied += 1
    c.note("denied", denial.decision, name=name)
    return name


def explain(sighting: Sighting, where: str, reason: str) -> bytes | None:
    """What to say to a client of this kind; None if there is nothing that it would understand."""
    if sighting.speech is Speech.TLS:
        return _ACCESS_DENIED
    if sighting.speech is Speech.RAW:
        return None
    body = f"sandboxd: this sandbox may not connect to {where}: {reason}.\n".encode()
    head = (
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"X-Sandboxd-Denied: {where}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# -- the relay ------------------------------------------------------------------------------------------------------


async def _relay(c: Connection, seen: _Seen | None) -> None:
    """Until both directions have ended, or one has broken. Raises: OSError."""
    assert c.upstream is not None
    watched = c.sandbox.judge.needs_name(c.address, c.port) or c.sunk
    guard = RequestGuard(lambda seen: _refusal(c, seen)) if watched else None
    try:
        async with trio.open_nursery() as nursery:
            answered = trio.Event()
            nursery.start_soon(_outwards, c, seen, guard, answered)
            await _inwards(c, guard, answered)
    except ExceptionGroup as group:
        unknown = group.split((OSError, _Denied))[1]
        if unknown is not None:
            raise unknown from None
        reset(c.upstream)
        denials = group.split(_Denied)[0]
        if denials is not None:
            return await _deny_late(c, denials)
        raise OSError(errno.ECONNRESET, "one side broke off") from None


async def _inwards(c: Connection, guard: RequestGuard | None, answered: trio.Event) -> None:
    assert c.upstream is not None
    if guard is not None:
        start = await c.upstream.recv(min(CHUNK, c.sandbox.most_at_once))
        if guard.waits_for_server and start:
            await send_all(c.upstream, guard.server_answers(start))
        answered.set()
        if not start:
            return c.client.shutdown(socket.SHUT_WR)
        await send_all(c.client, start)
        await c.count_received(len(start))
    await pump(c.upstream, c.client, sandbox=c.sandbox, count=c.count_received)


async def _outwards(c: Connection, seen: _Seen | None, guard: RequestGuard | None, answered: trio.Event) -> None:
    """`seen`: what the client has said already; None if nobody has looked yet."""
    assert c.upstream is not None
    if guard is not None:
        seen = seen or await _look_on_the_way(c)
        if seen.sighting.speech is Speech.HTTP:
            return await _pass_requests(c, seen.data, guard, answered)
    if seen is not None:
        await send_all(c.upstream, seen.data)
        await c.count_sent(len(seen.data))
    await pump(c.client, c.upstream, sandbox=c.sandbox, count=c.count_sent)


async def _pass_requests(c: Connection, data: bytes, guard: RequestGuard, answered: trio.Event) -> None:
    assert c.upstream is not None
    try:
        while data:
            passed = guard.feed(data)
            await send_all(c.upstream, passed)
            await c.count_sent(len(passed))
            if guard.waits_for_server:
                await answered.wait()
            if guard.waits_for_server:
                raise RequestRefused("its server spoke before it was asked")
            data = await c.client.recv(min(CHUNK, c.sandbox.most_at_once))
    except RequestRefused as refusal:
        raise _Denied(Decision(False, str(refusal)), seen=_Seen(b"", Sighting(Speech.HTTP))) from None
    c.upstream.shutdown(socket.SHUT_WR)


async def _look_on_the_way(c: Connection) -> _Seen:
    """At what a client says whose connection was made before it spoke. Raises: OSError, _Denied."""
    data = b""
    while classify(data) is None:
        more = await c.client.recv(MAX_HEAD)
        if not more:
            break
        data += more
    seen = _Seen(data, classify(data) or RAW)
    if refusal := _refusal(c, seen.sighting):
        raise _Denied(Decision(False, refusal), name=seen.sighting.name, seen=seen)
    return seen


def _refusal(c: Connection, seen: Sighting) -> str:
    """Why what a client shows on a connection that is open may not pass; empty if it may."""
    if seen.contradictory:
        return f"it sent {seen.contradictory}"
    if seen.name is None or seen.name == c.name:
        return ""
    by_address = c.decision is not None and c.decision.basis is Basis.ADDRESS
    decision = c.sandbox.judge.decide(Destination(seen.name, c.address if by_address else None, c.port))
    return "" if decision.allowed else f"it asked for {seen.name}, and {decision.reason}"


# -- DNS ------------------------------------------------------------------------------------------------------------


async def _serve_dns(c: Connection, resolver: Resolver) -> None:
    data = b""
    while True:
        with trio.move_on_after(LOOK_LIMIT):
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
                more = await c.client.recv(MAX_QUERY)
                if not more:
                    return
                data += more
        length = int.from_bytes(data[:2], "big")
        if len(data) < 2 + length or length > MAX_QUERY:
            return reset(c.client)
        wire, data = data[2 : 2 + length], data[2 + length :]
        reply = await name_service.answer(c.sandbox, resolver, wire, MAX_TCP_ANSWER)
        if reply is None:
            return reset(c.client)
        await send_all(c.client, len(reply).to_bytes(2, "big") + reply)
