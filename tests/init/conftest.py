"""Builds sandbox-init once, and gives tests one of their own."""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.init.harness import RELEASE, SANITIZED, SOURCES, RunningInit, ordinary_init, pid1_init


@pytest.fixture(scope="session")
def binaries() -> dict[str, Path]:
    """Both builds, brought up to date."""
    with open(SOURCES / "Makefile") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests' other processes want them too, and would write the same files
        subprocess.run(["make", "-s", "-C", SOURCES, "all", "sanitized"], check=True)
    return {"release": RELEASE, "sanitized": SANITIZED}


@pytest.fixture
def directory() -> Iterator[Path]:
    """With a path short enough for a socket's address, and open to the users that tests become."""
    with tempfile.TemporaryDirectory(prefix="init-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture(params=["release", "sanitized"])
async def init(
    request: pytest.FixtureRequest, binaries: dict[str, Path], directory: Path
) -> AsyncIterator[RunningInit]:
    """An ordinary process, in both builds."""
    async with ordinary_init(binaries[request.param], directory) as running:
        yield running


@pytest.fixture
async def release_init(binaries: dict[str, Path], directory: Path) -> AsyncIterator[RunningInit]:
    """An ordinary process, without sanitizers: for what measures."""
    async with ordinary_init(binaries["release"], directory) as running:
        yield running


@pytest.fixture(params=["release", "sanitized"])
async def pid1(
    request: pytest.FixtureRequest, binaries: dict[str, Path], directory: Path
) -> AsyncIterator[RunningInit]:
    """Pid 1 of namespaces of its own, in both builds."""
    async with pid1_init(binaries[request.param], directory) as running:
        yield running


@pytest.fixture
async def release_pid1(binaries: dict[str, Path], directory: Path) -> AsyncIterator[RunningInit]:
    """Pid 1 of namespaces of its own, without sanitizers: for what is much."""
    async with pid1_init(binaries["release"], directory) as running:
        yield running
