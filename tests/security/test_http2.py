"""HTTP/2 without a key against a whole daemon: what it costs while it lasts, and what is left of it."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.settings
import pytest

from sandboxd.http.server.frames import HEADERS
from tests.e2e.test_program import config_file
from tests.http.test_http2_floods import PREFACE, head, resets
from tests.support.daemon import Daemon
from tests.support.waiting import PATIENCE, wait_until

MIB = 1024 * 1024
ROUNDS = 20
CONNECTIONS = 2
STREAMS = 100
# The largest that the daemon gives to everyone.
PAGE = "/v1/openapi.json"


@pytest.fixture
def port(own_root_daemon: Daemon) -> int:
    daemon = own_root_daemon
    port = daemon.reserve_port()
    text = f"listen = ['tcp:127.0.0.1:{port}']\nhttp.cleartext_http2 = true\n"
    daemon.options = ("--config", config_file(daemon, text))
    daemon.start()
    return port


def resident(daemon: Daemon) -> int:
    """Bytes of memory that the daemon's process has."""
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * 4096


@contextlib.contextmanager
def without_window(port: int) -> Iterator[None]:
    """Connections, each with as many requests as it may have, and no window for the answers."""
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
            http.initiate_connection()
            http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
            sock.sendall(http.data_to_send())
            for number in range(STREAMS):
                sock.sendall(head(2 * number + 1, path=PAGE))
            received = b""
            while answers_in(received) < STREAMS:  # as far as it goes: their heads
                received += sock.recv(65536)
        yield


def answers_in(received: bytes) -> int:
    """How many HEADERS frames there are in what a server has sent."""
    count = 0
    while len(received) >= 9:
        count += received[3] == HEADERS
        received = received[9 + int.from_bytes(received[:3], "big") :]
    return count


def test_responses_that_nobody_takes_cost_little_and_leave_nothing(own_root_daemon: Daemon, port: int) -> None:
    daemon = own_root_daemon
    size = len(daemon.call("GET", PAGE).data)
    with without_window(port):  # what is loaded, and what the allocator keeps, is there from the first time on
        pass
    before = resident(daemon)
    most = 0
    for _ in range(ROUNDS):
        with without_window(port):
            most = max(most, resident(daemon))
            assert daemon.call("GET", "/v1/health").status == 200
    # What they would take if they were kept is the control: it is far more than all else that a request needs.
    assert most - before < CONNECTIONS * STREAMS * size / 2
    assert most < 300 * MIB
    wait_until(lambda: resident(daemon) <= 1.2 * before)


def test_reset_requests_hold_nobody_up(own_root_daemon: Daemon, port: int) -> None:
    """Ten thousand on a connection, on many of them one after the other; the others go on being served meanwhile."""
    attack = PREFACE + b"".join(piece for _, piece in zip(range(10_000), resets(), strict=False))
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), PATIENCE))
            with contextlib.suppress(OSError):
                sock.sendall(attack)
            assert own_root_daemon.call("GET", "/v1/health").status == 200
        wait_until(lambda: own_root_daemon.log.count("too many frames that transfer nothing") == 10)
