"""btrfs subvolumes by ioctl (<linux/btrfs.h>): directories copied, bounded and removed in constant time."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_QUOTA_CTL: Final = 0xC0109428
_QGROUP_LIMIT: Final = 0x8030942B
_SNAP_CREATE_V2: Final = 0x50009417
_SNAP_DESTROY: Final = 0x5000940F
_SUBVOL_CREATE: Final = 0x5000940E

_ENABLE_SIMPLE_QUOTA: Final = 4
"""since Linux 6.7: every extent is charged to the subvolume that wrote it, without the cost of full accounting"""
_LIMIT_MAX_REFERENCED: Final = 1
FIRST_SUBVOLUME_INODE: Final = 256
"""of the top directory of every subvolume"""


def is_subvolume(path: Path | str) -> bool:
    return os.stat(path, follow_symlinks=False).st_ino == FIRST_SUBVOLUME_INODE


def create_subvolume(path: Path) -> None:
    with _opened(path.parent) as parent:
        _ioctl(parent, _SUBVOL_CREATE, struct.pack("=q4088s", 0, os.fsencode(path.name)), path)


def snapshot_subvolume(source: Path, target: Path) -> None:
    """A writable copy that shares everything. Dirty pages of the source are written out first: that is its cost."""
    with _opened(source) as tree, _opened(target.parent) as parent:
        _ioctl(parent, _SNAP_CREATE_V2, struct.pack("=qQQ32x4040s", tree, 0, 0, os.fsencode(target.name)), target)


def destroy_subvolume(path: Path) -> None:
    """Remove it whole; the kernel gives its space back in the background."""
    with _opened(path.parent) as parent:
        _ioctl(parent, _SNAP_DESTROY, struct.pack("=q4088s", 0, os.fsencode(path.name)), path)


def enable_quotas(path: Path) -> None:
    """Raises OSError: EINVAL before Linux 6.7."""
    with _opened(path) as directory:
        _ioctl(directory, _QUOTA_CTL, struct.pack("=QQ", _ENABLE_SIMPLE_QUOTA, 0), path)


def limit_subvolume(path: Path, size: int) -> None:
    """Bound what may be written into a subvolume, in bytes; a writer beyond it gets EDQUOT."""
    with _opened(path) as directory:
        limit = struct.pack("=QQQQQQ", 0, _LIMIT_MAX_REFERENCED, size, 0, 0, 0)
        _ioctl(directory, _QGROUP_LIMIT, limit, path)


def _ioctl(descriptor: int, request: int, argument: bytes, path: Path) -> None:
    try:
        # A bytearray: Python takes no immutable argument above 1024 bytes.
        fcntl.ioctl(descriptor, request, bytearray(argument))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
