"""Where a daemon listens, as its configuration says: TLS, the certificate's renewal, dialects, the default socket."""

import contextlib
import http.client
import json
import signal
import ssl
import subprocess

import pytest

from tests.e2e.test_program import config_file, run
from tests.http.test_tls import make_pair
from tests.support.daemon import Daemon
from tests.support.waiting import wait_until


@pytest.fixture
def port(own_root_daemon: Daemon) -> int:
    """Of a daemon that speaks TLS with a certificate called `one`, and is not yet started."""
    daemon = own_root_daemon
    port = daemon.reserve_port()
    certificate, key = make_pair(daemon.root, "one")
    entry = f"{{address = 'tcp:127.0.0.1:{port}', tls = {{certificate = '{certificate}', key = '{key}'}}}}"
    daemon.options = ("--config", config_file(daemon, f"listen = [{entry}]\n"))
    return port


def connect(daemon: Daemon, port: int) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(daemon.root / "one.crt"))
    return http.client.HTTPSConnection("localhost", port, context=context, timeout=60)


def certificate_of(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=60).strip()


@pytest.mark.parametrize(("option", "version"), [("--http2", "2"), ("--http1.1", "1.1")])
def test_curl_speaks_the_version_it_asks_for(own_root_daemon: Daemon, port: int, option: str, version: str) -> None:
    own_root_daemon.start()
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        option,
        "--cacert",
        own_root_daemon.root / "one.crt",
    ]
    done = subprocess.run(
        [*command, "--write-out", "\n%{http_version}", f"https://localhost:{port}/v1/health"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer, _, spoken = done.stdout.rpartition("\n")
    assert (json.loads(answer)["status"], spoken) == ("ok", version)


def test_hup_takes_a_new_certificate_and_drops_no_connection(own_root_daemon: Daemon, port: int) -> None:
    daemon = own_root_daemon.start()
    with contextlib.closing(connect(daemon, port)) as connection:
        connection.request("GET", "/v1/health")
        connection.getresponse().read()
        held = connection.sock
        before = certificate_of(port)
        make_pair(daemon.root, "one")
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: certificate_of(port) != before)
        assert certificate_of(port) == (daemon.root / "one.crt").read_text().strip()
        connection.request("GET", "/v1/health")
        assert connection.getresponse().status == 200
        assert connection.sock is held  # http.client would have connected again, and refused the new certificate


def test_hup_keeps_the_old_certificate_when_the_new_one_cannot_be_used(own_root_daemon: Daemon, port: int) -> None:
    daemon = own_root_daemon.start()
    before = certificate_of(port)
    make_pair(daemon.root, "two")[1].rename(daemon.root / "one.key")
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: "not reloaded, the old one is kept: cannot use the TLS key" in daemon.log)
    assert certificate_of(port) == before
    with contextlib.closing(connect(daemon, port)) as connection:
        connection.request("GET", "/v1/health")
        assert connection.getresponse().status == 200


def test_the_default_socket_stays_beside_a_listener(own_root_daemon: Daemon) -> None:
    port = own_root_daemon.reserve_port()
    own_root_daemon.options = ("--listen", f"tcp:127.0.0.1:{port}")
    own_root_daemon.start()  # waits for an answer on the socket
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", "/v1/health")
        assert connection.getresponse().status == 200


def test_the_default_socket_can_be_left_out(own_root_daemon: Daemon) -> None:
    port = own_root_daemon.reserve_port()
    own_root_daemon.options = ("--listen", f"tcp:127.0.0.1:{port}", "--no-default-socket")
    own_root_daemon.launch()
    wait_until(lambda: f"serving on tcp:127.0.0.1:{port}" in own_root_daemon.log)
    assert not own_root_daemon.socket.exists()
    assert own_root_daemon.stop() == 0


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("dialect = 'akiro'", "cannot give tcp:127.0.0.1:0 to the dialect 'akiro': there is none of that name; "),
        (
            "tls = {certificate = '/no/such.crt', key = '/k'}",
            "the TLS certificate /no/such.crt: there is no such file",
        ),
    ],
)
def test_a_listener_that_cannot_be_is_one_sentence(own_root_daemon: Daemon, entry: str, said: str) -> None:
    daemon = own_root_daemon
    text = f"listen = [{{address = 'tcp:127.0.0.1:0', {entry}}}]\n"
    directories = ("--state-dir", str(daemon.state), "--runtime-dir", str(daemon.runtime))
    done = run(daemon, "serve", *directories, "--config", config_file(daemon, text))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert said in done.stderr


def test_a_listener_may_be_given_to_a_dialect(own_root_daemon: Daemon) -> None:
    port = own_root_daemon.reserve_port()
    text = f"listen = [{{address = 'tcp:127.0.0.1:{port}', dialect = 'akira'}}]\n"
    own_root_daemon.options = ("--config", config_file(own_root_daemon, text))
    own_root_daemon.start()
    assert f"tcp:127.0.0.1:{port}" in own_root_daemon.log
