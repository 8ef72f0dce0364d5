"""Thin, same-named wrappers of the system calls that Python lacks. Convert, call, raise OSError; nothing else.

Numbers of calls added since Linux 5.1 are the same on every architecture (arch/*/entry/syscalls in the kernel).
"""

import ctypes
import os
import signal
import struct
from typing import Final

AT_EMPTY_PATH: Final = 0x1000
AT_FDCWD: Final = -100
AT_RECURSIVE: Final = 0x8000
CLONE_INTO_CGROUP: Final = 0x200000000
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWUTS: Final = 0x04000000
MOUNT_ATTR_IDMAP: Final = 0x00100000
MOUNT_ATTR_NODEV: Final = 0x00000004
MOUNT_ATTR_NOSUID: Final = 0x00000002
MOUNT_ATTR_RDONLY: Final = 0x00000001
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x00000040
MS_NOATIME: Final = 1024
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOSUID: Final = 2
MS_PRIVATE: Final = 1 << 18
MS_RDONLY: Final = 1
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
OPEN_TREE_CLONE: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_GET_SECUREBITS: Final = 27
PR_SET_DUMPABLE: Final = 4
PR_SET_SECUREBITS: Final = 28
RESOLVE_BENEATH: Final = 0x08
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_NO_XDEV: Final = 0x01
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2

_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_CLONE3: Final = 435
_NR_OPENAT2: Final = 437
_NR_MOUNT_SETATTR: Final = 442

# PyDLL keeps the GIL: these calls are short, and clone3's child must not come back to a GIL it does not hold.
_libc = ctypes.PyDLL(None, use_errno=True)
_releasing_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# Ids are unsigned, and ours may lie above 2**31.
_libc.setfsgid.restype = _libc.setfsuid.restype = ctypes.c_uint


class CloneArgs(ctypes.Structure):
    """struct clone_args of <linux/sched.h>, version 2."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class MountAttr(ctypes.Structure):
    """struct mount_attr of <linux/mount.h>."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def oserror(call: str, path: str | int = "") -> OSError:
    """The OSError for the errno that the last call left, naming the call and what it was applied to."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}", str(path))


def _syscall(call: str, path: str | int, number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise oserror(call, path)
    return result


def clone3(*, flags: int = 0, cgroup: int = -1) -> int:
    """Fork with clone flags; 0 in the child. Only for a single-threaded process, whose child goes on to exec."""
    arguments = CloneArgs(flags=flags, exit_signal=signal.SIGCHLD)
    if cgroup >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    return _syscall("clone3", "", _NR_CLONE3, ctypes.byref(arguments), size)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    if result < 0:
        raise oserror(f"mount {kind}", target)


def mount_setattr(tree: int, *, attr_set: int, userns: int = 0, flags: int = AT_EMPTY_PATH, path: str = "") -> None:
    attributes = MountAttr(attr_set=attr_set, userns_fd=userns)
    _syscall(
        "mount_setattr",
        path or tree,
        _NR_MOUNT_SETATTR,
        ctypes.c_int(tree),
        os.fsencode(path),
        ctypes.c_uint(flags),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )


def move_mount(tree: int, target: str | int) -> None:
    """Attach the detached mount `tree`, or move the mounted one, to a path or to a place held by a descriptor."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (MOVE_MOUNT_T_EMPTY_PATH if isinstance(target, int) else 0)
    _syscall(
        "move_mount",
        target,
        _NR_MOVE_MOUNT,
        ctypes.c_int(tree),
        b"",
        ctypes.c_int(target if isinstance(target, int) else AT_FDCWD),
        b"" if isinstance(target, int) else os.fsencode(target),
        ctypes.c_uint(flags),
    )


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A detached clone of the mount at `path`, as a descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _syscall("open_tree", path, _NR_OPEN_TREE, ctypes.c_int(AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags))


def openat2(directory: int, path: str, *, flags: int, resolve: int, mode: int = 0) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _syscall(
        "openat2",
        path,
        _NR_OPENAT2,
        ctypes.c_int(directory),
        os.fsencode(path),
        how,
        ctypes.c_size_t(len(how)),
    )


def prctl(option: int, argument: int = 0) -> int:
    result: int = _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), 0, 0, 0)
    if result < 0:
        raise oserror("prctl", option)
    return result


def syncfs(descriptor: int) -> None:
    """Write a whole file system's dirty pages to its disk; other threads of Python go on meanwhile."""
    if _releasing_libc.syncfs(ctypes.c_int(descriptor)) < 0:
        raise oserror("syncfs", descriptor)


def setfsgid(gid: int) -> None:
    """Cannot fail visibly: the call returns the former value whatever happens, so ask again to be sure."""
    _libc.setfsgid(ctypes.c_uint(gid))
    if _libc.setfsgid(ctypes.c_uint(0xFFFFFFFF)) != gid:
        raise PermissionError(1, "setfsgid: not permitted", str(gid))


def setfsuid(uid: int) -> None:
    _libc.setfsuid(ctypes.c_uint(uid))
    if _libc.setfsuid(ctypes.c_uint(0xFFFFFFFF)) != uid:
        raise PermissionError(1, "setfsuid: not permitted", str(uid))


def setns(descriptor: int, kind: int = 0) -> None:
    if _libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)) < 0:
        raise oserror("setns", descriptor)


def unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)) < 0:
        raise oserror("unshare", hex(flags))
