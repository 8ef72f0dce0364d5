"""A fresh sandbox for each attack, under a daemon of root and under one of an ordinary user."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.isolation.escape.inside import Sandbox
from tests.support.daemon import Daemon


@pytest.fixture(autouse=True)
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("the controls, which attack the host, take root; the sandboxes are an ordinary user's as well")


@pytest.fixture
def new_sandbox(daemon: Daemon) -> Callable[[], Sandbox]:
    return lambda: confined(Sandbox(daemon, daemon.create(), rootless=bool(daemon.prefix)))


def confined(sandbox: Sandbox) -> Sandbox:
    """Some attacks would end this machine's processes if nothing at all held them: then none is started."""
    for namespace in ("pid", "user"):
        assert os.readlink(f"/proc/{sandbox.init}/ns/{namespace}") != os.readlink(f"/proc/self/ns/{namespace}")
    return sandbox


@pytest.fixture
def sandbox(new_sandbox: Callable[[], Sandbox]) -> Sandbox:
    return new_sandbox()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A static program from C source: runs on the host and in any image alike."""
    directory = tmp_path_factory.mktemp("programs")

    def build(source: str) -> Path:
        program = directory / f"program-{abs(hash(source)):x}"
        if not program.exists():
            command = ["musl-gcc", "-static", "-O1", "-Wall", "-Werror", "-x", "c", "-", "-o", str(program)]
            subprocess.run(command, input=source.encode(), check=True)
        return program

    return build


@pytest.fixture
def secret() -> Iterator[Path]:
    """A file of the host that everybody may read and write, in a place that exists in every image too."""
    path = Path(f"/var/tmp/sandboxd-escape-secret-{os.getpid()}")  # each of the tests' processes has its own
    path.write_text("the host's secret")
    path.chmod(0o666)
    yield path
    path.unlink(missing_ok=True)
