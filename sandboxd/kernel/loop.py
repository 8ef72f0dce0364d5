"""Loop devices and the mounting of what is in them, without anything that would have to be undone.

A device is set to detach itself with its last user (LO_FLAGS_AUTOCLEAR), and mounts are made in a mount namespace of
the daemon's own: when the daemon and the last sandbox are gone, the kernel has unmounted and detached everything,
however they went.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sandboxd.kernel import syscalls

_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_CTL_GET_FREE: Final = 0x4C82
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16
"""Of <linux/loop.h>. Without direct I/O every write passes the page cache twice; tried: 4 s instead of 0.7 s to
write out 1 GiB."""
_BLOCK_SIZE: Final = 4096
_ATTEMPTS: Final = 20


def enter_private_mounts() -> None:
    """A mount namespace of our own: what the host mounts later shows here, what is mounted here shows nowhere else.

    For a process that has no threads yet.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """A loop device over the file: the one there is, or a new one. It goes when nobody has it mounted or open."""
    descriptor = -1
    for device in attached(file):
        with contextlib.suppress(OSError):
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            if _backing_file(descriptor) == _identity(file):
                break
            os.close(descriptor)
            descriptor = -1
    else:
        device, descriptor = _attach(file)
    try:
        yield device
    finally:
        os.close(descriptor)


def attached(file: Path) -> list[str]:
    """Loop devices over the file."""
    try:
        wanted = _identity(file)
    except FileNotFoundError:
        return []
    bound = [f"/dev/{entry.name}" for entry in os.scandir("/sys/block") if os.path.isdir(f"{entry.path}/loop")]
    return [device for device in bound if _is_over(device, wanted)]


def _is_over(device: str, wanted: tuple[int, int]) -> bool:
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it went meanwhile
        return False
    try:
        return _backing_file(descriptor) == wanted
    finally:
        os.close(descriptor)


def _attach(file: Path) -> tuple[str, int]:
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            device = f"/dev/loop{_free_number()}"
            descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                _configure(descriptor, backing)
            except OSError as error:
                os.close(descriptor)
                if error.errno != errno.EBUSY:  # somebody else was given the same free number, and was faster
                    raise
            else:
                return device, descriptor
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device could be had", str(file))


def _free_number() -> int:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def _configure(device: int, backing: int) -> None:
    """struct loop_config: fd, block size, then struct loop_info64, whose flags lie at byte 52 of it."""
    for flags in (_AUTOCLEAR | _DIRECT_IO, _AUTOCLEAR):  # not every file system can do direct I/O
        config = bytearray(304)
        struct.pack_into("=II", config, 0, backing, _BLOCK_SIZE)
        struct.pack_into("=I", config, 8 + 52, flags)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
                raise
        else:
            return


def refresh_size(device: str) -> None:
    """Have a device notice that its file has grown."""
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, 0x4C07)  # LOOP_SET_CAPACITY
    finally:
        os.close(descriptor)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _backing_file(device: int) -> tuple[int, int] | None:
    """As _identity(); None if the device has none any more.

    Not by the path in sysfs: the daemon that attached it saw the file through a mount namespace of its own. When that
    has gone the path lacks what the file system was mounted at, and a second device would be put over the file.
    """
    info = bytearray(232)  # struct loop_info64: device, inode, …
    try:
        fcntl.ioctl(device, _LOOP_GET_STATUS64, info)
    except OSError:
        return None
    number, inode = struct.unpack_from("=QQ", info)
    return number, inode
