"""Connections without a key: whoever opens them, however many, the others are served."""

import contextlib
import grp
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.test_program import config_file
from tests.support.daemon import Daemon
from tests.support.waiting import PATIENCE, wait_until

SLOTS = 64
ATTACKER, TENANT = "127.0.0.2", "127.0.0.3"
HEALTH = b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n"
# Without a key: silent, slow, without an end, TLS to a listener that speaks none, and an HTTP/2 preface alone.
OPENINGS = [
    b"",
    b"GET /v1/hea",
    HEALTH[:-2],
    b"\x16\x03\x01\x02\x00\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    HEALTH,
]


@pytest.fixture
def port(own_root_daemon: Daemon) -> int:
    daemon = own_root_daemon
    port = daemon.reserve_port()
    limits = f"max_connections = {SLOTS}\nmax_connections_per_peer = {SLOTS}\nheader_timeout = 30.0\n"
    text = f"socket_group = 'nogroup'\nlisten = ['tcp:127.0.0.1:{port}']\n[http]\n{limits}"
    daemon.options = ("--config", config_file(daemon, text))
    daemon.start()
    daemon.root.chmod(0o755)
    return port


@pytest.fixture
def key(own_root_daemon: Daemon, port: int) -> str:
    return str(own_root_daemon.call("POST", "/v1/keys", {"name": "tenant", "scopes": ["write"]}).json["key"])


def ask(port: int, key: str, *, source: str = TENANT) -> tuple[int, bytes]:
    """A request with a key from an address of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request("GET", "/v1/sandboxes", headers={"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def attack(port: int, opening: bytes) -> Iterator[list[socket.socket]]:
    """Connections of another address, several times as many as there are slots, with new ones coming all the time."""
    held: list[socket.socket] = []
    over = threading.Event()

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(ATTACKER, 0))
        held.append(sock)
        with contextlib.suppress(OSError):  # let go already
            sock.sendall(opening)

    def go_on() -> None:
        while not over.wait(0.005) and len(held) < 40 * SLOTS:
            connect()

    for _ in range(3 * SLOTS):
        connect()
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield held
    finally:
        over.set()
        thread.join()
        for sock in held:
            sock.close()


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@pytest.mark.parametrize("opening", OPENINGS)
def test_who_holds_all_slots_shuts_out_neither_the_administrator_nor_other_peers(
    own_root_daemon: Daemon, port: int, key: str, opening: bytes
) -> None:
    with attack(port, opening) as held:
        for _ in range(20):
            assert own_root_daemon.call("GET", "/v1/sandboxes").status == 200
            assert ask(port, key)[0] == 200
        # The control: every slot was the attacker's, and the daemon had to take some back.
        assert sum(map(is_open, held[: 3 * SLOTS])) <= SLOTS
        assert len(held) >= 3 * SLOTS
    assert "Traceback" not in own_root_daemon.log


def test_requests_under_way_are_not_cut_off_by_an_attack(own_root_daemon: Daemon, port: int, key: str) -> None:
    sandbox = own_root_daemon.create()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE, source_address=(TENANT, 0))
    with contextlib.closing(connection):
        body = json.dumps({"cmd": "echo begun; until test -e /tmp/go; do sleep 0.05; done; echo over"})
        connection.request("POST", f"/v1/sandboxes/{sandbox}/shell/stream", body, {"authorization": f"Bearer {key}"})
        stream = connection.getresponse()
        seen = b""
        while b"begun" not in seen:
            seen += stream.read1(4096)
        with attack(port, b""):
            for _ in range(5):
                assert ask(port, key)[0] == 200
            own_root_daemon.shell(sandbox, "touch /tmp/go")
            assert b"over" in seen + stream.read()
    own_root_daemon.delete(sandbox)


def test_a_peer_whose_requests_hold_its_share_is_refused_and_no_other(
    own_root_daemon: Daemon, port: int, key: str
) -> None:
    """Who has a key may keep what it uses; that is its share, and it is told so."""
    sandbox = own_root_daemon.create()
    path = f"/v1/sandboxes/{sandbox}/shell/stream"
    body = json.dumps({"cmd": "sleep 600"}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(SLOTS):
            address = ("127.0.0.1", port)
            sock = stack.enter_context(socket.create_connection(address, PATIENCE, (ATTACKER, 0)))
            sock.sendall(head.encode() + body)
            assert sock.recv(1) == b"H"
        status, said = ask(port, key, source=ATTACKER)
        assert (status, b"http.max_connections_per_peer" in said) == (503, True)
        assert own_root_daemon.call("GET", "/v1/sandboxes").status == 200
        own_root_daemon.delete(sandbox)
    wait_until(lambda: ask(port, key, source=ATTACKER)[0] == 200)


HOLD = """
import os, socket, sys, time
held = []
for _ in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    held.append(sock)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be another user")
def test_another_user_of_the_unix_socket_does_not_shut_out_the_administrator(
    own_root_daemon: Daemon, port: int
) -> None:
    group = str(grp.getgrnam("nogroup").gr_gid)
    user = ("setpriv", "--reuid", "65534", "--regid", group, "--clear-groups", sys.executable, "-c", HOLD)
    command = [*user, str(own_root_daemon.socket), str(4 * SLOTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            for _ in range(20):
                assert own_root_daemon.call("GET", "/v1/sandboxes").status == 200
        finally:
            process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize("trickle", [b"", b"x"])
def test_a_first_request_that_does_not_come_ends_its_connection(
    own_root_daemon: Daemon, port: int, trickle: bytes
) -> None:
    """However it is drawn out; the control is a connection that has been of use, and stays."""
    daemon = own_root_daemon
    daemon.stop()
    config_file(daemon, f"listen = ['tcp:127.0.0.1:{port}']\n[http]\nheader_timeout = 1.0\n")
    daemon.start()
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE) as slow,
        socket.create_connection(("127.0.0.1", port), PATIENCE) as used,
    ):
        used.sendall(HEALTH)
        assert used.recv(1) == b"H"

        def ended() -> bool:
            with contextlib.suppress(OSError):
                slow.sendall(trickle)
            return not is_open(slow)

        slow.sendall(b"GET / HTTP/1.1\r\nx: ")
        wait_until(ended)
        assert is_open(used)
