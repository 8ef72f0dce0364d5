"""Begins a snapshot's file (see layerarchive): what GNU tar cannot write is written here, the rest is left to it.

That is the manifest, which comes first, sockets, for which tar has no type, and FIFOs, of which GNU tar does not see
that two names are of one.
"""

import os
import stat
import tarfile
from contextlib import closing
from typing import IO, Final

from sandboxd.trees.layerarchive import MANIFEST, TREE
from sandboxd.trees.tarstream import BLOCK, FILE_TYPE_RECORD
from sandboxd.trees.treewalk import Found, walk

_BILLION: Final = 1_000_000_000


def begin_archive(tree: int, manifest: bytes, *, head: IO[bytes], names: IO[bytes]) -> None:
    """For the layer's tree open as `tree`: `head` gets the first entries, `names` what tar has to put behind them.

    `names` are those of everything else, each with a NUL behind it, a directory before what is in it.
    """
    info = tarfile.TarInfo(MANIFEST.decode())
    info.size = len(manifest)
    head.write(info.tobuf(tarfile.PAX_FORMAT) + manifest + bytes(-len(manifest) % BLOCK))
    names.write(TREE + b"\0")
    written: dict[int, str] = {}
    with closing(walk(tree)) as everything:
        for found in everything:
            path = f"{TREE.decode()}/{found.path}"
            if stat.S_ISFIFO(found.status.st_mode) or stat.S_ISSOCK(found.status.st_mode):
                head.write(_special(found, path, written))
            else:
                names.write(os.fsencode(path) + b"\0")


def _special(found: Found, path: str, written: dict[int, str]) -> bytes:
    info = tarfile.TarInfo(path)
    if first := written.get(found.status.st_ino):
        info.type, info.linkname = tarfile.LNKTYPE, first
    else:
        _describe(info, found)
        if found.status.st_nlink > 1:
            written[found.status.st_ino] = path
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _describe(info: tarfile.TarInfo, found: Found) -> None:
    status = found.status
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    seconds, rest = divmod(abs(status.st_mtime_ns), _BILLION)
    info.pax_headers = {"mtime": f"{'-' if status.st_mtime_ns < 0 else ''}{seconds}.{rest:09}"}
    if stat.S_ISFIFO(status.st_mode):
        info.type = tarfile.FIFOTYPE
    else:
        info.pax_headers[FILE_TYPE_RECORD.decode()] = "socket"
    place = f"/proc/self/fd/{found.parent}/{found.name}"
    for name in os.listxattr(place, follow_symlinks=False):
        value = os.getxattr(place, name, follow_symlinks=False)
        info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
