"""The host image: this machine's own system under a small root of its own (rootfs/recipes/host says what is shown).

The tree that is stored holds what must differ from the host (accounts, hosts, home) and mount points for the rest.
The binds are to be mounted read-only and *without* an id map: root in the sandbox is then just another user of the
host's files, so what is private on the host stays private inside.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxd.errors import Unprocessable
from sandboxd.model import Bind
from sandboxd.service.images.recipes import HostRecipe
from sandboxd.service.images.store import ImageConfig
from sandboxd.trees.treewriter import Metadata, TreeWriter, UnpackSummary

_USER: Final = 1000
_DIRECTORIES: Final[tuple[tuple[str, int, int], ...]] = (
    # path, mode, owner
    ("", 0o755, 0),
    ("dev", 0o755, 0),
    ("etc", 0o755, 0),
    ("home", 0o755, 0),
    ("home/user", 0o755, _USER),
    ("media", 0o755, 0),
    ("mnt", 0o755, 0),
    ("opt", 0o755, 0),
    ("opt/sandbox", 0o755, 0),
    ("opt/sandbox/bin", 0o755, 0),
    ("proc", 0o755, 0),
    ("root", 0o700, 0),
    ("run", 0o755, 0),
    ("srv", 0o755, 0),
    ("sys", 0o755, 0),
    ("tmp", 0o1777, 0),
    ("var", 0o755, 0),
    ("var/cache", 0o755, 0),
    ("var/lib", 0o755, 0),
    ("var/log", 0o755, 0),
    ("var/tmp", 0o1777, 0),
)
_FILES: Final = {
    "etc/group": "root:x:0:\nsudo:x:27:user\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hostname": "sandbox\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "user:x:1000:1000:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/resolv.conf": "",
}
_SYSTEM_ROOTS: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
"""Links into /usr on a merged system, directories of their own on an older one."""


def host_config(recipe: HostRecipe) -> ImageConfig:
    """The image's configuration: what is bound, and what of it is covered."""
    roots = [Path(path) for path in recipe.binds]
    roots += [path for name in _SYSTEM_ROOTS if (path := Path("/", name)).is_dir() and not path.is_symlink()]
    for root in roots:
        if not root.is_dir():
            raise Unprocessable(f"cannot make a host image: {root} is not a directory here", kind="cannot_build")
    hidden = {path for path in recipe.hidden if Path(path).is_dir()}
    for root in roots:
        hidden.update(_closed_directories(root))
    return ImageConfig(
        user=recipe.config.user,
        workdir=recipe.config.workdir,
        env=recipe.config.env,
        binds=tuple(Bind(source=root, target=str(root)) for root in roots),
        hidden=tuple(sorted(hidden)),
    )


def _closed_directories(root: Path) -> Iterator[str]:
    """Directories that not everybody may enter and list. Nothing below them needs to be looked at."""
    for directory, names, _ in os.walk(root):
        closed = [name for name in names if _is_closed(f"{directory}/{name}")]
        for name in closed:
            names.remove(name)
            yield f"{directory}/{name}"


def _is_closed(path: str) -> bool:
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) and mode & 0o005 != 0o005


def write_host_root(root: int, recipe: HostRecipe, *, id_base: int) -> UnpackSummary:
    """Write the stored part of the image into the empty directory open as `root`."""
    with TreeWriter(root, id_base=id_base) as writer:
        for path, mode, owner in _DIRECTORIES:
            writer.directory(_parts(path), _metadata(mode, owner))
        for path, text in _FILES.items():
            _write_file(writer, path, text.encode())
        for name in _SYSTEM_ROOTS:
            _write_system_root(writer, Path("/", name))
        for path in recipe.binds:
            writer.directory(_parts(path), _metadata(0o755))
        for pattern in recipe.copy_:
            for found in sorted(Path("/").glob(pattern.lstrip("/"))):
                _copy(writer, found)
        writer.symlink(_parts("opt/sandbox/bin/sudo"), _metadata(0o777), target=b"/dev/sandbox-init")
        return writer.finish()


def _write_system_root(writer: TreeWriter, path: Path) -> None:
    if path.is_symlink():
        writer.symlink(_parts(str(path)), _metadata(0o777), target=os.fsencode(os.readlink(path)))
    elif path.is_dir():
        writer.directory(_parts(str(path)), _metadata(0o755))


def _copy(writer: TreeWriter, found: Path) -> None:
    """A link, or a file that everybody may read. Others are not for a sandbox; directories come with their files."""
    mode = found.lstat().st_mode
    if stat.S_ISLNK(mode):
        writer.symlink(_parts(str(found)), _metadata(0o777), target=os.fsencode(os.readlink(found)))
    elif stat.S_ISREG(mode) and mode & 0o004:
        _write_file(writer, str(found), found.read_bytes(), mode & 0o755)


def _write_file(writer: TreeWriter, path: str, contents: bytes, mode: int = 0o644) -> None:
    writer.file(_parts(path), _metadata(mode), size=len(contents), segments=((0, contents),))


def _parts(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/") if part)


def _metadata(mode: int, owner: int = 0) -> Metadata:
    return Metadata(mode=mode, uid=owner, gid=owner, mtime_ns=0)
