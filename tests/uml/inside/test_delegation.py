"""A daemon without root, in a cgroup that was delegated to its user, as by systemd's Delegate=yes."""

import io
import os
import pwd
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxd.kernel.cgroups import Cgroup
from tests.kernel.processes import empty
from tests.support import ordinary_user
from tests.support.daemon import Daemon

MIB = 1 << 20
DELEGATED = Path("/sys/fs/cgroup/delegated")

# Run by root, before the daemon's user is.
ENTER = ("sh", "-c", f'echo $$ >{DELEGATED}/cgroup.procs && exec "$@"', "sh")

IMPORT = """
import sys
from pathlib import Path
from sandboxd.model import Bind
from sandboxd.service.images.build import open_image_store
from sandboxd.service.images.store import ImageConfig
config = ImageConfig(user="user", workdir="/", binds=(Bind(source=Path("/usr"), target="/usr"),))
open_image_store(Path(sys.argv[1])).import_tar(sys.stdin.buffer, "small", config=config)
"""


@pytest.fixture(scope="module")
def user() -> pwd.struct_passwd:
    """The ordinary user of the tests, made anew: the host's may have its home on the host."""
    try:
        Path("/etc/shadow").read_bytes()
    except PermissionError:
        pytest.skip("makes a user, but the machine was started by one who may not read /etc/shadow: run as root")
    subprocess.run(["userdel", ordinary_user.NAME], check=False, stderr=subprocess.DEVNULL)
    ordinary_user.home()
    return pwd.getpwnam(ordinary_user.NAME)


@pytest.fixture(scope="module")
def small_image(user: pwd.struct_passwd) -> Path:
    """An image directory of the user's: this host's /usr, and an account. The base image takes minutes to unpack."""
    images = Path(user.pw_dir) / "images"
    with tempfile.TemporaryFile() as archive:
        archive.write(small_root())
        archive.seek(0)
        ordinary_user.run([sys.executable, "-c", IMPORT, str(images)], stdin=archive.fileno())
    return images


def small_root() -> bytes:
    """A root file system as a tar archive, with mount points for the rest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("dev", "etc", "proc", "tmp", "usr"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("bin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        for name, text in (("passwd", "user:x:1000:1000::/:/bin/sh\n"), ("group", "user:x:1000:\n")):
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def delegated_daemon(user: pwd.struct_passwd, small_image: Path) -> Iterator[Daemon]:
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+cpu +io +memory +pids")
    cgroup = Cgroup.create(DELEGATED)
    for path in (DELEGATED, DELEGATED / "cgroup.procs", DELEGATED / "cgroup.subtree_control"):
        os.chown(path, user.pw_uid, user.pw_gid)
    daemon = Daemon(ordinary_user.daemon_directory(), small_image, prefix=(*ENTER, *ordinary_user.prefix()))
    try:
        yield daemon.start()
    finally:
        daemon.sweep()
        empty(cgroup)
        cgroup.remove()


def test_limits_hold_without_root(delegated_daemon: Daemon) -> None:
    capabilities = delegated_daemon.call("GET", "/v1/capabilities").json
    assert capabilities["rootless"]
    # A disk limit takes the pool; tests/e2e/test_pool.py has one.
    assert capabilities["limits"] == {**dict.fromkeys(("memory", "swap", "pids", "cpu", "io"), True), "disk": False}
    limits = {"memory_bytes": 32 * MIB, "swap_bytes": 0, "pids": 20}
    sandbox = delegated_daemon.create(image="small", limits=limits)
    # A line that never ends: tail keeps it all.
    killed = delegated_daemon.shell(sandbox, "tail /dev/zero")
    assert (killed["oom_killed"], killed["exit_code"]) == (True, 137)
    refused = delegated_daemon.shell(sandbox, "while :; do sleep 600 & done")
    assert "fork" in refused["stderr"]
    assert (DELEGATED / "daemon" / "cgroup.procs").read_text().split()
