"""Rules by name, through the gateway: what is allowed works, and every way around it that we know is denied.

Each attack stands beside the same request to an allowed target, which succeeds.
"""

import socket
import struct

import pytest

from tests.network import internet as net
from tests.network.test_sniff import client_hello, in_records, server_name, with_extension
from tests.network.world import Box, World
from tests.support.waiting import wait_until

POLICY = {"mode": "restricted", "allow": ["good.com", "*.good.com", {"to": net.EVIL, "ports": [8080]}]}


@pytest.fixture
def box(world: World):
    with world.sandbox(POLICY) as made:
        yield made


def test_what_is_allowed_works(box: Box) -> None:
    assert box.http("good.com") == f"hello from {net.GOOD} to good.com for /"
    assert "hello from" in box.https("good.com")
    assert box.http(net.EVIL, 8080).startswith(f"hello from {net.EVIL}")
    assert box.http("alias2.good.com", 80).startswith(f"hello from {net.GOOD}")


def test_ipv6_works(box: Box) -> None:
    assert box.http("v6.good.com", address=net.GOOD6).startswith(f"hello from {net.GOOD6}")
    assert "hello from" in box.https("v6.good.com")


def test_a_server_may_speak_first(box: Box) -> None:
    with box.connect(box.resolve("git.good.com")[0], 22) as sock:
        assert sock.recv(100) == b"SSH-2.0-test\r\n"
        sock.sendall(b"SSH-2.0-mine")
        assert sock.recv(100) == b"got SSH-2.0-mine"


@pytest.mark.parametrize("name", ["evil.com", "evilgood.com", "good.com.evil.com", "front.cdn.net"])
def test_a_name_that_no_rule_allows_is_told_so(box: Box, name: str) -> None:
    assert "no rule allows it" in box.http(name)
    assert "ACCESS_DENIED" in box.https(name).upper().replace(" ", "_")
    assert box.world.internet.requests == []


def test_what_is_denied_is_a_403_that_says_why(box: Box) -> None:
    with box.connect(box.resolve("evil.com")[0], 80) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n")
        answer = sock.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 403 Forbidden\r\n")
    assert "X-Sandboxd-Denied: evil.com:80\r\n" in answer
    assert answer.endswith("sandboxd: this sandbox may not connect to evil.com:80: no rule allows it.\n")
    (event,) = [event for event in box.events("denied") if event.get("port") == 80]
    assert (event["name"], event["reason"], event["sandbox"]) == ("evil.com", "no rule allows it", box.name)


def test_a_denied_name_on_a_port_where_servers_speak_first_is_reset_at_once(box: Box) -> None:
    with box.connect(box.resolve("evil.com")[0], 22) as sock, pytest.raises(ConnectionResetError):
        sock.recv(100)


def test_an_address_that_no_rule_allows(box: Box) -> None:
    assert "no rule allows it" in box.http(net.EVIL, 80)
    assert "broke off" in box.https("evil.com", address=net.EVIL)
    assert "broke off" in box.talk(net.CDN, 22, b"SSH-2.0-x\r\n")


def test_an_allowed_name_leads_to_its_own_address_whatever_the_sandbox_says(box: Box) -> None:
    """/etc/hosts, --resolve, a resolver of one's own: the gateway looks the name up itself."""
    assert box.http("good.com", address=net.EVIL).startswith(f"hello from {net.GOOD} ")
    assert box.http("good.com", address=net.METADATA, port=80).startswith(f"hello from {net.GOOD} ")
    assert "hello from" in box.https("good.com", address=net.EVIL)


def test_another_name_at_an_allowed_names_address(box: Box) -> None:
    (address,) = box.resolve("good.com")
    assert box.http("good.com", address=address).startswith("hello from")
    assert "no rule allows it" in box.http("evil.com", address=address)
    assert "broke off" in box.https("evil.com", address=address, trusting=False)


def test_a_request_without_a_name_is_its_addresss(box: Box) -> None:
    (address,) = box.resolve("good.com")
    assert box.http("", address=address, head="GET / HTTP/1.0\r\n\r\n").startswith(f"hello from {net.GOOD}")
    assert "no rule allows it" in box.http("", address=net.CDN, head="GET / HTTP/1.0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\nHost: good.com\r\nHost: evil.com\r\n\r\n",
        "GET http://evil.com/ HTTP/1.1\r\nHost: good.com\r\n\r\n",
        "GET http://good.com/ HTTP/1.1\r\nHost: evil.com\r\n\r\n",
        "CONNECT evil.com:443 HTTP/1.1\r\nHost: good.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: good.com\0.evil.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : good.com\r\nHost: evil.com\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
@pytest.mark.parametrize("port", [80, 8000])
def test_a_request_that_can_be_read_in_two_ways(box: Box, head: str, port: int) -> None:
    (address,) = box.resolve("good.com")
    control = "GET http://good.com/ HTTP/1.1\r\nHost: GOOD.com.\r\n\r\n"
    assert box.http("", port, address=address, head=control).startswith("hello from")
    box.world.internet.requests.clear()
    assert "hello" not in box.http("", port, address=address, head=head)
    assert box.world.internet.requests == []


@pytest.mark.parametrize("port", [80, 8000])
def test_a_later_request_for_another_name(box: Box, port: int) -> None:
    (address,) = box.resolve("good.com")
    with box.connect(address, port) as sock:
        for path in ("/1", "/2"):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: good.com\r\n\r\n".encode())
            assert f"for {path}" in sock.recv(10_000).decode()
        sock.sendall(b"GET /3 HTTP/1.1\r\nHost: evil.com\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            sock.recv(10_000)
    assert not any("evil" in each for each in box.world.internet.requests)
    assert any("evil.com" in event["reason"] for event in box.events("denied"))


def test_a_websocket_works(box: Box) -> None:
    (address,) = box.resolve("good.com")
    with box.connect(address, 8000) as sock:
        sock.sendall(b"GET /w HTTP/1.1\r\nHost: good.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 101")
        sock.sendall(b"\x81\x05hello")
        assert sock.recv(1000) == b"\x81\x05hello"


def test_a_client_hello_in_small_pieces(box: Box) -> None:
    (address,) = box.resolve("good.com")
    for name, answered in (("good.com", True), ("evil.com", False)):
        with box.connect(address, 443) as sock:
            hello = in_records(client_hello(name), 1)
            for at in range(0, len(hello), 700):
                sock.sendall(hello[at : at + 700])
            kind = sock.recv(1)
            assert kind == (b"\x16" if answered else b"\x15")  # a handshake, or an alert


def test_two_server_names(box: Box) -> None:
    (address,) = box.resolve("good.com")
    with box.connect(address, 443) as sock:
        sock.sendall(with_extension(client_hello("good.com"), 0, server_name(b"evil.com")))
        assert sock.recv(100) == b"\x15\x03\x03\x00\x02\x02\x31"


def test_a_client_that_shows_another_name_on_a_connection_that_is_open(box: Box) -> None:
    """On a port where servers may speak first the connection is made by the name that the address is pinned to."""
    (address,) = box.resolve("git.good.com")
    with box.connect(address, 8000) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: www.good.com\r\n\r\n")
        assert b"hello from" in sock.recv(1000)
    with box.connect(address, 8000) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n")
        assert b"may not connect to evil.com:8000" in sock.recv(1000)
    assert box.world.internet.requests == ["GET / HTTP/1.1\r\nHost: www.good.com"]


def test_half_close_is_kept(box: Box) -> None:
    (address,) = box.resolve("good.com")
    with box.connect(address, 7) as sock:
        sock.sendall(b"abc")
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(1000):
            data += more
    assert data == b"abc|half-closed|"


def test_a_reset_is_passed_on(box: Box) -> None:
    (address,) = box.resolve("good.com")
    sock = box.connect(address, 19)
    sock.recv(1000)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    wait_until(lambda: box.figures["connections"] == 0)


def test_a_large_download_and_a_large_upload(box: Box) -> None:
    (address,) = box.resolve("good.com")
    with box.connect(address, 8000) as sock:
        sock.sendall(b"GET /big/64 HTTP/1.1\r\nHost: good.com\r\nConnection: close\r\n\r\n")
        got = 0
        while got < 64 << 20:
            got += len(sock.recv(1 << 20))
    body = bytes(1 << 20)
    with box.connect(address, 8000) as sock:
        sock.sendall(b"POST /up HTTP/1.1\r\nHost: good.com\r\nContent-Length: %d\r\n\r\n" % (16 << 20))
        for _ in range(16):
            sock.sendall(body)
        assert b"for /up" in sock.recv(10_000)
    figures = box.figures
    assert figures["received"] > 64 << 20
    assert figures["sent"] > 16 << 20


def test_a_name_that_does_not_answer_fails_and_is_told(box: Box) -> None:
    (address,) = box.resolve("git.good.com")
    with box.connect(address, 5) as sock, pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert [event["reason"] for event in box.events("failed")] == ["Connection refused"]


def test_a_sandbox_without_a_network_reaches_nothing(world: World) -> None:
    with world.sandbox({}) as box:
        assert "it has no network" in box.http(
            "", 80, address=net.GOOD, head="GET / HTTP/1.1\r\nHost: good.com\r\n\r\n"
        )
        with box.connect(net.GOOD, 22) as sock, pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert box.resolve("good.com") == []
    assert world.internet.queries == []
