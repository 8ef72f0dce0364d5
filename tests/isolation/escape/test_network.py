"""The network: sockets that bypass it, and whether anything but the sandbox's own loopback is in reach."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox, unconfined, unconfined_outcomes

pytestmark = pytest.mark.needs_root


def opening(family: int, kind: int, protocol: int) -> str:
    return f"attempt(lambda: socket.socket({family}, {kind}, {protocol}).close())"


NO_PERMISSION = {
    "raw IPv4": opening(2, 3, 1),
    "raw IPv4, any protocol": opening(2, 3, 255),
    "raw IPv6": opening(10, 3, 58),
}
NO_SUCH_FAMILY = {
    "packet": opening(17, 3, 0x0300),
    "packet, cooked": opening(17, 2, 0x0300),
    "old packet": opening(2, 10, 0x0300),
    "vsock stream": opening(40, 1, 0),
    "kernel crypto": opening(38, 5, 0),
    "netlink audit": opening(16, 3, 9),
    "netlink netfilter": opening(16, 3, 12),
    "netlink uevents": opening(16, 3, 15),
    "netlink diagnostics": opening(16, 3, 4),
}
ORDINARY = {
    "TCP": opening(2, 1, 0),
    "UDP": opening(2, 2, 0),
    "TCP over IPv6": opening(10, 1, 0),
    "Unix": opening(1, 1, 0),
    "netlink route": opening(16, 3, 0),
}


def test_only_ordinary_sockets_can_be_made(sandbox: Sandbox):
    assert sandbox.outcomes(NO_PERMISSION) == dict.fromkeys(NO_PERMISSION, "EPERM")
    assert sandbox.outcomes(NO_SUCH_FAMILY) == dict.fromkeys(NO_SUCH_FAMILY, "EAFNOSUPPORT")
    assert sandbox.outcomes(ORDINARY) == dict.fromkeys(ORDINARY, "")
    control = unconfined_outcomes(NO_PERMISSION | NO_SUCH_FAMILY)
    # A kernel need not have every family; those of every kernel open.
    assert {control[name] for name in ("raw IPv4", "raw IPv6", "packet", "netlink uevents")} == {""}


INTERFACES = (
    "report([sorted(name for _, name in socket.if_nameindex()), len(open('/proc/net/route').readlines()) - 1])"
)


def test_loopback_is_the_only_interface(sandbox: Sandbox):
    assert sandbox.python(INTERFACES) == [["lo"], 0]
    assert unconfined(INTERFACES)[0] != ["lo"]


@contextmanager
def listening(family: int, address: object) -> Iterator[socket.socket]:
    """A server of the host."""
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind(address)
        server.listen()
        yield server


def host_addresses() -> list[str]:
    """Loopback, and the address by which the host goes out (nothing is sent to find it)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ["127.0.0.1"]
        return ["127.0.0.1", probe.getsockname()[0]]


def test_servers_of_the_host_are_out_of_reach(sandbox: Sandbox):
    with listening(socket.AF_INET, ("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        attacks = {
            address: f"attempt(lambda: socket.create_connection(({address!r}, {port}), timeout=30).close())"
            for address in host_addresses()
        }
        assert set(sandbox.outcomes(attacks).values()) <= {"ECONNREFUSED", "ENETUNREACH"}
        assert set(unconfined_outcomes(attacks).values()) == {""}


def connecting(address: str) -> str:
    return f"""
with socket.socket(socket.AF_UNIX) as client:
    report(attempt(client.connect, {address!r}))
"""


def test_abstract_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox):
    """CVE-2020-15257: they belong to the network namespace, and no file permission guards them."""
    address = f"\0sandboxd-escape-{os.getpid()}"
    with listening(socket.AF_UNIX, address):
        assert sandbox.python(connecting(address)) == "ECONNREFUSED"
        assert unconfined(connecting(address)) == ""


def test_abstract_sockets_of_another_sandbox_are_out_of_reach(new_sandbox: Callable[[], Sandbox]):
    server = """
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0meeting-point")
listener.listen()
if os.fork() == 0:
    os.setsid()
    for number in (0, 1, 2):
        os.close(number)
    time.sleep(60)
    os._exit(0)
report("listening")
"""
    one, other = new_sandbox(), new_sandbox()
    one.python(server)
    assert other.python(connecting("\0meeting-point")) == "ECONNREFUSED"
    assert one.python(connecting("\0meeting-point")) == ""


def test_the_daemons_own_sockets_are_out_of_reach(sandbox: Sandbox, secret: Path):
    """The API, and the sockets of the inits, by every path under which one might still be there."""
    sockets = [sandbox.daemon.socket, sandbox.daemon.runtime / "sandboxes" / sandbox.id / "init.sock"]
    for path in sockets:
        assert path.is_socket()
        assert sandbox.python(connecting(str(path))) == "ENOENT"
    find = "report([top for top, _, files in os.walk('/') if {'init.sock', 'sandboxd.sock'} & set(files)])"
    assert sandbox.python(find) == []
    # By name, since an address is shorter than some of these paths.
    assert unconfined(connecting(sockets[0].name), cwd=sockets[0].parent) == ""
