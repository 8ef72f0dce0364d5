"""Attributes of files as chattr(1) sets them (ioctl_iflags(2))."""

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

FS_TOPDIR_FL: Final = 0x00020000
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602


def get_flags(directory: int) -> int:
    """Raises: OSError where the file system has no such flags."""
    (flags,) = struct.unpack("=l", fcntl.ioctl(directory, _FS_IOC_GETFLAGS, struct.pack("=l", 0)))
    return int(flags)


def spread_subdirectories(path: Path) -> None:
    """Have ext4 put each directory that is made in `path` into a block group of its own choice.

    By default it keeps them together, and then searches that one group for an inode, past each that was deleted in
    the last seconds (recently_deleted() in fs/ext4/ialloc.c). Where directories come and go by the hundred, mounting
    an overlay, which makes a few inodes, took 0.6 to 1.1 ms with that search and takes 0.2 ms without. Other file
    systems do not know the flag.
    """
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            flags = struct.pack("=l", get_flags(directory) | FS_TOPDIR_FL)
            fcntl.ioctl(directory, _FS_IOC_SETFLAGS, flags)
    finally:
        os.close(directory)
