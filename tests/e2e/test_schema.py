"""The API held against its own description: whatever fits it, and much that does not, never ends in a 5xx."""

import http.client
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from sandboxd.http.native.openapi import describe
from sandboxd.http.native.routes import API
from tests.conftest import daemon_as_root
from tests.support.daemon import Daemon, running

schema = schemathesis.openapi.from_dict(describe(API))
EXAMPLES = 12
SANDBOX = "schema"
# Paths whose parameter is a sandbox: half of the requests go to one that lives.
_choice = iter(range(10**9))


@schema.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    if path_parameters and "sandbox" in path_parameters and next(_choice) % 2:
        path_parameters["sandbox"] = SANDBOX
    return path_parameters


@schema.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stream that is followed has no end to wait for."""
    return {name: value for name, value in query.items() if name != "follow"} if query else query


@schema.hook
def map_body(context: Any, body: Any) -> Any:
    """A random command may wait for ever; a random image build takes minutes."""
    if isinstance(body, dict):
        if body.get("recipe") == "base":
            return {**body, "recipe": "none"}
        if "cmd" in body or "argv" in body:
            return {**body, "timeout_ms": 500}
    return body


@pytest.fixture(scope="module")
def served(image_dir: Path) -> Iterator[tuple[Daemon, str, str]]:
    """A daemon on TCP, its address, and a key that may do everything."""
    fresh = daemon_as_root(image_dir)
    fresh.options = ("--listen", f"unix:{fresh.socket}", "--listen", "tcp:127.0.0.1:0")
    with running(fresh) as daemon:
        key = daemon.call("POST", "/v1/keys", {"name": "schema", "scopes": ["admin"]}).json["key"]
        address = re.findall(r"tcp:(127.0.0.1:\d+)", daemon.log)[-1]
        yield daemon, f"http://{address}", key


@pytest.fixture
def target(served: tuple[Daemon, str, str]) -> Iterator[tuple[Daemon, str, str]]:
    yield served
    served[0].delete_all()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_no_request_is_answered_with_a_5xx(case: schemathesis.Case, target: tuple[Daemon, str, str]) -> None:
    daemon, address, key = target
    if daemon.call("GET", f"/v1/sandboxes/{SANDBOX}").status == http.client.NOT_FOUND:
        daemon.create(name=SANDBOX)
    case.call_and_validate(
        base_url=address,
        headers={"Authorization": f"Bearer {key}"},
        checks=[not_a_server_error, response_schema_conformance, content_type_conformance],
        timeout=60,
    )


def test_the_daemon_is_well_after_all_that(served: tuple[Daemon, str, str]) -> None:
    daemon, *_ = served
    assert daemon.call("GET", "/v1/health").status == 200
    assert "Traceback" not in daemon.log
