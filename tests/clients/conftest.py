"""For tests that drive the daemon through other people's clients, unmodified: over TCP, with a key."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import daemon_as_root, daemon_as_user, warm
from tests.support import witnesses
from tests.support.daemon import Daemon, running


@dataclass(frozen=True)
class Access:
    """What a client's constructor is given."""

    url: str
    key: str


def listening_on_tcp(daemon: Daemon) -> Daemon:
    given = Path(daemon.options[daemon.options.index("--config") + 1]).read_text() if daemon.options else ""
    config = daemon.root / "clients.toml"
    config.write_text(f"http.cleartext_http2 = true\n{given}")
    config.chmod(0o644)
    # Of several files the last one counts.
    added = ("--config", str(config), "--listen", f"tcp:127.0.0.1:{daemon.reserve_port()}")
    return dataclasses.replace(daemon, options=(*daemon.options, *added))


def serving(daemon: Daemon) -> Iterator[Daemon]:
    with running(listening_on_tcp(daemon)) as started:
        yield warm(started)
        assert witnesses.disagreement(started) == {}


# The same names as for other tests, so that the `daemon` fixture and its checks stand on these here.


@pytest.fixture(scope="package")
def root_daemon(image_dir: Path) -> Iterator[Daemon]:
    yield from serving(daemon_as_root(image_dir))


@pytest.fixture(scope="package")
def rootless_daemon(user_image_dir: Path) -> Iterator[Daemon]:
    yield from serving(daemon_as_user(user_image_dir))


@pytest.fixture
def access(daemon: Daemon) -> Iterator[Access]:
    """A key that may write, as a customer of the service would hold one."""
    yield from holding_a_key(daemon)


@pytest.fixture
def bounded(daemon: Daemon) -> Iterator[Access]:
    """The key of a customer who has paid for one sandbox."""
    yield from holding_a_key(daemon, max_sandboxes=1)


def holding_a_key(daemon: Daemon, **terms: object) -> Iterator[Access]:
    made = daemon.call("POST", "/v1/keys", {"name": "client", "scopes": ["read", "write"], **terms}).json
    address = daemon.options[-1].removeprefix("tcp:")
    yield Access(f"http://{address}", made["key"])
    assert daemon.call("DELETE", f"/v1/keys/{made['id']}").status == 200
