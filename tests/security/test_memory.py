"""Requests, and programs inside, that would have the daemon hold, write or say more than is good for everybody."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import daemon_as_root
from tests.security.support import listening_on_tcp
from tests.support.daemon import Daemon, running

KIB = 1024
MIB = 1024 * KIB
# Each fits by itself, all of them do not.
TOO_MUCH = {f"N{number}": "x" * 4000 for number in range(80)}
FITS = {f"N{number}": "x" * 4000 for number in range(60)}


@pytest.fixture(scope="module")
def daemon_and_port(image_dir: Any) -> Iterator[tuple[Daemon, int]]:
    daemon = daemon_as_root(image_dir)
    port = listening_on_tcp(daemon)
    with running(daemon):
        yield daemon, port


@pytest.fixture
def attacked(daemon_and_port: tuple[Daemon, int]) -> Iterator[Daemon]:
    yield daemon_and_port[0]
    daemon_and_port[0].delete_all()


# -- what is kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["env", "metadata"])
def test_what_is_kept_of_a_sandbox_is_bounded_as_a_whole(attacked: Daemon, field: str) -> None:
    refused = attacked.call("POST", "/v1/sandboxes", {field: TOO_MUCH})
    assert (refused.status, refused.json["kind"]) == (422, "invalid_request")
    assert "262144" in refused.json["error"]
    assert attacked.call("POST", "/v1/sandboxes", {field: FITS}).status == 201


@pytest.mark.parametrize("path", ["shell", "commands", "pty"])
def test_the_environment_of_a_command_is_bounded_as_a_whole(attacked: Daemon, path: str) -> None:
    sandbox = attacked.create()
    terms = {"cmd": "true"} if path != "pty" else {"argv": ["true"]}
    assert attacked.call("POST", f"/v1/sandboxes/{sandbox}/{path}", {**terms, "env": TOO_MUCH}).status == 422
    assert attacked.call("POST", f"/v1/sandboxes/{sandbox}/{path}", {**terms, "env": FITS}).status in {200, 201}


def test_an_environment_is_no_larger_for_being_put_together(attacked: Daemon) -> None:
    """A snapshot gives its own, a client another: both within the bound, and together not."""
    sandbox = attacked.create(env=FITS)
    snapshot = attacked.call("POST", f"/v1/sandboxes/{sandbox}/snapshot", {}).json["id"]
    others = {f"O{number}": "x" * 4000 for number in range(60)}
    refused = attacked.call("POST", "/v1/sandboxes", {"snapshot": snapshot, "env": others})
    assert (refused.status, refused.json["kind"]) == (422, "too_large")
    assert attacked.call("POST", "/v1/sandboxes", {"snapshot": snapshot, "env": FITS}).status == 201


def test_the_labels_of_a_snapshot_are_bounded_as_a_whole(attacked: Daemon) -> None:
    sandbox = attacked.create()
    path = f"/v1/sandboxes/{sandbox}/snapshot"
    assert attacked.call("POST", path, {"metadata": TOO_MUCH}).status == 422
    assert attacked.call("POST", path, {"metadata": FITS}).status == 201


def test_akiras_environment_is_bounded_as_a_whole(attacked: Daemon) -> None:
    refused = attacked.call("POST", "/v1/sandboxes/create", {"image": "base", "env": TOO_MUCH})
    assert refused.status in {400, 422}, refused.data
    assert attacked.call("POST", "/v1/sandboxes/create", {"image": "base", "env": FITS}).status in {200, 201}


def test_a_page_of_a_list_is_bounded_in_bytes(attacked: Daemon) -> None:
    made = [attacked.create(env=FITS, metadata=FITS) for _ in range(12)]
    answer = attacked.call("GET", "/v1/sandboxes?limit=1000")
    assert len(answer.data) < 5 * MIB
    assert 1 < len(answer.json["sandboxes"]) < len(made)
    assert [view["id"] for view in attacked.views()] == made
