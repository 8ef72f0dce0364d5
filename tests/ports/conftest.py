"""A sandbox with a program on a port, behind a daemon on TCP: root's and an ordinary user's."""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import pytest
import wsproto

from tests.clients.conftest import Access, access, listening_on_tcp, root_daemon, rootless_daemon
from tests.support.daemon import Daemon
from tests.support.sandbox import Box
from tests.support.waiting import wait_until

__all__ = ("access", "root_daemon", "rootless_daemon")

PROGRAM = Path(__file__).with_name("program.py")
PORT = 8000


def library() -> bytes:
    """What the program imports, as a zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for package in (h11, wsproto):
            directory = Path(str(package.__file__)).parent
            for path in directory.rglob("*.py"):
                archive.write(path, Path(directory.name) / path.relative_to(directory))
    return content.getvalue()


@dataclass(frozen=True)
class Served:
    """A sandbox in which the program listens on PORT."""

    box: Box
    access: Access

    @property
    def id(self) -> str:
        return self.box.id

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.access.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def key(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.access.key}"}

    @property
    def path(self) -> str:
        return f"/v1/sandboxes/{self.id}/ports/{PORT}"

    def expose(self, **wish: Any) -> Any:
        answer = self.box.answer("expose", {"port": PORT, **wish})
        assert answer.status == 200, answer.data
        return answer.json


def start_program(box: Box, port: int = PORT) -> None:
    for name, data in (("program.py", PROGRAM.read_bytes()), ("lib.zip", library())):
        assert box.daemon.call("PUT", f"/v1/sandboxes/{box.id}/files?path=/tmp/{name}", data=data).status == 200
    box.shell(f"setsid python3 /tmp/program.py {port} </dev/null >/tmp/program.log 2>&1 &")
    wait_until(lambda: "listening" in box.shell("cat /tmp/program.log")["stdout"])


@pytest.fixture
def box(daemon: Daemon) -> Box:
    return Box(daemon, daemon.create())


@pytest.fixture
def served(box: Box, access: Access) -> Served:
    start_program(box)
    return Served(box, access)


@pytest.fixture
def own_served(own_daemon: Daemon) -> Iterator[Served]:
    """Behind a daemon for one test alone, to be stopped or killed."""
    daemon = listening_on_tcp(own_daemon)
    try:
        daemon.start()
        key = daemon.call("POST", "/v1/keys", {"name": "own", "scopes": ["read", "write"]}).json["key"]
        own = Box(daemon, daemon.create())
        start_program(own)
        yield Served(own, Access(daemon.options[-1].replace("tcp:", "http://"), key))
    finally:
        daemon.sweep()
