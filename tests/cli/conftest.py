"""A daemon's command line, and sandboxes to use it on."""

from collections.abc import Iterator

import pytest

from tests.cli.support import Ctl
from tests.support.daemon import Daemon


@pytest.fixture
def ctl(root_daemon: Daemon) -> Iterator[Ctl]:
    """sandboxctl; the sandboxes a test leaves are deleted."""
    yield Ctl.of(root_daemon)
    root_daemon.delete_all()


@pytest.fixture
def sandbox(ctl: Ctl, root_daemon: Daemon) -> str:
    return root_daemon.create()
