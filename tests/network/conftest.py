"""One gateway and its internet for all tests of it, with root's rights and with an ordinary user's."""

import os
from collections.abc import Iterator

import pytest

from tests.network.world import World, as_root, as_user


@pytest.fixture(scope="session", params=["as root", "as an ordinary user"])
def shared_world(request: pytest.FixtureRequest) -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("takes root, to be in the namespaces of others")
    world = as_root() if request.param == "as root" else as_user()
    try:
        yield world
    finally:
        world.close()


@pytest.fixture(params=["as root", "as an ordinary user"])
def own_world(request: pytest.FixtureRequest) -> Iterator[World]:
    """For one test alone, which may kill its gateway."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to be in the namespaces of others")
    world = as_root() if request.param == "as root" else as_user()
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    shared_world.restore()
    yield shared_world
    assert shared_world.gateway is not None
    assert shared_world.gateway.poll() is None
    assert shared_world.control.call("list")["sandboxes"] == []
