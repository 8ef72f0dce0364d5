"""Copies a sandbox's writable tree exactly, or lays one over another as overlayfs would show them together.

Exactly: contents with their holes, names of one file as such, owners, modes, times to the nanosecond, every extended
attribute (overlayfs's own among them), symbolic links, FIFOs, sockets, whiteouts. Contents are shared where the file
system can (FICLONE) and copied inside the kernel where it cannot.

The tree was written by strangers. Every name is one component opened relative to its directory with O_NOFOLLOW, and
what is opened is compared with what was seen, so nothing leads out of the tree even if somebody still changes it. The
walk keeps its own stack: a tree as deep as a path can name costs descriptors, not recursion.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

MAX_DEPTH: Final = 2048
"""PATH_MAX / 2: nothing deeper has a path that a program could use."""
_CHUNK: Final = 64 << 20
"""bytes that copy_file_range is asked for at once: between two of them the copy can be cancelled"""
_FICLONE: Final = 0x40049409
"""_IOW(0x94, 9, int) of <linux/fs.h>"""
_NO_REFLINK: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_LINKS: Final = ".links"

WHITEOUT: Final = os.makedev(0, 0)
OPAQUE: Final = "overlay.opaque"
"""preceded by `trusted.`, or by `user.` where the overlay is mounted with userxattr"""


class TreeRefused(Exception):
    """The tree holds what cannot be kept: a device node, or directories without end."""


@dataclass(slots=True)
class CloneSummary:
    entries: int = 0
    shared: int = 0
    """bytes of files that now share their blocks with the original's"""
    copied: int = 0
    """bytes that had to be copied"""
    skipped: int = 0
    """names that were gone, or something else, when they were opened: the tree was not at rest"""


@dataclass(slots=True)
class _Frame:
    """One directory being walked."""

    source: int
    target: int
    names: Iterator[str]
    fresh: bool
    """the target was made just now and is empty"""
    found: os.stat_result


def clone_tree(
    source: int, target: int, *, scratch: int, userxattr: bool = False, check: Callable[[], None] = lambda: None
) -> CloneSummary:
    """Copy the directory open as `source` into the empty one open as `target`; both stay the caller's.

    `scratch` is an empty directory on the target's file system, empty again afterwards. `check` is called once per
    entry and may raise, which ends the copy half way. Raises: TreeRefused, OSError.
    """
    return _TreeClone(scratch, userxattr, check).run(source, target, fresh=True)


def lay_over(
    source: int, target: int, *, scratch: int, userxattr: bool = False, check: Callable[[], None] = lambda: None
) -> CloneSummary:
    """Lay the layer `source` over the layer `target`: what overlayfs would show of the two becomes one layer.

    Whiteouts stay, since there are layers below these two.
    """
    return _TreeClone(scratch, userxattr, check).run(source, target, fresh=False)


class _TreeClone:
    def __init__(self, scratch: int, userxattr: bool, check: Callable[[], None]) -> None:
        self._scratch = scratch
        self._opaque = ("user." if userxattr else "trusted.") + OPAQUE
        self._check = check
        self._reflink = True
        self._linked: dict[int, int] = {}
        """names of a file still to come, by inode; its copy waits in the scratch directory meanwhile"""
        self._summary = CloneSummary()

    def run(self, source: int, target: int, *, fresh: bool) -> CloneSummary:
        stack = [_open_frame(os.dup(source), os.dup(target), fresh=fresh)]
        try:
            while stack:
                self._check()
                self._step(stack)
        finally:
            for frame in stack:
                _close_frame(frame)
            self._forget_links()
        return self._summary

    def _step(self, stack: list[_Frame]) -> None:
        frame = stack[-1]
        name = next(frame.names, None)
        if name is None:
            self._finish_directory(stack.pop())
            return
        try:
            below = self._entry(frame, name)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._summary.skipped += 1
            return
        if below is not None:
            stack.append(below)
            if len(stack) > MAX_DEPTH:
                raise TreeRefused(f"its directories lie more than {MAX_DEPTH} deep")

    def _entry(self, frame: _Frame, name: str) -> _Frame | None:
        """Copy one name; a directory's own names are left to the frame returned."""
        found = os.stat(name, dir_fd=frame.source, follow_symlinks=False)
        self._summary.entries += 1
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            return self._directory(frame, name, found)
        if kind == stat.S_IFBLK or (kind == stat.S_IFCHR and found.st_rdev != WHITEOUT):
            raise TreeRefused(f"{name!r} in it is a device node")
        if not frame.fresh:
            _remove(frame.target, name)
        if found.st_nlink > 1 and self._link_again(frame, name, found):
            return None
        if kind == stat.S_IFREG:
            self._file(frame, name, found)
        else:
            self._special(frame, name, found)
        if found.st_nlink > 1:
            self._keep_link(frame, name, found)
        return None

    # -- directories ----------------------------------------------------------------------------------------------

    def _directory(self, frame: _Frame, name: str, found: os.stat_result) -> _Frame:
        source = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=frame.source)
        try:
            fresh, hides = (True, False) if frame.fresh else self._clear_way(frame, name, source)
            if fresh:
                os.mkdir(name, 0o700, dir_fd=frame.target)
            target = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=frame.target)
        except BaseException:
            os.close(source)
            raise
        if hides:
            os.setxattr(target, self._opaque, b"y")
        return _open_frame(source, target, fresh=fresh)

    def _clear_way(self, frame: _Frame, name: str, source: int) -> tuple[bool, bool]:
        """Remove what this directory replaces: (whether it begins anew, whether it must then hide what lies below).

        A directory over a whiteout or a file is not merged with whatever lies below that.
        """
        try:
            there = os.stat(name, dir_fd=frame.target, follow_symlinks=False)
        except FileNotFoundError:
            return True, False
        if stat.S_ISDIR(there.st_mode) and self._opaque not in os.listxattr(source):
            return False, False
        _remove(frame.target, name)
        return True, True

    def _finish_directory(self, frame: _Frame) -> None:
        """Attributes, and last of all the times, which writing into it has changed."""
        try:
            _copy_attributes(frame.source, frame.target, frame.found, keep=self._opaque)
        finally:
            _close_frame(frame)

    # -- everything else ------------------------------------------------------------------------------------------

    def _file(self, frame: _Frame, name: str, found: os.stat_result) -> None:
        # O_NONBLOCK: should the name have become a FIFO since, opening it must not wait for a writer.
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=frame.source)
        try:
            opened = os.fstat(source)
            if opened.st_ino != found.st_ino or not stat.S_ISREG(opened.st_mode):
                raise FileNotFoundError(errno.ENOENT, "it was replaced while it was copied", name)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            target = os.open(name, flags, 0o600, dir_fd=frame.target)
            try:
                self._contents(source, target, opened.st_size)
                _copy_attributes(source, target, opened)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _contents(self, source: int, target: int, size: int) -> None:
        if size and self._reflink:
            try:
                fcntl.ioctl(target, _FICLONE, source)
            except OSError as error:
                if error.errno not in _NO_REFLINK:
                    raise
                self._reflink = False
            else:
                self._summary.shared += size
                return
        self._copy_data(source, target, size)

    def _copy_data(self, source: int, target: int, size: int) -> None:
        os.ftruncate(target, size)
        for start, end in _data(source, size):
            while start < end:
                self._check()
                done = os.copy_file_range(source, target, min(_CHUNK, end - start), start, start)
                if done == 0:
                    return
                start += done
                self._summary.copied += done

    def _special(self, frame: _Frame, name: str, found: os.stat_result) -> None:
        """A symbolic link, FIFO, socket or whiteout. None of them may be opened, so they are reached by name."""
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=frame.source), name, dir_fd=frame.target)
        else:
            os.mknod(name, found.st_mode, found.st_rdev, dir_fd=frame.target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=frame.target, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=frame.target)
        before, after = f"/proc/self/fd/{frame.source}/{name}", f"/proc/self/fd/{frame.target}/{name}"
        attributes = os.listxattr(before, follow_symlinks=False)
        for attribute in set(os.listxattr(after, follow_symlinks=False)) - set(attributes):  # the directory's list
            os.removexattr(after, attribute, follow_symlinks=False)
        for attribute in attributes:
            value = os.getxattr(before, attribute, follow_symlinks=False)
            os.setxattr(after, attribute, value, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=frame.target, follow_symlinks=False)

    # -- files with several names ---------------------------------------------------------------------------------

    def _link_again(self, frame: _Frame, name: str, found: os.stat_result) -> bool:
        left = self._linked.get(found.st_ino)
        if left is None:
            return False
        kept = str(found.st_ino)
        os.link(kept, name, src_dir_fd=self._scratch, dst_dir_fd=frame.target, follow_symlinks=False)
        if left == 1:
            os.unlink(kept, dir_fd=self._scratch)
            del self._linked[found.st_ino]
        else:
            self._linked[found.st_ino] = left - 1
        return True

    def _keep_link(self, frame: _Frame, name: str, found: os.stat_result) -> None:
        """A name in the scratch directory, by which later names can be linked wherever this one lies by then."""
        kept = str(found.st_ino)
        os.link(name, kept, src_dir_fd=frame.target, dst_dir_fd=self._scratch, follow_symlinks=False)
        self._linked[found.st_ino] = found.st_nlink - 1

    def _forget_links(self) -> None:
        """Names that never came: they lie outside the tree, in overlayfs's work directory perhaps."""
        for inode in self._linked:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(str(inode), dir_fd=self._scratch)


def _open_frame(source: int, target: int, *, fresh: bool) -> _Frame:
    try:
        return _Frame(source, target, iter(os.listdir(source)), fresh, os.fstat(source))
    except BaseException:
        os.close(source)
        os.close(target)
        raise


def _close_frame(frame: _Frame) -> None:
    os.close(frame.source)
    os.close(frame.target)


def copy_directory_attributes(source: int, target: int) -> None:
    """Owner, mode, times and extended attributes of one open directory for another."""
    _copy_attributes(source, target, os.fstat(source))


def _copy_attributes(source: int, target: int, found: os.stat_result, *, keep: str = "") -> None:
    """In the order in which the kernel lets them stand: chown clears setuid and capabilities."""
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    names = os.listxattr(source)
    for name in set(os.listxattr(target)) - {*names, keep}:
        os.removexattr(target, name)
    for name in names:
        os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file that are no holes."""
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = min(size, os.lseek(descriptor, offset, os.SEEK_HOLE))
        yield offset, end
        offset = end


def _remove(parent: int, name: str) -> None:
    """Remove a name with all that lies below it, if there is one. Without recursion, as the walk itself."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        _remove_directory(parent, name)


def _remove_directory(parent: int, name: str) -> None:
    stack = [(os.dup(parent), name)]
    try:
        while stack:
            parent, name = stack[-1]
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            directory = _empty_of_files(below)
            if directory is not None:
                stack.append((below, directory))
                continue
            os.close(below)
            os.rmdir(name, dir_fd=parent)
            os.close(stack.pop()[0])
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)


def _empty_of_files(directory: int) -> str | None:
    """Remove what is no directory; the first directory found, or None."""
    for name in os.listdir(directory):
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            return name
    return None
