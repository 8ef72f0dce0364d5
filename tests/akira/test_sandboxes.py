"""Akira's sandboxes, commands and files, as its documents show them."""

import base64
import hashlib
import re
from datetime import datetime

import pytest

from tests.akira.conftest import Akira
from tests.clients.conftest import Access
from tests.support.daemon import Daemon

pytestmark = pytest.mark.any_user


def code(akira: Akira, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Status and code of a refusal, whose body has the documented form."""
    reply = akira(method, path, body)
    assert reply.json.keys() == {"error"}
    assert reply.json["error"].keys() == {"code", "message"}
    assert reply.json["error"]["message"].startswith("cannot ")
    return reply.status, reply.json["error"]["code"]


def test_create_list_status_delete(akira: Akira) -> None:
    made = akira("POST", "/v1/sandboxes/create", {"image": "akiralabs/akira-default-sandbox", "env": {"A": "1"}})
    assert made.status == 201
    sandbox = made.json["id"]
    assert made.json["status"] == "running"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", made.json["created_at"])
    assert datetime.fromisoformat(made.json["created_at"]).tzinfo is not None
    assert akira("GET", "/v1/sandboxes/list").json == {"sandboxes": [made.json]}
    status = akira("GET", f"/v1/sandboxes/{sandbox}/status").json
    assert (status["id"], status["status"]) == (sandbox, "running")
    assert status["memory_bytes"] > 0
    assert status["processes"] >= 1
    assert akira("DELETE", f"/v1/sandboxes/{sandbox}/delete").json == {"id": sandbox, "status": "deleted"}
    assert akira("GET", "/v1/sandboxes/list").json == {"sandboxes": []}


def test_an_image_by_name(akira: Akira) -> None:
    made = akira("POST", "/v1/sandboxes/create", {"image": "base"})
    assert (made.status, made.json["image"]) == (201, "base")


def test_delete_all(akira: Akira, daemon: Daemon) -> None:
    sandboxes = {akira.create() for _ in range(3)}
    reply = akira("DELETE", "/v1/sandboxes/delete-all")
    assert reply.status == 200
    assert set(reply.json["deleted"]) == sandboxes
    assert daemon.views() == []
    assert akira("DELETE", "/v1/sandboxes/delete-all").json == {"deleted": []}


def test_a_lifetime_is_in_seconds(akira: Akira, daemon: Daemon) -> None:
    made = akira("POST", "/v1/sandboxes/create", {"image": "base", "timeout": 3600}).json
    view = daemon.view(made["id"])
    lifetime = datetime.fromisoformat(view["end_at"]) - datetime.fromisoformat(view["created_at"])
    assert lifetime.total_seconds() == pytest.approx(3600, abs=1)


def test_execute(akira: Akira) -> None:
    path = f"/v1/sandboxes/{akira.create()}/execute"
    reply = akira("POST", path, {"command": "echo $X; echo err >&2; pwd; exit 3", "env": {"X": "é"}, "cwd": "/tmp"})
    assert reply.status == 200
    assert (reply.json["stdout"], reply.json["stderr"], reply.json["exit_code"]) == ("é\n/tmp\n", "err\n", 3)
    assert akira("POST", path, {"command": "kill -9 $$"}).json["exit_code"] == 137
    late = akira("POST", path, {"command": "sleep 60", "timeout": 0.2}).json
    assert late["timed_out"] is True


def test_execute_async_streams_what_happens(akira: Akira) -> None:
    path = f"/v1/sandboxes/{akira.create()}/execute_async"
    reply = akira("POST", path, {"command": "printf '\\xc3'; sleep 0.2; printf '\\xa9\\n'; echo e >&2; exit 4"})
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = re.findall(rb"event: (\w+)\ndata: (.*)\n\n", reply.data)
    assert b"".join(data for name, data in events if name == b"stdout") == '{"data":"é\\n"}'.encode()
    assert (b"stderr", b'{"data":"e\\n"}') in events
    name, data = events[-1]
    assert name == b"exit"
    assert data.startswith(b'{"exit_code":4,"timed_out":false,')


def test_files_go_up_and_down_whole(akira: Akira) -> None:
    sandbox = f"/v1/sandboxes/{akira.create()}"
    data = bytes(range(256)) * 20_000
    up = akira("POST", f"{sandbox}/upload?path=/tmp/new/data", data=data)
    assert (up.status, up.json) == (201, {"path": "/tmp/new/data", "size": len(data)})
    down = akira("GET", f"{sandbox}/download?path=/tmp/new/data")
    assert down.headers["content-type"] == "application/octet-stream"
    assert hashlib.sha256(down.data).digest() == hashlib.sha256(data).digest()


def test_files_go_up_as_json(akira: Akira) -> None:
    sandbox = f"/v1/sandboxes/{akira.create()}"
    assert akira("POST", f"{sandbox}/upload", {"path": "/tmp/a", "content": "é"}).json["size"] == 2
    encoded = base64.b64encode(b"\0\xff").decode()
    assert akira("POST", f"{sandbox}/upload", {"path": "/tmp/b", "content_base64": encoded}).status == 201
    assert akira("GET", f"{sandbox}/download?path=/tmp/a").data == "é".encode()
    assert akira("GET", f"{sandbox}/download?path=/tmp/b").data == b"\0\xff"
    assert b"Linux" in akira("GET", f"{sandbox}/download?path=/proc/version").data


def test_errors_have_the_documented_body(akira: Akira) -> None:
    sandbox = f"/v1/sandboxes/{akira.create()}"
    for method, path, body, expected in (
        ("POST", "/v1/sandboxes/create", {}, (400, "invalid_request")),
        ("POST", "/v1/sandboxes/create", {"image": "base", "what": 1}, (400, "invalid_request")),
        ("POST", "/v1/sandboxes/create", {"image": "none"}, (404, "not_found")),
        ("DELETE", "/v1/sandboxes/none/delete", None, (404, "not_found")),
        ("POST", "/v1/sandboxes/none/execute", {"command": "true"}, (404, "not_found")),
        ("POST", "/v1/sandboxes/none/execute_async", {"command": "true"}, (404, "not_found")),
        ("POST", f"{sandbox}/execute", {"command": ""}, (400, "invalid_request")),
        ("POST", f"{sandbox}/execute", {"command": "true", "cwd": "/none"}, (400, "invalid_request")),
        ("GET", f"{sandbox}/download", None, (400, "invalid_request")),
        ("GET", f"{sandbox}/download?path=/none", None, (404, "not_found")),
        ("GET", f"{sandbox}/download?path=/tmp", None, (400, "invalid_request")),
        ("POST", f"{sandbox}/upload", {"path": "/tmp/x"}, (400, "invalid_request")),
        ("POST", f"{sandbox}/upload", {"path": "/tmp/x", "content_base64": "?"}, (400, "invalid_request")),
        ("GET", "/v1/sandboxes/none/status", None, (404, "not_found")),
        ("POST", "/v1/snapshots/none/restore", {}, (404, "not_found")),
    ):
        assert code(akira, method, path, body) == expected, path


def test_keys_are_asked_for_as_documented(akira: Akira, access: Access, daemon: Daemon) -> None:
    assert code(Akira(akira.base, ""), "GET", "/v1/sandboxes/list") == (401, "unauthorized")
    assert code(Akira(akira.base, "wrong"), "GET", "/v1/sandboxes/list") == (401, "unauthorized")
    reader = daemon.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]}).json
    assert Akira(akira.base, reader["key"])("GET", "/v1/sandboxes/list").status == 200
    refused = code(Akira(akira.base, reader["key"]), "DELETE", "/v1/sandboxes/delete-all")
    assert refused == (403, "forbidden")
    daemon.call("DELETE", f"/v1/keys/{reader['id']}")


def test_a_key_that_has_what_it_may_have_is_told_when_to_come_back(akira: Akira, bounded: Access) -> None:
    holder = Akira(akira.base, bounded.key)
    holder.create()
    refused = holder("POST", "/v1/sandboxes/create", {"image": "base"})
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) > 0


@pytest.mark.parametrize("name", ["list", "create", "delete-all"])
def test_no_sandbox_takes_the_name_of_a_path(daemon: Daemon, name: str) -> None:
    refused = daemon.call("POST", "/v1/sandboxes", {"name": name})
    assert (refused.status, refused.json["kind"]) == (422, "reserved_name")
