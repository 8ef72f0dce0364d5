"""An ordinary user of this machine with subordinate ids, made for the tests and kept between runs for its images."""

import contextlib
import fcntl
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sandboxd.kernel.userns import IDS_PER_RANGE

NAME = "sandboxd-test"
NAMES = ("base", "code-interpreter")
"""the images"""
CHECKOUT = Path(__file__).resolve().parents[2]


def home() -> Path:
    """A directory of the user's, which the rest of the path lets it reach. The user is made if it is not there."""
    with one_at_a_time():
        try:
            entry = pwd.getpwnam(NAME)
        except KeyError:
            # useradd hands out subordinate ids by itself; a system user would get none.
            command = ["useradd", "--create-home", "--shell", "/bin/bash", NAME]
            subprocess.run(command, check=True, capture_output=True)
            entry = pwd.getpwnam(NAME)
        os.chmod(entry.pw_dir, 0o755)
    return Path(entry.pw_dir)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Among the tests' processes, which all begin by wanting this user."""
    with open("/etc/passwd") as lock:  # who waited for the one without the user finds one with it
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def subordinate_ids() -> range:
    """The host ids of everything that runs in this user's sandboxes."""
    for line in Path("/etc/subuid").read_text().splitlines():
        owner, first, _ = line.split(":")
        if owner == NAME:
            return range(int(first), int(first) + IDS_PER_RANGE)
    return range(0)


def prefix() -> tuple[str, ...]:
    """What to put before a command so that it runs as this user, able to reach the checkout and the interpreter."""
    script = str(CHECKOUT / "tests" / "support" / "as_user.py")
    return (sys.executable, "-I", "-S", script, NAME, str(CHECKOUT), sys.prefix, sys.base_prefix, "--")


def run(command: list[str], *, stdin: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a command as this user, to its end. Raises: CalledProcessError."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run([*prefix(), *command], check=True, stdin=stdin, env=environment, cwd="/")


def daemon_directory() -> Path:
    """A fresh directory of this user's, for a daemon."""
    directory = Path(tempfile.mkdtemp(prefix="daemon-", dir=home()))
    entry = pwd.getpwnam(NAME)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    return directory


def images(built: Path) -> Path:
    """The user's image directory, with copies of the images that tests use, made again when root's have changed."""
    own = home() / "images"
    digests = json.loads((built / "names.json").read_text())
    with open(home() / "images.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests' other processes want them too
        for name in filter(digests.__contains__, NAMES):
            mark = home() / f"image-{name}-of"
            if not mark.exists() or mark.read_text() != digests[name]:
                _copy(built / digests[name] / "rootfs", own, name)
                mark.write_text(digests[name])
    return own


def _copy(root: Path, own: Path, name: str) -> None:
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tree:
        run([sys.executable, "-c", _IMPORT, str(own), name], stdin=tree.stdout.fileno() if tree.stdout else None)
    assert tree.returncode == 0


_IMPORT = """
import contextlib
import sys
from pathlib import Path
from sandboxd.errors import Conflict
from sandboxd.service.images.build import open_image_store
from sandboxd.service.images.store import ImageConfig
store = open_image_store(Path(sys.argv[1]))
config = ImageConfig(user="user", workdir="/home/user")
store.import_tar(sys.stdin.buffer, sys.argv[2], config=config)
for image in store.list():
    if not image.names:
        with contextlib.suppress(Conflict):  # a daemon of another run stands on it
            store.remove(image.digest)
"""
