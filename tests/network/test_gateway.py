"""The gateway as a process: its rights, its bounds, what it survives, and policies that change."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.gateway import addresses, tcp
from sandboxd.gateway.addresses import parse_address
from sandboxd.gateway.datagram import udp_packet
from sandboxd.kernel import netlink, sandbox_network
from sandboxd.kernel.sandbox_network import GATEWAY4
from tests.network import internet as net
from tests.network.namespaces import inside
from tests.network.world import GATEWAY_USER, Box, Control, World, closed
from tests.support.waiting import wait_until

GOOD = {"mode": "restricted", "allow": ["good.com", "*.good.com"]}


@pytest.fixture
def box(world: World):
    with world.sandbox(GOOD) as made:
        yield made


def status(world: World) -> dict[str, str]:
    lines = Path(f"/proc/{world.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_has_no_rights(world: World) -> None:
    seen = status(world)
    assert {seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert seen["NoNewPrivs"] == "1"
    assert seen["Uid"].split() == [seen["Uid"].split()[0]] * 4
    assert seen["Uid"].split()[0] == str(GATEWAY_USER) if world.user else seen["Uid"].split()[0] != "0"
    assert seen["Groups"] in ("", seen["Gid"].split()[0])
    limits = Path(f"/proc/{world.pid}/limits").read_text()
    for name in ("Max processes", "Max file size", "Max core file size"):
        assert next(line for line in limits.splitlines() if line.startswith(name)).split()[-3:-1] == ["0", "0"]


# -- policies that change -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def echoing(box: Box, name: str = "good.com") -> Iterator[socket.socket]:
    """A connection that is open and works."""
    with box.connect(box.resolve(name)[0], 7) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        yield sock


def test_a_policy_that_no_longer_allows_a_connection_cuts_it(box: Box) -> None:
    with echoing(box) as kept, echoing(box, "git.good.com") as cut:
        assert box.policy({"mode": "restricted", "allow": ["good.com"]}) == 1
        assert closed(cut)
        kept.sendall(b"y")
        assert kept.recv(1) == b"y"
        assert box.policy({}) == 1
        assert closed(kept)
    assert "may not connect" in box.http("good.com", 80, address=net.GOOD)
    assert box.policy(GOOD) == 0
    assert box.http("good.com").startswith("hello from")


def test_a_change_cuts_a_download_whose_client_does_not_read(box: Box) -> None:
    with box.connect(box.resolve("good.com")[0], 19) as sock:
        wait_until(lambda: box.figures["received"] > 100_000)
        assert box.policy({}) == 1
        wait_until(lambda: box.figures["connections"] == 0)
        assert closed(sock)


def test_a_change_cuts_datagrams(world: World) -> None:
    with world.sandbox({"mode": "internet"}) as box, box.open(socket.SOCK_DGRAM) as sock:
        sock.connect((net.GOOD, 123))
        sock.send(b"1")
        assert sock.recv(10) == b"echo 1"
        assert box.policy({}) == 1
        sock.send(b"2")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)


def test_what_the_site_denies_cuts_too(world: World, box: Box) -> None:
    with echoing(box) as sock:
        assert world.control.call("site", site={"denied": ["good.com"]})["cut"] == 1
        assert closed(sock)


def test_a_denial_that_is_lifted_is_no_denial_any_more(box: Box) -> None:
    """A client that still has the address of the denial is let through by the name that it shows."""
    assert box.resolve("evil.com") == [GATEWAY4]
    box.policy({"mode": "internet"})
    assert box.http("evil.com", address=GATEWAY4).startswith(f"hello from {net.EVIL}")


# -- the daemon comes and goes --------------------------------------------------------------------------------------


def test_connections_outlive_the_daemon(world: World, box: Box) -> None:
    with echoing(box) as sock:
        world.control.close()
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"
        assert box.http("good.com").startswith("hello from")
        world.control = Control(world.path)
        assert world.control.call("list")["sandboxes"] == [box.name]
        assert world.control.call("policies", id=box.name)["policy"]["allow"] == ["good.com", "*.good.com"]
        assert box.add(GOOD) == {"cut": 0}  # said twice
        sock.sendall(b"z")
        assert sock.recv(1) == b"z"


def test_a_gateway_that_died_is_followed_by_one_that_serves_what_waits(own_world: World) -> None:
    world = own_world
    with world.sandbox(GOOD) as box, echoing(box) as sock:
        assert world.gateway is not None
        world.gateway.kill()
        world.gateway.wait()
        assert closed(sock)
        world.control.close()
        with box.connect(net.GOOD, 7) as waiting:  # in the backlog of the socket, which the daemon has too
            waiting.sendall(b"w")
            world.start_gateway()
            box.add({"mode": "internet"})
            assert waiting.recv(1) == b"w"


def test_a_gateway_that_is_stopped_goes_on_where_it_was(world: World, box: Box) -> None:
    with echoing(box) as sock:
        os.kill(world.pid, signal.SIGSTOP)
        try:
            sock.sendall(b"y")
            time.sleep(0.2)
        finally:
            os.kill(world.pid, signal.SIGCONT)
        assert sock.recv(1) == b"y"


@pytest.mark.parametrize(
    ("op", "arguments", "said"),
    [
        ("fly", {}, "there is no command 'fly'"),
        ("add", {"id": "x", "policy": {}}, "comes with its sockets"),
        ("add", {"id": "", "policy": {}}, "id is a string"),
        ("add", {"id": "x" * 201, "policy": {}}, "id is a string"),
        ("add", {"id": "x"}, "write an object"),
        ("policy", {"id": "nobody", "policy": {}}, "there is no sandbox nobody"),
        ("policy", {"id": "nobody", "policy": {"mode": "all"}}, "there is no sandbox nobody"),
        ("recent", {"id": "nobody"}, "there is no sandbox nobody"),
        ("site", {"site": {"denied": 5}}, "denied: write a list"),
        ("site", {}, "write an object"),
        ("remove", {"id": 5}, "id is a string"),
    ],
)
def test_a_command_that_cannot_be_done(world: World, op: str, arguments: dict[str, object], said: str) -> None:
    before = world.descriptors()
    assert said in world.control.ask(op, [0, 1], **arguments)["error"]
    assert world.control.call("list") == {"sandboxes": []}
    assert world.descriptors() == before


def test_descriptors_that_are_no_sockets_are_refused(world: World) -> None:
    before = world.descriptors()
    with open("/dev/null") as null:
        answer = world.control.ask("add", [null.fileno()] * 3, id="x", policy={})
    assert "no socket" in answer["error"]
    wait_until(lambda: world.descriptors() == before)


def test_events_are_told_once_a_second(world: World, box: Box) -> None:
    for _ in range(20):
        box.http("evil.com", 80)
    world.control.call("list")
    denied = [event for event in world.control.events if event["action"] == "denied" and event.get("port") == 80]
    assert 1 <= len(denied) < 15
    assert denied[0] | {"at": 0} == {
        "at": 0,
        "action": "denied",
        "sandbox": box.name,
        "name": "evil.com",
        "address": GATEWAY4,
        "port": 80,
        "protocol": "tcp",
        "reason": "no rule allows it",
    }
    assert box.figures["denied"] >= 20


# -- bounds ---------------------------------------------------------------------------------------------------------


def test_connections_are_bounded_and_hurt_nobody_else(world: World, box: Box) -> None:
    policy = {"mode": "internet", "limits": {"connections": 20}}
    box.policy(policy)
    with contextlib.ExitStack() as stack, world.sandbox(GOOD) as other:
        socks = [stack.enter_context(box.connect(net.GOOD, 7)) for _ in range(60)]
        wait_until(lambda: bool(box.events("limit")))
        working = 0
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
                working += sock.recv(1) == b"x"
        assert working == 20
        assert box.events("limit")[0]["reason"] == "more than 20 connections"
        assert other.http("good.com").startswith("hello from")
    wait_until(lambda: box.figures["connections"] == 0)
    assert box.http("good.com").startswith("hello from")


def test_removal_gives_back_everything(world: World) -> None:
    world.control.call("list")
    before = world.descriptors()
    with contextlib.ExitStack() as stack:
        with world.sandbox({"mode": "internet"}) as box:
            for port in (7, 19, 9):
                for _ in range(60):
                    stack.enter_context(box.connect(net.GOOD, port)).sendall(b"x")
            with box.open(socket.SOCK_DGRAM) as sock:
                for port in (123, 4000):
                    sock.sendto(b"x", (net.GOOD, port))
            wait_until(lambda: box.figures["connections"] == 180)
        wait_until(lambda: world.descriptors() == before)


def test_clients_that_never_speak_and_servers_that_never_read_are_in_nobodys_way(world: World, box: Box) -> None:
    with contextlib.ExitStack() as stack:
        address = box.resolve("good.com")[0]
        for _ in range(50):
            stack.enter_context(box.connect(address, 443))
        sock = stack.enter_context(box.connect(address, 9))
        sock.settimeout(2)
        with pytest.raises(TimeoutError):
            sock.sendall(bytes(1 << 30))
        assert box.figures["sent"] < 64 << 20
        assert box.http("good.com").startswith("hello from")


def tcp_memory() -> int:
    """Bytes that the kernel holds for TCP, of all namespaces of this machine: a figure of the kernel as a whole."""
    line = next(line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:"))
    fields = line.split()
    return int(fields[fields.index("mem") + 1]) * os.sysconf("SC_PAGESIZE")


def test_two_hundred_clients_that_never_read_cost_little(world: World) -> None:
    """What is sent to a client that does not read waits in the kernel: less than 300 MB for two hundred of them."""
    before = tcp_memory()
    with world.sandbox({"mode": "internet"}) as box, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(box.connect(net.GOOD, 19))
        last, since = -1, time.monotonic()
        while time.monotonic() - since < 3:  # until nothing more comes
            received = box.figures["received"]
            if received != last:
                last, since = received, time.monotonic()
            time.sleep(0.1)
        assert last > 200 * 100_000  # every one of them has been sent much
        assert tcp_memory() - before < 300 << 20


def test_a_rate_is_kept(world: World) -> None:
    rate = 400_000
    policy = {"mode": "internet", "limits": {"bytes_per_second": rate}}
    with world.sandbox(policy) as box, box.connect(net.GOOD, 19) as sock:
        started, got = time.monotonic(), 0
        while got < 4 * rate:
            got += len(sock.recv(1 << 16))
        assert time.monotonic() - started > 2  # a second's worth at once, then the rate


# -- a sandbox with all rights over its namespace -------------------------------------------------------------------


def flush_rules() -> None:
    """As `nft flush ruleset` does."""
    batch = netlink.Request(netlink.NETFILTER)
    batch.add(16, 0, struct.pack("=BBH", 0, 0, socket.htons(10)))
    batch.add((10 << 8) | 2, 4, struct.pack("=BBH", 1, 0, 0), "flushing")
    batch.add(17, 0, struct.pack("=BBH", 0, 0, socket.htons(10)))
    batch.send()


def test_without_its_rules_a_sandbox_reaches_nothing(world: World, box: Box) -> None:
    assert box.http("good.com").startswith("hello from")
    with inside(box.namespace):
        flush_rules()
    with box.open() as sock:
        sock.settimeout(1)
        with pytest.raises(OSError):
            sock.connect((net.GOOD, 80))
    with box.open(socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((net.SERVER, 53))
        with contextlib.suppress(OSError):
            sock.send(b"x")
        with pytest.raises(OSError):
            sock.recv(10)
    assert world.internet.queries == [("good.com", "A"), ("good.com", "AAAA")]


@pytest.mark.parametrize("mark", [0x5B, 0xFFFFFFFF, 0])
def test_marks_lead_nowhere_else(box: Box, mark: int) -> None:
    with box.open() as sock:
        with inside(box.namespace):
            sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack("=I", mark))  # SO_MARK
        if mark:  # our own table has no way that a connection could begin with
            with pytest.raises(OSError, match="unreachable"):
                sock.connect((net.EVIL, 80))
            return
        sock.connect((net.EVIL, 80))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: evil.com\r\n\r\n")
        assert b"may not connect" in sock.recv(1000)


def test_raw_packets_lead_nowhere(world: World, box: Box) -> None:
    with inside(box.namespace):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    ends = (parse_address("198.18.0.2"), 1000), (parse_address(net.EVIL), 123)
    with raw, packets:
        with contextlib.suppress(OSError):
            raw.sendto(udp_packet(*ends, b"x"), (net.EVIL, 0))
        for interface in ("eth0", "lo"):
            packets.bind((interface, 0x0800))
            with contextlib.suppress(OSError):
                packets.send(b"\0" * 12 + b"\x08\0" + udp_packet(*ends, b"x"))
    assert box.http("good.com").startswith("hello from")
    figures = box.figures
    assert figures["allowed"] == 1  # that of the control


def test_its_own_port_1_takes_nothing_of_ours(box: Box) -> None:
    with box.open() as sock, pytest.raises(OSError, match="in use"):
        sock.bind(("0.0.0.0", 1))
    assert box.http("good.com").startswith("hello from")


def test_a_servers_own_dns_port_is_the_sandboxs(box: Box) -> None:
    with inside(box.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 53))
    assert box.resolve("good.com") == [net.GOOD]


# -- the namespace --------------------------------------------------------------------------------------------------


def test_the_kernels_part_and_the_gateways_agree() -> None:
    assert str(addresses.GATEWAY4) == sandbox_network.GATEWAY4
    assert str(addresses.GATEWAY6) == sandbox_network.GATEWAY6
    assert str(addresses.SANDBOX4) == sandbox_network.SANDBOX4
    assert str(addresses.SANDBOX6) == sandbox_network.SANDBOX6
    assert tcp.LISTENER_PORT == sandbox_network.PORT


def test_without_ipv6_it_is_refused_at_once(world: World) -> None:
    kind = _kind()
    (namespace,) = world.holder.make("empty")
    with inside(namespace):
        for made in sandbox_network.make_network(kind=kind, ipv6=False):
            made.close()
        with socket.socket(socket.AF_INET6) as sock, pytest.raises(OSError, match="unreachable"):
            sock.connect((net.GOOD6, 80))
    os.close(namespace)


def _kind() -> str:
    """Asked in a process of its own: it forks."""
    code = "from sandboxd.kernel.sandbox_network import find_kind; print(find_kind())"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_a_kernel_that_lacks_a_part_is_told_by_its_name(world: World) -> None:
    with inside(world.host), pytest.raises(OSError, match=r"making the interface eth0 \(nothing\)"):
        sandbox_network.make_network(kind="nothing", ipv6=True)
