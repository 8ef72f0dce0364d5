"""sandboxctl as an ordinary user runs it, against that user's own daemon."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import LIMIT, PROGRAM, Ctl
from tests.support import ordinary_user
from tests.support.daemon import Daemon

DATA = os.urandom(300_000)


@dataclasses.dataclass(frozen=True)
class OrdinaryCtl(Ctl):
    def run(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
        command = [*ordinary_user.prefix(), *PROGRAM, *arguments]
        options = {"input": b"", **options}
        return subprocess.run(
            command, capture_output=True, env=self.env(), cwd="/", timeout=LIMIT, check=False, **options
        )  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def ctl(rootless_daemon: Daemon) -> Iterator[Ctl]:
    yield OrdinaryCtl(f"unix:{rootless_daemon.socket}")
    rootless_daemon.delete_all()


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of the user's."""
    made = ordinary_user.daemon_directory()
    yield made
    for path in sorted(made.rglob("*"), reverse=True):
        path.unlink()
    made.rmdir()


def test_the_whole_of_it(ctl: Ctl, place: Path) -> None:
    assert ctl.run("run", "sh", "-c", "exit 7").returncode == 7
    ctl.text("create", "--name", "work")
    assert ctl.text("ls", "-q").split() == [item["id"] for item in ctl.json("inspect", "work")]
    (place / "there").write_bytes(DATA)
    ctl.text("cp", str(place / "there"), "work:/tmp/file")
    ctl.text("cp", "work:/tmp/file", str(place / "back"))
    assert (place / "back").read_bytes() == DATA
    assert (place / "back").owner() == ordinary_user.NAME
    assert ctl.run("exec", "-i", "work", "--", "wc", "-c", input=DATA).stdout.split() == [b"300000"]
    ctl.text("snapshot", "create", "work", "--name", "good")
    ctl.text("exec", "work", "--", "rm", "/tmp/file")
    ctl.text("restore", "work", "good")
    assert "file" in ctl.text("fs", "ls", "work", "/tmp")
    command = ctl.text("exec", "-d", "work", "--", "sh", "-c", "echo logged").strip()
    assert ctl.text("logs", "-f", "work", command) == "logged\n"
    assert ctl.text("clone", "work", "--name", "other")
    assert len(ctl.text("rm", "work", "other").split()) == 2
    ctl.text("snapshot", "rm", "good")
    assert ctl.text("ls", "-q") == ""
