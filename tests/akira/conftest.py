"""Akira's API on a daemon on TCP, with a key, as its documents show it: at the root, and below /akira."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.clients.conftest import Access, access, bounded, root_daemon, rootless_daemon

__all__ = ("access", "bounded", "root_daemon", "rootless_daemon")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


@dataclass(frozen=True)
class Akira:
    """curl, with the header that the documents name."""

    base: str
    key: str

    def __call__(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Reply:
        arguments = ["curl", "-sS", "-m", "60", "-i", "-X", method, "-H", "Expect:", f"{self.base}{path}"]
        if self.key:
            arguments += ["-H", f"x-api-key: {self.key}"]
        for name, value in headers.items():
            arguments += ["-H", f"{name}: {value}"]
        if body is not None:
            arguments += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        elif data is not None:
            arguments += ["-H", "Content-Type: application/octet-stream", "--data-binary", "@-"]
        done = subprocess.run(arguments, input=data, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Reply(int(first.split()[1]), headers, content)

    def create(self) -> str:
        made = self("POST", "/v1/sandboxes/create", {"image": "akiralabs/akira-default-sandbox"})
        assert made.status == 201, made.data
        return str(made.json["id"])


@pytest.fixture(params=["", "/akira"], ids=["at the root", "below its prefix"])
def akira(request: pytest.FixtureRequest, access: Access) -> Akira:
    return Akira(access.url + request.param, access.key)


@pytest.fixture
def prefixed(access: Access) -> Akira:
    """Where the native API does not share its paths."""
    return Akira(f"{access.url}/akira", access.key)
