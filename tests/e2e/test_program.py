"""The `sandboxd` program: how it starts, refuses to start, reloads, and ends."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import witnesses
from tests.support.daemon import CHECKOUT, Daemon, connect_unix
from tests.support.waiting import wait_until

SANDBOXES = "/v1/sandboxes"


def run(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program as that daemon's user, to its end."""
    command, environment = daemon.command(*arguments)
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)


def config_file(daemon: Daemon, text: str) -> str:
    path = daemon.root / "sandboxd.toml"
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


# -- starting -----------------------------------------------------------------------------------------------------


def test_a_second_daemon_on_the_same_state_is_refused_by_name(own_daemon: Daemon) -> None:
    own_daemon.start()
    second = run(
        own_daemon, "serve", "--state-dir", str(own_daemon.state), "--runtime-dir", f"{own_daemon.root}/other"
    )
    assert second.returncode == 1
    assert second.stderr.startswith(f"sandboxd: cannot use {own_daemon.state}: the daemon with pid {own_daemon.pid} ")
    assert own_daemon.call("GET", "/v1/health").status == 200


def test_a_second_daemon_does_not_take_the_socket_of_a_live_one(own_daemon: Daemon) -> None:
    own_daemon.start()
    second = run(
        own_daemon, "serve", "--state-dir", f"{own_daemon.root}/other", "--runtime-dir", str(own_daemon.runtime)
    )
    assert second.returncode == 1
    assert "sandboxd.sock" in second.stderr
    assert own_daemon.call("GET", "/v1/health").status == 200


def test_a_socket_that_a_killed_daemon_left_is_taken_over(own_daemon: Daemon) -> None:
    own_daemon.start()
    own_daemon.kill()
    assert own_daemon.socket.exists()
    assert own_daemon.start().call("GET", "/v1/health").status == 200
    assert own_daemon.stop() == 0
    assert not own_daemon.socket.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("listen = 'unix:/x'\n", "line 1: listen"),
        ("\n\ncolour = 'red'\n", "line 3: colour: unknown key"),
        ("[sandbox]\nmax_sandboxes = 5\nmax_sandbox = 6\n", "line 3: sandbox.max_sandbox: unknown key"),
        ("[sandbox]\nmax_sandboxes = 'many'\n", "line 2: sandbox.max_sandboxes"),
        ("sandbox.max_sandboxes = 0\n", "line 1: sandbox.max_sandboxes"),
        ("[http]\n\nkeep_alive = -1\n", "line 3: http.keep_alive"),
        ("log_level = 'loud'\n", "line 1: log_level"),
        ("this is no toml\n", "line 1"),
        ("a = 1\na = 2\n", "line 2"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_line(own_root_daemon: Daemon, text: str, said: str) -> None:
    done = run(own_root_daemon, "serve", "--config", config_file(own_root_daemon, text))
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.startswith("sandboxd: cannot ")
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_file_is_named(own_root_daemon: Daemon) -> None:
    done = run(own_root_daemon, "serve", "--config", "/no/such/file.toml")
    assert (done.returncode, "/no/such/file.toml" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "listen", ["tcp:127.0.0.1:99999", "tcp:nowhere.invalid:1", "udp:127.0.0.1:1", "tcp:127.0.0.1:x"]
)
def test_an_address_that_cannot_be_listened_on_is_refused(own_root_daemon: Daemon, listen: str) -> None:
    directories = ("--state-dir", str(own_root_daemon.state), "--runtime-dir", str(own_root_daemon.runtime))
    done = run(own_root_daemon, "serve", *directories, "--listen", listen)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("sandboxd: cannot ")
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_port_is_one_sentence(own_root_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        directories = ("--state-dir", str(own_root_daemon.state), "--runtime-dir", str(own_root_daemon.runtime))
        done = run(own_root_daemon, "serve", *directories, "--listen", f"tcp:127.0.0.1:{port}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert str(port) in done.stderr


def test_a_database_of_a_newer_version_is_left_alone(own_root_daemon: Daemon) -> None:
    own_root_daemon.state.mkdir()
    with contextlib.closing(sqlite3.connect(own_root_daemon.state / "state.db")) as database:
        database.execute("PRAGMA user_version = 999")
    done = run(
        own_root_daemon, "serve", "--state-dir", str(own_root_daemon.state),
        "--runtime-dir", str(own_root_daemon.runtime),
    )  # fmt: skip
    assert done.returncode == 1
    assert "newer sandboxd" in done.stderr
    (own_root_daemon.state / "state.db").unlink()


# -- what a service manager sees ----------------------------------------------------------------------------------


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The end of sd_notify(3) that systemd holds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.bind(f"\0sandboxd-test-{os.getpid()}")
        yield sock


def test_readiness_and_the_end_are_told_to_the_service_manager(own_daemon: Daemon, manager: socket.socket) -> None:
    own_daemon.environment["NOTIFY_SOCKET"] = "@" + manager.getsockname()[1:].decode()
    own_daemon.launch()
    assert manager.recv(100) == b"READY=1"
    assert own_daemon.call("GET", "/v1/health").status == 200  # at once: ready means ready
    own_daemon.stop()
    assert manager.recv(100) == b"STOPPING=1"
    del own_daemon.environment["NOTIFY_SOCKET"]


def test_a_service_manager_that_is_gone_does_not_matter(own_root_daemon: Daemon) -> None:
    own_root_daemon.environment["NOTIFY_SOCKET"] = "@sandboxd-test-nobody"
    assert own_root_daemon.start().call("GET", "/v1/health").status == 200
    assert "cannot tell the service manager" in own_root_daemon.log


def test_a_socket_passed_by_the_service_manager_is_served(own_root_daemon: Daemon) -> None:
    """systemd's LISTEN_FDS protocol: descriptor 3 on, and the pid they are meant for."""
    daemon = own_root_daemon
    daemon.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(daemon.socket))
        listener.listen()
        placed = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str("
        placed += "os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
        daemon.prefix = (sys.executable, "-c", placed, str(listener.fileno()))
        daemon.descriptors = (listener.fileno(),)
        daemon.start()
        daemon.descriptors = ()
    assert daemon.shell(daemon.create(), "echo activated")["stdout"] == "activated\n"
    daemon.delete_all()
    assert daemon.stop() == 0
    assert daemon.socket.exists()  # it is the manager's, who goes on listening
    daemon.prefix = ()
    daemon.socket.unlink()


# -- signals ------------------------------------------------------------------------------------------------------


def test_hup_takes_over_what_may_change_and_names_what_may_not(own_daemon: Daemon) -> None:
    own_daemon.options = ("--config", config_file(own_daemon, "[sandbox]\nmax_timeout = 100.0\n"))
    own_daemon.start()
    assert own_daemon.call("POST", SANDBOXES, {"timeout_ms": 200_000}).status == 400
    config_file(own_daemon, "range_first = 1900000000\n[sandbox]\nmax_timeout = 300.0\n")
    own_daemon.signal(signal.SIGHUP)
    wait_until(lambda: "configuration reloaded: sandbox" in own_daemon.log)
    assert "range_first takes effect after a restart" in own_daemon.log
    assert own_daemon.call("POST", SANDBOXES, {"timeout_ms": 200_000}).status == 201


def test_hup_with_a_wrong_file_changes_nothing(own_root_daemon: Daemon) -> None:
    own_root_daemon.options = ("--config", config_file(own_root_daemon, "[sandbox]\nmax_timeout = 100.0\n"))
    own_root_daemon.start()
    config_file(own_root_daemon, "[sandbox]\nmax_timeouts = 300.0\n")
    own_root_daemon.signal(signal.SIGHUP)
    wait_until(lambda: "configuration not reloaded" in own_root_daemon.log)
    assert "line 2: sandbox.max_timeouts: unknown key" in own_root_daemon.log
    assert own_root_daemon.call("POST", SANDBOXES, {"timeout_ms": 200_000}).status == 400


def test_usr1_says_what_every_task_waits_for(own_daemon: Daemon) -> None:
    own_daemon.start()
    sandbox = own_daemon.create()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(own_daemon.shell, sandbox, "touch /tmp/begun; sleep 600")
        wait_until(lambda: own_daemon.shell(sandbox, "test -e /tmp/begun")["exit_code"] == 0)
        own_daemon.signal(signal.SIGUSR1)
        wait_until(lambda: "all tasks:" in own_daemon.log)
        (line,) = [line for line in own_daemon.log.splitlines() if f"http /v1/sandboxes/{sandbox}/shell: " in line]
        assert re.search(r"commands/attached\.py:\d+ receive > .*init/connection\.py:\d+ \w+$", line)
        assert any(line.startswith("  ") and "handle_signals" in line for line in own_daemon.log.splitlines())
        own_daemon.delete(sandbox)
        asked.exception()
    assert own_daemon.call("GET", "/v1/health").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_is_graceful_and_keeps_the_sandboxes(own_daemon: Daemon, number: int) -> None:
    own_daemon.start()
    sandbox = own_daemon.create()
    own_daemon.signal(number)
    assert own_daemon.wait() == 0
    assert not own_daemon.socket.exists()
    assert sandbox in witnesses.ask(own_daemon)["inits"]
    assert "Traceback" not in own_daemon.log


def test_the_end_does_not_wait_for_clients_that_do_not_read(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon
    daemon.options = ("--config", config_file(daemon, "shutdown_grace = 1.0\n"))
    daemon.start()
    sandbox = daemon.create()
    with contextlib.ExitStack() as clients:
        for body in ({"cmd": "yes"}, {"cmd": "sleep 600"}):
            sock = clients.enter_context(connect_unix(daemon.socket, limit=60))
            content = json.dumps(body).encode()
            head = f"POST {SANDBOXES}/{sandbox}/shell/stream HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}"
            sock.sendall(f"{head}\r\n\r\n".encode() + content)
            assert sock.recv(1)
        clients.enter_context(connect_unix(daemon.socket, limit=60))  # says nothing at all
        clients.enter_context(connect_unix(daemon.socket, limit=60)).sendall(b"GET /v1/hea")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 15


def test_a_second_signal_ends_it_at_once(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon
    daemon.options = ("--config", config_file(daemon, "shutdown_grace = 600.0\n"))
    daemon.start()
    sandbox = daemon.create()
    connection = daemon.connect()
    connection.request("POST", f"{SANDBOXES}/{sandbox}/shell", json.dumps({"cmd": "touch /tmp/begun; sleep 600"}))
    wait_until(lambda: daemon.shell(sandbox, "ls /tmp/begun")["exit_code"] == 0)
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: ending" in daemon.log)
    daemon.signal(signal.SIGTERM)
    began = time.monotonic()
    daemon.wait()
    assert time.monotonic() - began < 15
    connection.close()


def test_a_command_under_way_may_end_within_the_grace(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon.start()
    sandbox = daemon.create()
    with contextlib.closing(daemon.connect()) as connection:
        body = {"cmd": "touch /tmp/begun; sleep 2; echo finished"}
        connection.request("POST", f"{SANDBOXES}/{sandbox}/shell", json.dumps(body))
        wait_until(lambda: daemon.shell(sandbox, "ls /tmp/begun")["exit_code"] == 0)
        daemon.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: ending" in daemon.log)
        response: http.client.HTTPResponse = connection.getresponse()
        assert json.loads(response.read())["stdout"] == "finished\n"
    assert daemon.wait() == 0


# -- limits of the daemon -----------------------------------------------------------------------------------------


def test_a_full_daemon_says_so_and_has_room_again(own_daemon: Daemon) -> None:
    own_daemon.options = ("--config", config_file(own_daemon, "[sandbox]\nmax_sandboxes = 2\n"))
    own_daemon.start()
    made = [own_daemon.create() for _ in range(2)]
    answer = own_daemon.call("POST", SANDBOXES)
    assert (answer.status, answer.json["kind"]) == (503, "unavailable")
    assert "maximum of 2" in answer.json["error"]
    assert "retry-after" in {name.lower() for name in answer.headers}
    own_daemon.delete(made[0])
    assert own_daemon.create()


def test_lenient_limits_are_ignored_and_shown_as_not_set(own_daemon: Daemon) -> None:
    own_daemon.options = ("--config", config_file(own_daemon, "[sandbox]\nlenient_limits = true\n"))
    own_daemon.start()
    able = own_daemon.call("GET", "/v1/capabilities").json["limits"]["memory"]
    view = own_daemon.view(own_daemon.create(limits={"memory_bytes": 1 << 28}))
    assert view["limits"]["memory_bytes"] == (1 << 28 if able else None)


# -- the other commands -------------------------------------------------------------------------------------------


def test_check_says_that_this_host_can(own_daemon: Daemon) -> None:
    done = run(own_daemon, "check", "--config", config_file(own_daemon, f"image_dir = '{own_daemon.image_dir}'\n"))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    found = json.loads(run(own_daemon, "check", "--json").stdout)
    assert {"bwrap", "sandbox-init", "user namespaces"} <= {each["what"] for each in found}
    pools = {each["what"]: (each["ok"], each["required"], each["detail"]) for each in found if "pool" in each["what"]}
    assert set(pools) == {"pool on btrfs", "pool on xfs"}
    for able, required, detail in pools.values():
        assert not required
        assert (able, detail[:5]) == ((False, "takes") if own_daemon.prefix or os.geteuid() else (True, "works"))


def test_check_says_what_is_missing_and_what_to_install(own_root_daemon: Daemon) -> None:
    done = run(own_root_daemon, "check", "--config", config_file(own_root_daemon, "bwrap = '/no/such/bwrap'\n"))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "install the package bubblewrap" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to hide a program")
def test_check_says_what_a_pool_lacks(own_root_daemon: Daemon) -> None:
    hide = 'mount --bind /dev/null "$(command -v mkfs.xfs || echo /sbin/mkfs.xfs)" && exec "$@"'
    own_root_daemon.prefix = ("unshare", "--mount", "sh", "-c", hide, "sh")
    lines = run(own_root_daemon, "check").stdout.splitlines()
    (line,) = [line for line in lines if "pool on xfs" in line]
    assert line.startswith("note ")
    assert "install the package xfsprogs" in line


def test_the_program_runs_from_any_directory_and_tells_its_version(own_root_daemon: Daemon) -> None:
    done = run(own_root_daemon, "--version")
    assert (done.returncode, "version" in done.stdout) == (0, True)
    assert CHECKOUT.is_dir()
