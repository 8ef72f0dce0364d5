"""Directories as tar archives: packed here for a sandbox, unpacked here from one.

What comes out of a sandbox is hostile. The reader is the daemon's strict one, not the standard library's, whose
extraction filters are missing from Python 3.11.2 (Debian 12) and could be escaped before 3.11.13 (CVE-2025-4517).
Every name is opened component by component from the directory to fill, without following links, so no order of
entries leads out of it. Symbolic links are kept as they are: nothing here ever follows one.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from sandboxd.trees.tarstream import ArchiveError, ByteSource, EntryType, TarEntry, TarReader

PIECE = 256 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN_TYPES = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)

Skipped = Counter[str]
"""What was left out, by kind"""


def pack(directory: Path, target: IO[bytes]) -> Skipped:
    """Write an archive of what is in `directory`, without its owners: inside, everything is the copying user's."""
    skipped: Skipped = Counter()

    def choose(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if member.type not in _PLAIN_TYPES:
            skipped["special files"] += 1
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(fileobj=target, mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT) as archive:
        archive.add(directory, arcname=".", filter=choose)
    return skipped


def unpack(source: ByteSource, directory: Path) -> Skipped:
    """Write an archive's entries below an existing directory. Raises: ArchiveError, OSError."""
    with TreeFiller(directory) as filler:
        reader = TarReader(source)
        for entry in reader:
            filler.add(entry, reader)
        return filler.skipped


class TreeFiller:
    """Owns: a descriptor of the directory, and one of the directory inside that was written to last."""

    def __init__(self, directory: Path) -> None:
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent: tuple[tuple[bytes, ...], int] = ((), os.dup(self._root))
        self._directory_modes: dict[tuple[bytes, ...], int] = {}
        self._permissions = 0o777 & ~current_umask()
        self.skipped: Skipped = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._set_directory_modes()
        finally:
            os.close(self._parent[1])
            os.close(self._root)

    def add(self, entry: TarEntry, reader: TarReader) -> None:
        path = _components(entry.path)
        if entry.type is EntryType.DIRECTORY:
            self._open_parent(path)
            self._directory_modes[path] = entry.mode
        elif not path:
            raise ArchiveError("cannot unpack the archive: it is of a file, not of a directory")
        elif entry.type is EntryType.FILE:
            self._write_file(path, entry, reader)
        elif entry.type is EntryType.SYMLINK:
            self._make(path, lambda name, parent: os.symlink(entry.link, name, dir_fd=parent))
        elif entry.type is EntryType.HARDLINK:
            self._link(path, _components(entry.link))
        else:
            self.skipped["special files"] += 1

    def _write_file(self, path: tuple[bytes, ...], entry: TarEntry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        made = self._make(path, lambda name, parent: os.open(name, flags, 0o600, dir_fd=parent))
        with open(made, "wb", buffering=0) as file:
            for offset, data in reader.segments():
                file.seek(offset)
                file.write(data)
            file.truncate(entry.size)
            os.fchmod(file.fileno(), self._mode(entry.mode))
            os.utime(file.fileno(), ns=(entry.mtime_ns, entry.mtime_ns))

    def _link(self, path: tuple[bytes, ...], target: tuple[bytes, ...]) -> None:
        source = self._walk(target[:-1])
        try:
            self._make(
                path,
                lambda name, parent: os.link(
                    target[-1], name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False
                ),
            )
        finally:
            os.close(source)

    def _make(self, path: tuple[bytes, ...], make: Callable[[bytes, int], Any]) -> Any:
        """Make a new entry, in place of any that is there and no directory."""
        parent = self._open_parent(path[:-1])
        try:
            return make(path[-1], parent)
        except FileExistsError:
            os.unlink(path[-1], dir_fd=parent)
            return make(path[-1], parent)

    def _open_parent(self, path: tuple[bytes, ...]) -> int:
        """Archives list directory by directory, so the last one is kept open."""
        if self._parent[0] != path:
            opened = self._walk(path)
            os.close(self._parent[1])
            self._parent = (path, opened)
        return self._parent[1]

    def _walk(self, path: tuple[bytes, ...]) -> int:
        """Open a directory inside, making what is missing on the way. The caller closes it."""
        current = os.dup(self._root)
        try:
            for name in path:
                try:
                    following = os.open(name, _DIRECTORY, dir_fd=current)
                except FileNotFoundError:
                    os.mkdir(name, dir_fd=current)
                    following = os.open(name, _DIRECTORY, dir_fd=current)
                os.close(current)
                current = following
        except OSError as error:
            os.close(current)
            error.filename = os.fsdecode(b"/".join(path))
            raise
        return current

    def _set_directory_modes(self) -> None:
        # Last, and the deepest first: a directory may be read-only.
        for path, mode in sorted(self._directory_modes.items(), reverse=True):
            descriptor = self._walk(path)
            try:
                os.fchmod(descriptor, self._mode(mode))
            finally:
                os.close(descriptor)

    def _mode(self, mode: int) -> int:
        """Permissions only: no setuid bit comes out of a sandbox."""
        return mode & self._permissions


def current_umask() -> int:
    """umask(2) tells it only by changing it, under the feet of other threads."""
    status = Path("/proc/self/status").read_text(errors="replace")
    return int(status.partition("\nUmask:")[2].split(maxsplit=1)[0], 8)


def _components(path: bytes) -> tuple[bytes, ...]:
    """Raises: ArchiveError for a path that leads upwards; a leading slash is ignored, as tar does."""
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ArchiveError(f"cannot unpack the archive: the path {os.fsdecode(path)!r} leads out of it")
    return parts
