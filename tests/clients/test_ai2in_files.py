"""ai2in's client as published: files."""

import os
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from ai2in import Sandbox

from tests.clients.conftest import Access

pytestmark = pytest.mark.any_user

MIB = 1024 * 1024


@pytest.fixture
def sandbox(access: Access) -> Iterator[Any]:
    with Sandbox(base_url=access.url, api_key=access.key) as made:
        yield made


def status_of(action: Any, *arguments: Any) -> int:
    with pytest.raises(urllib.error.HTTPError) as raised:
        action(*arguments)
    raised.value.close()
    return raised.value.code


def test_text(sandbox: Any) -> None:
    sandbox.files.write("notes/today.txt", "grüße\n")
    assert sandbox.files.read("notes/today.txt") == "grüße\n"
    assert sandbox.commands.run("cat notes/today.txt")["stdout"] == "grüße\n"
    sandbox.files.write("/tmp/empty", "")
    assert sandbox.files.read("/tmp/empty") == ""


def test_bytes(sandbox: Any) -> None:
    data = os.urandom(MIB)
    sandbox.files.upload("/tmp/data", data)
    assert sandbox.files.download("/tmp/data") == data
    assert status_of(sandbox.files.read, "/tmp/data") == 422


def test_list(sandbox: Any) -> None:
    sandbox.commands.run("mkdir -p d && touch d/a d/b && ln -s a d/link")
    entries = sandbox.files.list("d")
    assert [(entry["name"], entry["type"]) for entry in entries] == [
        ("a", "file"),
        ("b", "file"),
        ("link", "symlink"),
    ]
    assert "d" in [entry["name"] for entry in sandbox.files.list()]


def test_up_to_32_mib(sandbox: Any) -> None:
    data = bytes(32 * MIB)
    sandbox.files.upload("/tmp/most", data)
    assert sandbox.files.download("/tmp/most") == data
    assert status_of(sandbox.files.upload, "/tmp/more", data + b"x") == 413
    sandbox.commands.run("echo >> /tmp/most")
    assert status_of(sandbox.files.download, "/tmp/most") == 413


def test_errors(sandbox: Any) -> None:
    assert status_of(sandbox.files.read, "/nonesuch") == 404
    assert status_of(sandbox.files.list, "/nonesuch") == 404
    assert status_of(sandbox.files.read, "/etc/shadow") == 403
    assert status_of(sandbox.files.write, "/etc/x", "x") == 403
    sandbox.pause()
    assert status_of(sandbox.files.read, "/etc/passwd") == 409
    sandbox.resume()
    assert "root" in sandbox.files.read("/etc/passwd")
