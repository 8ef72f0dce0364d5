"""HTTP through the daemon to a program in a sandbox, with clients that share nothing with it."""

import contextlib
import hashlib
import http.client
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.ports.conftest import PORT, Served
from tests.support.waiting import wait_until

pytestmark = pytest.mark.any_user

LIMIT = 60.0
MIB = 1024 * 1024


@contextlib.contextmanager
def connected(served: Served) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(http.client.HTTPConnection(*served.address, timeout=LIMIT)) as connection:
        yield connection


def ask(
    served: Served, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}
) -> http.client.HTTPResponse:
    """One request by path, with the key; the whole answer is in `data`."""
    with connected(served) as connection:
        connection.request(method, served.path + path, body, {**served.key, **headers})
        response = connection.getresponse()
        response.data = response.read()  # type: ignore[attr-defined]
        return response


def told(served: Served, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Any:
    """What the program says it was asked."""
    return json.loads(ask(served, method, path, body, headers).data)  # type: ignore[attr-defined]


def test_a_request_arrives_as_it_was_sent(served: Served) -> None:
    seen = told(served, "GET", "/a%2Fb/%C3%A9?x=1&&y=%20", headers={"X-Mine": "1", "Accept": "text/plain"})
    assert (seen["method"], seen["target"]) == ("GET", "/a%2Fb/%C3%A9?x=1&&y=%20")
    assert ["x-mine", "1"] in seen["headers"]
    assert ["host", f"localhost:{PORT}"] in seen["headers"]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "X-OWN"])
def test_every_method_passes(served: Served, method: str) -> None:
    assert told(served, method, "/echo")["method"] == method


def test_the_answer_to_head_has_its_headers_and_no_body(served: Served) -> None:
    answer = ask(served, "HEAD", "/echo")
    assert answer.status == 200
    assert answer.headers["x-program"] == "echo"
    assert answer.data == b""  # type: ignore[attr-defined]


@pytest.mark.parametrize("code", [201, 204, 304, 404, 500, 503])
def test_a_status_passes(served: Served, code: int) -> None:
    answer = ask(served, "GET", f"/status?code={code}")
    assert answer.status == code
    assert answer.headers["x-sandboxd-error"] is None


def test_a_body_with_a_length_arrives_whole(served: Served) -> None:
    data = bytes(range(256)) * 40_000
    seen = told(served, "POST", "/echo", data)
    assert (seen["size"], seen["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert ["content-length", str(len(data))] in seen["headers"]


def test_a_body_in_chunks_arrives_whole(served: Served) -> None:
    pieces = [b"a" * 1000, b"b" * 100_000, b"c"]
    seen = told(served, "POST", "/echo", iter(pieces))
    assert seen["sha256"] == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert ["transfer-encoding", "chunked"] in seen["headers"]


@pytest.mark.parametrize("query", ["", "&length=1"], ids=["in chunks", "with a length"])
def test_a_large_answer_arrives_whole(served: Served, query: str) -> None:
    answer = ask(served, "GET", f"/bytes?n={20 * MIB}{query}")
    assert hashlib.sha256(answer.data).digest() == hashlib.sha256(b"0123456789abcdef" * (20 * MIB // 16)).digest()  # type: ignore[attr-defined]


def test_a_client_that_waits_for_leave_gets_it(served: Served) -> None:
    result = subprocess.run(
        ["curl", "-sS", "-m", "60", "-H", "Expect: 100-continue", "-H", f"X-API-Key: {served.access.key}",
         "--data-binary", "hello", f"{served.access.url}{served.path}/echo"],
        capture_output=True, check=True,
    )  # fmt: skip
    seen = json.loads(result.stdout)
    assert seen["size"] == 5
    assert not {"expect", "x-api-key"} & dict(seen["headers"]).keys()


def test_interim_answers_do_not_confuse(served: Served) -> None:
    assert ask(served, "GET", "/interim").data == b"at last"  # type: ignore[attr-defined]


def test_events_come_as_they_happen(served: Served) -> None:
    with connected(served) as connection:
        connection.request("GET", f"{served.path}/sse", headers=served.key)
        response = connection.getresponse()
        assert response.headers["content-type"] == "text/event-stream"
        for number in range(3):
            assert response.readline() == b"data: %d\n" % number
            assert response.readline() == b"\n"
            ask(served, "POST", "/tick")  # only now does the program go on
        assert response.read() == b""


def test_request_and_answer_flow_at_the_same_time(served: Served) -> None:
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock, sock.makefile("rb") as answer:
        head = f"POST {served.path}/duplex HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.access.key}\r\n"
        sock.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        assert b" 200" in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        for word in (b"one", b"two", b"three"):
            sock.sendall(b"%x\r\n%s\r\n" % (len(word), word))
            assert answer.readline() == b"%x\r\n" % len(word)
            assert answer.readline() == word.upper() + b"\r\n"
        sock.sendall(b"0\r\n\r\n")
        assert answer.readline() == b"0\r\n"


def test_an_early_refusal_of_an_upload_reaches_the_client(served: Served) -> None:
    answer = ask(served, "POST", "/early", b"x" * (8 * MIB))
    assert answer.status == 413
    assert answer.data == b"too much"  # type: ignore[attr-defined]


def test_an_upload_waits_for_a_program_that_does_not_read(served: Served) -> None:
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock:
        head = f"POST {served.path}/deaf HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.access.key}\r\n"
        sock.sendall(head.encode() + b"Content-Length: 1000000000\r\n\r\n")
        sock.settimeout(1.0)
        taken = 0
        with contextlib.suppress(TimeoutError):
            while taken < 64 * MIB:
                taken += sock.send(b"x" * 65536)
        assert taken < 32 * MIB  # what fits into the sockets on the way


def test_an_answer_waits_for_a_client_that_does_not_read(served: Served) -> None:
    before = resident_kib(served)
    with contextlib.closing(socket.create_connection(served.address, LIMIT)) as sock:
        head = f"GET {served.path}/bytes?n={200 * MIB} HTTP/1.1\r\nHost: x\r\nX-API-Key: {served.access.key}\r\n\r\n"
        sock.sendall(head.encode())
        assert sock.recv(4) == b"HTTP"
        wait_until(lambda: requests_under_way(served) == 2)
        assert resident_kib(served) - before < 32 * 1024
    wait_until(lambda: requests_under_way(served) == 1)


def resident_kib(served: Served) -> int:
    with open(f"/proc/{served.box.daemon.pid}/statm") as file:
        return int(file.read().split()[1]) * 4


def requests_under_way(served: Served) -> int:
    """What the program sees, this question included; 0 if it did not answer in time."""
    answer = ask(served, "GET", "/answering")
    return int(answer.data) if answer.status == 200 else 0  # type: ignore[attr-defined]


def test_a_client_that_leaves_is_gone_for_the_program_too(served: Served) -> None:
    with connected(served) as connection:
        connection.request("GET", f"{served.path}/silent", headers=served.key)
        wait_until(lambda: requests_under_way(served) == 2)
    wait_until(lambda: requests_under_way(served) == 1)


def test_a_program_that_answers_in_two_writes_is_not_held_up(served: Served) -> None:
    """By 40 ms, each time but the first few, for the acknowledgement of the first. A busy machine takes them too."""
    with connected(served) as connection:

        def seconds() -> float:
            begun = time.perf_counter()
            connection.request("GET", f"{served.path}/two-writes", headers=served.key)
            assert connection.getresponse().read() == b"done"
            return time.perf_counter() - begun

        for _ in range(5):
            seconds()
        assert any(seconds() < 0.035 for _ in range(200))


def test_one_connection_carries_many_requests_on_both_sides(served: Served) -> None:
    numbers = set()
    with connected(served) as connection:
        for _ in range(20):
            connection.request("GET", f"{served.path}/echo", headers=served.key)
            numbers.add(json.loads(connection.getresponse().read())["connection"])
        assert connection.sock is not None
    assert len(numbers) < 20


def test_a_connection_that_the_program_closed_is_not_used_again(served: Served) -> None:
    for _ in range(10):
        assert ask(served, "GET", "/headers?connection=close").status == 200
        assert told(served, "GET", "/echo")["method"] == "GET"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_reused_connection_that_closes_without_an_answer_is_not_the_clients_affair(
    served: Served, method: str
) -> None:
    """The program may be closing it just as the request arrives; what may be asked twice is, over a fresh one."""
    numbers = set()
    for _ in range(6):
        answer = ask(served, method, "/once")
        assert answer.status == 200
        numbers.add(int(answer.data))  # type: ignore[attr-defined]
    assert len(numbers) == 6


def test_hop_by_hop_headers_stay_on_their_hop(served: Served) -> None:
    sent = {
        "Connection": "keep-alive, X-Mine, Cookie2",
        "X-Mine": "1",
        "Keep-Alive": "timeout=5",
        "TE": "trailers",
        "Proxy-Authorization": "Basic x",
        "Upgrade": "h2c",
    }
    seen = dict(told(served, "GET", "/echo", headers=sent)["headers"])
    assert not {name.lower() for name in sent} & seen.keys()
    answer = ask(served, "GET", "/headers?connection=x-gone&x-gone=1&proxy-authenticate=x&x-kept=1")
    assert answer.headers["x-kept"] == "1"
    assert answer.headers["x-gone"] is None
    assert answer.headers["proxy-authenticate"] is None


def test_the_program_learns_where_a_request_came_from(served: Served) -> None:
    seen = dict(told(served, "GET", "/echo", headers={"X-Forwarded-For": "10.0.0.1"})["headers"])
    assert seen["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert seen["x-forwarded-host"] == "{}:{}".format(*served.address)
    assert seen["x-forwarded-prefix"] == served.path


def test_http2_on_the_clients_side(served: Served, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * (3 * MIB))
    common = ["curl", "-sS", "-m", "60", "--http2-prior-knowledge", "-H", f"X-API-Key: {served.access.key}"]
    for arguments, size in (
        ([], 0),
        (["--data-binary", f"@{body}"], 3 * MIB),
        (["-X", "POST", "-H", "Transfer-Encoding: chunked", "-T", str(body)], 3 * MIB),
        (["-X", "DELETE"], 0),
    ):
        url = f"{served.access.url}{served.path}/echo"
        result = subprocess.run([*common, *arguments, url], capture_output=True, check=True)
        assert json.loads(result.stdout)["size"] == size
    result = subprocess.run(
        [*common, f"{served.access.url}{served.path}/bytes?n={5 * MIB}"], capture_output=True, check=True
    )
    assert len(result.stdout) == 5 * MIB


def test_many_clients_at_once(served: Served) -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        data = str(number).encode() * 10_000
        for _ in range(5):
            seen = told(served, "POST", f"/echo?{number}", data)
            if seen["sha256"] != hashlib.sha256(data).hexdigest() or seen["target"] != f"/echo?{number}":
                failures.append(seen)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
