"""The machine's own cgroup2 goes through the same fixtures as any host's; its images are a copy of the host's."""

import os
from pathlib import Path

import pytest

from tests.conftest import SHARED, WHOSE
from tests.kernel.conftest import cgroup, tree
from tests.uml.machine import COPIED

__all__ = ("cgroup", "tree")


@pytest.fixture(scope="session")
def image_dir() -> Path:
    """Images with their owners right, on a disk that can be idmapped."""
    directory = Path(COPIED)
    if not (directory / "names.json").exists():
        reason = "no images were copied into the machine: run `make setup` first, and the tests as root"
        pytest.fail(reason) if "CI" in os.environ else pytest.skip(reason)
    return directory


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Daemons are root's here, unless a test makes its own: unpacking the images for another user takes minutes."""
    for name, choices in (("daemon", SHARED), ("own_daemon", WHOSE)):
        if name in metafunc.fixturenames:
            metafunc.definition.add_marker(pytest.mark.parametrize(name, choices[:1], ids=WHOSE[:1], indirect=True))
