"""ai2in's client as published: sandboxes themselves. Its other parts have files of their own beside this one."""

import urllib.error

import pytest
from ai2in import Sandbox

from tests.clients.conftest import Access
from tests.support.daemon import Daemon

pytestmark = pytest.mark.any_user


def test_a_sandbox_from_the_constructor_to_the_end_of_its_with_block(access: Access, daemon: Daemon) -> None:
    with Sandbox(base_url=access.url, api_key=access.key, timeout=90, metadata={"team": "red"}) as sandbox:
        info = sandbox.get_info()
        assert info["id"] == sandbox.id
        assert info["status"] == "running"
        assert {"created_at", "end_at", "node_id"} <= info.keys()
        assert daemon.view(sandbox.id)["metadata"] == {"team": "red"}
        assert [item["id"] for item in Sandbox.list(base_url=access.url, api_key=access.key)] == [sandbox.id]
        assert Sandbox.connect(sandbox.id, base_url=access.url, api_key=access.key).get_info()["id"] == sandbox.id
    assert Sandbox.list(base_url=access.url, api_key=access.key) == []


def test_its_lifetime_is_in_seconds_from_now(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        before = sandbox.get_info()["end_at"]
        assert sandbox.set_timeout(3600)["end_at"] != before


def test_metrics_have_the_documented_names(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        assert {"cpu_pct", "mem_used_mb", "mem_pct", "pids", "uptime_s"} <= sandbox.get_metrics().keys()


def test_without_a_key_it_is_401(access: Access) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        Sandbox(base_url=access.url)
    assert refused.value.code == 401
    refused.value.close()


def test_a_sandbox_that_was_killed_is_404(access: Access) -> None:
    sandbox = Sandbox(base_url=access.url, api_key=access.key)
    sandbox.kill()
    with pytest.raises(urllib.error.HTTPError) as refused:
        sandbox.get_info()
    assert refused.value.code == 404
    refused.value.close()


def test_one_sandbox_more_than_the_key_may_have_is_429(bounded: Access) -> None:
    with Sandbox(base_url=bounded.url, api_key=bounded.key):
        with pytest.raises(urllib.error.HTTPError) as refused:
            Sandbox(base_url=bounded.url, api_key=bounded.key)
        assert refused.value.code == 429
        assert int(refused.value.headers["Retry-After"]) > 0
        refused.value.close()
