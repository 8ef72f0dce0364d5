"""ports, expose and forward: a program's port in a sandbox, on this machine."""

import contextlib
import hashlib
import re
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.cli.support import LIMIT, Ctl
from tests.client.test_ports import PORT, start
from tests.support.daemon import Daemon


@pytest.fixture
def served(root_daemon: Daemon, sandbox: str) -> str:
    start(root_daemon, sandbox)
    return sandbox


def test_ports_shows_what_listens_and_what_is_exposed(ctl: Ctl, served: str) -> None:
    path = ctl.text("expose", served, str(PORT), "--token", "--ttl", "1h").strip()
    assert path == f"/v1/sandboxes/{served}/ports/{PORT}/"  # this daemon has no TCP listener
    ctl.text("expose", served, "9")
    head, silent, listening = ctl.text("ports", served).splitlines()
    assert head.split() == ["PORT", "ADDRESS", "PID", "COMMAND", "URL"]
    assert silent.split()[:3] == ["9", "nothing", "listens"]
    assert re.search(rf"^ *{PORT} +127.0.0.1 +\d+ +python3 +{path} \(token, ends in", listening)
    assert ctl.json("ports", served)["ports"][0]["port"] == PORT
    assert ctl.text("expose", served, "9", "--off") == ""
    assert [port["port"] for port in ctl.json("ports", served)["exposed"]] == [PORT]


@contextlib.contextmanager
def forwarding(ctl: Ctl, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[tuple[str, int]]]]:
    with ctl.start("forward", *arguments) as process:
        try:
            assert process.stdout is not None
            places = []
            for _ in arguments[1:]:
                host, _, port = process.stdout.readline().decode().partition(" ")[0].rpartition(":")
                places.append((host, int(port)))
            yield process, places
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LIMIT)


def exchange(place: tuple[str, int], data: bytes) -> bytes:
    """Send, half-close, read to the end."""
    with socket.create_connection(place, LIMIT) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            return stream.read()


def test_forward_brings_ports_here(ctl: Ctl, served: str) -> None:
    data = b"abc" * 200_000
    with forwarding(ctl, served, f"0:{PORT}", f"127.0.0.1:0:{PORT}") as (process, places):
        for place in places:
            assert exchange(place, b"d" + data) == hashlib.sha256(data).hexdigest().encode()
            assert exchange(place, b"m") == b"x" * (16 * 1024 * 1024)
        held = [socket.create_connection(places[0], LIMIT) for _ in range(40)]
        for number, sock in enumerate(held):
            sock.sendall(b"e%d" % number)
        for number, sock in enumerate(held):
            with sock:
                assert sock.recv(100) == b"%d" % number
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130


def ask_for_a_reset(place: tuple[str, int]) -> None:
    with socket.create_connection(place, LIMIT) as sock:
        sock.sendall(b"r")  # where nothing listens, the reset may be there before this
        sock.recv(1)


def test_forward_resets_where_the_program_does(ctl: Ctl, served: str) -> None:
    with forwarding(ctl, served, f"0:{PORT}", "0:9") as (process, places):
        for place in places:
            with pytest.raises(ConnectionResetError):
                ask_for_a_reset(place)
        assert exchange(places[0], b"e still here") == b" still here"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert "the program has reset the connection" in said
    assert "nothing listens there" in said


def test_forward_says_at_once_what_cannot_be(ctl: Ctl, served: str) -> None:
    assert b"cannot find sandbox" in ctl.run("forward", "none", "0:80").stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = ctl.run("forward", served, f"{taken.getsockname()[1]}:80")
    assert done.returncode == 1
    assert b"cannot listen on 127.0.0.1" in done.stderr
    for wrong in ("x", "80:", "1:2:3:4", "70000:80", "80:0"):
        assert b"is not [ADDRESS:]LOCAL:REMOTE" in ctl.run("forward", served, wrong).stderr
