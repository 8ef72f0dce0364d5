"""XFS project quotas: a bound on what a directory tree holds (<linux/fs.h>, <linux/dqblk_xfs.h>)."""

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from sandboxd.kernel.syscalls import oserror

_FSGETXATTR: Final = 0x801C581F
_FSSETXATTR: Final = 0x401C5820
_XFLAG_PROJINHERIT: Final = 0x200
_FSXATTR: Final = struct.Struct("=IIIII8x")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize"""

_PROJECT_QUOTA: Final = 2
_SET_LIMIT: Final = 0x5804
"""Q_XSETQLIM"""
_BLOCK_HARD: Final = 1 << 3
"""FS_DQ_BHARD"""
_BASIC_BLOCK: Final = 512

_libc = ctypes.CDLL(None, use_errno=True)


def set_project(directory: Path, project: int) -> None:
    """Have the directory, and what is made in it from now on, belong to a project."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        buffer = bytearray(_FSXATTR.size)
        fcntl.ioctl(descriptor, _FSGETXATTR, buffer)
        flags, extent, extents, _, cow_extent = _FSXATTR.unpack(buffer)
        wanted = _FSXATTR.pack(flags | _XFLAG_PROJINHERIT, extent, extents, project, cow_extent)
        fcntl.ioctl(descriptor, _FSSETXATTR, bytearray(wanted))
    finally:
        os.close(descriptor)


def limit_project(device: str, project: int, size: int) -> None:
    """Bound a project on the file system of a block device to `size` bytes; 0 lifts the bound."""
    blocks = -(-size // _BASIC_BLOCK)
    # version, flags, fieldmask, id, block hard/soft, inode hard/soft, counts, timers, warnings, real time, padding
    quota = bytearray(112)
    struct.pack_into("=bbHIQQ", quota, 0, 1, _PROJECT_QUOTA, _BLOCK_HARD, project, blocks, 0)
    command = ctypes.c_int((_SET_LIMIT << 8) | _PROJECT_QUOTA)
    argument = (ctypes.c_char * len(quota)).from_buffer(quota)
    if _libc.quotactl(command, os.fsencode(device), ctypes.c_int(project), argument) < 0:
        raise oserror("quotactl", device)
