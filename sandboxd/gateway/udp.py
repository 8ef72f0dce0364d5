"""The datagrams of one sandbox: DNS is answered, others go to where an address rule or the mode allows them.

One socket inside gets every datagram with the address that it was sent to. A flow is what one socket of the sandbox
sends to one address and port: it has a socket of ours, and ends when nothing has passed for a while.
"""

import contextlib
import errno
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import trio

from sandboxd.gateway import name_service
from sandboxd.gateway.addresses import HOST4, HOST6, Address, normal, parse_address
from sandboxd.gateway.datagram import MAX_PAYLOAD, udp_packet, unreachable_packet
from sandboxd.gateway.dns_messages import MAX_QUERY, MAX_UDP_ANSWER
from sandboxd.gateway.limits import DATAGRAM_FLOWS, DATAGRAM_IDLE, DNS_AT_ONCE
from sandboxd.gateway.policy import Basis, Decision, Destination, Judge, Protocol
from sandboxd.gateway.resolver import Resolver
from sandboxd.gateway.routes import is_local
from sandboxd.gateway.sandbox import Sandbox
from sandboxd.gateway.tcp import LISTENER_PORT

_DNS_PORT = 53
_IP_ORIGDSTADDR, _IPV6_ORIGDSTADDR = 20, 74
_ANCILLARY = socket.CMSG_SPACE(64)
_PAUSE = 0.01
_LOOPBACK = parse_address("127.0.0.1")

End = tuple[Address, int]


@dataclass(frozen=True, slots=True)
class DatagramSockets:
    """Of one sandbox, made in its network namespace."""

    incoming: trio.socket.SocketType
    raw4: trio.socket.SocketType
    raw6: trio.socket.SocketType | None

    async def send(self, packet: bytes, to: Address) -> None:
        """A whole IP packet. What the sandbox's own queue has no room for is lost, as datagrams are."""
        raw = self.raw4 if to.version == 4 else self.raw6
        if raw is not None:
            with contextlib.suppress(OSError):
                await raw.sendto(packet, (str(to), 0))

    def close(self) -> None:
        for each in (self.incoming, self.raw4, self.raw6):
            if each is not None:
                each.close()


@dataclass(eq=False, slots=True)
class DatagramFlow:
    """Owns: its socket to the world."""

    sandbox: Sandbox
    source: End
    addressed: End
    """whom the sandbox wrote to: answers come from there"""
    target: End
    """the same in its one form"""
    upstream: trio.socket.SocketType
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    sent: int = 0
    received: int = 0

    def still_allowed(self, judge: Judge) -> bool:
        return verdict(judge, self.target).allowed

    def cut(self) -> None:
        self.scope.cancel("the policy does not allow it any more")

    def note(self, action: str, **facts: object) -> None:
        self.sandbox.note(action, address=str(self.target[0]), port=self.target[1], protocol="udp", **facts)


def verdict(judge: Judge, target: End) -> Decision:
    """Names say nothing of a datagram: they are encrypted, or not there."""
    address, port = target
    decision = judge.decide(Destination(None, address, port, Protocol.UDP))
    if not decision.allowed or decision.basis is Basis.HOST:
        return decision
    if decision.basis is Basis.MODE and (denied := judge.denies_address(address, port, Protocol.UDP)):
        return denied
    last = judge.may_dial(address, port, local=is_local(address), protocol=Protocol.UDP)
    return decision if last.allowed else last


async def serve_datagrams(sandbox: Sandbox, sockets: DatagramSockets, resolver: Resolver) -> None:
    """Take datagrams for as long as the sandbox is here."""
    flows: dict[tuple[End, End], DatagramFlow] = {}
    queries = trio.CapacityLimiter(DNS_AT_ONCE)
    async with trio.open_nursery() as nursery:
        while True:
            try:
                data, ancillary, _, sender = await sockets.incoming.recvmsg(MAX_PAYLOAD, _ANCILLARY)
            except OSError:
                await trio.sleep(_PAUSE)
                continue
            addressed = original_target(ancillary)
            source = end_of(sender)
            if addressed is None or addressed[0].version != source[0].version or addressed[1] == LISTENER_PORT:
                continue
            if addressed[1] == _DNS_PORT:
                if not queries.available_tokens:
                    name_service.note_flood(sandbox)
                elif len(data) <= MAX_QUERY:
                    nursery.start_soon(_answer_query, sandbox, sockets, resolver, queries, data, source, addressed)
                continue
            flow = flows.get((source, addressed)) or await _open(sandbox, sockets, nursery, flows, source, addressed)
            if flow is None or not await _pass_on(flow, data):
                await sockets.send(unreachable_packet(addressed, source, len(data)), source[0])


async def _pass_on(flow: DatagramFlow, data: bytes) -> bool:
    """False if nobody is there."""
    if flow.sandbox.may_pass(sent=len(data)):
        try:
            await flow.upstream.send(data)
        except OSError as error:
            return error.errno != errno.ECONNREFUSED
        flow.sent += len(data)
    return True


def end_of(sockaddr: Any) -> End:
    """What the socket module calls an address of either family."""
    return parse_address(sockaddr[0]), sockaddr[1]


def original_target(ancillary: list[tuple[int, int, bytes]]) -> End | None:
    """Where a datagram was sent to, from what came with it (a sockaddr_in or sockaddr_in6)."""
    for level, kind, body in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_ORIGDSTADDR):
            return IPv4Address(body[4:8]), struct.unpack_from("!H", body, 2)[0]
        if (level, kind) == (socket.IPPROTO_IPV6, _IPV6_ORIGDSTADDR):
            address = IPv6Address(body[8:24])
            return address.ipv4_mapped or address, struct.unpack_from("!H", body, 2)[0]
    return None


async def _answer_query(
    sandbox: Sandbox,
    sockets: DatagramSockets,
    resolver: Resolver,
    queries: trio.CapacityLimiter,
    data: bytes,
    source: End,
    addressed: End,
) -> None:
    async with queries:
        reply = await name_service.answer(sandbox, resolver, data, MAX_UDP_ANSWER)
    if reply is not None:
        await sockets.send(udp_packet(addressed, source, reply), source[0])


async def _open(
    sandbox: Sandbox,
    sockets: DatagramSockets,
    nursery: trio.Nursery,
    flows: dict[tuple[End, End], DatagramFlow],
    source: End,
    addressed: End,
) -> DatagramFlow | None:
    """A flow for this datagram, if it is allowed."""
    target = (normal(addressed[0]), addressed[1])
    decision = verdict(sandbox.judge, target)
    facts = {"address": str(target[0]), "port": target[1], "protocol": "udp"}
    if not decision.allowed:
        sandbox.counters.denied += 1
        sandbox.note("denied", rule=decision.rule, reason=decision.reason, **facts)
        return None
    if len(flows) >= DATAGRAM_FLOWS:
        sandbox.note("limit", reason=f"more than {DATAGRAM_FLOWS} flows of datagrams", protocol="udp")
        return None
    try:
        upstream = await _connect(target)
    except OSError as error:
        sandbox.counters.failed += 1
        sandbox.note("failed", reason=error.strerror or str(error), **facts)
        return None
    flow = flows[source, addressed] = DatagramFlow(sandbox, source, addressed, target, upstream)
    sandbox.flows.add(flow)
    sandbox.counters.allowed += 1
    flow.note("allowed", rule=decision.rule, reason=decision.reason)
    nursery.start_soon(_take_answers, flow, sockets, flows)
    return flow


async def _connect(target: End) -> trio.socket.SocketType:
    address = _LOOPBACK if target[0] in (HOST4, HOST6) else target[0]
    upstream = trio.socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    try:
        await upstream.connect((str(address), target[1]))
    except BaseException:
        upstream.close()
        raise
    return upstream


async def _take_answers(
    flow: DatagramFlow, sockets: DatagramSockets, flows: dict[tuple[End, End], DatagramFlow]
) -> None:
    try:
        with flow.upstream, flow.scope:
            idle_since = trio.current_time()
            while True:
                before = flow.sent
                with trio.move_on_after(DATAGRAM_IDLE), contextlib.suppress(ConnectionRefusedError):
                    data = await flow.upstream.recv(MAX_PAYLOAD)
                    flow.received += len(data)
                    if flow.sandbox.may_pass(received=len(data)):
                        await sockets.send(udp_packet(flow.addressed, flow.source, data), flow.source[0])
                    idle_since = trio.current_time()
                if flow.sent == before and trio.current_time() - idle_since >= DATAGRAM_IDLE:
                    return
    except OSError:
        pass
    finally:
        flows.pop((flow.source, flow.addressed), None)
        flow.sandbox.flows.discard(flow)
        flow.note("closed", sent=flow.sent, received=flow.received)
