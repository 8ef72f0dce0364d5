"""A sandbox's root: read-only layers and one writable directory, each idmapped, under an overlay.

Files keep their natural ids on disk. The idmapped mounts show them in the sandbox's range, and overlayfs goes on
top, so nothing is ever chowned. All of it happens in the sandbox's own mount namespace, under a tmpfs: nothing is
mounted on the host, so nothing can be left mounted there, whoever dies when.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from sandboxd.kernel import syscalls
from sandboxd.kernel.syscalls import MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

UPPER = "upper"
WORK = "work"

READ_ONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


class NotAMountPoint(OSError):
    """Where something has to be mounted, the tree has something else than a plain directory."""


def make_private() -> None:
    """Cut mount propagation to the host, first of all."""
    syscalls.mount("none", "/", flags=MS_REC | MS_PRIVATE)


def make_stage(stage: str) -> None:
    """Put an empty tmpfs at `stage`; the working directory moves there."""
    syscalls.mount("stage", stage, "tmpfs", flags=MS_NOSUID | MS_NODEV, data="mode=0755,size=1m")
    os.chdir(stage)


def clone_tree(source: str, *, userns: int | None = None, read_only: bool = False) -> int:
    """A detached mount of `source` as a descriptor, seen through `userns`'s id map if one is given.

    Taken before the stage is made, which may hide the source.
    """
    tree = syscalls.open_tree(source)
    if userns is not None:
        syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns=userns)
    if read_only:
        syscalls.mount_setattr(tree, attr_set=READ_ONLY)
    return tree


def make_read_only(path: str) -> None:
    """Cover what is at `path`, and all mounted below it, by itself, read-only."""
    tree = syscalls.open_tree(path, recursive=True)
    try:
        flags = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        syscalls.mount_setattr(tree, attr_set=READ_ONLY, flags=flags)
        syscalls.move_mount(tree, path)
    finally:
        os.close(tree)


def attach(tree: int, target: str) -> None:
    """Show a detached mount at `target`, which is created. The descriptor stays the caller's."""
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    syscalls.move_mount(tree, target)


@contextlib.contextmanager
def acting_as(root_id: int) -> Iterator[None]:
    """Touch files as the sandbox's root, with one's own capabilities.

    overlayfs writes with its mounter's credentials, and those must be mapped by the layers' id map: with any other
    fsuid it fails with EOVERFLOW and silently becomes read-only. SECBIT_NO_SETUID_FIXUP keeps the capabilities
    that a changed fsuid would cost.
    """
    bits, dumpable = syscalls.prctl(syscalls.PR_GET_SECUREBITS), syscalls.prctl(syscalls.PR_GET_DUMPABLE)
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, bits | syscalls.SECBIT_NO_SETUID_FIXUP)
    syscalls.setfsgid(root_id)
    syscalls.setfsuid(root_id)
    try:
        yield
    finally:
        syscalls.setfsuid(os.geteuid())
        syscalls.setfsgid(os.getegid())
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, bits)
        if (
            dumpable == 1
        ):  # a changed fsuid made /proc/PID the host root's, also for a parent that must write its maps
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


def make_identity_layer(path: str, files: Iterable[tuple[str, str]]) -> None:
    """A layer with the files that make a sandbox itself. On the stage's tmpfs, so it is gone with the sandbox.

    Above the image's layers, below the writable one: the sandbox may change these files, and a snapshot of the
    writable layer does not carry them into a clone.
    """
    for name, text in files:
        os.makedirs(os.path.dirname(f"{path}/{name}"), 0o755, exist_ok=True)
        descriptor = os.open(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, text.encode())
        os.close(descriptor)


def mount_overlay(lowers: Sequence[str], writable: str, target: str, *, userxattr: bool) -> None:
    """Mount the overlay at `target`. `writable` holds the directories UPPER and WORK."""
    options = [
        f"lowerdir={':'.join(lowers)}",
        f"upperdir={writable}/{UPPER}",
        f"workdir={writable}/{WORK}",
        # A sandbox's disk is thrown away or frozen before it is copied: fsync in it may not stall the host.
        "volatile",
        # The layers may lie on several file systems: without it every file of another one has a device of its own.
        "xino=on",
    ]
    # A directory of a lower layer, as all are in a clone, can be renamed by a note of where it was. The kernel takes
    # no such notes from where a sandbox could write them itself: without root the rename fails with EXDEV.
    options.append("userxattr" if userxattr else "redirect_dir=on")
    syscalls.mount("overlay", target, "overlay", flags=MS_NOSUID | MS_NODEV, data=",".join(options))


def mount_point(root: int, point: str) -> int:
    """A descriptor of the directory `point` in the tree at the descriptor `root`, made if it is missing.

    Refuses one that is, or lies behind, a symbolic link: a sandbox's root is hostile, and whoever mounts by such a
    path mounts, and makes directories, elsewhere (CVE-2026-87766 of bwrap before 0.12).
    """
    parent = os.dup(root)
    for part in point.strip("/").split("/"):
        try:
            found = _open_or_make(parent, part)
        except OSError as error:
            message = f"the image's {point} is not a plain directory, and is a mount point"
            raise NotAMountPoint(error.errno, message) from error
        finally:
            os.close(parent)
        parent = found
    return parent


def _open_or_make(parent: int, part: str) -> int:
    resolve = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        return syscalls.openat2(parent, part, flags=os.O_PATH | os.O_DIRECTORY, resolve=resolve)
    except FileNotFoundError:
        os.mkdir(part, 0o755, dir_fd=parent)
        return syscalls.openat2(parent, part, flags=os.O_PATH | os.O_DIRECTORY, resolve=resolve)


def make_cover(path: str) -> None:
    """An empty directory that cannot be written, made at `path`: clones of it hide what they are mounted over."""
    os.mkdir(path)
    syscalls.mount("cover", path, "tmpfs", flags=MS_RDONLY | MS_NOSUID | MS_NODEV, data="mode=0755,size=4k")
