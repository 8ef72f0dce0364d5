"""A listener that is given to Akira's API: it is at the root there, and nothing else is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.akira.conftest import Akira
from tests.conftest import daemon_as_root
from tests.support.daemon import Daemon, running


@pytest.fixture
def given(image_dir: Path) -> Iterator[tuple[Daemon, Akira]]:
    daemon = daemon_as_root(image_dir)
    port = daemon.reserve_port()
    file = daemon.root / "sandboxd.toml"
    file.write_text(f'listen = ["unix:{daemon.socket}", {{address = "tcp:127.0.0.1:{port}", dialect = "akira"}}]\n')
    daemon.options = ("--config", str(file))
    with running(daemon):
        key = daemon.call("POST", "/v1/keys", {"name": "akira"}).json["key"]
        yield daemon, Akira(f"http://127.0.0.1:{port}", key)


def test_all_of_it_is_at_the_root(given: tuple[Daemon, Akira]) -> None:
    _, akira = given
    sandbox = akira.create()
    assert akira("POST", f"/v1/sandboxes/{sandbox}/execute", {"command": "echo well"}).json["stdout"] == "well\n"
    # At these the native API answers where both are at the root.
    taken = akira("POST", f"/v1/sandboxes/{sandbox}/snapshot", {})
    assert (taken.status, set(taken.json)) == (
        201, {"id", "status", "name", "description", "sandbox_id", "created_at"},
    )  # fmt: skip
    assert set(akira("POST", f"/v1/sandboxes/{sandbox}/clone").json) == {"id", "status", "image", "created_at"}
    assert akira("DELETE", f"/v1/snapshots/{taken.json['id']}").json["status"] == "deleted"


@pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/health", "/docs", "/akira/v1/sandboxes/list", "/nothing"])
def test_nothing_else_is_there(given: tuple[Daemon, Akira], path: str) -> None:
    _, akira = given
    answer = akira("GET", path)
    assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert "/v1/docs" not in answer.json["error"]["message"]


def test_names_of_ports_are_not_this_listeners(given: tuple[Daemon, Akira]) -> None:
    daemon, akira = given
    sandbox = akira.create()
    exposed = daemon.call("POST", f"/v1/sandboxes/{sandbox}/expose", {"port": 8000}).json["host"]
    assert daemon.call("GET", "/", headers={"host": exposed}).json["kind"] == "port_closed"
    answer = akira("GET", "/v1/sandboxes/list", headers={"host": exposed})
    assert (answer.status, len(answer.json["sandboxes"])) == (200, 1)
