"""Bad input of every kind: a clear answer each time, and a daemon as healthy as before."""

import json
import socket
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.daemon import Answer, Daemon, connect_unix

pytestmark = pytest.mark.any_user

SANDBOXES = "/v1/sandboxes"
MIB = 1 << 20


def assert_clear(answer: Answer, status: int) -> Mapping[str, Any]:
    """It has this status, a JSON body that a person can use, and the daemon goes on."""
    assert answer.status == status, answer.data
    assert answer.headers["content-type"] == "application/json"
    body: Mapping[str, Any] = answer.json
    assert set(body) == {"error", "kind", "details"}
    assert body["error"].startswith("cannot ")
    assert body["kind"].replace("_", "").isalpha()
    return body


@pytest.fixture(autouse=True)
def healthy_after(daemon: Daemon) -> Any:
    logged = len(daemon.log)
    yield
    assert daemon.call("GET", "/v1/health").json["status"] == "ok"
    assert "Traceback" not in daemon.log[logged:]


# -- creations ----------------------------------------------------------------------------------------------------

WRONG_CREATIONS = {
    "unknown field": {"colour": "red"},
    "name of a wrong type": {"name": 5},
    "empty name": {"name": ""},
    "name with a capital": {"name": "Name"},
    "name with a line end": {"name": "name\n"},
    "name with a control character": {"name": "a\u0007b"},
    "name with a slash": {"name": "../etc"},
    "over-long name": {"name": "n" * 64},
    "env of a wrong type": {"env": ["A=1"]},
    "env value of a wrong type": {"env": {"A": 1}},
    "env name with =": {"env": {"A=B": "1"}},
    "env name with NUL": {"env": {"A\u0000": "1"}},
    "empty env name": {"env": {"": "1"}},
    "env value with NUL": {"env": {"A": "1\u00002"}},
    "over-long env name": {"env": {"A" * 257: "1"}},
    "over-long env value": {"env": {"A": "x" * 131_001}},
    "too many env entries": {"env": {f"A{n}": "" for n in range(257)}},
    "metadata of a wrong type": {"metadata": "blue"},
    "metadata key with a control character": {"metadata": {"a\u001bb": "1"}},
    "over-long metadata value": {"metadata": {"a": "x" * 4097}},
    "negative lifetime": {"timeout_ms": -1},
    "lifetime of zero": {"timeout_ms": 0},
    "lifetime that is no number": {"timeout_ms": "soon"},
    "lifetime that is no integer": {"timeout_ms": 1.5},
    "lifetime beyond all bounds": {"timeout_ms": 10**30},
    "limits of a wrong type": {"limits": 5},
    "unknown limit": {"limits": {"gpus": 1}},
    "limit below the least": {"limits": {"memory_bytes": 1}},
    "negative limit": {"limits": {"pids": -1}},
    "limit that is not finite": {"limits": {"cpus": "Infinity"}},
    "user with a line end": {"user": "root\n"},
    "user with a colon and a slash": {"user": "root:/x"},
    "over-long user": {"user": "u" * 65},
    "relative workdir": {"workdir": "home"},
    "workdir with NUL": {"workdir": "/a\u0000b"},
    "over-long workdir": {"workdir": "/" + "w" * 4096},
    "hostname with a space": {"hostname": "a b"},
    "hostname with a control character": {"hostname": "a\u0001"},
    "over-long hostname": {"hostname": "h" * 64},
    "image name with a control character": {"image": "a\u0000"},
    "over-long image name": {"image": "i" * 201},
    "empty image name": {"image": ""},
}


@pytest.mark.parametrize("body", WRONG_CREATIONS.values(), ids=WRONG_CREATIONS)
def test_a_creation_of_wrong_values_is_refused_by_field(daemon: Daemon, body: dict[str, Any]) -> None:
    told = assert_clear(daemon.call("POST", SANDBOXES, body), 422)
    (field,) = body
    assert told["details"]["problems"][0]["field"].split(".")[0] == field
    assert field in told["error"]
    assert len(told["error"]) < 2000
    assert daemon.views() == []


@pytest.mark.parametrize("image", ["no-such-image", "../../etc", "a" * 64, "base/..", "%00", "ä"])
def test_an_unknown_image_is_not_found(daemon: Daemon, image: str) -> None:
    told = assert_clear(daemon.call("POST", SANDBOXES, {"image": image}), 404)
    assert image in told["error"]


@pytest.mark.parametrize(
    "limits", [{"memory_bytes": 64 * MIB}, {"pids": 64}, {"cpus": 0.5}, {"write_bps": MIB}, {"disk_bytes": MIB}]
)
def test_a_limit_this_host_cannot_enforce_is_refused_not_ignored(daemon: Daemon, limits: dict[str, Any]) -> None:
    (name,) = limits
    kind = {"memory_bytes": "memory", "pids": "pids", "cpus": "cpu", "write_bps": "io", "disk_bytes": "disk"}[name]
    told = daemon.call("GET", "/v1/capabilities").json
    answer = daemon.call("POST", SANDBOXES, {"limits": limits})
    if told["limits"][kind]:
        assert (answer.status, answer.json["limits"][name]) == (201, limits[name])
        return
    body = assert_clear(answer, 422)
    assert body["kind"] == "limit_not_enforceable"
    assert told["disk_reason" if kind == "disk" else "limits_reason"] in body["error"]
    assert daemon.views() == []


# -- bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"{", b"nonsense", b"\xff\xfe", b"{}{}", b'{"name": }', b"\0", b"[" * 100_000, b'{"a":' * 50_000]
)
def test_malformed_json_is_400(daemon: Daemon, data: bytes) -> None:
    assert_clear(daemon.call("POST", SANDBOXES, data=data), 400)


@pytest.mark.parametrize("data", [b"[]", b"5", b'"text"', b"null", b"true"])
def test_json_of_a_wrong_shape_is_422(daemon: Daemon, data: bytes) -> None:
    assert_clear(daemon.call("POST", SANDBOXES, data=data), 422)


def test_a_missing_body_is_no_creations_problem_but_a_commands(daemon: Daemon) -> None:
    sandbox = daemon.create()
    assert_clear(daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", data=b""), 400)
    assert_clear(daemon.call("POST", f"{SANDBOXES}/{sandbox}/timeout", {}), 422)


def test_a_body_over_the_limit_is_413(daemon: Daemon) -> None:
    assert_clear(daemon.call("POST", SANDBOXES, data=b" " * (65 * MIB)), 413)


def test_a_body_announced_over_the_limit_is_refused_before_it_comes(daemon: Daemon) -> None:
    head = f"POST {SANDBOXES} HTTP/1.1\r\nhost: x\r\ncontent-length: {10**12}\r\n\r\n"
    with connect_unix(daemon.socket, limit=60) as sock:
        sock.sendall(head.encode())
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


# -- commands -----------------------------------------------------------------------------------------------------

WRONG_COMMANDS: dict[str, tuple[dict[str, Any], int]] = {
    "neither cmd nor argv": ({}, 422),
    "both cmd and argv": ({"cmd": "true", "argv": ["true"]}, 422),
    "empty argv": ({"argv": []}, 422),
    "argv of a wrong type": ({"argv": "true"}, 422),
    "argument of a wrong type": ({"argv": ["echo", 1]}, 422),
    "cmd with NUL": ({"cmd": "a\0b"}, 422),
    "over-long cmd": ({"cmd": "x" * 131_072}, 422),
    "argument with NUL": ({"argv": ["echo", "\0"]}, 422),
    "relative cwd": ({"cmd": "true", "cwd": "tmp"}, 422),
    "cwd with NUL": ({"cmd": "true", "cwd": "/\0"}, 422),
    "env name with =": ({"cmd": "true", "env": {"A=": ""}}, 422),
    "timeout of zero": ({"cmd": "true", "timeout_ms": 0}, 422),
    "both stdins": ({"cmd": "true", "stdin": "", "stdin_b64": ""}, 400),
    "stdin that is not base64": ({"cmd": "true", "stdin_b64": "***"}, 400),
    "unknown encoding": ({"cmd": "true", "encoding": "latin-1"}, 422),
    "negative maximum": ({"cmd": "true", "max_output_bytes": -1}, 422),
    "unknown field": ({"cmd": "true", "shell": "zsh"}, 422),
}


@pytest.mark.parametrize(("body", "status"), WRONG_COMMANDS.values(), ids=WRONG_COMMANDS)
def test_a_wrong_command_is_refused(daemon: Daemon, body: dict[str, Any], status: int) -> None:
    sandbox = daemon.create()
    assert_clear(daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", body), status)
    assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"


def test_the_longest_command_there_may_be_runs(daemon: Daemon) -> None:
    sandbox = daemon.create()
    assert daemon.shell(sandbox, "true #" + "x" * (131_071 - 6))["exit_code"] == 0


def test_lone_surrogates_are_no_text(daemon: Daemon) -> None:
    sandbox = daemon.create()
    for field in ("cmd", "cwd", "stdin"):
        body = {"cmd": "true", field: "/\ud800"}
        assert 400 <= daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", body).status < 500, field
    assert 400 <= daemon.call("POST", SANDBOXES, {"metadata": {"a": "\udfff"}}).status < 500


def test_arguments_beyond_what_the_kernel_takes_are_refused(daemon: Daemon) -> None:
    sandbox = daemon.create()
    body = {"argv": ["true", *["x" * 100_000] * 60]}
    answer = daemon.call("POST", f"{SANDBOXES}/{sandbox}/shell", body)
    assert_clear(answer, answer.status)
    assert 400 <= answer.status < 500
    assert daemon.shell(sandbox, "echo well")["stdout"] == "well\n"


# -- paths, queries, methods --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{SANDBOXES}/unknown", f"{SANDBOXES}/s{'0' * 20}", f"{SANDBOXES}/{'x' * 5000}", f"{SANDBOXES}/%00",
        f"{SANDBOXES}/..%2f..%2fetc", f"{SANDBOXES}/%ff", f"{SANDBOXES}/unknown/metrics", "/v1/images/unknown",
        "/", "/v1", "/v2/sandboxes", "/v1/sandboxes/", f"{SANDBOXES}/unknown/files?path=/x",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(daemon: Daemon, path: str) -> None:
    assert_clear(daemon.call("GET", path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", SANDBOXES, {"GET", "POST"}),
        ("PATCH", "/v1/health", {"GET"}),
        ("DELETE", "/v1/events", {"GET"}),
        ("GET", f"{SANDBOXES}/x/shell", {"POST"}),
        ("POST", f"{SANDBOXES}/x", {"GET", "DELETE"}),
    ],
)
def test_a_wrong_method_is_405_and_told_the_right_ones(
    daemon: Daemon, method: str, path: str, allowed: set[str]
) -> None:
    answer = daemon.call(method, path)
    assert_clear(answer, 405)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    assert allowed <= set(headers["allow"].replace(" ", "").split(","))


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "status=asleep", "surprise=1", f"cursor={'x' * 65}", "limit=1&limit=x"],
)
def test_a_wrong_query_is_422(daemon: Daemon, query: str) -> None:
    answer = daemon.call("GET", f"{SANDBOXES}?{query}")
    assert answer.status in {422, 200} if query.startswith("limit=1&") else answer.status == 422


def test_a_senseless_cursor_is_the_beginning_or_the_end(daemon: Daemon) -> None:
    daemon.create()
    for cursor in ("0", "zzz", "%F0%9F%92%A9"):
        assert daemon.call("GET", f"{SANDBOXES}?cursor={cursor}").status == 200


# -- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "query", "status"),
    [
        ("GET", "", 422),
        ("GET", "path=relative", 422),
        ("GET", "path=/no/such/file", 404),
        ("GET", "path=/etc", 422),
        ("GET", "path=/etc/shadow", 403),
        ("GET", "path=/x%00y", 422),
        ("GET", f"path=/{'x' * 300}", 422),
        ("GET", "path=/etc/passwd&user=nobody-here", 422),
        ("PUT", "path=/etc/own", 403),
        ("PUT", "path=/no/such/dir/file", 404),
        ("PUT", "path=/tmp/x&mode=9999", 422),
        ("PUT", "path=/tmp", 422),
        ("PUT", "path=/proc/self/x", 404),
    ],
)
def test_a_wrong_file_is_refused(daemon: Daemon, method: str, query: str, status: int) -> None:
    sandbox = daemon.create()
    data = b"content" if method == "PUT" else None
    answer = daemon.call(method, f"{SANDBOXES}/{sandbox}/files?{query}", data=data)
    assert_clear(answer, answer.status)
    assert answer.status == status or (400 <= answer.status < 500 and status == 422)


# -- bytes that are no request ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\0" * 1000,
    ],
)
def test_bytes_that_are_no_request_cost_their_connection_only(daemon: Daemon, request_bytes: bytes) -> None:
    reply = _raw(daemon, request_bytes)
    assert reply == b"" or reply.split(b" ")[1].startswith(b"4"), reply[:200]


def _raw(daemon: Daemon, data: bytes) -> bytes:
    """What comes back before the daemon closes; a connection cut while we send is an answer too."""
    reply = b""
    with connect_unix(daemon.socket, limit=60) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(65536):
                reply += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass
    return reply


def test_the_answer_to_a_bad_request_is_json_too(daemon: Daemon) -> None:
    head, _, body = _raw(daemon, b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").partition(
        b"\r\n\r\n"
    )
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(body)["kind"] == "not_found"
