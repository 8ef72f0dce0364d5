"""A daemon with a Unix socket and a TCP listener, as the pages' examples take for given."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import daemon_as_root, warm
from tests.support.daemon import CHECKOUT, Daemon, running

# How the pages write what is another place in each test.
RUNTIME = "/run/sandboxd"
TCP = "127.0.0.1:8000"


@dataclass(frozen=True)
class Host:
    """A machine with a daemon, as a reader has one."""

    daemon: Daemon
    port: int

    def here(self, text: str) -> str:
        """A page's text with this daemon's places in it."""
        return text.replace(RUNTIME, str(self.daemon.runtime)).replace(TCP, f"127.0.0.1:{self.port}")

    def environment(self, home: Path) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("SANDBOXD_", "XDG_"))}
        return {
            **clean,
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "SANDBOXD_URL": f"unix:{self.daemon.socket}",
            "COLUMNS": "110",
        }


@pytest.fixture(scope="module")
def host(image_dir: Path) -> Iterator[Host]:
    daemon = daemon_as_root(image_dir)
    port = daemon.reserve_port()
    daemon.options = ("--listen", f"tcp:127.0.0.1:{port}")
    with running(daemon):
        yield Host(warm(daemon), port)
