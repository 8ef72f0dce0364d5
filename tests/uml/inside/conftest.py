"""The machine's own cgroup2 goes through the same fixtures as any host's; its images are a copy of the host's."""

import os
from pathlib import Path

import pytest

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
