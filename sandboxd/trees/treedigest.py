"""Names a tree of files by its contents.

The digest is SHA-256 over one record per entry, sorted by path as bytes: path, type, mode, canonical owner, size,
contents, link target, device number and extended attributes, every field preceded by its length. Times are left out:
they say when an image was made, not what is in it. Names of one file count as such: the first in order
carries the contents and the others point to it.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeDigest:
    sha256: bytes
    size: int
    """bytes in all files, each counted once"""
    entries: int


def digest_tree(root: int, *, id_base: int = 0) -> TreeDigest:
    """The digest of the directory open as `root`, which nobody may be changing."""
    return _Digester(id_base).digest(root)


class _Digester:
    def __init__(self, id_base: int) -> None:
        self._id_base = id_base
        self._hash = hashlib.sha256()
        self._linked: dict[int, bytes] = {}
        self._size = 0
        self._entries = 0

    def digest(self, root: int) -> TreeDigest:
        self._directory(root, b".")
        return TreeDigest(sha256=self._hash.digest(), size=self._size, entries=self._entries)

    def _record(self, *fields: bytes | int) -> None:
        self._hash.update(b"%d;" % len(fields))
        for value in fields:
            data = value if isinstance(value, bytes) else b"%d" % value
            self._hash.update(b"%d:" % len(data))
            self._hash.update(data)
        self._entries += 1

    def _describe(self, path: bytes, found: os.stat_result) -> tuple[bytes | int, ...]:
        owner = (found.st_uid - self._id_base, found.st_gid - self._id_base)
        return (path, stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode), *owner)

    def _directory(self, directory: int, path: bytes) -> None:
        self._record(*self._describe(path, os.fstat(directory)), *_xattrs(directory))
        for name in sorted(map(os.fsencode, os.listdir(directory))):
            self._entry(directory, name, path + b"/" + name)

    def _entry(self, parent: int, name: bytes, path: bytes) -> None:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        described = self._describe(path, found)
        match stat.S_IFMT(found.st_mode):
            case stat.S_IFDIR:
                with _opened(parent, name, os.O_DIRECTORY) as below:
                    self._directory(below, path)
            case stat.S_IFREG if found.st_ino in self._linked:
                self._record(*described, self._linked[found.st_ino])
            case stat.S_IFREG:
                if found.st_nlink > 1:
                    self._linked[found.st_ino] = path
                self._file(parent, name, described, found.st_size)
            case stat.S_IFLNK:
                self._record(*described, os.readlink(name, dir_fd=parent))
            case _:
                self._record(*described, found.st_rdev)

    def _file(self, parent: int, name: bytes, described: tuple[bytes | int, ...], size: int) -> None:
        with _opened(parent, name, os.O_NONBLOCK) as descriptor:
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                contents = hashlib.file_digest(file, "sha256")
            self._record(*described, size, contents.digest(), *_xattrs(descriptor))
        self._size += size


@contextmanager
def _opened(parent: int, name: bytes, flag: int) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | flag, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _xattrs(descriptor: int) -> list[bytes]:
    """Names and values in turn, of the attributes that trees carry (see treewriter)."""
    names = sorted(name for name in os.listxattr(descriptor) if name.startswith("user."))
    return [part for name in names for part in (os.fsencode(name), os.getxattr(descriptor, name))]
