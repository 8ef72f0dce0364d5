"""An ordinary user of this machine with subordinate ids, made for the tests and kept between runs for its images."""

import contextlib
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

NAME = "sandboxd-test"


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A directory of the user's, which the rest of the path lets it reach."""
    ensure()
    directory = Path(pwd.getpwnam(NAME).pw_dir)
    as_user(["mkdir", "-p", str(directory / "daemons")])
    yield directory / "daemons"


def ensure() -> None:
    try:
        pwd.getpwnam(NAME)
    except KeyError:
        # useradd hands out subordinate ids by itself; a system user would get none.
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", NAME], check=True, capture_output=True)
    os.chmod(pwd.getpwnam(NAME).pw_dir, 0o755)


def as_user(command: list[str], **how: object) -> subprocess.CompletedProcess[bytes]:
    entry = pwd.getpwnam(NAME)
    return subprocess.run(
        command,
        check=True,
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        env={**os.environ, "HOME": entry.pw_dir, "USER": NAME},
        **how,  # type: ignore[call-overload]
    )


def images(built: Path) -> Path:
    """The user's image directory, with a copy of `base` that is made when root's has changed."""
    own = Path(pwd.getpwnam(NAME).pw_dir) / "images"
    source = built / "names.json"
    mark = own.parent / "images-of"
    if not mark.exists() or mark.read_text() != source.read_text():
        digest = json.loads(source.read_text())["base"]
        tree = subprocess.Popen(["tar", "-C", str(built / digest / "rootfs"), "-c", "."], stdout=subprocess.PIPE)
        as_user([sys.executable, "-c", _IMPORT, str(own), str(built / digest / "image.json")], stdin=tree.stdout)
        assert tree.wait() == 0
        mark.write_text(source.read_text())
    return own


_IMPORT = """
import sys
from pathlib import Path
from sandboxd.service.image_build import open_image_store
from sandboxd.service.images import ImageConfig
store = open_image_store(Path(sys.argv[1]))
config = ImageConfig(user="user", workdir="/home/user")
store.import_tar(sys.stdin.buffer, "base", config=config)
"""
