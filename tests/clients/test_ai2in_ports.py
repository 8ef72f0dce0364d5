"""ai2in's client as published: the host name of a port."""

import http.client
import json
import urllib.error

import pytest
from ai2in import Sandbox

from tests.clients.conftest import Access
from tests.ports.conftest import start_program
from tests.support.daemon import Daemon
from tests.support.sandbox import Box

pytestmark = pytest.mark.any_user

PORT = 8000


def visit(access: Access, host: str, path: str) -> http.client.HTTPResponse:
    """As a browser would, which knows that names under localhost are this machine; Python asks the resolver."""
    name, _, port = host.rpartition(":")
    assert name.endswith(".localhost")
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    connection.request("GET", path, headers={"Host": host, "Connection": "close"})
    return connection.getresponse()


def test_get_host_leads_to_the_program(access: Access, daemon: Daemon) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        start_program(Box(daemon, sandbox.id), PORT)
        host = sandbox.get_host(PORT)
        assert "/" not in host  # callers put https:// before it
        assert host == sandbox.get_host(PORT)
        answer = visit(access, host, "/path?x=1")
        assert json.load(answer)["target"] == "/path?x=1"


def test_a_port_on_which_nothing_listens_has_a_host_that_says_so(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        answer = visit(access, sandbox.get_host(9), "/")
        assert answer.status == 502
        assert json.load(answer)["kind"] == "port_closed"


def test_get_host_of_a_killed_sandbox_is_404(access: Access) -> None:
    sandbox = Sandbox(base_url=access.url, api_key=access.key)
    sandbox.kill()
    with pytest.raises(urllib.error.HTTPError) as refused:
        sandbox.get_host(PORT)
    assert refused.value.code == 404
    refused.value.close()
