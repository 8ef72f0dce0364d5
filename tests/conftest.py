"""Shared by all tests: the leak census around each of them, and daemons that many tests use."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.config import default_image_dir
from tests.support import census, ordinary_user
from tests.support.daemon import Daemon, running

INSIDE_UML = "SANDBOXD_UML" in os.environ


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """No test may leave a process, mount, cgroup or descriptor. Fixtures of wider scope are set up before this."""
    before = census.take()
    yield
    assert census.settled_growth(before) == {}


@pytest.fixture(scope="session")
def image_dir() -> Path:
    """Where `make setup` built the images."""
    directory = default_image_dir()
    if not (directory / "names.json").exists():
        pytest.fail("there is no image: run `make setup` first")
    return directory


@pytest.fixture(scope="session")
def root_daemon(image_dir: Path) -> Iterator[Daemon]:
    """A daemon with the rights of whoever runs the tests."""
    with running(Path(tempfile.mkdtemp(prefix="sandboxd-test-")), image_dir) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def rootless_daemon(image_dir: Path) -> Iterator[Daemon]:
    """A daemon of an ordinary user, with that user's own images."""
    if os.geteuid() != 0:
        pytest.skip("makes a user of its own, which takes root; root_daemon runs without root then")
    with ordinary_user.home() as home:
        images = ordinary_user.images(image_dir)
        with running(Path(tempfile.mkdtemp(dir=home)), images, user=ordinary_user.NAME) as daemon:
            yield daemon


@pytest.fixture(params=["as root", "as an ordinary user"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The same test for both front doors. The sandboxes a test leaves are deleted."""
    shared: Daemon = request.getfixturevalue("root_daemon" if request.param == "as root" else "rootless_daemon")
    yield shared
    shared.delete_all()


@pytest.fixture
def own_daemon(image_dir: Path) -> Iterator[Daemon]:
    """A daemon for one test alone, not yet started: to be configured, killed, started again."""
    shared = Daemon(Path(tempfile.mkdtemp(prefix="sandboxd-test-")), image_dir)
    try:
        yield shared
    finally:
        shared.sweep()
