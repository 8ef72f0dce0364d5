"""Programs that answer wrongly, late or never; and what neither side may smuggle past the other."""

import contextlib
import dataclasses
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import Access, listening_on_tcp
from tests.conftest import daemon_as_root
from tests.ports.conftest import Served, start_program
from tests.ports.test_http import LIMIT, ask, connected, requests_under_way, told
from tests.support.daemon import running
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user


def refusal(served: Served, method: str, path: str, **options: Any) -> tuple[int, Any]:
    answer = ask(served, method, path, **options)
    body = json.loads(answer.data)  # type: ignore[attr-defined]
    assert answer.headers["x-sandboxd-error"] == body["kind"]
    assert body["error"].startswith("cannot ")
    return answer.status, body


def test_a_closed_port_is_a_502_that_says_so(served: Served) -> None:
    with connected(served) as connection:
        connection.request("GET", f"/v1/sandboxes/{served.id}/ports/9/", headers=served.key)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    assert answer.status == 502
    assert body["kind"] == "port_closed"
    assert "port 9 " in body["error"]
    assert "nothing listens" in body["error"]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"hello, I am no web server\r\n\r\n",
        b"\0\xff\x16\x03\x01",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b: \0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=range(10),
)
def test_what_is_no_answer_is_a_502(served: Served, said: bytes) -> None:
    status, body = refusal(served, "GET", f"/raw?hex={said.hex()}")
    assert (status, body["kind"]) == (502, "bad_answer")
    assert told(served, "GET", "/echo")["method"] == "GET"


@pytest.mark.parametrize("path", ["/huge-head", "/endless-head"])
def test_a_head_has_a_bound(served: Served, path: str) -> None:
    assert refusal(served, "GET", path)[0] == 502


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ],
    ids=["length", "chunks", "bad chunk"],
)
def test_half_an_answer_never_looks_whole(served: Served, said: bytes) -> None:
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        target = f"{served.path}/raw?hex={said.hex()}"
        key = f"X-API-Key: {served.access.key}\r\nConnection: close"
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n{key}\r\n\r\n".encode())
        received = stream.read()  # until the daemon closes
    assert b" 200" in received or b" 502" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert b"content-length: 4\r\n" not in received


def test_an_answer_without_a_length_that_is_reset_never_looks_whole(served: Served) -> None:
    with connected(served) as connection:
        connection.request("GET", f"{served.path}/reset", headers=served.key)
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises(http.client.IncompleteRead):
            answer.read()


def test_an_answer_nobody_asked_for_reaches_nobody(served: Served) -> None:
    """Kept for the next request, the second answer would be somebody else's."""
    for _ in range(5):
        assert ask(served, "GET", "/extra").data in (b"ok", b"ok")  # type: ignore[attr-defined]
        assert told(served, "GET", "/echo")["target"] == "/echo"


@pytest.mark.parametrize(
    "head",
    [
        "POST {path}/echo HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "POST {path}/echo HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 5, 6\r\n\r\nhello!",
        "POST {path}/echo HTTP/1.1\r\nHost: x\r\n{key}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST {path}/echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n{key}\r\n",
        "POST {path}/echo HTTP/1.1\r\nHost: x\r\n{key}X-Bad : 1\r\n\r\n",
        "POST {path}/ec\x00ho HTTP/1.1\r\nHost: x\r\n{key}\r\n",
    ],
    ids=range(6),
)
def test_what_two_servers_could_read_differently_is_refused(served: Served, head: str) -> None:
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        text = head.format(path=served.path, key=f"X-API-Key: {served.access.key}\r\n")
        sock.sendall(text.encode("latin-1"))
        assert stream.readline().split()[1] in (b"400", b"501")
    assert told(served, "GET", "/echo")["method"] == "GET"


def test_chunks_count_when_a_length_is_said_too(served: Served) -> None:
    """And the program is told chunks only."""
    smuggled = "GET /smuggled HTTP/1.1\r\n\r\n"
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        head = (
            f"POST {served.path}/echo HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.access.key}\r\nConnection: close\r\n"
        )
        chunk = f"{len(smuggled):x}\r\n{smuggled}\r\n0\r\n\r\n"
        sock.sendall(f"{head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}".encode())
        seen = json.loads(stream.read().partition(b"\r\n\r\n")[2])
    assert seen["size"] == len(smuggled)
    assert "content-length" not in dict(seen["headers"])


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
def test_methods_that_are_not_for_a_server_behind_another_are_refused(served: Served, method: str) -> None:
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        sock.sendall(
            f"{method} {served.path}/ HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.access.key}\r\n\r\n".encode()
        )
        assert stream.readline().split()[1] == b"400"


def test_a_sandbox_that_ends_under_a_request(served: Served) -> None:
    with connected(served) as connection:
        connection.request("GET", f"{served.path}/silent", headers=served.key)
        wait_until(lambda: requests_under_way(served) == 2)
        served.box.daemon.delete(served.id)
        answer = connection.getresponse()
        assert answer.status == 502
        assert json.loads(answer.read())["kind"] == "bad_answer"
    assert ask(served, "GET", "/echo").status == 404


def test_there_is_a_bound_to_connections_of_one_sandbox(served: Served) -> None:
    """So that commands and files always have some of sandbox-init's left."""
    with contextlib.ExitStack() as stack:
        for _ in range(256):
            connection = stack.enter_context(connected(served))
            connection.request("GET", f"{served.path}/silent", headers=served.key)
        wait_until(lambda: ask(served, "GET", "/echo").status == 503)
        answer = ask(served, "GET", "/echo")
        assert answer.headers["retry-after"] == "1"
        assert served.box.shell("echo still here")["stdout"] == "still here\n"
    wait_until(lambda: ask(served, "GET", "/echo").status == 200)


@pytest.fixture(scope="module")
def hasty(image_dir: Path) -> Iterator[Served]:
    """Behind a daemon that waits for nobody longer than some seconds, and in the midst of an answer only for one."""
    fresh = listening_on_tcp(daemon_as_root(image_dir))
    config = fresh.root / "config.toml"
    config.write_text("[ports]\nresponse_timeout = 2.0\nidle_timeout = 1.0\n[http]\nbody_idle_timeout = 3.0\n")
    fresh = dataclasses.replace(fresh, options=(*fresh.options, "--config", str(config)))
    with running(fresh) as daemon:
        key = daemon.call("POST", "/v1/keys", {"name": "hasty", "scopes": ["read", "write"]}).json["key"]
        box = Box(daemon, daemon.create())
        start_program(box)
        yield Served(box, Access(fresh.options[3].replace("tcp:", "http://"), key))


def test_a_program_that_never_answers_is_a_504(hasty: Served) -> None:
    status, body = refusal(hasty, "GET", "/silent")
    assert (status, body["kind"]) == (504, "no_answer")
    wait_until(lambda: requests_under_way(hasty) == 1)


def test_a_program_that_never_reads_is_a_504(hasty: Served) -> None:
    status, _ = refusal(hasty, "POST", "/deaf", body=b"x" * 50_000_000)
    assert status == 504


def test_an_answer_that_stops_is_cut_off(hasty: Served) -> None:
    with contextlib.closing(socket.create_connection(hasty.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        sock.sendall(f"GET {hasty.path}/stall HTTP/1.1\r\nHost: x\r\nX-API-Key: {hasty.access.key}\r\n\r\n".encode())
        assert stream.read().endswith(b"\r\n\r\nhalf")
    wait_until(lambda: requests_under_way(hasty) == 1)


def test_a_body_that_stops_is_a_408(hasty: Served) -> None:
    with contextlib.closing(socket.create_connection(hasty.address, LIMIT)) as sock, sock.makefile("rb") as stream:
        head = f"POST {hasty.path}/echo HTTP/1.1\r\nHost: x\r\nX-API-Key: {hasty.access.key}\r\nContent-Length: 9\r\n"
        sock.sendall(f"{head}\r\nhalf".encode())
        assert stream.readline().split()[1] == b"408"
    wait_until(lambda: requests_under_way(hasty) == 1)


def test_a_port_whose_backlog_is_full_is_a_504(hasty: Served) -> None:
    source = "import socket, time; s = socket.create_server(('127.0.0.1', 8000), backlog=0); print(1, flush=True)"
    full = Served(Box(hasty.box.daemon, hasty.box.daemon.create()), hasty.access)
    full.box.shell(f'setsid python3 -c "{source}; time.sleep(600)" </dev/null >/tmp/full 2>&1 &')
    wait_until(lambda: full.box.shell("cat /tmp/full")["stdout"] == "1\n")
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(full)) for _ in range(3)]
        for connection in held:
            connection.request("GET", f"{full.path}/", headers=full.key)
        assert {connection.getresponse().status for connection in held} == {504}
    full.box.daemon.delete(full.id)
