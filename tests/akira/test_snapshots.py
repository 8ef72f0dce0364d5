"""Akira's snapshots and clones."""

import pytest

from tests.akira.conftest import Akira
from tests.akira.test_sandboxes import code

pytestmark = pytest.mark.any_user


def write(akira: Akira, sandbox: str, text: str) -> None:
    assert akira("POST", f"/v1/sandboxes/{sandbox}/upload", {"path": "/tmp/a", "content": text}).status == 201


def read(akira: Akira, sandbox: str) -> str:
    return akira("GET", f"/v1/sandboxes/{sandbox}/download?path=/tmp/a").data.decode()


def test_a_snapshot_restores_into_a_new_sandbox_or_in_place(akira: Akira) -> None:
    sandbox = akira.create()
    write(akira, sandbox, "then")
    taken = akira("POST", f"/v1/sandboxes/{sandbox}/snapshot", {"name": "first", "description": "why"})
    assert taken.status == 201
    snapshot = taken.json["id"]
    assert (taken.json["status"], taken.json["sandbox_id"], taken.json["name"]) == ("ready", sandbox, "first")
    write(akira, sandbox, "now")
    made = akira("POST", f"/v1/snapshots/{snapshot}/restore")
    assert (made.status, made.json["status"]) == (201, "running")
    assert made.json["id"] != sandbox
    assert read(akira, made.json["id"]) == "then"
    assert read(akira, sandbox) == "now"
    back = akira("POST", f"/v1/snapshots/{snapshot}/restore", {"sandbox_id": sandbox})
    assert (back.status, back.json["id"]) == (200, sandbox)
    assert read(akira, sandbox) == "then"
    forget_all(akira)


def forget_all(akira: Akira) -> None:
    akira("DELETE", "/v1/sandboxes/delete-all")
    for snapshot in akira("GET", "/v1/snapshots/list").json["snapshots"]:
        assert akira("DELETE", f"/v1/snapshots/{snapshot['id']}").status == 200


def test_snapshots_are_listed_and_deleted(akira: Akira) -> None:
    sandbox = akira.create()
    taken = [akira("POST", f"/v1/sandboxes/{sandbox}/snapshot").json["id"] for _ in range(2)]
    assert [each["id"] for each in akira("GET", "/v1/snapshots/list").json["snapshots"]] == taken
    assert akira("DELETE", f"/v1/snapshots/{taken[0]}").json["id"] == taken[0]
    assert [each["id"] for each in akira("GET", "/v1/snapshots/list").json["snapshots"]] == taken[1:]
    forget_all(akira)


def test_a_clone_begins_with_the_files(akira: Akira) -> None:
    sandbox = akira.create()
    write(akira, sandbox, "mine")
    made = akira("POST", f"/v1/sandboxes/{sandbox}/clone")
    assert (made.status, made.json["status"]) == (201, "running")
    clone = made.json["id"]
    assert read(akira, clone) == "mine"
    write(akira, clone, "its own")
    assert read(akira, sandbox) == "mine"
    forget_all(akira)


def test_errors_have_the_documented_body(prefixed: Akira) -> None:
    sandbox = prefixed.create()
    assert code(prefixed, "DELETE", "/v1/snapshots/none") == (404, "not_found")
    assert code(prefixed, "POST", "/v1/sandboxes/none/clone") == (404, "not_found")
    assert code(prefixed, "POST", "/v1/sandboxes/none/snapshot") == (404, "not_found")
    assert code(prefixed, "POST", f"/v1/sandboxes/{sandbox}/snapshot", {"name": "list"}) == (400, "invalid_request")
    assert prefixed("POST", f"/v1/sandboxes/{sandbox}/snapshot", {"name": "one"}).status == 201
    assert code(prefixed, "POST", f"/v1/sandboxes/{sandbox}/snapshot", {"name": "one"}) == (409, "conflict")
    forget_all(prefixed)
