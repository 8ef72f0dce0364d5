"""DNS, as a sandbox sees it: what is asked of the world, and what is told of the answers."""

import random
import socket

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from sandboxd.gateway.sandbox import MAX_PINS
from sandboxd.kernel.sandbox_network import GATEWAY4, GATEWAY6
from tests.network import internet as net
from tests.network.test_sniff import mutated
from tests.network.world import Box, World
from tests.support.waiting import wait_until

POLICY = {"mode": "restricted", "allow": ["good.com", "*.good.com"]}


@pytest.fixture
def box(world: World):
    with world.sandbox(POLICY) as made:
        yield made


def by_tcp(box: Box, server: str, wire: bytes) -> bytes:
    with box.connect(server, 53) as sock:
        sock.sendall(len(wire).to_bytes(2, "big") + wire)
        length = int.from_bytes(sock.recv(2), "big")
        data = b""
        while len(data) < length and (more := sock.recv(65536)):
            data += more
    return data


def test_an_allowed_name_is_looked_up(box: Box) -> None:
    assert box.resolve("good.com") == [net.GOOD]
    assert box.resolve("good.com", "AAAA") == [net.GOOD6]
    assert box.resolve("alias2.good.com") == [net.GOOD]
    assert len(box.resolve("good.com", "TXT")) == 1
    assert box.query("nothing.good.com").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("server", [GATEWAY4, GATEWAY6, "8.8.8.8", "1.1.1.1", "10.0.0.53", "2606:4700::1111"])
def test_every_server_is_ours(box: Box, server: str) -> None:
    """By datagram or connection: the answer comes from there, and nothing went there."""
    assert box.query("good.com", server=server).answer[0][0].address == net.GOOD
    wire = dns.message.make_query("www.good.com", "A").to_wire()
    assert dns.message.from_wire(by_tcp(box, server, wire)).answer[0][0].address == net.GOOD


@pytest.mark.parametrize("server", [GATEWAY4, "8.8.8.8", GATEWAY6])
@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "MX", "NULL", "HTTPS"])
def test_nothing_leaves_in_the_labels_of_a_denied_name(box: Box, server: str, kind: str) -> None:
    box.query("good.com", server=server)
    control = list(box.world.internet.queries)
    assert control == [("good.com", "A")]
    secret = "c2VjcmV0.evil.com"
    answer = box.query(secret, kind, server=server)
    wire = dns.message.make_query(secret, kind, use_edns=0).to_wire()
    assert dns.message.from_wire(by_tcp(box, server, wire)).rcode() == answer.rcode()
    assert box.world.internet.queries == control
    assert [str(record) for rrset in answer.answer for record in rrset] == ([GATEWAY4] if kind == "A" else [])
    assert "no rule allows it" in str(answer.options[0])
    assert answer.rcode() == dns.rcode.NOERROR


def test_of_an_allowed_query_the_name_and_the_type_go_on_and_nothing_else(box: Box) -> None:
    query = dns.message.make_query("GoOd.CoM", "A", use_edns=0, options=[dns.edns.GenericOption(65001, b"secret")])
    answer = dns.message.from_wire(box.exchange(query.to_wire(), GATEWAY4, 53))
    assert answer.answer[0][0].address == net.GOOD
    assert box.world.internet.queries == [("good.com", "A")]


def test_what_could_hide_a_servers_name_is_answered_empty(box: Box) -> None:
    for kind in ("HTTPS", "SVCB", "ANY", "NULL"):
        answer = box.query("good.com", kind)
        assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    assert box.world.internet.queries == []


def test_a_services_name_is_its_hosts(box: Box) -> None:
    assert box.query("_http._tcp.www.good.com", "SRV").rcode() == dns.rcode.NXDOMAIN
    assert box.world.internet.queries == [("_http._tcp.www.good.com", "SRV")]
    box.query("_secret._tcp.evil.com", "SRV")
    assert len(box.world.internet.queries) == 1


def test_an_answer_that_is_cut_is_asked_for_by_tcp(box: Box) -> None:
    box.world.internet.truncates = True
    assert box.resolve("www.good.com") == [net.GOOD]
    assert box.world.internet.queries == [("www.good.com", "A")] * 2


def test_a_server_that_lies_or_is_silent_is_a_failure(box: Box) -> None:
    box.world.internet.lies = True
    assert box.query("www.good.com").rcode() == dns.rcode.SERVFAIL
    box.world.internet.lies, box.world.internet.silent = False, True
    assert box.query("git.good.com").rcode() == dns.rcode.SERVFAIL
    assert [event["reason"] for event in box.events("failed")] == ["no DNS server answers"] * 2
    box.world.internet.silent = False
    assert box.resolve("www.good.com") == [net.GOOD]


def test_queries_beyond_the_rate_are_not_answered_and_hurt_nobody_else(world: World, box: Box) -> None:
    wire = dns.message.make_query("good.com", "A").to_wire()

    def flooded(flood: socket.socket) -> bool:
        for _ in range(500):
            flood.sendto(wire, (GATEWAY4, 53))
        return bool(box.events("limit"))

    with box.open(socket.SOCK_DGRAM) as flood, world.sandbox(POLICY) as other:
        wait_until(lambda: flooded(flood))
        assert other.resolve("good.com") == [net.GOOD]
        assert "more DNS queries" in box.events("limit")[0]["reason"]
    wait_until(lambda: _answers(box))


def _answers(box: Box) -> bool:
    try:
        return bool(box.query("good.com", limit=0.5).answer)
    except TimeoutError:
        return False


def test_pins_are_bounded(world: World, box: Box) -> None:
    names = [f"n{n}.good.com" for n in range(60)]
    for n, name in enumerate(names):
        world.internet.zone[name] = [f"20.{n}.{k // 250}.{k % 250 + 1}" for k in range(60)]
    for name in names:
        assert len(box.resolve(name)) == 60
    assert 3000 < box.figures["pins"] <= MAX_PINS


def test_hostile_queries_change_nothing(world: World, box: Box) -> None:
    """A sample: each beside a query that is answered."""
    chance = random.Random(11)
    seed = dns.message.make_query("a.b.good.com", "A", use_edns=0).to_wire()
    with box.open(socket.SOCK_DGRAM) as sock:
        for n in range(150):
            sock.sendto(mutated(chance, seed), ("8.8.8.8", 53))
            if n % 30 == 0:
                wait_until(lambda: _answers(box))
        for data in (b"", b"\0" * 60_000, b"\xc0\x0c" * 2000):
            sock.sendto(data, ("8.8.8.8", 53))
    with box.connect("8.8.8.8", 53) as sock:
        sock.sendall(b"\xff\xff" + b"x" * 65535)
        with pytest.raises(ConnectionResetError):
            sock.recv(100)
    wait_until(lambda: _answers(box))


def test_a_sandbox_without_a_network_resolves_nothing(world: World) -> None:
    with world.sandbox({}) as box:
        answer = box.query("good.com")
        assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
    assert world.internet.queries == []
