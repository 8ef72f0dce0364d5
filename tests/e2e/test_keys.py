"""Who may do what: API keys over TCP, the socket's mode on Unix."""

import contextlib
import http.client
import json
import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.conftest import daemon_as_root
from tests.support.daemon import Answer, Daemon, running


def listening_on_tcp(daemon: Daemon) -> int:
    """Have a daemon that is not started yet listen on TCP too; the port."""
    port = daemon.reserve_port()
    daemon.options = ("--listen", f"tcp:127.0.0.1:{port}", "--listen", f"unix:{daemon.socket}")
    return port


@pytest.fixture(scope="module")
def daemon_and_port(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon)
    with running(daemon):
        yield daemon, port


@pytest.fixture(scope="module")
def tcp_daemon(daemon_and_port: tuple[Daemon, int]) -> Daemon:
    """A daemon with both a TCP and a Unix listener."""
    return daemon_and_port[0]


@pytest.fixture(scope="module")
def port(daemon_and_port: tuple[Daemon, int]) -> int:
    return daemon_and_port[1]


def tcp(port: int, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Answer:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def new_key(daemon: Daemon, *scopes: str, name: str = "test") -> Any:
    answer = daemon.call("POST", "/v1/keys", {"name": name, "scopes": list(scopes)})
    assert answer.status == 201, answer.data
    return answer.json


def test_tcp_asks_for_a_key_and_says_how_to_get_one(tcp_daemon: Daemon, port: int) -> None:
    answer = tcp(port, "GET", "/v1/sandboxes")
    assert (answer.status, answer.json["kind"]) == (401, "unauthenticated")
    assert "sandboxctl key create" in answer.json["error"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/v1/health", "/v1/openapi.json", "/v1/docs"])
def test_some_things_are_open_to_everyone(tcp_daemon: Daemon, port: int, path: str) -> None:
    assert tcp(port, "GET", path).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer "}, {"authorization": "Bearer wrong"}, {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "bearer"}, {"x-api-key": "sbx_" + "A" * 43}, {"x-api-key": ""}, {"x-api-key": "\xff\xfe"},
    ],
)  # fmt: skip
def test_what_is_no_key_opens_nothing(tcp_daemon: Daemon, port: int, headers: dict[str, str]) -> None:
    assert tcp(port, "GET", "/v1/sandboxes", headers=headers).status == 401


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_key_goes_in_either_header(tcp_daemon: Daemon, port: int, header: str) -> None:
    secret = new_key(tcp_daemon, "read")["key"]
    value = f"Bearer {secret}" if header == "authorization" else secret
    assert tcp(port, "GET", "/v1/sandboxes", headers={header: value}).status == 200


# For each scope: what it opens, one request of each kind. 403 means refused; anything else, that it came through.
REQUESTS = {
    "read": [("GET", "/v1/sandboxes", None), ("GET", "/v1/events", None), ("GET", "/v1/images", None)],
    "write": [("POST", "/v1/sandboxes/none/shell", {"cmd": "true"}), ("DELETE", "/v1/sandboxes/none", None)],
    "admin": [("GET", "/v1/keys", None), ("DELETE", "/v1/keys/none", None), ("DELETE", "/v1/images/none", None)],
}


@pytest.mark.parametrize(("scope", "opens"), [("read", 1), ("write", 2), ("admin", 3)])
def test_scopes_include_the_smaller_ones_and_no_more(tcp_daemon: Daemon, port: int, scope: str, opens: int) -> None:
    secret = new_key(tcp_daemon, scope)["key"]
    for number, requests in enumerate(REQUESTS.values()):
        for method, path, body in requests:
            answer = tcp(port, method, path, body, bearer(secret))
            assert (answer.status == 403) == (number >= opens), (scope, method, path, answer.data)
            if answer.status == 403:
                assert answer.json["details"]["needed"] == list(REQUESTS)[number]


def test_the_right_to_use_comes_before_the_check_of_what_is_asked(tcp_daemon: Daemon, port: int) -> None:
    """A stranger learns nothing, not even what a body should look like."""
    assert tcp(port, "POST", "/v1/sandboxes", {"nonsense": 1}).status == 401
    secret = new_key(tcp_daemon, "read")["key"]
    assert tcp(port, "POST", "/v1/sandboxes", {"nonsense": 1}, bearer(secret)).status == 403


def test_a_revoked_key_opens_nothing_any_more(tcp_daemon: Daemon, port: int) -> None:
    key = new_key(tcp_daemon, "read", name="to go")
    assert tcp(port, "GET", "/v1/sandboxes", headers=bearer(key["key"])).status == 200
    revoked = tcp_daemon.call("DELETE", f"/v1/keys/{key['id']}")
    assert (revoked.status, revoked.json) == (200, {"id": key["id"], "status": "revoked"})
    assert tcp(port, "GET", "/v1/sandboxes", headers=bearer(key["key"])).status == 401
    assert tcp_daemon.call("DELETE", f"/v1/keys/{key['id']}").status == 404


def test_keys_are_listed_without_their_secrets_and_kept_as_hashes(tcp_daemon: Daemon) -> None:
    key = new_key(tcp_daemon, "write", "read", name="CI: build@night")
    assert key["key"].startswith("sbx_")
    assert key["scopes"] == ["read", "write"]
    listed = tcp_daemon.call("GET", "/v1/keys")
    assert key["key"] not in listed.data.decode()
    (mine,) = [each for each in listed.json["keys"] if each["id"] == key["id"]]
    assert (mine["name"], mine["scopes"]) == ("CI: build@night", ["read", "write"])
    with contextlib.closing(sqlite3.connect(f"file:{tcp_daemon.state}/state.db?mode=ro", uri=True)) as database:
        assert key["key"] not in "".join(database.iterdump())


def test_keys_outlive_the_daemon(own_root_daemon: Daemon) -> None:
    daemon = own_root_daemon
    own_port = listening_on_tcp(daemon)
    daemon.start()
    secret = new_key(daemon, "admin")["key"]
    daemon.kill()
    daemon.start()
    assert tcp(own_port, "GET", "/v1/keys", headers=bearer(secret)).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 65}, {"name": "<script>"},
        {"name": "x", "scopes": []}, {"name": "x", "scopes": ["root"]},
    ],
)  # fmt: skip
def test_a_wrong_key_request_is_refused(tcp_daemon: Daemon, body: dict[str, Any]) -> None:
    answer = tcp_daemon.call("POST", "/v1/keys", body)
    assert answer.status in {400, 422}
    assert answer.json["error"].startswith("cannot ")


def test_the_main_job_works_over_tcp(tcp_daemon: Daemon, port: int) -> None:
    headers = bearer(new_key(tcp_daemon, "write")["key"])
    made = tcp(port, "POST", "/v1/sandboxes", {"name": "by-tcp"}, headers)
    assert made.status == 201
    result = tcp(port, "POST", "/v1/sandboxes/by-tcp/shell", {"cmd": "echo over tcp"}, headers)
    assert result.json["stdout"] == "over tcp\n"
    assert tcp(port, "DELETE", "/v1/sandboxes/by-tcp", headers=headers).status == 200


def test_the_unix_socket_is_for_its_owner_and_group_only(daemon: Daemon) -> None:
    mode = os.stat(daemon.socket).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert stat.S_IMODE(os.stat(daemon.state).st_mode) == 0o700
