"""Shared by all tests: the leak census around each of them, and daemons that many tests use."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxd.config import default_image_dir
from tests.support import census, ordinary_user, witnesses
from tests.support.daemon import Daemon, running
from tests.support.waiting import wait_until

census.mark_this_run()

if "SANDBOXD_UML" not in os.environ:  # an import takes long in there, and no test there asks for examples
    # A stall of the machine is no failure, and what examples a run tries is no matter of chance: the same ones every
    # time. `--hypothesis-profile=explore` looks for new ones.
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, derandomize=False
    )
    settings.register_profile("steady", settings.get_profile("explore"), derandomize=True, database=None)
    settings.load_profile("steady")


def pytest_configure(config: pytest.Config) -> None:
    """Let this run have its own place for temporary files, and its daemons claim their host ids among themselves.

    So others of this machine are not in their way.
    """
    is_worker = hasattr(config, "workerinput")
    config.add_cleanup(census.make_temporary_directory("w-" if is_worker else "sandboxd-"))
    if not is_worker:  # workers are started with the environment of the one that starts them
        registry = tempfile.mkdtemp(prefix="sandboxd-test-ids-")
        os.environ["SANDBOXD_ID_REGISTRY"] = registry
        config.add_cleanup(lambda: shutil.rmtree(registry))


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for which it makes no difference who runs the daemon has one of the two only."""
    if "daemon" in metafunc.fixturenames and metafunc.definition.get_closest_marker("any_user"):
        one = pytest.mark.parametrize("daemon", SHARED[:1], ids=WHOSE[:1], indirect=True)
        metafunc.definition.add_marker(one)  # pytest, which comes next, prefers this to the fixture's own parameters


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    # Inside User-Mode Linux nobody asks, and an import takes long.
    from tests.support.parallel import ByFile

    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    from tests.support import parallel

    return parallel.processes()


SHARED = ["root_daemon", "rootless_daemon"]
WHOSE = ["as root", "as an ordinary user"]


@pytest.fixture(scope="session", autouse=True)
def known_directories(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is mounted in a test's `tmp_path` is this run's."""
    census.directories.add(str(tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test may leave a process, mount, cgroup, descriptor or temporary file."""
    # What outlives the test has to be there before it: a shared daemon that the `daemon` fixture will ask for.
    if "daemon" in request.fixturenames:
        request.getfixturevalue(request.node.callspec.params["daemon"])
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
def user_image_dir(image_dir: Path) -> Path:
    """The same image, unpacked for the ordinary user of the tests."""
    if os.geteuid() != 0:
        pytest.skip("takes root, to make a user; without root every daemon here is an ordinary user's")
    return ordinary_user.images(image_dir)


def daemon_as_root(image_dir: Path) -> Daemon:
    """A daemon, not yet started, with the rights of whoever runs the tests."""
    return Daemon(Path(tempfile.mkdtemp(prefix="d-")), image_dir)


def daemon_as_user(image_dir: Path) -> Daemon:
    return Daemon(ordinary_user.daemon_directory(), image_dir, prefix=ordinary_user.prefix())


@pytest.fixture(scope="session")
def root_daemon(image_dir: Path) -> Iterator[Daemon]:
    with running(daemon_as_root(image_dir)) as daemon:
        yield warm(daemon)
        assert witnesses.disagreement(daemon) == {}


@pytest.fixture(scope="session")
def rootless_daemon(user_image_dir: Path) -> Iterator[Daemon]:
    with running(daemon_as_user(user_image_dir)) as daemon:
        yield warm(daemon)
        assert witnesses.disagreement(daemon) == {}


def warm(daemon: Daemon) -> Daemon:
    """Let it open what it opens once: its fork server, its threads' wake-up descriptors, all of its slots."""
    sandbox = daemon.create()
    daemon.shell(sandbox, "true")
    daemon.delete(sandbox)
    wait_until(lambda: witnesses.has_its_slots(daemon))
    assert witnesses.disagreement(daemon) == {}
    daemon.at_rest = census.descriptors(daemon.pid)
    return daemon


@pytest.fixture(params=SHARED, ids=WHOSE)
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The same test for both front doors, and on a daemon that has served others before.

    The sandboxes a test leaves are deleted; then the daemon holds no descriptor more than before the test, and
    every witness agrees that there is nothing.
    """
    shared: Daemon = request.getfixturevalue(request.param)
    wait_until(lambda: witnesses.has_its_slots(shared))  # each takes a few descriptors
    before = census.descriptors(shared.pid)
    yield shared
    assert shared.alive, shared.log
    shared.delete_all()
    # The background's half second is waited for once, when the daemon ends.
    assert witnesses.disagreement(shared, ignore=witnesses.IN_THE_BACKGROUND) == {}
    assert witnesses.settled(lambda: _more_descriptors(shared, before)) == {}


def _more_descriptors(daemon: Daemon, before: "census.Counter[str]") -> dict[str, tuple[list[str], list[str]]]:
    # Before the test it may have been short of a slot.
    more = census.descriptors(daemon.pid) - (before | daemon.at_rest)
    return {"descriptors": (sorted(more.elements()), [])} if more else {}


@pytest.fixture(params=WHOSE)
def own_daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon for one test alone, not yet started: to be configured, killed, started again. For both front doors."""
    if request.param == WHOSE[0]:
        fresh = daemon_as_root(request.getfixturevalue("image_dir"))
    else:
        fresh = daemon_as_user(request.getfixturevalue("user_image_dir"))
    fresh.mortal = True
    try:
        yield fresh
    finally:
        fresh.sweep()


@pytest.fixture
def own_root_daemon(image_dir: Path) -> Iterator[Daemon]:
    """As own_daemon, where it makes no difference who runs it."""
    fresh = daemon_as_root(image_dir)
    fresh.mortal = True
    try:
        yield fresh
    finally:
        fresh.sweep()
