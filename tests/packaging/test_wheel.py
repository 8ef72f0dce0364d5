"""The wheel carries everything: installed where no checkout is, the daemon starts and makes sandboxes."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxd.service.images.recipes import recipe_directories
from tests.conftest import WHOSE, daemon_as_root, daemon_as_user
from tests.support import ordinary_user
from tests.support.daemon import CHECKOUT, Daemon

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, readable by everybody."""

    wheel: Path
    prefix: Path

    def program(self, name: str) -> str:
        return str(self.prefix / "bin" / name)


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    top = Path(tempfile.mkdtemp(prefix="sandboxd-test-wheel-"))
    try:
        top.chmod(0o755)
        # A copy, because a build leaves its traces in the tree; and without what git ignores, as a fresh clone is.
        source = top / "source"
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (CHECKOUT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(CHECKOUT / name, source / name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(top / "dist"), str(source)])
        (wheel,) = (top / "dist").glob("*.whl")
        prefix = top / "environment"
        venv.create(prefix, with_pip=False, symlinks=True)
        _run([*pip, "--python", str(prefix / "bin" / "python"), "install", "--no-deps", str(wheel)])
        # The dependencies of the tests' own environment, but not its editable sandboxd: that is found by a .pth file,
        # and those are read in the first directory only.
        (site,) = prefix.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        yield Installed(wheel, prefix)
    finally:
        shutil.rmtree(top)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_for_this_processor_and_holds_what_the_checkout_has(installed: Installed) -> None:
    assert installed.wheel.name.endswith(f"-py3-none-linux_{os.uname().machine}.whl")
    with zipfile.ZipFile(installed.wheel) as archive:
        held = {name.partition(".data/data/share/sandboxd/")[2]: name for name in archive.namelist()}
        wanted = [*(CHECKOUT / "seccomp").glob("*.json"), CHECKOUT / "rootfs/init/build/sandbox-init"]
        for directory in recipe_directories():
            wanted += [path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert len(wanted) > 10
        for path in wanted:
            assert str(path.relative_to(CHECKOUT)) in held, path
        modules = {name for name in archive.namelist() if name.startswith("sandboxd/") and name.endswith(".py")}
    assert modules == {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "sandboxd").rglob("*.py")}


@pytest.mark.parametrize("whose", WHOSE)
def test_daemon_and_client_work_where_no_checkout_is(
    whose: str, installed: Installed, image_dir: Path, request: pytest.FixtureRequest
) -> None:
    if whose == WHOSE[0]:
        daemon = daemon_as_root(image_dir)
        prefix: tuple[str, ...] = ()
    else:
        daemon = daemon_as_user(request.getfixturevalue("user_image_dir"))
        prefix = ordinary_user.prefix()
    daemon.interpreter = installed.program("python")
    try:
        daemon.start()
        ctl = [*prefix, installed.program("sandboxctl"), "--url", f"unix:{daemon.socket}"]
        assert _run([*ctl, "run", "--", "uname", "-s"]) == "Linux\n"
        loaded = Path(f"/proc/{daemon.pid}/environ").read_bytes()
        assert b"PYTHONPATH" not in loaded
        assert str(installed.prefix) in _files_of(daemon)
        checked = _run([*prefix, installed.program("sandboxd"), "check"])
        assert f"{installed.prefix}/share/sandboxd/seccomp/default.json" in checked
    finally:
        daemon.sweep()


def _files_of(daemon: Daemon) -> str:
    """Command lines of the daemon's processes, its fork server among them."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    return " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in (daemon.pid, *children))
