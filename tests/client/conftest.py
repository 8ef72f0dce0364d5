"""A client of a real daemon, and a sandbox there."""

from collections.abc import AsyncIterator, Iterator

import pytest

from sandboxd.client import AsyncClient
from tests.support.daemon import Daemon


@pytest.fixture
async def client(root_daemon: Daemon) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"unix:{root_daemon.socket}") as client:
        yield client


@pytest.fixture
def sandbox(root_daemon: Daemon) -> Iterator[str]:
    yield root_daemon.create()
    root_daemon.delete_all()
