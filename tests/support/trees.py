"""Trees with everything a file system can hold: made from a seed of choices, and described exactly."""

import contextlib
import os
import stat
import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

NOBODY = 0xFFFFFFFF
NAMES = [b"a", b"b", b"file", b"dir", b"\xff\xfe", b"sp ace", b".hidden", b"new\nline"]


def describe(root: Path | str, *, links: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything that can be told of a tree, by path: two trees are the same exactly if this is.

    `links`: which names are of one file, too.
    """
    top = os.fsencode(root)
    paths = [top]
    for directory, names, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in (*names, *files)]
    names_of: defaultdict[int, list[bytes]] = defaultdict(list)
    for path in sorted(paths) if links else ():
        names_of[os.lstat(path).st_ino].append(os.path.relpath(path, top))
    return {os.path.relpath(path, top): _describe(path, names_of) for path in paths}


def _describe(path: bytes, names_of: Mapping[int, list[bytes]]) -> tuple[Any, ...]:
    at = os.lstat(path)
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in _attributes(path)}
    # Not the count of links: an overlay counts names that a layer below has and it does not show.
    body: Any = names_of[at.st_ino]
    if stat.S_ISLNK(at.st_mode):
        body = [*body, os.readlink(path)]
    elif stat.S_ISREG(at.st_mode):
        body = [*body, at.st_size, _data(path, at.st_size)]
    return (at.st_mode, at.st_uid, at.st_gid, at.st_mtime_ns, at.st_rdev, attributes, body)


def _attributes(path: bytes) -> list[str]:
    # What overlayfs notes of where a file came from is not part of the file.
    hidden = ("overlay.origin", "overlay.impure", "overlay.uuid")
    return sorted(name for name in os.listxattr(path, follow_symlinks=False) if not name.endswith(hidden))


def _data(path: bytes, size: int) -> list[tuple[int, bytes]]:
    """The stretches that are no holes, so that a hole filled with zeros shows as a difference."""
    found = []
    with open(path, "rb") as file:
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            found.append((offset, os.pread(file.fileno(), end - offset, offset)))
            offset = end
    return found


class Scribbler:
    """Changes a tree at random, by whatever a program could do to it. `root`: it may also what only root may."""

    def __init__(self, top: Path, random: Random, *, root: bool) -> None:
        self.top = os.fsencode(top)
        self.random = random
        self.root = root

    def scribble(self, times: int) -> None:
        # fmt: off
        actions = [
            self.file, self.file, self.directory, self.directory, self.symlink, self.fifo, self.socket, self.sparse,
            self.link, self.link, self.mode, self.attribute, self.access, self.owner, self.time,
            self.remove, self.rename,
        ]
        # fmt: on
        for _ in range(times):
            action = self.random.choice(actions)
            with contextlib.suppress(OSError):
                action()

    def directory_path(self) -> bytes:
        return self.random.choice(sorted(path for path, _, _ in os.walk(self.top)))

    def fresh(self) -> bytes:
        return os.path.join(self.directory_path(), self.random.choice(NAMES) + b"%d" % self.random.randrange(3))

    def existing(self) -> bytes:
        found = [os.path.join(path, name) for path, names, files in os.walk(self.top) for name in (*names, *files)]
        if not found:
            raise FileNotFoundError
        return self.random.choice(sorted(found))

    def file(self) -> None:
        with open(self.fresh(), "xb") as file:
            file.write(self.random.randbytes(self.random.choice([0, 1, 100, 5000, 70_000])))

    def directory(self) -> None:
        os.mkdir(self.fresh())

    def symlink(self) -> None:
        os.symlink(self.random.choice([b"/etc/passwd", b"..", b"a", b"x" * 200]), self.fresh())

    def fifo(self) -> None:
        os.mkfifo(self.fresh())

    def socket(self) -> None:
        os.mknod(self.fresh(), stat.S_IFSOCK | 0o755)

    def sparse(self) -> None:
        with open(self.fresh(), "xb") as file:
            for offset in self.random.sample(range(0, 1 << 20, 1 << 16), 2):
                os.pwrite(file.fileno(), self.random.randbytes(9), offset)
            file.truncate(self.random.choice([1 << 20, 3 << 20]))

    def link(self) -> None:
        os.link(self.existing(), self.fresh(), follow_symlinks=False)

    def mode(self) -> None:
        path = self.existing()
        if not os.path.islink(path):
            os.chmod(path, self.random.choice([0o755, 0o700, 0o4755, 0o2775, 0o1777, 0o644]))

    def attribute(self) -> None:
        path = self.existing()
        if os.path.islink(path):
            return
        os.setxattr(path, self.random.choice(["user.a", "user.b"]), self.random.randbytes(20))
        if self.root and os.path.isfile(path):
            # VFS_CAP_REVISION_2, cap_net_bind_service
            os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))

    def access(self) -> None:
        """A list (acl(5)) that gives one more user and one more group rights; of directories also for what is new."""
        path = self.existing()
        kinds = ["access", "default"] if os.path.isdir(path) else ["access"]
        entries = [(1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (8, 5, 7), (16, 7, NOBODY), (32, 4, NOBODY)]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
        name = f"system.posix_acl_{self.random.choice(kinds)}"
        os.setxattr(path, name, value, follow_symlinks=False)

    def owner(self) -> None:
        if self.root:
            os.chown(
                self.existing(),
                self.random.choice([0, 1000, 65535]),
                self.random.choice([0, 7]),
                follow_symlinks=False,
            )

    def time(self) -> None:
        os.utime(self.existing(), ns=(1, self.random.randrange(2**60)), follow_symlinks=False)

    def remove(self) -> None:
        path = self.existing()
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)

    def rename(self) -> None:
        os.rename(self.existing(), self.fresh())
