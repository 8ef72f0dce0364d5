"""Writes a tree of files below one directory, from descriptions that strangers wrote.

Names are tuples of components, and every component is opened relative to the directory before it with O_NOFOLLOW:
no symbolic link is ever followed and no path string handed to the kernel, so a name cannot lead out of the tree
whatever was written into it before. That makes the order of a hostile archive's entries harmless.

Files carry canonical ids 0..65535. `id_base` is added when they are written: 0 for a daemon that is root, 1 for one
in its own user namespace, where id 0 is the person who runs it and a sandbox's id N is stored as N + 1.
"""

import contextlib
import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from sandboxd.trees.tarstream import ArchiveError, ArchiveTooLarge, show

MAX_DEPTH: Final = 256
MAX_ID: Final = 65535
MAX_NAME: Final = 255
MAX_PATH: Final = 4095
"""NAME_MAX and PATH_MAX - 1 of <linux/limits.h>: longer ones could be written from here but never be opened."""

Path = tuple[bytes, ...]
"""A name in the tree, by component; the empty tuple is its root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """Bounds on one tree. Sizes count holes too: a sparse file is as large as it will look."""

    size: int = 32 << 30
    """bytes in all its files"""
    entries: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    mode: int
    """permission bits, setuid, setgid and sticky"""
    uid: int
    gid: int
    mtime_ns: int
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    trusted_xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    """set whatever they are: the caller has judged them"""


IMPLIED_MODE: Final = 0o755
"""Of a directory that entries lie in but that has no entry of its own; it is root's, and as old as time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackSummary:
    entries: int
    size: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """what was left out on purpose, and how often"""


@dataclass(slots=True)
class TreeWriter:
    """Owns two descriptors at most: close it. Raises ArchiveError for what is refused, OSError from the disk."""

    root: int
    """descriptor of the directory to fill; stays the caller's"""
    id_base: int = 0
    limits: UnpackLimits = field(default_factory=UnpackLimits)
    _parent: tuple[Path, int] | None = None
    """the directory written to last, kept open: archives list directory by directory"""
    _late: dict[Path, Metadata] = field(default_factory=dict)
    _dropped: Counter[str] = field(default_factory=Counter)
    _entries: int = 0
    _size: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget_parent()

    def drop(self, what: str) -> None:
        """Count something that is left out on purpose."""
        self._count()
        self._dropped[what] += 1

    def directory(self, path: Path, metadata: Metadata, *, opaque: bytes | None = None) -> None:
        """`opaque`: the attribute by which an overlay is told to hide what lies below."""
        self._count()
        _check(path)
        descriptor = self._directory(path, create_last=True)
        try:
            self._describe(descriptor, path, metadata)
            if opaque is not None:
                os.setxattr(descriptor, opaque, b"y")
        finally:
            os.close(descriptor)
        self._late[path] = metadata

    def file(self, path: Path, metadata: Metadata, *, size: int, segments: Iterable[tuple[int, bytes]]) -> None:
        """`segments` are (offset, bytes); what they leave out is a hole."""
        self._count(size)
        parent, name = self._place(path, stat.S_ISREG)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
        try:
            for offset, data in segments:
                _pwrite_all(descriptor, data, offset)
            os.ftruncate(descriptor, size)
            self._describe(descriptor, path, metadata)
            for attribute, value in metadata.trusted_xattrs.items():
                os.setxattr(descriptor, attribute, value)
            os.utime(descriptor, ns=(metadata.mtime_ns, metadata.mtime_ns))
        finally:
            os.close(descriptor)

    def symlink(self, path: Path, metadata: Metadata, *, target: bytes) -> None:
        self._count()
        if not target or len(target) > MAX_PATH or b"\0" in target:
            raise ArchiveError(f"cannot unpack {_show(path)}: what its symbolic link points to is not a path")
        parent, name = self._place(path, stat.S_ISLNK)
        os.symlink(target, name, dir_fd=parent)
        self._own(name, parent, metadata)

    def hardlink(self, path: Path, *, target: Path) -> None:
        """Another name for a file written before. Links to symbolic links are made without following them."""
        self._count()
        if path == target:
            raise ArchiveError(f"cannot unpack {_show(path)}: it is a hard link to itself")
        if not target:
            raise ArchiveError(f"cannot unpack {_show(path)}: it is a hard link to the root directory")
        _check(target)
        source = self._directory(target[:-1])
        try:
            found = os.stat(target[-1], dir_fd=source, follow_symlinks=False)
            if not _may_have_names(found.st_mode):
                raise ArchiveError(f"cannot unpack {_show(path)}: it is a hard link to something other than a file")
            parent, name = self._place(path, _may_have_names)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise ArchiveError(
                f"cannot unpack {_show(path)}: it is a hard link to {_show(target)}, which was not unpacked before it"
            ) from None
        finally:
            os.close(source)

    def fifo(self, path: Path, metadata: Metadata) -> None:
        self._special(path, metadata, stat.S_IFIFO)

    def socket(self, path: Path, metadata: Metadata) -> None:
        """The name of a Unix socket, on which nobody listens."""
        self._special(path, metadata, stat.S_IFSOCK)

    def _special(self, path: Path, metadata: Metadata, kind: int) -> None:
        """None of them may be opened, so they are reached by name."""
        self._count()
        parent, name = self._place(path, lambda mode: stat.S_IFMT(mode) == kind)
        os.mknod(name, kind | 0o600, dir_fd=parent)
        self._own(name, parent, metadata)
        os.chmod(name, metadata.mode, dir_fd=parent)
        for attribute, value in metadata.trusted_xattrs.items():
            os.setxattr(b"/proc/self/fd/%d/%s" % (parent, name), attribute, value, follow_symlinks=False)

    def whiteout(self, path: Path, metadata: Metadata) -> None:
        """A name that an overlay hides; the one device that anybody may make."""
        self._count()
        parent, name = self._place(path, stat.S_ISCHR)
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        self._own(name, parent, metadata)

    def finish(self) -> UnpackSummary:
        """Set what would not have stood while directories were filled: times, and lists that files inherit."""
        for path, metadata in self._late.items():
            descriptor = self._directory(path)
            try:
                for name, value in metadata.trusted_xattrs.items():
                    os.setxattr(descriptor, name, value)
                os.utime(descriptor, ns=(metadata.mtime_ns, metadata.mtime_ns))
            finally:
                os.close(descriptor)
        return UnpackSummary(entries=self._entries, size=self._size, dropped=dict(self._dropped))

    # -- placing --------------------------------------------------------------------------------------------------

    def _count(self, size: int = 0) -> None:
        self._entries += 1
        self._size += size
        if self._entries > self.limits.entries:
            raise ArchiveTooLarge(f"cannot unpack the tree: it has more than {self.limits.entries} entries")
        if self._size > self.limits.size:
            raise ArchiveTooLarge(f"cannot unpack the tree: its files hold more than {self.limits.size} bytes")

    def _place(self, path: Path, replaceable: "_TypeTest") -> tuple[int, bytes]:
        """The open parent of `path` and the name in it, which is free.

        An archive may repeat an entry to update it, as `tar -r` does; one that changes what kind of thing a name
        is has no honest use, and is the usual way to slip a symbolic link under a later entry.
        """
        if not path:
            raise ArchiveError("cannot unpack the archive: its root is not a directory")
        _check(path)
        parent, name = self._open_parent(path[:-1]), path[-1]
        with contextlib.suppress(FileNotFoundError):
            if not replaceable(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise ArchiveError(f"cannot unpack {_show(path)}: it is there already, as another type of file")
            os.unlink(name, dir_fd=parent)
        return parent, name

    def _open_parent(self, path: Path) -> int:
        """A descriptor that stays this object's and open until the next call."""
        if self._parent is None or self._parent[0] != path:
            self._forget_parent()
            self._parent = (path, self._directory(path))
        return self._parent[1]

    def _forget_parent(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def _directory(self, path: Path, *, create_last: bool = False) -> int:
        """A new descriptor of the directory `path`, created with its ancestors where they are missing."""
        current = os.dup(self.root)
        try:
            for depth, name in enumerate(path, start=1):
                implied = not (create_last and depth == len(path))
                below = self._step(current, name, path[:depth], implied=implied)
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    def _step(self, parent: int, name: bytes, path: Path, *, implied: bool) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            if implied:
                self._count()
            os.mkdir(name, 0o700, dir_fd=parent)
        except OSError as error:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise
            raise ArchiveError(
                f"cannot unpack {_show(path)} as a directory: it is there already, as another type of file"
            ) from error
        if implied:
            self._ascribe(parent, name)
            self._late[path] = Metadata(mode=IMPLIED_MODE, uid=0, gid=0, mtime_ns=0)
        return os.open(name, flags, dir_fd=parent)

    # -- describing -----------------------------------------------------------------------------------------------

    def _ids(self, path: Path, metadata: Metadata) -> tuple[int, int]:
        if not 0 <= metadata.uid <= MAX_ID or not 0 <= metadata.gid <= MAX_ID:
            raise ArchiveError(
                f"cannot unpack {_show(path)}: its owner {metadata.uid}:{metadata.gid} is beyond the {MAX_ID} "
                "that a sandbox has ids for"
            )
        return metadata.uid + self.id_base, metadata.gid + self.id_base

    def _describe(self, descriptor: int, path: Path, metadata: Metadata) -> None:
        os.fchown(descriptor, *self._ids(path, metadata))
        os.fchmod(descriptor, metadata.mode)  # after chown, which clears setuid and setgid
        for name, value in metadata.xattrs.items():
            self._set_xattr(descriptor, path, name, value)

    def _ascribe(self, parent: int, name: bytes) -> None:
        """Describe a directory that was only implied. It is new and nobody else's, so its name is safe to use."""
        os.chown(name, self.id_base, self.id_base, dir_fd=parent)
        os.chmod(name, IMPLIED_MODE, dir_fd=parent)

    def _own(self, name: bytes, parent: int, metadata: Metadata) -> None:
        uid, gid = self._ids((name,), metadata)
        os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)
        times = (metadata.mtime_ns, metadata.mtime_ns)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _set_xattr(self, descriptor: int, path: Path, name: bytes, value: bytes) -> None:
        """Set it if it is the user's own. overlayfs's are refused: they redirect what a sandbox sees of its layers.

        The rest is dropped: capabilities mean nothing under no_new_privs, labels and ACLs speak of another machine.
        """
        if name.startswith((b"trusted.overlay.", b"user.overlay.")):
            raise ArchiveError(f"cannot unpack {_show(path)}: it carries {show(name)}, an attribute of overlayfs")
        namespace, _, rest = name.partition(b".")
        if namespace != b"user" or not rest or b"\0" in rest:
            self._dropped["extended attributes of the system"] += 1
            return
        try:
            os.setxattr(descriptor, name, value)
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise ArchiveError(
                    f"cannot unpack {_show(path)}: its attribute {show(name)} cannot be set: {error.strerror}"
                ) from error
            self._dropped["extended attributes that the disk cannot store"] += 1


class _TypeTest(Protocol):
    def __call__(self, mode: int, /) -> bool: ...


def _may_have_names(mode: int) -> bool:
    """Whether a file of this type may have several names here."""
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _check(path: Path) -> None:
    """Refuse what is not a name: this is the last line, whatever the caller made of the archive's strings."""
    for name in path:
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise ArchiveError(f"cannot unpack {_show(path)}: it is not a name inside the tree")
        if len(name) > MAX_NAME:
            raise ArchiveError(f"cannot unpack {_show(path)}: a name in it is longer than {MAX_NAME} bytes")
    if len(path) > MAX_DEPTH or sum(map(len, path)) + len(path) > MAX_PATH:
        raise ArchiveError(
            f"cannot unpack {_show(path)}: it is deeper than {MAX_DEPTH} directories or longer than {MAX_PATH} bytes"
        )


def _show(path: Path) -> str:
    return show(b"/".join(path)) or "/"


def _pwrite_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
