"""ai2in's client as published: watches."""

import urllib.error

import pytest
from ai2in import Sandbox, Watcher

from tests.clients.conftest import Access

pytestmark = pytest.mark.any_user


def polled_until(watcher: Watcher, path: str) -> list[tuple[str, str]]:
    """As its documentation says: again and again, each time only what is new."""
    seen: list[tuple[str, str]] = []
    while not any(found == path for _, found in seen):
        seen += [(event["type"], event["path"]) for event in watcher.poll()]
    return seen


def test_a_watch_is_polled_and_stopped(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        watcher = sandbox.files.watch()
        assert watcher.poll() == []
        sandbox.commands.run("mkdir -p deep/er && echo x > deep/er/file && mkdir end")
        seen = polled_until(watcher, "end")
        assert {("create", "deep"), ("create", "deep/er"), ("create", "deep/er/file")} <= set(seen)
        sandbox.commands.run("echo y >> deep/er/file && sync && rm -r deep && mkdir last")
        assert ("remove", "deep") in polled_until(watcher, "last")
        assert watcher.stop()
        with pytest.raises(urllib.error.HTTPError) as refused:
            watcher.poll()
        assert refused.value.code == 404
        refused.value.close()


def test_a_flat_watch_of_a_directory(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        sandbox.commands.run("mkdir -p place/below")
        watcher = sandbox.files.watch("place", recursive=False)
        sandbox.commands.run("mkdir place/below/x place/end")
        assert polled_until(watcher, "end") == [("create", "end")]


def test_a_missing_directory_is_404(access: Access) -> None:
    with Sandbox(base_url=access.url, api_key=access.key) as sandbox:
        with pytest.raises(urllib.error.HTTPError) as refused:
            sandbox.files.watch("missing")
        assert refused.value.code == 404
        refused.value.close()
