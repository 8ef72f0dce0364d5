"""Copies a directory of the host into a new tree, under the policy that archives get (see archive)."""

import os
import stat
from collections.abc import Callable, Iterator

from sandboxd.trees.archive import drop_device
from sandboxd.trees.tarstream import ArchiveError, show
from sandboxd.trees.treewriter import Metadata, Path, TreeWriter, UnpackLimits, UnpackSummary


def copy_tree(
    source: int,
    root: int,
    *,
    id_base: int = 0,
    canonical_id: Callable[[int], int] = int,
    limits: UnpackLimits | None = None,
) -> UnpackSummary:
    """Copy the directory open as `source` into the empty directory open as `root`, under the archive's policy.

    `canonical_id` turns an owner found on disk into one of the image's. Stays on one file system: what is mounted
    inside becomes an empty directory, so a copy of / holds neither /proc nor the state of a running system.
    """
    with TreeWriter(root, id_base=id_base, limits=limits or UnpackLimits()) as writer:
        _TreeCopy(writer, canonical_id, os.fstat(source).st_dev).copy(source)
        return writer.finish()


class _TreeCopy:
    def __init__(self, writer: TreeWriter, canonical_id: Callable[[int], int], device: int) -> None:
        self._writer = writer
        self._canonical_id = canonical_id
        self._device = device
        self._linked: dict[int, Path] = {}
        """where the first name of each file with several was written, by inode"""

    def copy(self, directory: int, path: Path = ()) -> None:
        self._writer.directory(path, self._metadata(os.fstat(directory), directory))
        for name in sorted(os.fsencode(entry) for entry in os.listdir(directory)):
            self._copy_entry(directory, name, (*path, name))

    def _copy_entry(self, directory: int, name: bytes, path: Path) -> None:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (first := self._linked.get(found.st_ino)) is not None:
            self._writer.hardlink(path, target=first)
            return
        if found.st_nlink > 1 and (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            self._linked[found.st_ino] = path
        match stat.S_IFMT(found.st_mode):
            case stat.S_IFDIR:
                self._copy_directory(directory, name, path)
            case stat.S_IFREG:
                self._copy_file(directory, name, path)
            case stat.S_IFLNK:
                target = os.readlink(name, dir_fd=directory)
                self._writer.symlink(path, self._metadata(found), target=target)
            case stat.S_IFIFO:
                self._writer.fifo(path, self._metadata(found))
            case stat.S_IFSOCK:
                self._writer.drop("sockets")
            case _:
                drop_device(self._writer, path, "device")

    def _copy_directory(self, directory: int, name: bytes, path: Path) -> None:
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            found = os.fstat(below)
            if found.st_dev == self._device:
                self.copy(below, path)
            else:
                self._writer.directory(path, Metadata(mode=0o755, uid=0, gid=0, mtime_ns=found.st_mtime_ns))
                self._writer.drop("contents of mount points")
        finally:
            os.close(below)

    def _copy_file(self, directory: int, name: bytes, path: Path) -> None:
        # O_NONBLOCK: should the name have become a FIFO since, opening it must not wait for a writer.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ArchiveError(f"cannot copy {show(b'/'.join(path))}: it changed while it was read")
            metadata = self._metadata(found, descriptor)
            self._writer.file(path, metadata, size=found.st_size, segments=_regions(descriptor, found.st_size))
        finally:
            os.close(descriptor)

    def _metadata(self, found: os.stat_result, descriptor: int | None = None) -> Metadata:
        return Metadata(
            mode=stat.S_IMODE(found.st_mode),
            uid=self._canonical_id(found.st_uid),
            gid=self._canonical_id(found.st_gid),
            mtime_ns=found.st_mtime_ns,
            xattrs={} if descriptor is None else _xattrs(descriptor),
        )


def _xattrs(descriptor: int) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.getxattr(descriptor, name) for name in os.listxattr(descriptor)}


def _regions(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """A file's data as (offset, bytes), without its holes."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = min(size, os.lseek(descriptor, offset, os.SEEK_HOLE))
        while offset < end:
            data = os.pread(descriptor, min(1 << 18, end - offset), offset)
            if not data:
                return
            yield offset, data
            offset += len(data)
