"""Extended attributes that name ids: file capabilities (capabilities(7)) and access control lists (acl(5)).

The kernel gives and takes them with ids as the reader's user namespace has them; a file for other machines has them
off by what the owners in it are off by.
"""

import struct
from collections.abc import Iterator
from typing import Final

CAPABILITY: Final = b"security.capability"
LISTS: Final = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})

_REVISION_MASK: Final = 0xFF000000
_REVISION_2: Final = 0x02000000
_REVISION_3: Final = 0x03000000
"""as 2, with the id of the root to whom the capabilities are due; in 2 that is 0"""
_CAPABILITY_SIZES: Final = {_REVISION_2: 20, _REVISION_3: 24}
_LIST_VERSION: Final = 2
_USER: Final = 2
_GROUP: Final = 8
MAX_ID: Final = 65535


def moved(name: bytes, value: bytes, *, off: int, on: int) -> bytes | None:
    """The attribute with `off` taken from each id in it and `on` put on.

    None for any other attribute, for one that is damaged, and for ids of nobody in a sandbox.
    """
    try:
        if name == CAPABILITY:
            return _capability(value, off, on)
        if name in LISTS:
            return _list(value, off, on)
    except (struct.error, ValueError):
        return None
    return None


def _capability(value: bytes, off: int, on: int) -> bytes:
    (magic,) = struct.unpack_from("<I", value)
    revision = magic & _REVISION_MASK
    if len(value) != _CAPABILITY_SIZES.get(revision):
        raise ValueError(value)
    root = struct.unpack_from("<I", value, 20)[0] if revision == _REVISION_3 else 0
    root = _id(root - off) + on
    flags = magic & ~_REVISION_MASK
    if root == 0:
        return struct.pack("<I", _REVISION_2 | flags) + value[4:20]
    return struct.pack("<I", _REVISION_3 | flags) + value[4:20] + struct.pack("<I", root)


def _list(value: bytes, off: int, on: int) -> bytes:
    if struct.unpack_from("<I", value) != (_LIST_VERSION,):
        raise ValueError(value)
    return value[:4] + b"".join(_entries(value, off, on))


def _entries(value: bytes, off: int, on: int) -> Iterator[bytes]:
    for tag, rights, number in struct.iter_unpack("<HHI", value[4:]):
        named = tag in (_USER, _GROUP)
        yield struct.pack("<HHI", tag, rights, _id(number - off) + on if named else number)


def _id(number: int) -> int:
    if not 0 <= number <= MAX_ID:
        raise ValueError(number)
    return number
