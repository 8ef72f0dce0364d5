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
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

from sandboxd.trees.redirects import REDIRECT, Path, locate, opened_below, redirects_of, set_lower

MAX_DEPTH: Final = 2048
"""PATH_MAX / 2: nothing deeper has a path that a program could use."""
_CHUNK: Final = 64 << 20
"""bytes that copy_file_range is asked for at once: between two of them the copy can be cancelled"""
_FICLONE: Final = 0x40049409
"""_IOW(0x94, 9, int) of <linux/fs.h>"""
_NO_REFLINK: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
_LINKS: Final = ".links"
_WHOLE: Final = ".whole"
_WAITING: Final = "renamed-"

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
    place: Path
    """path from the top of the tree"""
    covers: bool
    """layers are merged, and nothing below them shows in the directory that they become: it needs no whiteouts, which
    overlayfs would list as names that cannot be looked up"""
    renamed: "_Renamed | None" = None


@dataclass(frozen=True, slots=True)
class _Renamed:
    """A directory of the upper layer whose lower part is, or was, elsewhere: see redirects.py."""

    waiting: str | None
    """name in the scratch directory of the part that the layer beneath had of it"""
    lower: Path | None
    """where the layers below both have a part of it"""


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

    Whiteouts stay, since there are layers below these two, and so do notes of where in them a renamed directory's
    lower part lies; what the layer `target` has of such a directory moves with it.
    """
    return _TreeClone(scratch, userxattr, check).run(source, target, fresh=False)


def bring_in(tree: int, lower: int, *, scratch: int, check: Callable[[], None] = lambda: None) -> None:
    """Give each renamed directory of the layer `tree` a copy of what `lower`, all that is below it, has of it.

    The layer then shows the same without a note of a rename, and can be kept where nobody understands those.
    `scratch` is an empty directory on the layer's file system, empty again afterwards. Raises: TreeRefused, OSError.
    """
    for redirect in reversed(redirects_of(tree, max_depth=MAX_DEPTH)):
        *parents, name = redirect.place
        with opened_below(tree, tuple(parents)) as parent, opened_below(parent, (name,)) as directory:
            set_lower(directory, None)
            if redirect.lower is None:
                continue
            os.mkdir(_WHOLE, 0o700, dir_fd=scratch)
            os.mkdir(_LINKS, 0o700, dir_fd=scratch)
            with opened_below(scratch, (_WHOLE,)) as whole, opened_below(scratch, (_LINKS,)) as links:
                with contextlib.suppress(FileNotFoundError), opened_below(lower, redirect.lower) as below:
                    clone_tree(below, whole, scratch=links, check=check)
                lay_over(directory, whole, scratch=links, check=check)
            os.rmdir(_LINKS, dir_fd=scratch)
            kept = os.fstat(parent)
            _remove(parent, name)
            os.rename(_WHOLE, name, src_dir_fd=scratch, dst_dir_fd=parent)
            os.utime(parent, ns=(kept.st_atime_ns, kept.st_mtime_ns))


class _TreeClone:
    def __init__(self, scratch: int, userxattr: bool, check: Callable[[], None]) -> None:
        self._scratch = scratch
        self._opaque = ("user." if userxattr else "trusted.") + OPAQUE
        self._kept = frozenset({self._opaque} if userxattr else {self._opaque, REDIRECT})
        """what a directory of the layer beneath notes of those below, and keeps when it is merged"""
        self._check = check
        self._reflink = True
        self._linked: dict[int, int] = {}
        """names of a file still to come, by inode; its copy waits in the scratch directory meanwhile"""
        self._renamed: dict[Path, _Renamed] = {}
        """directories of the upper layer whose lower part is not at their own place"""
        self._merging = False
        self._summary = CloneSummary()

    def run(self, source: int, target: int, *, fresh: bool) -> CloneSummary:
        self._merging = not fresh
        if self._merging and REDIRECT in self._kept:
            self._find_renamed(source, target)
        covers = not fresh and self._opaque in os.listxattr(source)
        stack = [_open_frame(os.dup(source), os.dup(target), fresh=fresh, place=(), covers=covers)]
        try:
            while stack:
                self._check()
                self._step(stack)
        finally:
            for frame in stack:
                _close_frame(frame)
            self._forget_links()
            for renamed in self._renamed.values():
                if renamed.waiting is not None:  # an upper layer that no overlay has written
                    _remove(self._scratch, renamed.waiting)
        return self._summary

    def _find_renamed(self, source: int, target: int) -> None:
        """Take the lower parts of renamed directories out of the layer beneath, the deepest first: they may lie in
        one another, and what the upper layer has at their old places would remove them.
        """
        redirects = redirects_of(source, max_depth=MAX_DEPTH)
        for redirect in sorted(redirects, key=lambda redirect: len(redirect.lower or ()), reverse=True):
            self._check()
            waiting, lower = None, redirect.lower
            if redirect.lower:
                there, lower = locate(target, redirect.lower)
                if there:
                    waiting = f"{_WAITING}{len(self._renamed)}"
                    *parents, name = redirect.lower
                    with opened_below(target, tuple(parents)) as parent:
                        os.rename(name, waiting, src_dir_fd=parent, dst_dir_fd=self._scratch)
            self._renamed[redirect.place] = _Renamed(waiting, lower)

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
        if kind == stat.S_IFCHR and frame.covers:
            return None
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
        place = (*frame.place, name)
        renamed = self._renamed.pop(place, None)
        source = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=frame.source)
        try:
            if renamed is not None:
                fresh, hides = self._put_renamed(frame, name, renamed), False
            else:
                fresh, hides = (True, False) if frame.fresh else self._clear_way(frame, name, source)
            if fresh:
                os.mkdir(name, 0o700, dir_fd=frame.target)
            target = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=frame.target)
        except BaseException:
            os.close(source)
            raise
        if hides:
            os.setxattr(target, self._opaque, b"y")
        covers = self._merging and self._covers(frame, source, target, renamed)
        return _open_frame(source, target, fresh=fresh, place=place, covers=covers, renamed=renamed)

    def _covers(self, frame: _Frame, source: int, target: int, renamed: _Renamed | None) -> bool:
        if renamed is not None:
            return renamed.lower is None
        beneath = os.listxattr(target)
        if self._opaque in os.listxattr(source) or self._opaque in beneath:
            return True
        return frame.covers and REDIRECT not in beneath  # which leads out of what covers it

    def _put_renamed(self, frame: _Frame, name: str, renamed: _Renamed) -> bool:
        """Put what the layer beneath has of it in its new place. Whether there is nothing, and it begins anew."""
        if not frame.fresh:
            _remove(frame.target, name)
        if renamed.waiting is None:
            return True
        os.rename(renamed.waiting, name, src_dir_fd=self._scratch, dst_dir_fd=frame.target)
        return False

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
            _copy_attributes(frame.source, frame.target, frame.found, keep=self._kept)
            if frame.renamed is not None:
                set_lower(frame.target, frame.renamed.lower)
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


def _open_frame(
    source: int, target: int, *, fresh: bool, place: Path, covers: bool, renamed: _Renamed | None = None
) -> _Frame:
    try:
        return _Frame(source, target, iter(os.listdir(source)), fresh, os.fstat(source), place, covers, renamed)
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


def _copy_attributes(
    source: int, target: int, found: os.stat_result, *, keep: AbstractSet[str] = frozenset()
) -> None:
    """In the order in which the kernel lets them stand: chown clears setuid and capabilities."""
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    names = os.listxattr(source)
    for name in set(os.listxattr(target)) - {*names, *keep}:
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
