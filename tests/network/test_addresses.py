"""Addresses that nobody gets, or only by leave; and datagrams, which have no names.

Each attack stands beside the same request to an allowed target, which succeeds.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from sandboxd.gateway.addresses import HOST4, HOST6
from sandboxd.kernel.sandbox_network import GATEWAY4, SANDBOX4
from tests.network import internet as net
from tests.network.namespaces import inside
from tests.network.world import SITE, Box, World
from tests.support.waiting import wait_until

HEAD = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def box(world: World):
    with world.sandbox({"mode": "internet"}) as made:
        yield made


def get(box: Box, address: str, port: int = 80) -> str:
    return box.talk(address, port, HEAD.encode())


@pytest.mark.parametrize(
    "address",
    [
        net.METADATA,
        net.AZURE,
        net.ALIBABA,
        net.LAN,
        net.DOCUMENTATION,
        net.HOST,
        net.HOST_SECONDARY,
        net.HOST_LAN,
        "fd00:ec2::254",
        "64:ff9b::a9fe:a9fe",
        "2002:a01:2::1",
        "2606:4567::10",
        str(HOST4),
        str(HOST6),
    ],
)
def test_an_address_that_the_internet_does_not_include(box: Box, address: str) -> None:
    control = net.GOOD6 if ":" in address else net.GOOD
    assert get(box, control).startswith(f"hello from {control}")
    assert get(box, address).startswith("sandboxd: this sandbox may not connect to ")
    assert len(box.world.internet.requests) == 1


def test_addresses_of_the_sandboxs_own_stay_its_own(box: Box) -> None:
    """Nothing of them comes to us: what listens there is the sandbox's."""
    for address in ("127.0.0.1", "0.0.0.0", SANDBOX4, "::1"):
        with pytest.raises(ConnectionRefusedError), box.connect(address, 80):
            pass
    with inside(box.namespace):
        listener = socket.create_server(("", 80))
    with listener, box.connect(SANDBOX4, 80), listener.accept()[0]:
        pass


def test_the_port_of_our_own_sockets_is_nobodys(box: Box) -> None:
    for address in (net.GOOD, GATEWAY4, SANDBOX4, "127.0.0.1"):
        assert "broke off" in get(box, address, 1)


def test_a_private_network_takes_a_grant_and_a_rule(world: World) -> None:
    with world.sandbox({"mode": "restricted", "allow": [net.LAN, net.DOCUMENTATION]}) as box:
        assert get(box, net.LAN).startswith(f"hello from {net.LAN}")
        assert "the site does not grant it" in get(box, net.DOCUMENTATION)
        world.control.call("site", site={**SITE, "granted": []})
        assert "the site does not grant it" in get(box, net.LAN)
    with world.sandbox({"mode": "open"}) as box:
        world.control.call("site", site=SITE)
        assert get(box, net.LAN).startswith(f"hello from {net.LAN}")
        assert "one of this host's own" in get(box, net.HOST_LAN)
        assert "always blocked" in get(box, net.METADATA)


def test_the_site_may_count_a_private_range_as_public(world: World, box: Box) -> None:
    assert "does not grant" in get(box, net.DOCUMENTATION)
    assert box.resolve("mirror.corp") == []
    world.control.call("site", site={**SITE, "public": ["192.0.2.0/24"]})
    assert get(box, net.DOCUMENTATION).startswith("hello from")
    assert box.resolve("mirror.corp") == [net.DOCUMENTATION]


def test_what_the_operator_denies_nobody_allows(world: World) -> None:
    with world.sandbox({"mode": "restricted", "allow": ["good.com", net.EVIL]}) as box:
        assert box.http("good.com").startswith("hello from")
        assert get(box, net.EVIL).startswith("hello from")
        world.control.call("site", site={**SITE, "denied": ["good.com", "93.184.216.35/32"]})
        assert "operator denies good.com" in box.http("good.com", address=net.GOOD)
        assert "operator denies 93.184.216.35" in get(box, net.EVIL)


# -- names that lead elsewhere --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "rebind.good.com",
        "meta.good.com",
        "self.good.com",
        "second.good.com",
        "mapped.good.com",
        "nat64.good.com",
        "alias.good.com",
    ],
)
def test_an_allowed_name_that_leads_to_a_private_address(world: World, name: str) -> None:
    with world.sandbox({"mode": "restricted", "allow": ["*.good.com"]}) as box:
        assert box.http("www.good.com", address=net.GOOD, port=80).startswith("hello from")
        private = name not in ("self.good.com", "second.good.com")  # our own addresses are public ones
        if private:
            assert box.resolve(name) + box.resolve(name, "AAAA") == []
        for address in (net.GOOD, net.LAN):
            assert box.http(name, address=address, port=80).startswith("sandboxd: this sandbox may not")
    assert len(world.internet.requests) == 1


def test_of_mixed_answers_only_the_public_are_used(world: World) -> None:
    with world.sandbox({"mode": "restricted", "allow": ["*.good.com"]}) as box:
        assert box.resolve("mixed.good.com") == [net.GOOD]
        assert box.http("mixed.good.com", address=net.LAN).startswith(f"hello from {net.GOOD}")


def test_a_name_that_moves_to_a_private_address_between_two_queries(world: World) -> None:
    with world.sandbox({"mode": "restricted", "allow": ["*.good.com"]}) as box:
        world.internet.zone["moving.good.com"] = [net.GOOD]
        assert box.http("moving.good.com").startswith(f"hello from {net.GOOD}")
        world.internet.zone["moving.good.com"] = [net.LAN]

        def has_moved() -> bool:
            return "may not connect" in box.http("moving.good.com", address=net.GOOD)

        wait_until(has_moved)  # the answer before was good for a second
        assert not any(request.startswith(f"hello from {net.LAN}") for request in world.internet.requests)


def test_internet_with_denials(world: World) -> None:
    policy = {"mode": "internet", "deny": ["evil.com", "*.evil.com", "1.1.1.0/24"], "allow": ["keep.evil.com"]}
    world.internet.zone["keep.evil.com"] = [net.EVIL]
    with world.sandbox(policy) as box:
        assert box.http("good.com").startswith("hello from")
        assert box.http("keep.evil.com").startswith("hello from")
        assert "its policy denies evil.com" in box.http("evil.com")
        assert "its policy denies evil.com" in box.http("evil.com", address=net.EVIL, port=80)
        assert "broke off" in box.https("evil.com", address=net.EVIL)
        assert "its policy denies *.evil.com" in box.http("good.com.evil.com", address=net.EVIL)
        assert "its policy denies 1.1.1.0/24" in get(box, "1.1.1.1")
        world.internet.zone["good.com"] = ["1.1.1.1"]
        assert box.http("front.cdn.net").startswith("hello from")


# -- the host, by leave ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def service_on_the_host(world: World, port: int) -> Iterator[None]:
    with inside(world.host):
        listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as client:
                    client.recv(1000)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nthe host")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        listener.close()


def test_a_port_of_the_host_by_leave(world: World) -> None:
    policy = {"mode": "restricted", "allow": [{"to": "host", "ports": [8000, 11434]}]}
    with service_on_the_host(world, 11434), service_on_the_host(world, 8000), service_on_the_host(world, 22):
        with world.sandbox(policy) as box:
            assert box.http("host.sandboxd.internal", 11434) == "the host"
            assert box.http("host.sandboxd.internal", 11434, address=str(HOST6)) == "the host"
            assert "the port is the daemon's own" in box.http("host.sandboxd.internal", 8000)
            assert "no rule allows it" in box.http("host.sandboxd.internal", 22)
        with world.sandbox({"mode": "open"}) as box:
            assert box.resolve("host.sandboxd.internal") == [GATEWAY4]
            assert "the host" not in box.http("host.sandboxd.internal", 11434, address=str(HOST4)).split(":")[0]


# -- datagrams ------------------------------------------------------------------------------------------------------


def test_datagrams_go_where_an_address_rule_allows_them(world: World) -> None:
    policy = {
        "mode": "restricted",
        "allow": ["good.com", {"to": net.GOOD, "ports": [123], "protocol": "udp"}, net.GOOD6],
    }
    with world.sandbox(policy) as box:
        for address in (net.GOOD, net.GOOD6):
            for size in (1, 1000, 60_000):
                data = bytes(size)
                assert box.exchange(data, address, 123) == b"echo " + data
        for address, port in ((net.GOOD, 443), (net.GOOD, 4000), (net.EVIL, 123), (net.LAN, 123)):
            with pytest.raises(ConnectionRefusedError):
                box.exchange(b"x", address, port)
        assert box.events("denied")[-1]["protocol"] == "udp"
    with world.sandbox({}) as box, pytest.raises(ConnectionRefusedError):
        box.exchange(b"x", net.GOOD, 123)


def test_http3_gives_way_where_names_decide(world: World) -> None:
    with world.sandbox({"mode": "internet"}) as box:
        assert box.exchange(b"x", net.GOOD, 443) == b"echo x"
    with world.sandbox({"mode": "internet", "deny": ["evil.com"]}) as box:
        assert box.exchange(b"x", net.GOOD, 123) == b"echo x"
        with pytest.raises(ConnectionRefusedError):
            box.exchange(b"x", net.GOOD, 443)
        with pytest.raises(ConnectionRefusedError):
            box.exchange(b"x", net.GOOD6, 443)


def test_private_and_blocked_addresses_get_no_datagram(box: Box) -> None:
    assert box.exchange(b"x", net.GOOD, 123) == b"echo x"
    for address in (net.LAN, net.METADATA, net.HOST, str(HOST4), "fd00:ec2::254", "64:ff9b::a9fe:a9fe"):
        with pytest.raises(ConnectionRefusedError):
            box.exchange(b"x", address, 123)


def test_what_is_neither_is_refused_at_once(box: Box) -> None:
    """Pings, for one, which a sandbox may send by a socket of its own."""
    with inside(box.namespace):
        ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with ping, pytest.raises(PermissionError):
        ping.sendto(b"\x08\0\0\0\0\0\0\0", (net.GOOD, 0))
