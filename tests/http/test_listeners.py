import errno
import fcntl
import grp
import os
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.errors import StartupError
from sandboxd.http.server import listeners
from sandboxd.http.server.listeners import TcpAddress, UnixAddress, activated, bind, parse_listen_address

ROOT = Path(listeners.__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/sandboxd/sandboxd.sock", UnixAddress(Path("/run/sandboxd/sandboxd.sock"))),
        ("unix:/with:colon", UnixAddress(Path("/with:colon"))),
        ("tcp:127.0.0.1:4000", TcpAddress("127.0.0.1", 4000)),
        ("tcp:localhost:0", TcpAddress("localhost", 0)),
        ("tcp:[::1]:4000", TcpAddress("::1", 4000)),
    ],
)
def test_address_is_parsed_and_printed_back(text, address):
    assert parse_listen_address(text) == address
    assert str(address) == text


def test_relative_path_becomes_absolute():
    assert parse_listen_address("unix:here.sock") == UnixAddress(Path.cwd() / "here.sock")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "expected unix:PATH"),
        ("unix:", "expected unix:PATH"),
        ("http://x:1", "expected unix:PATH"),
        ("tcp:4000", "expected tcp:HOST:PORT"),
        ("tcp::4000", "expected tcp:HOST:PORT"),
        ("tcp:::1:4000", "in brackets"),
        ("tcp:x:", "not a port"),
        ("tcp:x:65536", "not a port"),
        ("tcp:x:-1", "not a port"),
        ("tcp:x:٤", "not a port"),
        ("unix:/" + "x" * 107, "108 bytes"),
        ("unix:/a\0b", "NUL"),
    ],
)
def test_bad_address_is_refused_with_a_hint(text, hint):
    with pytest.raises(StartupError, match="cannot listen on") as error:
        parse_listen_address(text)
    assert hint in error.value.message


@given(st.text())
def test_any_text_is_parsed_or_refused(text):
    try:
        address = parse_listen_address(text)
    except StartupError:
        return
    assert parse_listen_address(str(address)) == address


def test_socket_file_has_its_mode_from_the_start_whatever_the_umask(tmp_path):
    path = tmp_path / "s"
    before = os.umask(0)
    try:
        with bind([UnixAddress(path)], mode=0o620):
            assert stat.S_IMODE(path.stat().st_mode) == 0o620
    finally:
        os.umask(before)
    before = os.umask(0o777)
    try:
        with bind([UnixAddress(path)]):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(before)


def test_socket_file_is_given_to_the_group(tmp_path):
    group = grp.getgrgid(os.getgid())
    with bind([UnixAddress(tmp_path / "s")], group=group.gr_name):
        assert (tmp_path / "s").stat().st_gid == group.gr_gid


def test_unknown_group_is_refused_and_nothing_is_left(tmp_path):
    with (
        pytest.raises(StartupError, match="no such group"),
        bind([UnixAddress(tmp_path / "s")], group="no-such-group"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind(tmp_path):
    with bind([UnixAddress(tmp_path / "s"), TcpAddress("127.0.0.1", 0)]) as bound:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]
    assert list(tmp_path.iterdir()) == []
    assert [listener.socket.fileno() for listener in bound] == [-1, -1]


def test_failure_of_a_later_address_releases_the_earlier_ones(tmp_path):
    with (
        pytest.raises(StartupError, match="directory does not exist"),
        bind([UnixAddress(tmp_path / "s"), UnixAddress(tmp_path / "missing" / "s")]),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_live_daemon_is_left_alone(tmp_path):
    address = UnixAddress(tmp_path / "s")
    with bind([address]) as (first,):
        with pytest.raises(StartupError, match="another daemon holds"), bind([address]):
            pass
        _assert_answers(first, tmp_path / "s")


def test_live_stranger_is_left_alone(tmp_path):
    """A program that takes no lock: only an answer tells that it lives."""
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(tmp_path / "s"))
        stranger.listen(1)
        with pytest.raises(StartupError, match="a live process answers"), bind([UnixAddress(tmp_path / "s")]):
            pass
        assert (tmp_path / "s").exists()


def test_busy_stranger_with_a_full_backlog_is_left_alone(tmp_path):
    with ExitStack() as stack:
        stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
        stranger.bind(str(tmp_path / "s"))
        stranger.listen(0)
        status = 0
        while status != errno.EAGAIN:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            status = client.connect_ex(str(tmp_path / "s"))
        with pytest.raises(StartupError, match="a live process answers"), bind([UnixAddress(tmp_path / "s")]):
            pass


def test_socket_of_a_dead_daemon_is_replaced(tmp_path):
    """SIGKILL leaves the socket and the lock file; the lock itself dies with its holder."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\nfrom sandboxd.http.server.listeners import UnixAddress, bind\n"
        "with bind([UnixAddress(Path(sys.argv[1]))]):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "s"
    killed = subprocess.run(
        [sys.executable, "-c", script, path], check=False, cwd=Path(listeners.__file__).parents[3]
    )
    assert killed.returncode == -9
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s", "s.lock"]
    with bind([UnixAddress(path)]) as (listener,):
        _assert_answers(listener, path)
    assert list(tmp_path.iterdir()) == []


def test_file_that_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(StartupError, match="not a socket"), bind([UnixAddress(tmp_path / "s")]):
        pass
    assert (tmp_path / "s").read_text() == "precious"


def test_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartupError, match="not a socket"), bind([UnixAddress(tmp_path / "s")]):
        pass
    (tmp_path / "s").unlink()
    (tmp_path / "s.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StartupError), bind([UnixAddress(tmp_path / "s")]):
        pass
    assert not (tmp_path / "victim").exists()


def test_socket_of_a_successor_is_not_removed(tmp_path):
    path = tmp_path / "s"
    with bind([UnixAddress(path)]):
        path.unlink()
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(str(path))
    assert path.exists()
    successor.close()


def test_lock_on_a_removed_file_is_not_trusted(tmp_path, monkeypatch):
    """The last holder removes the lock file before letting go; a lock won on that file guards nothing."""
    path = tmp_path / "s.lock"
    real = fcntl.flock
    stale = []

    def flock(fd, operation):
        if not stale:
            stale.append(fd)
            path.unlink()
        real(fd, operation)

    monkeypatch.setattr(listeners.fcntl, "flock", flock)
    with bind([UnixAddress(tmp_path / "s")]), path.open() as found, pytest.raises(BlockingIOError):
        real(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert stale


def test_tcp_port_in_use_is_one_sentence(tmp_path):
    with bind([TcpAddress("127.0.0.1", 0)]) as (first,):
        port = first.socket.getsockname()[1]
        assert first.label == f"tcp:127.0.0.1:{port}"
        with (
            pytest.raises(StartupError, match="another process listens there"),
            bind([TcpAddress("127.0.0.1", port)]),
        ):
            pass


def test_ipv6(tmp_path):
    with bind([TcpAddress("::1", 0)]) as (listener,):
        assert listener.label == f"tcp:[::1]:{listener.socket.getsockname()[1]}"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_unusable_host_is_one_sentence(host):
    with (
        pytest.raises(StartupError, match=f"cannot listen on tcp:{host}:4000: (its host name|this host has)"),
        bind([TcpAddress(host, 4000)]),
    ):
        pass


ACTIVATED = """
import os, sys
from sandboxd.errors import StartupError
from sandboxd.http.server.listeners import activated
os.dup2(int(sys.argv[2]), 3)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
try:
    found = activated(os.environ)
except StartupError as error:
    sys.exit(error.message)
print([l.label for l in found], [os.get_inheritable(l.socket.fileno()) for l in found],
      [name for name in os.environ if name.startswith("LISTEN_")])
"""


def _activate(sock, *, pid_offset=0):
    """Run a program with `sock` as its descriptor 3, as a service manager does."""
    return subprocess.run(
        [sys.executable, "-c", ACTIVATED, str(pid_offset), str(sock.fileno())],
        pass_fds=[sock.fileno()],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "sandboxd.socket"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_socket_passed_by_the_service_manager_is_taken(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        assert _activate(sock).stdout == f"['unix:{tmp_path}/s'] [False] []\n"


def test_sockets_meant_for_another_process_are_not_taken(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        assert _activate(sock, pid_offset=1).stdout == "[] [] []\n"


def test_descriptor_that_is_no_listening_socket_is_refused():
    with socket.socket(socket.AF_UNIX) as sock:
        assert "not a listening stream socket" in _activate(sock).stderr
    with open(os.devnull) as file:
        assert "cannot use descriptor 3" in _activate(file).stderr


def test_no_activation_is_the_usual_case():
    assert activated({}) == ()


def _assert_answers(listener, path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        listener.socket.accept()[0].close()
